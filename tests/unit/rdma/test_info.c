/* SPDX-License-Identifier: Apache-2.0 */
/* What `transports` and `check` say of this host's devices, whatever fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "rdma/rdma.h"
#include "engine/base/clock.h"
#include "side.h"

#define PEER "192.168.0.2:7777"
#define MIB (UINT64_C(1) << 20)

static char why[256];

/* ---- usable ---- */

static bool usable(const char *peer)
{
	static const char *const rails[] = { "fake0" };
	bool ok;

	why[0] = 0;
	ok = lm_rdma_usable(peer, rails, 0, why, sizeof(why));
	assert_int_equal(ok, !why[0]);
	assert_null(strstr(why, "Success"));
	assert_int_equal(fake_live, 0);
	return ok;
}

static void a_peer_that_a_device_routes_to_can_be_reached(void **state)
{
	(void)state;
	fake_reset();
	assert_true(usable(NULL));
	assert_true(usable(PEER));
	assert_false(usable("10.1.1.1:7777"));
	assert_non_null(strstr(why, "no RDMA device routes to 10.1.1.1:7777"));
	assert_false(usable("127.0.0.1:7777"));
	assert_non_null(strstr(why, "is this host itself"));
	assert_false(usable("nonsense"));
}

static void a_route_that_does_not_come_is_not_waited_for_long(void **state)
{
	static const enum rdma_cm_event_type instead[] = { RDMA_CM_EVENT_ADDR_ERROR, RDMA_CM_EVENT_DEVICE_REMOVAL, FAKE_NOTHING };
	int64_t began;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		fake_reset();
		fake_instead(RDMA_CM_EVENT_ADDR_RESOLVED, FAKE_ANY, 1, instead[i], FAKE_NOTHING);
		began = lm_now_ns();
		assert_false(usable(PEER));
		assert_in_range(lm_now_ns() - began, 0, 2500 * LM_NS_PER_MS);
	}
}

static void a_channel_that_cannot_be_read_reaches_nobody(void **state)
{
	int64_t began;

	(void)state;
	fake_reset();
	fake_fail_call = "rdma_get_cm_event";
	began = lm_now_ns();
	assert_false(usable(PEER));
	assert_in_range(lm_now_ns() - began, 0, 500 * LM_NS_PER_MS);
}

static void a_host_without_what_it_takes_is_told_why(void **state)
{
	static const char *const none[] = { "fake1" };

	(void)state;
	fake_reset();
	fake_ndevices = 0;
	assert_false(usable(NULL));
	assert_non_null(strstr(why, "no RDMA device that user programs can use"));
	fake_reset();
	fake_port_state = IBV_PORT_DOWN;
	assert_false(usable(NULL));
	assert_non_null(strstr(why, "no active port"));
	fake_reset();
	fake_memlock = 8 * MIB;
	assert_false(usable(NULL));
	assert_non_null(strstr(why, "only 8192 KiB of memory may be locked"));
	fake_reset();
	assert_false(lm_rdma_usable(NULL, none, 1, why, sizeof(why)));
	assert_non_null(strstr(why, "rail fake1"));
}

static void usable_with_a_failure(void)
{
	fake_reset();
	side_fail();
	usable(PEER);
}

static void a_call_that_fails_makes_it_unusable_at_the_worst(void **state)
{
	(void)state;
	side_each_call_fails(usable_with_a_failure);
}

/* ---- check ---- */

struct lines {
	unsigned n;
	struct lm_check line[8];
};

static void take(void *opaque, const struct lm_check *c)
{
	struct lines *l = opaque;

	assert_true(l->n < 8);
	assert_true(c->found[0] && (c->status == LM_CHECK_OK) == !c->advice[0]);
	assert_null(strstr(c->found, "Success"));
	l->line[l->n++] = *c;
}

static struct lines check(void)
{
	struct lines l = { 0 };

	lm_rdma_check(take, &l);
	assert_int_equal(fake_live, 0);
	return l;
}

