/* SPDX-License-Identifier: Apache-2.0 */
/* Whole sessions, source and destination in one process over TCP on loopback, with a VM that can fail. */
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "fakevm.h"
#include "netrelay.h"
#include "engine/session/session.h"

struct pair {
	struct fakevm_state *a, *b; /* source's and destination's VM */
	struct lm_session *src, *dst;
	struct lm_options src_opt, dst_opt;
	struct lm_error src_err, dst_err;
	int src_ret, dst_ret;
	unsigned rounds_seen, decisions;
	void (*on_round)(struct pair *p, const struct lm_round *round);
};

static void on_event(void *opaque, const struct lm_event *e)
{
	struct pair *p = opaque;

	if (e->type == LM_EVENT_DECISION)
		p->decisions++;
	if (e->type != LM_EVENT_ROUND)
		return;
	p->rounds_seen++;
	if (p->on_round)
		p->on_round(p, &e->u.round);
}

static struct pair *pair_new(const struct fakevm_config *config)
{
	struct pair *p = calloc(1, sizeof(*p));
	struct fakevm_config b = *config;

	p->a = fakevm_state_new(config);
	b.source = false;
	p->b = fakevm_state_new(&b);
	lm_options_default(&p->src_opt);
	lm_options_default(&p->dst_opt);
	p->src_opt.guardian = p->dst_opt.guardian = false;
	p->dst_opt.address = "127.0.0.1:0";
	p->src_opt.event = on_event;
	p->src_opt.event_opaque = p;
	p->src_opt.lanes = 2;
	p->src_opt.max_downtime_ns = 100 * LM_NS_PER_MS; /* slow machines, too, are to come to an end */
	return p;
}

static struct lm_session *session(const struct lm_options *o, enum lm_side side, struct fakevm_state *st)
{
	struct lm_options *copy = malloc(sizeof(*copy));
	struct lm_error err = { 0 };
	struct lm_session *s = NULL;

