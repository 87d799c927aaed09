/* SPDX-License-Identifier: Apache-2.0 */
/* The device state's way from a socket into STATE messages. */
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#include "unit.h"
#include "engine/switchover/relay.h"

struct rig {
	struct lm_control source, dest;
	struct lm_relay relay;
	int vm_fd;
};

static struct lm_error err;

static struct rig *rig_new(int64_t send_timeout_ns, int64_t deadline_ns)
{
	struct rig *g = calloc(1, sizeof(*g));
	struct lm_stream *s;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_ok(lm_stream_adopt(pair[0], false, &s, &err), err);
	assert_ok(lm_control_open(&g->source, s, -1, &err), err);
	assert_ok(lm_stream_adopt(pair[1], false, &s, &err), err);
	assert_ok(lm_control_open(&g->dest, s, -1, &err), err);
	assert_ok(lm_relay_start(&g->relay, &g->source, send_timeout_ns, deadline_ns, &g->vm_fd, &err), err);
	return g;
}

static void rig_free(struct rig *g)
{
	lm_relay_stop(&g->relay);
	lm_control_close(&g->source);
	lm_control_close(&g->dest);
	if (g->vm_fd >= 0)
		close(g->vm_fd);
	free(g);
}

static int64_t soon(void)
{
	return lm_deadline_after(10 * LM_NS_PER_S);
}

#define STATE_BYTES (3u << 20)

static uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 31 + i / 251);
}

