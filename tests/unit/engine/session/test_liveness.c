/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole sessions that take long, or in which somebody does not answer: who is
 * waited for, and who no longer.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>
#include "unit.h"
#include "fakevm.h"
#include "newsession.h"

struct pair {
	struct fakevm_state *a, *b;
	struct lm_vm *vm_a, *vm_b;
	struct lm_vm_ops ops_a; /* of vm_a, for tests to change */
	struct lm_options opt_a, opt_b;
	struct lm_session *src, *dst;
	struct lm_error err_a, err_b;
	int ret_a, ret_b;
};

static struct pair *pair_new(uint64_t bytes)
{
	struct fakevm_config config = { .nregions = 1, .region_bytes = { bytes }, .source = true };
	struct pair *p = calloc(1, sizeof(*p));

	p->a = fakevm_state_new(&config);
	config.source = false;
	p->b = fakevm_state_new(&config);
	fakevm_fill(p->a, 100, 1);
	lm_options_default(&p->opt_a);
	p->opt_a.guardian = false;
	p->opt_a.lanes = 1;
	p->opt_b = p->opt_a;
	p->opt_b.address = "127.0.0.1:0";
	p->vm_a = fakevm_new(p->a);
	p->vm_b = fakevm_new(p->b);
	p->ops_a = *p->vm_a->ops;
	p->vm_a->ops = &p->ops_a;
	return p;
}

static void *dest_main(void *arg)
{
	struct pair *p = arg;

	p->ret_b = lm_session_run(p->dst, &p->err_b);
	return NULL;
}

static void pair_run(struct pair *p)
{
	pthread_t dest;

	p->dst = unit_session(&p->opt_b, LM_DEST, p->vm_b);
	p->opt_a.address = lm_session_address(p->dst);
	p->src = unit_session(&p->opt_a, LM_SOURCE, p->vm_a);
	pthread_create(&dest, NULL, dest_main, p);
	p->ret_a = lm_session_run(p->src, &p->err_a);
	pthread_join(dest, NULL);
}

static void pair_free(struct pair *p)
{
	lm_session_free(p->src);
	lm_session_free(p->dst);
	fakevm_state_free(p->a);
	fakevm_state_free(p->b);
	free(p);
}

static void assert_moved(const struct pair *p)
{
	if (p->ret_a || p->ret_b)
		fail_msg("source: %s; destination: %s", p->err_a.msg, p->err_b.msg);
	assert_true(fakevm_ram_equal(p->a, p->b));
}