	*copy = *o;
	if (lm_session_new(copy, side, fakevm_new(st), eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

static void *dest_main(void *arg)
{
	struct pair *p = arg;

	p->dst_ret = lm_session_run(p->dst, &p->dst_err);
	return NULL;
}

static void pair_open(struct pair *p)
{
	p->dst = session(&p->dst_opt, LM_DEST, p->b);
	p->src_opt.address = lm_session_address(p->dst);
	p->src = session(&p->src_opt, LM_SOURCE, p->a);
}

static void pair_run(struct pair *p)
{
	pthread_t dest;

	pair_open(p);
	pthread_create(&dest, NULL, dest_main, p);
	p->src_ret = lm_session_run(p->src, &p->src_err);
	pthread_join(dest, NULL);
}

static void pair_free(struct pair *p)
{
	lm_session_free(p->src);
	lm_session_free(p->dst);
	assert_int_equal(p->a->detaches, 1);
	assert_int_equal(p->b->detaches, 1);
	fakevm_state_free(p->a);
	fakevm_state_free(p->b);
	free(p);
}

static const struct fakevm_config small = {
	.nregions = 2, .region_bytes = { 6u << 20, 2u << 20 }, .source = true, .writes_per_ms = 5,
};

static void assert_moved(const struct pair *p)
{
	if (p->src_ret || p->dst_ret)
		fail_msg("source: %s; destination: %s", p->src_err.msg, p->dst_err.msg);
	assert_int_equal(lm_session_summary(p->src)->outcome, LM_OUTCOME_COMPLETED);
	assert_int_equal(lm_session_summary(p->dst)->outcome, LM_OUTCOME_COMPLETED);
	assert_false(p->a->running);
	assert_true(p->b->running);
	assert_true(fakevm_ram_equal(p->a, p->b));
}

/* The guest is at the source as before, and nowhere else. */
static void assert_stayed(const struct pair *p, enum lm_outcome outcome)
{
	assert_int_not_equal(p->src_ret, 0);
	assert_int_equal(lm_session_summary(p->src)->outcome, outcome);
	assert_true(p->a->running);
	assert_false(p->b->running);
}

static void a_busy_guest_moves_with_equal_memory(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->src_opt.max_bandwidth_bytes_per_s = 20u << 20; /* or else one round is enough */
	fakevm_fill(p->a, 60, 1);
	pair_run(p);
	assert_moved(p);
	assert_true(p->rounds_seen >= 2);
	pair_free(p);
}

static void verify_agrees(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->src_opt.verify = true;
	fakevm_fill(p->a, 60, 1);
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

/* KVM renews the guest's clock page when the state is loaded. */
static struct pair *loading_writes(void)
{
	struct pair *p = pair_new(&small);

	p->src_opt.verify = true;
	p->b->config.load_writes = true;
	fakevm_fill(p->a, 60, 1);
	setenv("LM_FAULT", "comparing:sleep=300", 1);
	pair_run(p);
	unsetenv("LM_FAULT");
	return p;
}

static void verify_looks_before_the_state_is_loaded(void **state)
{
	struct pair *p = loading_writes();

	(void)state;
	if (p->src_ret || p->dst_ret)
		fail_msg("source: %s; destination: %s", p->src_err.msg, p->dst_err.msg);
	assert_false(fakevm_ram_equal(p->a, p->b));
	pair_free(p);
}

static void without_holding_the_state_back_verify_complains(void **state)
{
	struct pair *p;

	(void)state;
	setenv("LM_BREAK", "verify-hold", 1);
	p = loading_writes();
	unsetenv("LM_BREAK");
	assert_stayed(p, LM_OUTCOME_ABORTED);
	pair_free(p);
}

static void old_content_of_the_destination_is_replaced(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	fakevm_fill(p->a, 30, 2);
	fakevm_scribble(p->b);
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

static void punch_after_first_round(struct pair *p, const struct lm_round *round)
{
	if (round->round)
		return;
	fakevm_discard(p->a, 0, 100, 700);
	fakevm_discard(p->a, 1, 5, 1);
}

static void discarded_memory_reads_as_zero_at_the_destination(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	fakevm_fill(p->a, 100, 3);
	p->on_round = punch_after_first_round;
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

/* Teeth: without the look for holes the destination keeps what the guest has given back. */
static void without_looking_for_discarded_memory_it_stays(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	fakevm_fill(p->a, 100, 3);
	p->on_round = punch_after_first_round;
	setenv("LM_BREAK", "discard", 1);
	pair_run(p);
	unsetenv("LM_BREAK");
	assert_int_equal(p->src_ret, 0);
	assert_false(fakevm_ram_equal(p->a, p->b));
	pair_free(p);
}

static void holes_stay_holes_on_both_sides(void **state)
{
	struct fakevm_config c = small;
	struct pair *p;

	(void)state;
	c.writes_per_ms = 0;
	p = pair_new(&c);
	fakevm_fill(p->a, 1, 4);
	pair_run(p);
	assert_moved(p);
	assert_true(lm_session_summary(p->src)->existing_pages < 200);
	assert_true(lm_session_summary(p->src)->sent_pages < 200);
	pair_free(p);
}

static void failure_before_commit_leaves_the_guest_at_the_source(void **state)
{
	static const size_t faults[] = {
		offsetof(struct fakevm_config, fail_drain), offsetof(struct fakevm_config, fail_pause),
		offsetof(struct fakevm_config, fail_save),
	};
	static const size_t dest_faults[] = {
		offsetof(struct fakevm_config, fail_load), offsetof(struct fakevm_config, fail_wait),
		offsetof(struct fakevm_config, fail_resume),
	};

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		struct pair *p = pair_new(&small);
		struct fakevm_state *st = i < 3 ? p->a : p->b;

		*(int *)((char *)&st->config + (i < 3 ? faults[i] : dest_faults[i - 3])) = EIO;
		pair_run(p);
		assert_stayed(p, LM_OUTCOME_ABORTED);
		assert_non_null(strstr(p->src_err.msg, "injected"));
		pair_free(p);
	}
}

static void half_a_guest_is_ended_at_the_destination(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->b->config.fail_wait = EIO;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_ABORTED);
	assert_true(p->b->ended);
	pair_free(p);
}

static void a_refused_layout_touches_nothing(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->b->config.region_bytes[1] -= 1u << 20;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_REFUSED);
	assert_non_null(strstr(p->src_err.msg, "size="));
	assert_false(p->b->ended);
	assert_int_equal(p->a->resumes, 0);
	p->b->config.region_bytes[1] += 1u << 20;
	pair_free(p);
}

static void another_machine_type_is_refused(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->b->config.machine = "fake-2";
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_REFUSED);
	assert_non_null(strstr(p->src_err.msg, "-machine"));
	pair_free(p);
}

static void memory_plugged_meanwhile_is_noticed(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->a->config.layout_changes = true;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_ABORTED);
	assert_non_null(strstr(p->src_err.msg, "plugged"));
	assert_int_equal(p->a->resumes, 0); /* noticed before the guest was paused */
	pair_free(p);
}

/* Teeth: without that check a guest is moved without the memory that it was given. */
static void without_a_look_at_the_layout_plugged_memory_is_lost(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->a->config.layout_changes = true;
	setenv("LM_BREAK", "layout", 1);
	pair_run(p);
	unsetenv("LM_BREAK");
	assert_int_equal(p->src_ret, 0);
	assert_true(p->b->running);
	pair_free(p);
}

static void cancel_on_round(struct pair *p, const struct lm_round *round)
{
	(void)round;
	lm_session_cancel(p->src);
}

static void cancel_leaves_the_guest_at_the_source(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->on_round = cancel_on_round;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_CANCELLED);
	assert_int_equal(lm_session_summary(p->dst)->outcome, LM_OUTCOME_CANCELLED);
	pair_free(p);
}