/* Writes the pattern and hangs up, as a VM does. */
static void *vm_main(void *arg)
{
	struct rig *g = arg;
	uint8_t *p = malloc(STATE_BYTES);
	size_t done = 0;

	for (size_t i = 0; i < STATE_BYTES; i++)
		p[i] = pattern(i);
	while (done < STATE_BYTES) {
		ssize_t n = send(g->vm_fd, p + done, STATE_BYTES - done, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		done += (size_t)n;
	}
	free(p);
	close(g->vm_fd);
	g->vm_fd = -1;
	return NULL;
}

static void all_of_the_state_arrives_in_order(void **state)
{
	struct rig *g = rig_new(10 * LM_NS_PER_S, LM_NO_DEADLINE);
	size_t got = 0;
	pthread_t vm;

	(void)state;
	pthread_create(&vm, NULL, vm_main, g);
	while (got < STATE_BYTES) {
		struct lm_msg msg;

		assert_ok(lm_control_expect(&g->dest, LM_MSG_STATE, &msg, soon(), &err), err);
		assert_true(msg.len > 0 && msg.len <= LM_WIRE_STATE_MAX);
		for (uint32_t i = 0; i < msg.len; i++)
			assert_int_equal(msg.payload[i], pattern(got + i));
		got += msg.len;
	}
	pthread_join(vm, NULL);
	assert_ok(lm_relay_finish(&g->relay, soon(), &err), err);
	assert_int_equal(g->relay.bytes, STATE_BYTES);
	rig_free(g);
}

static void an_empty_state_ends_well(void **state)
{
	struct rig *g = rig_new(10 * LM_NS_PER_S, LM_NO_DEADLINE);

	(void)state;
	close(g->vm_fd);
	g->vm_fd = -1;
	assert_ok(lm_relay_finish(&g->relay, LM_NO_DEADLINE, &err), err);
	assert_int_equal(g->relay.bytes, 0);
	rig_free(g);
}

static void a_vm_that_does_not_hang_up_is_not_waited_for_for_ever(void **state)
{
	struct rig *g = rig_new(10 * LM_NS_PER_S, LM_NO_DEADLINE);
	int64_t begin = lm_now_ns();

	(void)state;
	assert_fails(lm_relay_finish(&g->relay, lm_deadline_after(30 * LM_NS_PER_MS), &err), -ETIMEDOUT, err);
	assert_true(lm_now_ns() - begin < 3 * LM_NS_PER_S);
	rig_free(g);
}

static void a_deadline_that_has_passed_does_not_wait(void **state)
{
	struct rig *g = rig_new(10 * LM_NS_PER_S, LM_NO_DEADLINE);

	(void)state;
	assert_fails(lm_relay_finish(&g->relay, lm_now_ns() - LM_NS_PER_S, &err), -ETIMEDOUT, err);
	rig_free(g);
}

static void stopping_breaks_the_vms_stream(void **state)
{
	struct rig *g = rig_new(10 * LM_NS_PER_S, LM_NO_DEADLINE);

	(void)state;
	lm_relay_stop(&g->relay);
	assert_int_equal(send(g->vm_fd, "x", 1, MSG_NOSIGNAL), -1);
	assert_int_equal(errno, EPIPE);
	lm_relay_stop(&g->relay); /* twice does no harm */
	rig_free(g);
}

static void a_dead_peer_breaks_the_vms_stream_and_is_the_error(void **state)
{
	struct rig *g = rig_new(10 * LM_NS_PER_S, LM_NO_DEADLINE);
	char c;

	(void)state;
	lm_control_close(&g->dest);
	assert_int_equal(send(g->vm_fd, "x", 1, MSG_NOSIGNAL), 1);
	/* The relay shuts its end: a VM that writes gets an error instead of hanging. */
	assert_int_equal(recv(g->vm_fd, &c, 1, 0), 0);
	assert_int_equal(send(g->vm_fd, "y", 1, MSG_NOSIGNAL), -1);
	assert_fails(lm_relay_finish(&g->relay, soon(), &err), -EPIPE, err);
	assert_non_null(strstr(err.msg, "STATE"));
	rig_free(g);
}

/* Fills the relay's socket, its buffer and the channel until nothing moves. */
static void stuff(struct rig *g)
{
	static uint8_t junk[65536];
	unsigned idle = 0;

	while (idle < 20) {
		if (send(g->vm_fd, junk, sizeof(junk), MSG_NOSIGNAL | MSG_DONTWAIT) > 0) {
			idle = 0;
		} else {
			idle++;
			unit_sleep_ms(1);
		}
	}
}

static void a_peer_that_takes_nothing_is_given_up_in_time(void **state)
{
	struct rig *by_timeout = rig_new(200 * LM_NS_PER_MS, LM_NO_DEADLINE);
	struct rig *by_deadline = rig_new(60 * LM_NS_PER_S, lm_deadline_after(200 * LM_NS_PER_MS));

	(void)state;
	stuff(by_timeout);
	assert_fails(lm_relay_finish(&by_timeout->relay, soon(), &err), -ETIMEDOUT, err);
	assert_non_null(strstr(err.msg, "STATE"));
	stuff(by_deadline);
	assert_fails(lm_relay_finish(&by_deadline->relay, soon(), &err), -ETIMEDOUT, err);
	rig_free(by_timeout);
	rig_free(by_deadline);
}

static void breaking_it_does_not_wait_for_a_stuck_peer(void **state)
{
	struct rig *g = rig_new(500 * LM_NS_PER_MS, LM_NO_DEADLINE);
	int64_t begin;

	(void)state;
	stuff(g);
	begin = lm_now_ns();
	lm_relay_break(&g->relay);
	assert_true(lm_now_ns() - begin < 100 * LM_NS_PER_MS);
	assert_int_equal(send(g->vm_fd, "x", 1, MSG_NOSIGNAL), -1);
	rig_free(g);
}

static void one_that_was_never_started_can_be_stopped(void **state)
{
	struct lm_relay r = { 0 };

	(void)state;
	lm_relay_break(&r);
	lm_relay_stop(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_the_state_arrives_in_order),
		cmocka_unit_test(an_empty_state_ends_well),
		cmocka_unit_test(a_vm_that_does_not_hang_up_is_not_waited_for_for_ever),
		cmocka_unit_test(a_deadline_that_has_passed_does_not_wait),
		cmocka_unit_test(stopping_breaks_the_vms_stream),
		cmocka_unit_test(a_dead_peer_breaks_the_vms_stream_and_is_the_error),
		cmocka_unit_test(a_peer_that_takes_nothing_is_given_up_in_time),
		cmocka_unit_test(breaking_it_does_not_wait_for_a_stuck_peer),
		cmocka_unit_test(one_that_was_never_started_can_be_stopped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
