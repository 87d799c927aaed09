/* SPDX-License-Identifier: Apache-2.0 */
/* The control channel and a peer that breaks its rules. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include "controlrig.h"

static struct lm_error err;
static struct lm_msg msg;

static void a_first_message_that_is_not_hello_is_refused(void **state)
{
	struct ends *e = ends_new(true);
	char software[32];

	(void)state;
	raw_message(e, LM_MSG_COMMIT, NULL, 0, 0);
	assert_fails(lm_control_hello(&e->a, soon(), software, &err), -EPROTO, err);
	ends_free(e);
}

static void something_else_on_the_port_is_refused(void **state)
{
	struct ends *e = ends_new(true);
	char software[32];

	(void)state;
	raw_write(e, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27);
	assert_fails(lm_control_hello(&e->a, soon(), software, &err), -EPROTO, err);
	assert_non_null(strstr(err.msg, "something else"));
	ends_free(e);
}

static void a_replayed_message_is_refused(void **state)
{
	struct ends *e = ends_new(true);

	(void)state;
	raw_message(e, LM_MSG_COMMIT, NULL, 0, 0);
	raw_message(e, LM_MSG_COMMIT, NULL, 0, 0);
	assert_ok(lm_control_recv(&e->a, &msg, soon(), &err), err);
	assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -EPROTO, err);
	ends_free(e);
}

static void a_message_that_was_left_out_is_noticed(void **state)
{
	struct ends *e = ends_new(true);

	(void)state;
	raw_message(e, LM_MSG_PREPARE, NULL, 0, 0);
	raw_message(e, LM_MSG_COMMIT, NULL, 0, 2);
	assert_ok(lm_control_recv(&e->a, &msg, soon(), &err), err);
	assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -EPROTO, err);
	ends_free(e);
}

static void an_oversized_message_is_refused_before_it_is_read(void **state)
{
	struct ends *e = ends_new(true);
	struct lm_wire_header h = raw_header(LM_MSG_STATE, LM_WIRE_PAYLOAD_MAX + 1, 0);

	(void)state;
	raw_write(e, &h, sizeof(h));
	assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -EPROTO, err);
	ends_free(e);
}

static void a_message_that_ends_half_way_is_never_acted_on(void **state)
{
	struct lm_wire_header h = raw_header(LM_MSG_COMMIT, 0, 0);

	(void)state;
	for (size_t len = 1; len < sizeof(h); len += 5) {
		struct ends *e = ends_new(true);

		raw_write(e, &h, len);
		shutdown(e->raw, SHUT_WR);
		assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -ECONNRESET, err);
		ends_free(e);
	}
}

static void a_message_that_stops_half_way_is_given_up_in_five_seconds(void **state)
{
	struct ends *e = ends_new(true);
	struct lm_wire_header h = raw_header(LM_MSG_STATE, 100, 0);
	int64_t begin = lm_now_ns(), took;

	(void)state;
	raw_write(e, &h, sizeof(h));
	raw_write(e, "half", 4);
	assert_fails(lm_control_recv(&e->a, &msg, LM_NO_DEADLINE, &err), -EPROTO, err);
	took = lm_now_ns() - begin;
	assert_true(took > 4 * LM_NS_PER_S && took < 8 * LM_NS_PER_S);
	ends_free(e);
}

struct flood {
	struct ends *e;
	_Atomic bool stop;
};

#define BURST 1000

struct ping {
	struct lm_wire_header h;
	struct le64 cookie;
};

/* Sends pings faster than the other end answers them, so that there is always something to read. */
static void *flood_main(void *arg)
{
	static struct ping burst[BURST];
	struct flood *f = arg;
	uint64_t seq = 0;

	while (!atomic_load(&f->stop)) {
		const uint8_t *at = (const void *)burst, *end = at + sizeof(burst);
		uint8_t sink[65536];

		for (unsigned i = 0; i < BURST; i++)
			burst[i] = (struct ping){ raw_header(LM_MSG_PING, 8, seq++), lm_le64(1) };
		while (at < end && !atomic_load(&f->stop)) {
			ssize_t n = send(f->e->raw, at, (size_t)(end - at), MSG_NOSIGNAL | MSG_DONTWAIT);

			at += n > 0 ? n : 0;
			while (recv(f->e->raw, sink, sizeof(sink), MSG_DONTWAIT) > 0)
				;
		}
	}
	return NULL;
}