static struct fakevm_config restless(void)
{
	struct fakevm_config c = small;

	c.writes_per_ms = 2000;
	return c;
}

static void a_guest_that_never_rests(enum lm_on_stall on_stall, struct pair **ret)
{
	struct fakevm_config c = restless();
	struct pair *p = pair_new(&c);

	p->src_opt.on_stall = on_stall;
	p->src_opt.max_downtime_ns = LM_NS_PER_MS;
	p->src_opt.max_bandwidth_bytes_per_s = 200u << 20;
	fakevm_fill(p->a, 20, 1);
	pair_run(p);
	*ret = p;
}

static void stall_aborts_when_told_to(void **state)
{
	struct pair *p;

	(void)state;
	a_guest_that_never_rests(LM_STALL_ABORT, &p);
	assert_stayed(p, LM_OUTCOME_STALLED);
	pair_free(p);
}

static void stall_forces_when_told_to(void **state)
{
	struct pair *p;

	(void)state;
	a_guest_that_never_rests(LM_STALL_FORCE, &p);
	assert_moved(p);
	pair_free(p);
}

static void timeout_ends_the_wait(void **state)
{
	struct fakevm_config c = restless();
	struct pair *p = pair_new(&c);

	(void)state;
	p->src_opt.max_downtime_ns = 1000;
	p->src_opt.timeout_ns = 300 * LM_NS_PER_MS;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_ABORTED);
	assert_non_null(strstr(p->src_err.msg, "--timeout"));
	pair_free(p);
}

/* Pings count as signs of life, and a lane that sleeps for its bandwidth is not a dead one. */
static void a_slow_copy_outlives_the_peer_timeout(void **state)
{
	struct fakevm_config c = small;
	struct pair *p;

	(void)state;
	c.writes_per_ms = 0;
	p = pair_new(&c);
	p->src_opt.peer_timeout_ns = p->dst_opt.peer_timeout_ns = 1200 * LM_NS_PER_MS;
	p->dst_opt.qmp_timeout_ns = 100 * LM_NS_PER_MS;
	p->src_opt.max_bandwidth_bytes_per_s = 3u << 19; /* 4.8 MiB */
	fakevm_fill(p->a, 60, 1);
	pair_run(p);
	assert_moved(p);
	assert_true(lm_session_summary(p->src)->total_ns > 2 * LM_NS_PER_S);
	pair_free(p);
}

static void a_guest_that_was_paused_meanwhile_stays_paused(void **state)
{
	struct fakevm_config c = small;
	struct pair *p;

	(void)state;
	c.stopped_meanwhile = true;
	p = pair_new(&c);
	pair_run(p);
	assert_int_equal(p->src_ret, 0);
	assert_int_equal(p->dst_ret, 0);
	assert_false(p->b->running);
	pair_free(p);
}

static void the_destination_can_leave_the_guest_paused(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->dst_opt.start_paused = true;
	pair_run(p);
	assert_int_equal(p->src_ret, 0);
	assert_false(p->b->running);
	assert_true(fakevm_ram_equal(p->a, p->b));
	pair_free(p);
}

