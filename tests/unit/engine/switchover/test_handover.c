/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions with storage locks, over a VM and storage that fail when told to.  Each
 * time a guest begins to run, and each time the source offers, it is checked that
 * the locks are where they must be.
 */
#include <pthread.h>
#include <sys/eventfd.h>
#include "fakelock.h"
#include "fakevm.h"
#include "engine/session/session.h"
#include "unit.h"

#define N 2

static const char *const uris[] = { "fake:0", "fake:1", "fake:2" }, *const swapped[] = { "fake:1", "fake:0" };

struct pair {
	struct fakelock_storage *storage;
	struct fakevm_state *a, *b;
	struct lm_vm_ops ops[2];
	struct lm_session *src, *dst;
	struct lm_options src_opt, dst_opt;
	struct lm_error src_err, dst_err;
	int src_ret, dst_ret;
};

static struct pair *now;            /* what the hooks look at */
static _Atomic unsigned violations; /* a guest ran, or was running, where it must not */

static int (*fake_resume)(struct lm_vm *, int64_t, struct lm_vm_times *, struct lm_error *);

static int resume(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err)
{
	if (!fakelock_owns(fakevm_state_of(vm) == now->a ? "a" : "b", N))
		violations++;
	return fake_resume(vm, deadline_ns, ret, err);
}

static void before_op(void *opaque, const char *host, enum fakelock_op op, unsigned number)
{
	const struct pair *p = opaque;

	(void)number;
	if (op == FAKE_OFFER && !strcmp(host, "a") && p->a->running)
		violations++;
}

static struct pair *pair_new(void)
{
	static const struct fakevm_config small = {
		.nregions = 1, .region_bytes = { 4u << 20 }, .source = true, .writes_per_ms = 5,
	};
	struct fakevm_config b = small;
	struct pair *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	now = p;
	violations = 0;
	p->storage = fakelock_reset();
	p->storage->before = before_op;
	p->storage->opaque = p;
	b.source = false;
	p->a = fakevm_state_new(&small);
	p->b = fakevm_state_new(&b);
	lm_options_default(&p->src_opt);
	p->src_opt.guardian = false;
	p->src_opt.lanes = 1;
	p->src_opt.locks = uris;
	p->src_opt.nlocks = N;
	p->src_opt.lock_host = "a";
	p->src_opt.max_downtime_ns = 100 * LM_NS_PER_MS; /* slow machines, too, are to come to an end */
	p->dst_opt = p->src_opt;
	p->dst_opt.address = "127.0.0.1:0";
	p->dst_opt.lock_host = "b";
	fakevm_fill(p->a, 50, 1);
	return p;
}

static int session(struct pair *p, enum lm_side side, struct lm_session **ret, struct lm_error *err)
{
	struct lm_vm *vm = fakevm_new(side == LM_SOURCE ? p->a : p->b);
	struct lm_options *copy = malloc(sizeof(*copy));

	*copy = side == LM_SOURCE ? p->src_opt : p->dst_opt;
	fake_resume = vm->ops->resume;
	p->ops[side] = *vm->ops;
	p->ops[side].resume = resume;
	vm->ops = &p->ops[side];
	return lm_session_new(copy, side, vm, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), ret, err);
}

static void *dest_main(void *arg)
{
	struct pair *p = arg;

	p->dst_ret = lm_session_run(p->dst, &p->dst_err);
	return NULL;
}

static void pair_run(struct pair *p, const char *fault, const char *broken)
{
	pthread_t dest;

	assert_ok(session(p, LM_DEST, &p->dst, &p->dst_err), p->dst_err);
	p->src_opt.address = lm_session_address(p->dst);
	assert_ok(session(p, LM_SOURCE, &p->src, &p->src_err), p->src_err);
	if (fault)
		setenv("LM_FAULT", fault, 1);
	if (broken)
		setenv("LM_BREAK", broken, 1);
	pthread_create(&dest, NULL, dest_main, p);
	p->src_ret = lm_session_run(p->src, &p->src_err);
	pthread_join(dest, NULL);
	unsetenv("LM_FAULT");
	unsetenv("LM_BREAK");
}

