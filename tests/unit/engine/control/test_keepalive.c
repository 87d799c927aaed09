/* SPDX-License-Identifier: Apache-2.0 */
/* Pings of a side that is busy: they come while it lasts, end when they are stopped, and never fail it. */
#include <sys/socket.h>
#include <unistd.h>
#include "unit.h"
#include "engine/control/keepalive.h"

struct ends {
	struct lm_control busy, peer;
};

static void ends_open(struct ends *e)
{
	struct lm_stream *a, *b;
	struct lm_error err = { 0 };
	char address[LM_ADDRESS_MAX];
	int fd;

	memset(e, 0, sizeof(*e));
	assert_ok(lm_stream_listen("127.0.0.1:0", false, &fd, address, &err), err);
	assert_ok(lm_stream_connect(address, false, lm_deadline_after(LM_NS_PER_S), -1, &a, &err), err);
	assert_ok(lm_stream_accept(fd, false, lm_deadline_after(LM_NS_PER_S), -1, &b, &err), err);
	close(fd);
	assert_ok(lm_control_open(&e->busy, a, -1, &err), err);
	assert_ok(lm_control_open(&e->peer, b, -1, &err), err);
}

static void ends_close(struct ends *e)
{
	lm_control_close(&e->busy);
	lm_control_close(&e->peer);
}

static void it_pings_about_once_a_second_until_it_is_stopped(void **state)
{
	struct lm_keepalive k;
	struct lm_error err = { 0 };
	struct lm_msg msg;
	struct ends e;
	int64_t before, begin = lm_now_ns();

	(void)state;
	ends_open(&e);
	assert_ok(lm_keepalive_start(&k, &e.busy, &err), err);
	for (unsigned i = 0; i < 2; i++) {
		before = e.peer.last_heard_ns;
		/* A ping is no answer: the wait for one ends, but the peer was heard. */
		assert_fails(lm_control_recv(&e.peer, &msg, lm_deadline_after(1200 * LM_NS_PER_MS), &err), -ETIMEDOUT, err);
		assert_true(e.peer.last_heard_ns > before);
	}
	assert_int_equal(e.peer.recv_seq, 2);
	assert_true(lm_now_ns() - begin < 4 * LM_NS_PER_S);
	before = lm_now_ns();
	lm_keepalive_stop(&k);
	assert_true(lm_now_ns() - before < 500 * LM_NS_PER_MS);
	before = e.peer.last_heard_ns;
	assert_fails(lm_control_recv(&e.peer, &msg, lm_deadline_after(1300 * LM_NS_PER_MS), &err), -ETIMEDOUT, err);
	assert_true(e.peer.last_heard_ns == before);
	ends_close(&e);
}

static void one_that_was_not_started_or_is_stopped_already_can_be_stopped(void **state)
{
	struct lm_keepalive k = { .stop_fd = -1 };
	struct lm_error err = { 0 };
	struct ends e;

	(void)state;
	lm_keepalive_stop(&k);
	ends_open(&e);
	assert_ok(lm_keepalive_start(&k, &e.busy, &err), err);
	lm_keepalive_stop(&k);
	lm_keepalive_stop(&k);
	assert_int_equal(k.stop_fd, -1);
	ends_close(&e);
}

static void a_peer_that_is_gone_is_left_to_the_session(void **state)
{
	struct lm_keepalive k;
	struct lm_error err = { 0 };
	struct ends e;

	(void)state;
	ends_open(&e);
	assert_ok(lm_keepalive_start(&k, &e.busy, &err), err);
	lm_control_close(&e.peer);
	unit_sleep_ms(2300);
	lm_keepalive_stop(&k);
	assert_fails(lm_control_ping(&e.busy, lm_deadline_after(LM_NS_PER_S), &err), -EPIPE, err);
	ends_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_pings_about_once_a_second_until_it_is_stopped),
		cmocka_unit_test(one_that_was_not_started_or_is_stopped_already_can_be_stopped),
		cmocka_unit_test(a_peer_that_is_gone_is_left_to_the_session),
	};

	return cmocka_run_group_tests_name("keepalive", tests, NULL, NULL);
}