static void injected_error_at_each_stage_is_survived(void **state)
{
	static const char *const source[] = { "hello", "opened", "armed", "round", "prepare", "pausing", "paused",
					      "last-copy", "copied", "saved", "loaded" };
	char spec[64];

	(void)state;
	for (unsigned i = 0; i < sizeof(source) / sizeof(source[0]); i++) {
		struct pair *p = pair_new(&small);

		/* "loaded" and "prepare" are stages of both sides: either failing must end well. */
		snprintf(spec, sizeof(spec), "%s:error", source[i]);
		setenv("LM_FAULT", spec, 1);
		pair_run(p);
		unsetenv("LM_FAULT");
		assert_int_not_equal(p->src_ret, 0);
		assert_true(p->a->running);
		assert_false(p->b->running);
		pair_free(p);
	}
}

static void an_answer_that_does_not_come_leaves_doubt(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->src_opt.peer_timeout_ns = 300 * LM_NS_PER_MS;
	setenv("LM_FAULT", "resumed:sleep=1000", 1);
	pair_run(p);
	unsetenv("LM_FAULT");
	assert_int_equal(lm_session_summary(p->src)->outcome, LM_OUTCOME_IN_DOUBT);
	assert_false(p->a->running);
	assert_true(p->b->running);
	assert_non_null(strstr(p->src_err.msg, "resolve"));
	pair_free(p);
}

/* The control channel gets through, its lanes do not: the source says so and why. */
static void a_source_whose_lanes_do_not_come_about_is_not_waited_for(void **state)
{
	struct pair *p = pair_new(&small);
	struct netrelay *relay;
	int64_t begin = lm_now_ns();
	pthread_t dest;

	(void)state;
	p->src_opt.peer_timeout_ns = p->dst_opt.peer_timeout_ns = 60 * LM_NS_PER_S;
	p->dst = session(&p->dst_opt, LM_DEST, p->b);
	relay = netrelay_new(lm_session_address(p->dst));
	relay->only = 1;
	p->src_opt.address = relay->address;
	p->src = session(&p->src_opt, LM_SOURCE, p->a);
	pthread_create(&dest, NULL, dest_main, p);
	p->src_ret = lm_session_run(p->src, &p->src_err);
	pthread_join(dest, NULL);
	assert_stayed(p, LM_OUTCOME_REFUSED);
	assert_true(lm_now_ns() - begin < 30 * LM_NS_PER_S);
	assert_true(p->dst_ret < 0);
	assert_non_null(strstr(p->dst_err.msg, p->src_err.msg));
	pair_free(p);
	netrelay_free(relay);
}

static void *cancel_soon(void *arg)
{
	const struct timespec rest = { .tv_nsec = 300 * LM_NS_PER_MS };
	struct pair *p = arg;

	nanosleep(&rest, NULL);
	lm_session_cancel(p->dst);
	return NULL;
}

/* Lanes that hear nothing: the destination waits for them, too, until somebody cancels it. */
static void a_destination_that_gives_up_is_not_waited_for(void **state)
{
	struct pair *p = pair_new(&small);
	struct netrelay *relay;
	int64_t begin = lm_now_ns();
	pthread_t dest, canceller;

	(void)state;
	p->src_opt.peer_timeout_ns = p->dst_opt.peer_timeout_ns = 60 * LM_NS_PER_S;
	p->dst = session(&p->dst_opt, LM_DEST, p->b);
	relay = netrelay_new(lm_session_address(p->dst));
	relay->only = 1;
	relay->holds = true;
	p->src_opt.address = relay->address;
	p->src = session(&p->src_opt, LM_SOURCE, p->a);
	pthread_create(&dest, NULL, dest_main, p);
	pthread_create(&canceller, NULL, cancel_soon, p);
	p->src_ret = lm_session_run(p->src, &p->src_err);
	pthread_join(canceller, NULL);
	pthread_join(dest, NULL);
	assert_stayed(p, LM_OUTCOME_CANCELLED);
	assert_true(lm_now_ns() - begin < 30 * LM_NS_PER_S);
	assert_non_null(strstr(p->src_err.msg, "the peer gave up"));
	pair_free(p);
	netrelay_free(relay);
}

/* ---- who comes first ---- */

/* Nice values of the session's thread, by side: while the guest stands still, and at the end. */
struct nices {
	int still, after;
};

