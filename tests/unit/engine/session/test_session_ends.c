/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions that end in another way than by moving the guest. */
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>
#include "netrelay.h"
#include "sessionpair.h"

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
	p->dst = pair_session(&p->dst_opt, LM_DEST, p->b);
	relay = netrelay_new(lm_session_address(p->dst));
	relay->only = 1;
	p->src_opt.address = relay->address;
	p->src = pair_session(&p->src_opt, LM_SOURCE, p->a);
	pthread_create(&dest, NULL, pair_dest_main, p);
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
	p->dst = pair_session(&p->dst_opt, LM_DEST, p->b);
	relay = netrelay_new(lm_session_address(p->dst));
	relay->only = 1;
	relay->holds = true;
	p->src_opt.address = relay->address;
	p->src = pair_session(&p->src_opt, LM_SOURCE, p->a);
	pthread_create(&dest, NULL, pair_dest_main, p);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cancel_leaves_the_guest_at_the_source),
		cmocka_unit_test(stall_aborts_when_told_to),
		cmocka_unit_test(stall_forces_when_told_to),
		cmocka_unit_test(timeout_ends_the_wait),
		cmocka_unit_test(a_slow_copy_outlives_the_peer_timeout),
		cmocka_unit_test(injected_error_at_each_stage_is_survived),
		cmocka_unit_test(an_answer_that_does_not_come_leaves_doubt),
		cmocka_unit_test(a_source_whose_lanes_do_not_come_about_is_not_waited_for),
		cmocka_unit_test(a_destination_that_gives_up_is_not_waited_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
