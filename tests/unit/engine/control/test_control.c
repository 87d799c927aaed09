/* SPDX-License-Identifier: Apache-2.0 */
/* The control channel over a socket pair: two good ends, or one good and one that does what it likes. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "unit.h"
#include "engine/control/control.h"

struct ends {
	struct lm_control a, b; /* b is closed when the test speaks for itself */
	int raw;                /* instead of b */
	int cancel_fd;
};

static struct lm_error err;
static struct lm_msg msg;

static void control_open(struct lm_control *c, int fd, int cancel_fd)
{
	struct lm_stream *s;

	assert_ok(lm_stream_adopt(fd, false, &s, &err), err);
	assert_ok(lm_control_open(c, s, cancel_fd, &err), err);
}

static struct ends *ends_new(bool raw)
{
	struct ends *e = calloc(1, sizeof(*e));
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	e->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	control_open(&e->a, pair[0], e->cancel_fd);
	e->raw = raw ? pair[1] : -1;
	if (!raw)
		control_open(&e->b, pair[1], -1);
	return e;
}

static void ends_free(struct ends *e)
{
	lm_control_close(&e->a);
	lm_control_close(&e->b);
	if (e->raw >= 0)
		close(e->raw);
	close(e->cancel_fd);
	free(e);
}

static int64_t soon(void)
{
	return lm_deadline_after(5 * LM_NS_PER_S);
}

static int64_t ms(unsigned n)
{
	return lm_deadline_after(n * LM_NS_PER_MS);
}

static void raw_write(struct ends *e, const void *p, size_t len)
{
	assert_int_equal(send(e->raw, p, len, MSG_NOSIGNAL), (ssize_t)len);
}

static struct lm_wire_header raw_header(unsigned type, uint32_t len, uint64_t seq)
{
	return (struct lm_wire_header){ .magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16((uint16_t)type),
					.len = lm_le32(len), .seq = lm_le64(seq) };
}

static void raw_message(struct ends *e, unsigned type, const void *payload, uint32_t len, uint64_t seq)
{
	struct lm_wire_header h = raw_header(type, len, seq);

	raw_write(e, &h, sizeof(h));
	if (len)
		raw_write(e, payload, len);
}

/* ---- two good ends ---- */

static void *hello_main(void *arg)
{
	char software[32];

	return (void *)(intptr_t)lm_control_hello(arg, soon(), software, NULL);
}

static void both_sides_learn_who_the_other_is(void **state)
{
	struct ends *e = ends_new(false);
	char software[32];
	pthread_t t;
	void *r;

	(void)state;
	pthread_create(&t, NULL, hello_main, &e->b);
	assert_ok(lm_control_hello(&e->a, soon(), software, &err), err);
	pthread_join(t, &r);
	assert_null(r);
	assert_string_equal(software, lm_version());
	ends_free(e);
}

static void messages_arrive_whole_and_in_order(void **state)
{
	static uint8_t big[LM_WIRE_STATE_MAX / 2];
	struct ends *e = ends_new(false);

	(void)state;
	memset(big, 0x77, sizeof(big));
	assert_ok(lm_control_send(&e->a, LM_MSG_PREPARE, NULL, 0, soon(), &err), err);
	assert_ok(lm_control_send(&e->a, LM_MSG_STATE, big, sizeof(big), soon(), &err), err);
	assert_ok(lm_control_send(&e->a, LM_MSG_COMMIT, NULL, 0, soon(), &err), err);
	assert_ok(lm_control_expect(&e->b, LM_MSG_PREPARE, &msg, soon(), &err), err);
	assert_int_equal(msg.len, 0);
	assert_ok(lm_control_expect(&e->b, LM_MSG_STATE, &msg, soon(), &err), err);
	assert_int_equal(msg.len, sizeof(big));
	assert_memory_equal(msg.payload, big, sizeof(big));
	assert_ok(lm_control_expect(&e->b, LM_MSG_COMMIT, &msg, soon(), &err), err);
	ends_free(e);
}

static void another_message_than_the_one_due_is_an_error(void **state)
{
	struct ends *e = ends_new(false);

	(void)state;
	assert_ok(lm_control_send(&e->a, LM_MSG_COMMIT, NULL, 0, soon(), &err), err);
	assert_fails(lm_control_expect(&e->b, LM_MSG_PREPARED, &msg, soon(), &err), -EPROTO, err);
	assert_non_null(strstr(err.msg, "COMMIT"));
	assert_non_null(strstr(err.msg, "PREPARED"));
	ends_free(e);
}