static void a_peer_that_only_pings_does_not_hold_us_past_the_deadline(void **state)
{
	struct ends *e = ends_new(true);
	struct flood f = { .e = e };
	int64_t begin;
	pthread_t t;

	(void)state;
	pthread_create(&t, NULL, flood_main, &f);
	unit_sleep_ms(20);
	begin = lm_now_ns();
	assert_fails(lm_control_expect(&e->a, LM_MSG_LOADED, &msg, ms(100), &err), -ETIMEDOUT, err);
	assert_true(lm_now_ns() - begin < 3 * LM_NS_PER_S);
	begin = lm_now_ns();
	assert_int_equal(lm_control_try_recv(&e->a, &msg, &err), 0);
	assert_true(lm_now_ns() - begin < 3 * LM_NS_PER_S);
	atomic_store(&f.stop, true);
	shutdown(e->raw, SHUT_RDWR);
	pthread_join(t, NULL);
	ends_free(e);
}

static void ping_and_pong_of_another_length_are_refused(void **state)
{
	static const enum lm_msg_type types[] = { LM_MSG_PING, LM_MSG_PONG };
	uint8_t payload[16] = { 0 };

	(void)state;
	for (unsigned i = 0; i < 2; i++)
		for (unsigned len = 0; len <= 16; len += 4) {
			struct ends *e = ends_new(true);

			if (len == 8)
				len = 9;
			raw_message(e, types[i], payload, len, 0);
			assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -EPROTO, err);
			ends_free(e);
		}
}

static void a_pong_that_was_not_asked_for_measures_nothing(void **state)
{
	static const uint64_t cookies[] = { 0, 1, UINT64_MAX, UINT64_C(1) << 63, (UINT64_C(1) << 63) + 1, INT64_MAX };
	struct ends *e = ends_new(true);

	(void)state;
	for (unsigned i = 0; i < sizeof(cookies) / sizeof(cookies[0]); i++) {
		struct le64 cookie = lm_le64(cookies[i]);

		raw_message(e, LM_MSG_PONG, &cookie, sizeof(cookie), i);
	}
	assert_int_equal(lm_control_try_recv(&e->a, &msg, &err), 0);
	/* A cookie of 0 or 1 gives the time since the machine booted; a round trip is never taken for more than a minute. */
	assert_true(e->a.rtt_ns >= 0 && e->a.rtt_ns < 60 * LM_NS_PER_S);
	ends_free(e);
}

static void a_malformed_abort_is_no_abort(void **state)
{
	struct ends *e = ends_new(true);

	(void)state;
	raw_message(e, LM_MSG_ABORT, "xx", 2, 0);
	assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -EPROTO, err);
	/* After COMMIT an ABORT lets the guest run at the source again: a malformed one must not do that. */
	assert_false(e->a.peer_aborted);
	ends_free(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_first_message_that_is_not_hello_is_refused),
		cmocka_unit_test(something_else_on_the_port_is_refused),
		cmocka_unit_test(a_replayed_message_is_refused),
		cmocka_unit_test(a_message_that_was_left_out_is_noticed),
		cmocka_unit_test(an_oversized_message_is_refused_before_it_is_read),
		cmocka_unit_test(a_message_that_ends_half_way_is_never_acted_on),
		cmocka_unit_test(a_message_that_stops_half_way_is_given_up_in_five_seconds),
		cmocka_unit_test(a_peer_that_only_pings_does_not_hold_us_past_the_deadline),
		cmocka_unit_test(ping_and_pong_of_another_length_are_refused),
		cmocka_unit_test(a_pong_that_was_not_asked_for_measures_nothing),
		cmocka_unit_test(a_malformed_abort_is_no_abort),
	};

	return cmocka_run_group_tests_name("control-hostile", tests, NULL, NULL);
}