static void pair_free(struct pair *p)
{
	lm_session_free(p->src);
	lm_session_free(p->dst);
	fakevm_state_free(p->a);
	fakevm_state_free(p->b);
	free(p);
}

/* Here and nowhere else, with the locks. */
static void assert_at(const struct pair *p, char host)
{
	if (p->a->running != (host == 'a') || p->b->running != (host == 'b'))
		fail_msg("runs at a: %d, at b: %d; source: %s; destination: %s", p->a->running, p->b->running,
			 p->src_err.msg, p->dst_err.msg);
	assert_true(fakelock_owns(host == 'a' ? "a" : "b", N));
	assert_int_equal(violations, 0);
}

static enum lm_outcome outcome(const struct pair *p)
{
	return lm_session_summary(p->src)->outcome;
}

static void the_locks_go_with_the_guest(void **state)
{
	struct pair *p = pair_new();
	const struct lm_blackout *b;

	(void)state;
	pair_run(p, NULL, NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_COMPLETED);
	assert_at(p, 'b');
	assert_string_equal(p->storage->log, "a acquire 0 0;a acquire 1 0;a announce 0 0;a announce 1 0;b prepare 0 0;"
			    "b prepare 1 0;a offer 0 0;a offer 1 0;b take 0 0;b take 1 0;");
	b = &lm_session_summary(p->src)->blackout;
	assert_true(b->lock_offer_ns > 0 && b->lock_take_ns > 0);
	assert_int_equal(b->lock_ns, b->lock_offer_ns + b->lock_take_ns);
	assert_true(b->device_state_ns > 0 && b->resume_ns > 0);
	assert_true(b->stop_ns + b->last_scan_ns + b->last_copy_ns + b->lock_ns + b->device_state_ns + b->resume_ns <=
		    b->total_ns);
	pair_free(p);
}

static void another_number_of_locks_is_refused(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	p->dst_opt.nlocks = N + 1;
	pair_run(p, NULL, NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_REFUSED);
	assert_non_null(strstr(p->src_err.msg, "2 storage locks at the source, 3 at the destination"));
	assert_at(p, 'a');
	assert_false(p->b->ended);
	pair_free(p);
}

static void locks_in_another_order_are_refused_before_anything_is_copied(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	p->dst_opt.locks = swapped;
	pair_run(p, NULL, NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_REFUSED);
	assert_non_null(strstr(p->src_err.msg, "has other storage"));
	assert_int_equal(lm_session_summary(p->src)->sent_pages, 0);
	assert_at(p, 'a');
	pair_free(p);
}

static void a_guest_whose_locks_are_elsewhere_is_not_touched(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	p->storage->lock[1].state = FAKE_OWNED;
	strcpy(p->storage->lock[1].owner, "c");
	p->src_opt.address = "127.0.0.1:1";
	assert_fails(session(p, LM_SOURCE, &p->src, &p->src_err), -EBUSY, p->src_err);
	assert_non_null(strstr(p->src_err.msg, "c holds it"));
	assert_null(p->src);
	assert_true(p->a->running);
	pair_free(p);
}

/* Injected errors at each stage of the hand-over: the guest is at the source, with its locks. */
static void errors_in_the_hand_over_leave_the_guest_at_the_source(void **state)
{
	static const char *const stages[] = { "announced", "offering", "offered", "loaded", "taking", "taken", "fenced" };

	(void)state;
	for (unsigned i = 0; i < sizeof(stages) / sizeof(stages[0]); i++) {
		struct pair *p = pair_new();
		char fault[64];

		snprintf(fault, sizeof(fault), "%s:error", stages[i]);
		pair_run(p, fault, NULL);
		assert_int_equal(outcome(p), i ? LM_OUTCOME_ABORTED : LM_OUTCOME_REFUSED);
		assert_at(p, 'a');
		pair_free(p);
	}
}

static void what_cannot_be_taken_whole_is_given_back(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	p->dst_opt.peer_timeout_ns = 300 * LM_NS_PER_MS;
	fakelock_fail(1, FAKE_TAKE, "b", -EIO, 1000000);
	pair_run(p, NULL, NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_ABORTED);
	assert_true(p->b->ended);
	assert_at(p, 'a');
	pair_free(p);
}