static void a_ping_is_answered_and_measured(void **state)
{
	struct ends *e = ends_new(false);

	(void)state;
	assert_ok(lm_control_ping(&e->a, soon(), &err), err);
	assert_int_equal(lm_control_try_recv(&e->b, &msg, &err), 0); /* answers */
	assert_int_equal(lm_control_try_recv(&e->a, &msg, &err), 0); /* measures */
	assert_true(e->a.rtt_ns > 0 && e->a.rtt_ns < 10 * LM_NS_PER_S);
	ends_free(e);
}

static void an_abort_ends_the_wait_with_the_peers_words(void **state)
{
	struct lm_error why = { .code = -ENOSPC, .msg = "the pool is full" };
	struct ends *e = ends_new(false);

	(void)state;
	assert_int_equal(lm_control_send_abort(&e->a, &why, soon()), 0);
	assert_fails(lm_control_recv(&e->b, &msg, soon(), &err), -ECONNABORTED, err);
	assert_non_null(strstr(err.msg, "the pool is full"));
	assert_true(e->b.peer_aborted);
	assert_false(e->a.peer_aborted);
	ends_free(e);
}

static void waiting_ends_at_the_deadline_and_the_channel_stays_good(void **state)
{
	struct ends *e = ends_new(false);
	int64_t begin = lm_now_ns();

	(void)state;
	assert_fails(lm_control_recv(&e->b, &msg, ms(50), &err), -ETIMEDOUT, err);
	assert_true(lm_now_ns() - begin >= 50 * LM_NS_PER_MS);
	assert_true(lm_now_ns() - begin < 3 * LM_NS_PER_S);
	assert_ok(lm_control_send(&e->a, LM_MSG_PREPARE, NULL, 0, soon(), &err), err);
	assert_ok(lm_control_recv(&e->b, &msg, soon(), &err), err);
	ends_free(e);
}

static void what_is_waited_for_is_named(void **state)
{
	struct ends *e = ends_new(false);

	(void)state;
	assert_fails(lm_control_expect(&e->b, LM_MSG_LOADED, &msg, ms(1), &err), -ETIMEDOUT, err);
	assert_non_null(strstr(err.msg, "LOADED"));
	ends_free(e);
}

static void cancel_ends_the_wait(void **state)
{
	struct ends *e = ends_new(false);
	uint64_t one = 1;

	(void)state;
	assert_int_equal(write(e->cancel_fd, &one, sizeof(one)), sizeof(one));
	assert_fails(lm_control_recv(&e->a, &msg, LM_NO_DEADLINE, &err), -ECANCELED, err);
	ends_free(e);
}

static void nothing_there_is_no_error_without_waiting(void **state)
{
	struct ends *e = ends_new(false);

	(void)state;
	assert_int_equal(lm_control_try_recv(&e->a, &msg, &err), 0);
	assert_ok(lm_control_send(&e->b, LM_MSG_LOADED, NULL, 0, soon(), &err), err);
	assert_int_equal(lm_control_try_recv(&e->a, &msg, &err), 1);
	assert_int_equal(msg.type, LM_MSG_LOADED);
	ends_free(e);
}

static void what_is_put_back_is_received_again(void **state)
{
	struct ends *e = ends_new(false);
	struct lm_error err = { 0 };
	struct lm_msg msg, again;

	(void)state;
	assert_ok(lm_control_send(&e->b, LM_MSG_LANE_DROP, "abcd", 4, soon(), &err), err);
	assert_ok(lm_control_send(&e->b, LM_MSG_PREPARED, NULL, 0, soon(), &err), err);
	assert_int_equal(lm_control_try_recv(&e->a, &msg, &err), 1);
	lm_control_put_back(&e->a, &msg);
	assert_int_equal(lm_control_try_recv(&e->a, &again, &err), 1);
	assert_int_equal(again.type, LM_MSG_LANE_DROP);
	lm_control_put_back(&e->a, &again);
	assert_ok(lm_control_recv(&e->a, &again, soon(), &err), err);
	assert_int_equal(again.len, 4);
	assert_memory_equal(again.payload, "abcd", 4);
	assert_ok(lm_control_expect(&e->a, LM_MSG_PREPARED, &msg, soon(), &err), err);
	assert_int_equal(lm_control_try_recv(&e->a, &msg, &err), 0);
	ends_free(e);
}

static void a_peer_that_hangs_up_is_noticed(void **state)
{
	struct ends *e = ends_new(true);

	(void)state;
	close(e->raw);
	e->raw = -1;
	assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -ECONNRESET, err);
	ends_free(e);
}

