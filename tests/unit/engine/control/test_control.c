/* SPDX-License-Identifier: Apache-2.0 */
/* The control channel between two good ends. */
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#include "controlrig.h"

static struct lm_error err;
static struct lm_msg msg;

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
	/* The peer does not read: part of the message is in the socket when the deadline passes. */
	assert_fails(lm_control_send(&e->a, LM_MSG_STATE, big, sizeof(big), ms(20), &err), -ETIMEDOUT, err);
	while ((n = recv(e->raw, sink, sizeof(sink), MSG_DONTWAIT)) > 0)
		got += n;
	assert_true(got > 0 && got < (ssize_t)sizeof(big));
	/* The peer would take a COMMIT behind half a message for the rest of its payload. */
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
	};

	return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