static void a_path_that_comes_back_costs_time_only(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	fakelock_fail(1, FAKE_TAKE, "b", -EIO, 3);
	pair_run(p, NULL, NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_COMPLETED);
	assert_at(p, 'b');
	pair_free(p);
}

static void an_offer_that_is_void_ends_the_destination(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	fakelock_fail(0, FAKE_TAKE, "b", -ESTALE, 1);
	pair_run(p, NULL, NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_ABORTED);
	assert_true(p->b->ended);
	assert_at(p, 'a');
	pair_free(p);
}

static void locks_that_cannot_be_taken_back_leave_the_guest_paused(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	fakelock_fail(1, FAKE_OFFER, "a", -EIO, 1);
	pair_run(p, "reclaiming:error", NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_IN_DOUBT);
	assert_false(p->a->running || p->b->running);
	assert_false(lm_session_summary(p->src)->guest_runs_here);
	assert_int_equal(violations, 0);
	pair_free(p);
}

static void silence_after_commit_is_ended_by_the_lock(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	p->src_opt.peer_timeout_ns = 700 * LM_NS_PER_MS;
	pair_run(p, "taking:sleep=2000", NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_ABORTED);
	assert_non_null(strstr(p->src_err.msg, "never runs the guest"));
	assert_int_equal(p->dst_ret, -ESTALE); /* it woke up, and was too late */
	assert_true(p->b->ended);
	assert_at(p, 'a');
	pair_free(p);
}

static void a_destination_that_has_the_locks_is_waited_for(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	p->src_opt.peer_timeout_ns = 900 * LM_NS_PER_MS;
	pair_run(p, "taken:sleep=1300", NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_COMPLETED);
	assert_at(p, 'b');
	pair_free(p);
}

static void a_destination_that_has_the_locks_and_is_silent_keeps_the_guest(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	p->src_opt.peer_timeout_ns = 700 * LM_NS_PER_MS;
	pair_run(p, "resumed:sleep=2500", NULL);
	assert_int_equal(outcome(p), LM_OUTCOME_IN_DOUBT);
	assert_non_null(strstr(p->src_err.msg, "the destination has the storage lock"));
	assert_at(p, 'b');
	pair_free(p);
}

/* ---- teeth: without each rule the hooks see what it prevents ---- */

static void without_taking_the_guest_runs_at_a_host_that_may_not_write(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	pair_run(p, NULL, "lock-take");
	assert_true(violations);
	pair_free(p);
}

static void without_reclaiming_the_guest_runs_while_the_offer_is_out(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	pair_run(p, "offered:error", "lock-reclaim");
	assert_true(p->a->running);
	assert_true(violations);
	pair_free(p);
}

static void offered_too_early_the_guest_still_writes(void **state)
{
	struct pair *p = pair_new();

	(void)state;
	pair_run(p, NULL, "lock-early");
	assert_true(violations);
	pair_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_locks_go_with_the_guest),
		cmocka_unit_test(another_number_of_locks_is_refused),
		cmocka_unit_test(locks_in_another_order_are_refused_before_anything_is_copied),
		cmocka_unit_test(a_guest_whose_locks_are_elsewhere_is_not_touched),
		cmocka_unit_test(errors_in_the_hand_over_leave_the_guest_at_the_source),
		cmocka_unit_test(what_cannot_be_taken_whole_is_given_back),
		cmocka_unit_test(a_path_that_comes_back_costs_time_only),
		cmocka_unit_test(an_offer_that_is_void_ends_the_destination),
		cmocka_unit_test(locks_that_cannot_be_taken_back_leave_the_guest_paused),
		cmocka_unit_test(silence_after_commit_is_ended_by_the_lock),
		cmocka_unit_test(a_destination_that_has_the_locks_is_waited_for),
		cmocka_unit_test(a_destination_that_has_the_locks_and_is_silent_keeps_the_guest),
		cmocka_unit_test(without_taking_the_guest_runs_at_a_host_that_may_not_write),
		cmocka_unit_test(without_reclaiming_the_guest_runs_while_the_offer_is_out),
		cmocka_unit_test(offered_too_early_the_guest_still_writes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