static void after_a_failed_send_nothing_more_is_sent(void **state)
{
	static uint8_t big[LM_WIRE_PAYLOAD_MAX];
	struct ends *e = ends_new(true);
	uint8_t sink[4096];
	ssize_t n, got = 0;

	(void)state;
	/* Nobody reads: part of the message is in the socket when the deadline passes. */
	assert_fails(lm_control_send(&e->a, LM_MSG_STATE, big, sizeof(big), ms(20), &err), -ETIMEDOUT, err);
	while ((n = recv(e->raw, sink, sizeof(sink), MSG_DONTWAIT)) > 0)
		got += n;
	assert_true(got > 0 && got < (ssize_t)sizeof(big));
	/* A COMMIT behind half a message would be taken for its payload. */
	assert_fails(lm_control_send(&e->a, LM_MSG_COMMIT, NULL, 0, soon(), &err), -EPIPE, err);
	assert_int_equal(recv(e->raw, sink, sizeof(sink), MSG_DONTWAIT), -1);
	ends_free(e);
}

static void a_message_above_the_limit_is_not_sent(void **state)
{
	struct ends *e = ends_new(true);
	uint8_t sink[64];

	(void)state;
	assert_fails(lm_control_send(&e->a, LM_MSG_STATE, sink, LM_WIRE_PAYLOAD_MAX + 1, soon(), &err), -EMSGSIZE,
		     err);
	assert_int_equal(recv(e->raw, sink, sizeof(sink), MSG_DONTWAIT), -1);
	ends_free(e);
}

/* ---- concurrent senders ---- */

#define SENDERS 4
#define MESSAGES 200

struct sender {
	struct lm_control *c;
	uint8_t id;
	pthread_t thread;
};

static void *sender_main(void *arg)
{
	struct sender *s = arg;
	uint8_t payload[3000];

	memset(payload, s->id, sizeof(payload));
	for (unsigned i = 0; i < MESSAGES; i++)
		if (lm_control_send(s->c, LM_MSG_STATE, payload, 1 + (i * 7 + s->id) % sizeof(payload), soon(), NULL))
			return s;
	return NULL;
}

static void concurrent_senders_do_not_mix_their_messages(void **state)
{
	struct ends *e = ends_new(false);
	struct sender senders[SENDERS];

	(void)state;
	for (unsigned i = 0; i < SENDERS; i++) {
		senders[i] = (struct sender){ .c = &e->a, .id = (uint8_t)(i + 1) };
		pthread_create(&senders[i].thread, NULL, sender_main, &senders[i]);
	}
	for (unsigned i = 0; i < SENDERS * MESSAGES; i++) {
		assert_ok(lm_control_expect(&e->b, LM_MSG_STATE, &msg, soon(), &err), err);
		for (uint32_t k = 1; k < msg.len; k++)
			assert_int_equal(msg.payload[k], msg.payload[0]);
	}
	for (unsigned i = 0; i < SENDERS; i++) {
		void *failed;

		pthread_join(senders[i].thread, &failed);
		assert_null(failed);
	}
	ends_free(e);
}

/* ---- a hostile peer ---- */

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

/* Pings faster than anybody answers, so that there is always something to read. */
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
	/* A machine that has just booted takes the time since then for a round trip: never more than a minute. */
	assert_true(e->a.rtt_ns >= 0 && e->a.rtt_ns < 60 * LM_NS_PER_S);
	ends_free(e);
}

static void a_malformed_abort_is_no_abort(void **state)
{
	struct ends *e = ends_new(true);

	(void)state;
	raw_message(e, LM_MSG_ABORT, "xx", 2, 0);
	assert_fails(lm_control_recv(&e->a, &msg, soon(), &err), -EPROTO, err);
	/* After COMMIT an ABORT lets the guest run at the source again: not on such a word. */
	assert_false(e->a.peer_aborted);
	ends_free(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_sides_learn_who_the_other_is),
		cmocka_unit_test(messages_arrive_whole_and_in_order),
		cmocka_unit_test(another_message_than_the_one_due_is_an_error),
		cmocka_unit_test(a_ping_is_answered_and_measured),
		cmocka_unit_test(an_abort_ends_the_wait_with_the_peers_words),
		cmocka_unit_test(waiting_ends_at_the_deadline_and_the_channel_stays_good),
		cmocka_unit_test(what_is_waited_for_is_named),
		cmocka_unit_test(cancel_ends_the_wait),
		cmocka_unit_test(nothing_there_is_no_error_without_waiting),
		cmocka_unit_test(what_is_put_back_is_received_again),
		cmocka_unit_test(a_peer_that_hangs_up_is_noticed),
		cmocka_unit_test(after_a_failed_send_nothing_more_is_sent),
		cmocka_unit_test(a_message_above_the_limit_is_not_sent),
		cmocka_unit_test(concurrent_senders_do_not_mix_their_messages),
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

	return cmocka_run_group_tests(tests, NULL, NULL);
}