static void on_stage(void *opaque, const struct lm_event *e)
{
	struct nices *n = opaque;

	if (e->type == LM_EVENT_STAGE && (!strcmp(e->u.stage.name, "saved") || !strcmp(e->u.stage.name, "loading")))
		n->still = getpriority(PRIO_PROCESS, 0);
	if (e->type == LM_EVENT_STAGE && !strcmp(e->u.stage.name, "done"))
		n->after = getpriority(PRIO_PROCESS, 0);
}

static void move_and_look(struct nices *src, struct nices *dst)
{
	struct pair *p = pair_new(&small);

	p->src_opt.event = p->dst_opt.event = on_stage;
	p->src_opt.event_opaque = src;
	p->dst_opt.event_opaque = dst;
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

static void skip_if_not_allowed(void)
{
	struct rlimit limit;

	if (geteuid() && (getrlimit(RLIMIT_NICE, &limit) || limit.rlim_cur < 30))
		skip();
}

static void threads_come_first_while_the_guest_stands_still(void **state)
{
	int usual = getpriority(PRIO_PROCESS, 0);
	struct nices src = { 99, 99 }, dst = { 99, 99 };

	(void)state;
	skip_if_not_allowed();
	move_and_look(&src, &dst);
	assert_true(src.still < usual && dst.still < usual);
	assert_int_equal(src.after, usual);
	assert_int_equal(dst.after, usual);
	assert_int_equal(getpriority(PRIO_PROCESS, 0), usual);
}

static void without_that_they_wait_as_all_others(void **state)
{
	int usual = getpriority(PRIO_PROCESS, 0);
	struct nices src = { 99, 99 }, dst = { 99, 99 };

	(void)state;
	setenv("LM_BREAK", "urgent", 1);
	move_and_look(&src, &dst);
	unsetenv("LM_BREAK");
	assert_int_equal(src.still, usual);
	assert_int_equal(dst.still, usual);
}

/* Teeth: without the rule "run only after COMMIT" two guests run when the source gives up late. */
static void broken_commit_rule_runs_two_guests(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	setenv("LM_BREAK", "commit", 1);
	setenv("LM_FAULT", "commit:error", 1);
	p->dst_opt.peer_timeout_ns = 300 * LM_NS_PER_MS;
	pair_run(p);
	unsetenv("LM_FAULT");
	unsetenv("LM_BREAK");
	assert_true(p->a->running);
	assert_true(p->b->running);
	pair_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_busy_guest_moves_with_equal_memory),
		cmocka_unit_test(verify_agrees),
		cmocka_unit_test(verify_looks_before_the_state_is_loaded),
		cmocka_unit_test(without_holding_the_state_back_verify_complains),
		cmocka_unit_test(old_content_of_the_destination_is_replaced),
		cmocka_unit_test(discarded_memory_reads_as_zero_at_the_destination),
		cmocka_unit_test(without_looking_for_discarded_memory_it_stays),
		cmocka_unit_test(holes_stay_holes_on_both_sides),
		cmocka_unit_test(failure_before_commit_leaves_the_guest_at_the_source),
		cmocka_unit_test(half_a_guest_is_ended_at_the_destination),
		cmocka_unit_test(a_refused_layout_touches_nothing),
		cmocka_unit_test(another_machine_type_is_refused),
		cmocka_unit_test(memory_plugged_meanwhile_is_noticed),
		cmocka_unit_test(without_a_look_at_the_layout_plugged_memory_is_lost),
		cmocka_unit_test(cancel_leaves_the_guest_at_the_source),
		cmocka_unit_test(stall_aborts_when_told_to),
		cmocka_unit_test(stall_forces_when_told_to),
		cmocka_unit_test(timeout_ends_the_wait),
		cmocka_unit_test(a_slow_copy_outlives_the_peer_timeout),
		cmocka_unit_test(a_guest_that_was_paused_meanwhile_stays_paused),
		cmocka_unit_test(the_destination_can_leave_the_guest_paused),
		cmocka_unit_test(injected_error_at_each_stage_is_survived),
		cmocka_unit_test(an_answer_that_does_not_come_leaves_doubt),
		cmocka_unit_test(a_source_whose_lanes_do_not_come_about_is_not_waited_for),
		cmocka_unit_test(a_destination_that_gives_up_is_not_waited_for),
		cmocka_unit_test(threads_come_first_while_the_guest_stands_still),
		cmocka_unit_test(without_that_they_wait_as_all_others),
		cmocka_unit_test(broken_commit_rule_runs_two_guests),
	};

	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