/* The source pings while it copies: that is all the destination hears for the whole of a round. */
static void a_copy_longer_than_all_timeouts_is_not_given_up(void **state)
{
	struct pair *p = pair_new(10u << 20);

	(void)state;
	p->opt_a.max_bandwidth_bytes_per_s = 4u << 20; /* 2.5 s */
	p->opt_a.max_downtime_ns = LM_NS_PER_S;
	p->opt_a.peer_timeout_ns = p->opt_b.peer_timeout_ns = 1300 * LM_NS_PER_MS;
	p->opt_b.qmp_timeout_ns = 200 * LM_NS_PER_MS;
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

static int slow_drain(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	(void)vm;
	(void)deadline_ns;
	(void)err;
	unit_sleep_ms(250);
	return 0;
}

/* During a drain nobody asks the peer anything: its silence means nothing. */
static void a_drain_longer_than_the_peer_timeout_is_no_silence_of_the_peer(void **state)
{
	struct pair *p = pair_new(4u << 20);

	(void)state;
	p->ops_a.drain = slow_drain;
	p->opt_a.peer_timeout_ns = 100 * LM_NS_PER_MS;
	p->opt_a.max_downtime_ns = 1; /* many rounds */
	p->opt_a.on_stall = LM_STALL_FORCE;
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

/* More state than the sockets hold: stuck as soon as nobody takes it. */
static int state_fd = -1;

static int state_start(struct lm_vm *vm, int fd, struct lm_error *err)
{
	(void)vm;
	(void)err;
	state_fd = dup(fd);
	return 0;
}

static int state_stuck(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	static const uint8_t junk[65536];
	int r = 0;

	(void)vm;
	while (!r && lm_now_ns() < deadline_ns) {
		struct pollfd p = { .fd = state_fd, .events = POLLOUT };

		if (send(state_fd, junk, sizeof(junk), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
			continue;
		if (errno != EAGAIN)
			r = lm_err_errno(err, -errno, LM_SCOPE_SESSION, "device state");
		else
			poll(&p, 1, 10);
	}
	close(state_fd);
	return r ? r : lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the device state was not taken");
}

static _Atomic int64_t paused_ns, resumed_ns;
static int (*real_resume)(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err);
static int (*real_pause_wait)(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err);

static int timed_pause_wait(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err)
{
	atomic_store(&paused_ns, lm_now_ns());
	return real_pause_wait(vm, timeout_ms, ret, err);
}

static int timed_resume(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err)
{
	atomic_store(&resumed_ns, lm_now_ns());
	return real_resume(vm, deadline_ns, ret, err);
}

/* The destination's VM takes no state, so the relay is stuck in sending: the guest must not wait for it. */
static void a_guest_comes_back_within_max_pause_though_the_state_is_stuck(void **state)
{
	struct pair *p = pair_new(4u << 20);

	(void)state;
	real_resume = p->ops_a.resume;
	real_pause_wait = p->ops_a.pause_wait;
	p->ops_a.pause_start = state_start;
	p->ops_a.state_save = state_stuck;
	p->ops_a.pause_wait = timed_pause_wait;
	p->ops_a.resume = timed_resume;
	p->opt_a.max_pause_ns = 500 * LM_NS_PER_MS;
	p->opt_b.qmp_timeout_ns = 2 * LM_NS_PER_S;
	pair_run(p);
	assert_true(p->ret_a != 0 && p->ret_b != 0);
	assert_int_equal(lm_session_summary(p->src)->outcome, LM_OUTCOME_ABORTED);
	assert_true(p->a->running);
	assert_true(resumed_ns - paused_ns < 1500 * LM_NS_PER_MS);
	pair_free(p);
}

/* ---- a source that connects and then does nothing ---- */

static void connect_and_hold(const char *address, int64_t for_ns)
{
	struct lm_control c;
	struct lm_stream *s;
	struct lm_error err = { 0 };
	struct lm_msg msg;
	char software[32];

	assert_ok(lm_stream_connect(address, false, lm_deadline_after(LM_NS_PER_S), -1, &s, &err), err);
	assert_ok(lm_control_open(&c, s, -1, &err), err);
	assert_ok(lm_control_hello(&c, lm_deadline_after(LM_NS_PER_S), software, &err), err);
	lm_control_recv(&c, &msg, lm_deadline_after(for_ns), &err);
	lm_control_close(&c);
}

static void a_source_that_falls_silent_is_given_up(void **state)
{
	struct pair *p = pair_new(1u << 20);
	int64_t begin = lm_now_ns();
	pthread_t dest;

	(void)state;
	p->opt_b.peer_timeout_ns = p->opt_b.qmp_timeout_ns = 150 * LM_NS_PER_MS;
	p->dst = unit_session(&p->opt_b, LM_DEST, p->vm_b);
	p->opt_a.address = lm_session_address(p->dst);
	p->src = unit_session(&p->opt_a, LM_SOURCE, p->vm_a);
	pthread_create(&dest, NULL, dest_main, p);
	connect_and_hold(p->opt_a.address, 5 * LM_NS_PER_S);
	pthread_join(dest, NULL);
	assert_true(p->ret_b < 0);
	assert_int_equal(lm_session_summary(p->dst)->outcome, LM_OUTCOME_REFUSED);
	assert_true(lm_now_ns() - begin < 4 * LM_NS_PER_S);
	pair_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_copy_longer_than_all_timeouts_is_not_given_up),
		cmocka_unit_test(a_drain_longer_than_the_peer_timeout_is_no_silence_of_the_peer),
		cmocka_unit_test(a_guest_comes_back_within_max_pause_though_the_state_is_stuck),
		cmocka_unit_test(a_source_that_falls_silent_is_given_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