static void each_port_has_a_line(void **state)
{
	struct lines l;

	(void)state;
	fake_reset();
	fake_ndevices = 2;
	l = check();
	assert_int_equal(l.n, 3);
	assert_string_equal(l.line[0].found, "fake0:1 RoCE, active, MTU 4096, 100 Gb/s, 192.168.0.1 (GID 1), 2 GIDs, no ODP, "
			    "any MR size");
	assert_string_equal(l.line[1].found, "fake1:1 RoCE, active, MTU 4096, 100 Gb/s, 192.168.1.1 (GID 1), 2 GIDs, no ODP, "
			    "any MR size");
	assert_string_equal(l.line[2].found, "no limit: guests of any size can be registered");
	for (unsigned i = 0; i < l.n; i++)
		assert_int_equal(l.line[i].status, LM_CHECK_OK);
}

static void a_port_that_cannot_be_used_comes_with_advice(void **state)
{
	struct lines l;

	(void)state;
	fake_reset();
	fake_port_state = IBV_PORT_DOWN;
	l = check();
	assert_int_equal(l.line[0].status, LM_CHECK_WARN);
	assert_non_null(strstr(l.line[0].found, "RoCE, down"));
	assert_non_null(strstr(l.line[0].advice, "not active"));
	fake_reset();
	fake_at[0] = FAKE_GONE;
	l = check();
	assert_int_equal(l.line[0].status, LM_CHECK_WARN);
	assert_non_null(strstr(l.line[0].found, "no address"));
	assert_non_null(strstr(l.line[0].advice, "ip address add"));
	fake_reset();
	fake_memlock = 100 * MIB;
	l = check();
	assert_int_equal(l.line[1].status, LM_CHECK_WARN);
	assert_string_equal(l.line[1].found, "at most 100 MiB may be registered with an RDMA device");
}

static void without_a_device_there_is_one_line(void **state)
{
	struct lines l;

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		fake_reset();
		fake_ndevices = i;
		fake_fail_call = i ? "ibv_get_device_list" : NULL;
		l = check();
		assert_int_equal(l.n, 1);
		assert_int_equal(l.line[0].status, LM_CHECK_ABSENT);
		assert_non_null(strstr(l.line[0].found, "migrations go over TCP"));
	}
}

/* A device that is there is never left out. */
static void a_device_that_does_not_answer_has_a_line_that_says_so(void **state)
{
	static const char *const calls[] = { "ibv_open_device", "ibv_query_device", "ibv_query_port" };

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		struct lines l;

		fake_reset();
		fake_errno = i % 2 ? 0 : EACCES;
		errno = 0;
		fake_fail_call = calls[i / 2];
		l = check();
		assert_int_equal(l.n, 2);
		assert_int_equal(l.line[0].status, LM_CHECK_WARN);
		assert_non_null(strstr(l.line[0].found, "fake0"));
		assert_non_null(strstr(l.line[0].found, i % 2 ? "Input/output error" : "Permission denied"));
	}
}

static void check_with_a_failure(void)
{
	fake_reset();
	fake_ndevices = 2;
	side_fail();
	assert_in_range(check().n, 1, 3);
}

static void a_call_that_fails_costs_a_line_its_certainty(void **state)
{
	(void)state;
	side_each_call_fails(check_with_a_failure);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_peer_that_a_device_routes_to_can_be_reached),
		cmocka_unit_test(a_route_that_does_not_come_is_not_waited_for_long),
		cmocka_unit_test(a_channel_that_cannot_be_read_reaches_nobody),
		cmocka_unit_test(a_host_without_what_it_takes_is_told_why),
		cmocka_unit_test(a_call_that_fails_makes_it_unusable_at_the_worst),
		cmocka_unit_test(each_port_has_a_line),
		cmocka_unit_test(a_port_that_cannot_be_used_comes_with_advice),
		cmocka_unit_test(without_a_device_there_is_one_line),
		cmocka_unit_test(a_device_that_does_not_answer_has_a_line_that_says_so),
		cmocka_unit_test(a_call_that_fails_costs_a_line_its_certainty),
	};

	return cmocka_run_group_tests_name("rdma info", tests, NULL, NULL);
}
