/* SPDX-License-Identifier: Apache-2.0 */
/* Events of rdma_cm at every state of a lane, in the wrong order and twice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "side.h"

#define EVENTS (RDMA_CM_EVENT_TIMEWAIT_EXIT + 1)

static struct lm_error err;
static struct lm_poll_result res;
static struct side s;

static const enum rdma_cm_event_type due[] = { RDMA_CM_EVENT_ADDR_RESOLVED, RDMA_CM_EVENT_ROUTE_RESOLVED,
					       RDMA_CM_EVENT_ESTABLISHED };

static bool is_request(unsigned event)
{
	return event == RDMA_CM_EVENT_CONNECT_REQUEST; /* comes with an id of its own */
}

/* ---- source ---- */

struct words {
	enum rdma_cm_event_type event;
	int code;
	const char *text;
};

static const struct words words[] = {
	{ RDMA_CM_EVENT_REJECTED, -ECONNREFUSED, "refused (it does not know this session" },
	{ RDMA_CM_EVENT_ADDR_ERROR, -EHOSTUNREACH, "no route" },
	{ RDMA_CM_EVENT_ROUTE_ERROR, -EHOSTUNREACH, "no route" },
	{ RDMA_CM_EVENT_UNREACHABLE, -ETIMEDOUT, "no answer (a firewall" },
	{ RDMA_CM_EVENT_CONNECT_ERROR, -EHOSTUNREACH, "RDMA_CM_EVENT_CONNECT_ERROR" },
	{ RDMA_CM_EVENT_DISCONNECTED, -EHOSTUNREACH, "RDMA_CM_EVENT_DISCONNECTED" },
	{ RDMA_CM_EVENT_DEVICE_REMOVAL, -EHOSTUNREACH, "RDMA_CM_EVENT_DEVICE_REMOVAL" },
};

static void what_comes_instead_is_told_in_words(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		for (unsigned at = 0; at < 3; at++) {
			side_begin(&s, LM_SOURCE, 2, 1);
			fake_instead(due[at], FAKE_ANY, 1, words[i].event, FAKE_NOTHING);
			assert_int_equal(side_open(&s, &err), words[i].code);
			assert_non_null(strstr(err.msg, words[i].text));
			assert_non_null(strstr(err.msg, "lane 0"));
			side_end(&s);
		}
}

/* A status that says nothing is not taken for success. */
static void an_error_without_a_status_is_an_error(void **state)
{
	static const int codes[] = { -ECONNREFUSED, -EHOSTUNREACH, -EHOSTUNREACH, -ETIMEDOUT, -ECONNABORTED, -ECONNABORTED,
				     -ECONNABORTED };

	(void)state;
	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		side_begin(&s, LM_SOURCE, 1, 1);
		fake_status = i % 2 ? 0 : 8;
		fake_instead(RDMA_CM_EVENT_ESTABLISHED, FAKE_ANY, 1, words[i].event, FAKE_NOTHING);
		assert_int_equal(side_open(&s, &err), codes[i]);
		side_end(&s);
	}
}

static void a_lane_that_is_refused_tries_the_next_pair(void **state)
{
	(void)state;
	for (unsigned event = 0; event < EVENTS; event++)
		for (unsigned at = 0; at < 3; at++) {
			if (is_request(event) || event == due[at])
				continue;
			side_begin(&s, LM_SOURCE, 3, 2);
			fake_instead(due[at], 0, 1, (enum rdma_cm_event_type)event, FAKE_NOTHING);
			assert_int_equal(side_open(&s, &err), 0);
			assert_int_equal(rd_lanes_missing(side_rdma(&s)), 0);
			assert_int_equal(side_lane(&s, 0)->pair, 1);
			side_end(&s);
		}
}

/* Twice what was due before, and the one after it with that. */
static void an_event_that_comes_twice_costs_an_attempt_at_the_most(void **state)
{
	(void)state;
	for (unsigned at = 0; at < 3; at++) {
		side_begin(&s, LM_SOURCE, 2, 2);
		fake_instead(due[at], 0, 1, due[at], due[at]);
		assert_int_equal(side_open(&s, &err), 0);
		assert_int_equal(side_lane(&s, 0)->pair, at < 2);
		side_end(&s);
	}
}

static void when_all_pairs_fail_the_last_reason_is_told(void **state)
{
	(void)state;
	side_begin(&s, LM_SOURCE, 2, 3);
	fake_instead(RDMA_CM_EVENT_ADDR_RESOLVED, 0, 9, RDMA_CM_EVENT_ADDR_ERROR, FAKE_NOTHING);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, 1, 9, RDMA_CM_EVENT_REJECTED, FAKE_NOTHING);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, 2, 9, RDMA_CM_EVENT_UNREACHABLE, FAKE_NOTHING);
	assert_true(side_says_why(side_open(&s, &err), &err));
	side_end(&s);
}

/* ---- a lane that is open ---- */

/* While the lane behind it still connects, or when all are there. */
static void end_of_an_open_lane(enum lm_side side, bool early, enum rdma_cm_event_type event, int code, const char *text)
{
	side_begin(&s, side, 2, 1);
	if (early)
		fake_instead(RDMA_CM_EVENT_ESTABLISHED, FAKE_ANY, 1, RDMA_CM_EVENT_ESTABLISHED, event);
	assert_int_equal(side_open(&s, &err), 0);
	side_add_region(&s);
	if (!early)
		fake_event(side_lane(&s, 0)->id, event);
	lm_err_clear(&err);
	assert_int_equal(lm_transport_poll(s.t, 0, 10, &res, &err), code);
	assert_int_equal(err.code, code);
	if (code) {
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_non_null(strstr(err.msg, text));
	}
	assert_int_equal(lm_transport_poll(s.t, 1, 10, &res, &err), 0);
	side_end(&s);
}

/* When all are there; before that it is opened again (test_connect.c, and below). */
static void an_open_lane_whose_peer_hangs_up_is_lost(void **state)
{
	(void)state;
	end_of_an_open_lane(LM_SOURCE, false, RDMA_CM_EVENT_DISCONNECTED, -ECONNRESET, "the destination hung up");
	end_of_an_open_lane(LM_DEST, false, RDMA_CM_EVENT_DISCONNECTED, -ECONNRESET, "the source hung up");
}

static void an_open_lane_whose_device_is_removed_is_lost(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++)
		end_of_an_open_lane(i % 2 ? LM_DEST : LM_SOURCE, i / 2, RDMA_CM_EVENT_DEVICE_REMOVAL, -ENETDOWN,
				    "fake0, port 1: the RDMA device was removed");
}

static void an_open_lane_does_not_mind_the_rest(void **state)
{
	(void)state;
	for (unsigned event = 0; event < EVENTS; event++)
		for (unsigned i = 0; i < 4; i++)
			if (!is_request(event) && event != RDMA_CM_EVENT_DISCONNECTED && event != RDMA_CM_EVENT_DEVICE_REMOVAL)
				end_of_an_open_lane(i % 2 ? LM_DEST : LM_SOURCE, i / 2, (enum rdma_cm_event_type)event, 0, "");
}

/* ---- destination ---- */

/* Whatever ends an attempt that does not stand yet: the source may come again. */
static void an_accepted_lane_that_breaks_is_waited_for_again(void **state)
{
	(void)state;
	for (unsigned event = 0; event < EVENTS; event++) {
		if (is_request(event) || event == RDMA_CM_EVENT_ESTABLISHED)
			continue;
		side_begin(&s, LM_DEST, 2, 2);
		fake_instead(RDMA_CM_EVENT_ESTABLISHED, 0, 1, (enum rdma_cm_event_type)event, FAKE_NOTHING);
		assert_int_equal(side_open(&s, &err), 0);
		assert_int_equal(rd_lanes_missing(side_rdma(&s)), 0);
		side_end(&s);
	}
}

static void a_lane_that_hangs_up_before_all_are_there_is_waited_for_again(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 2, 1);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, FAKE_ANY, 1, RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_DISCONNECTED);
	assert_int_equal(side_open(&s, &err), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(lm_transport_poll(s.t, i, 10, &res, &err), 0);
	side_end(&s);
}

static bool listener_events_then_lanes(void)
{
	static unsigned event;

	event %= EVENTS + 1;
	if (event == EVENTS)
		return event++, side_requests();
	if (!is_request(event) && event != RDMA_CM_EVENT_DEVICE_REMOVAL)
		fake_event(fake_listener(0), (enum rdma_cm_event_type)event);
	event++;
	return true;
}

static void a_listener_does_not_mind_events_that_are_not_its_own(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 1, 1);
	fake_idle = listener_events_then_lanes;
	assert_int_equal(side_open(&s, &err), 0);
	assert_non_null(fake_listener(0));
	side_end(&s);
}

static bool a_listener_goes(void)
{
	if (fake_listener(0)) {
		fake_at[0] = FAKE_GONE;
		fake_event(fake_listener(0), RDMA_CM_EVENT_DEVICE_REMOVAL);
		return true;
	}
	return side_request(&s, 1, 0);
}

static void a_listener_ends_with_its_device_and_lanes_come_over_another(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 1, 2);
	fake_idle = a_listener_goes;
	assert_int_equal(side_open(&s, &err), 0);
	assert_null(fake_listener(0));
	assert_non_null(strstr(s.t->info, "fake1:1 x1"));
	side_end(&s);
}

/* ---- a channel that cannot be read ---- */

static void a_channel_that_cannot_be_read_ends_the_wait(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		int r;

		side_begin(&s, i ? LM_DEST : LM_SOURCE, 2, 2);
		fake_errno = EIO;
		fake_fail_call = "rdma_get_cm_event";
		r = side_open(&s, &err);
		assert_int_equal(r, -EIO);
		assert_true(side_says_why(r, &err));
		assert_in_range(s.p.deadline_ns - lm_now_ns(), 9 * LM_NS_PER_S, 10 * LM_NS_PER_S);
		side_end(&s);
	}
}

static void an_open_lane_that_cannot_hear_its_events_is_lost(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		side_ready(&s, i ? LM_DEST : LM_SOURCE, 2, 1);
		fake_fail_call = "rdma_get_cm_event";
		fake_event(side_lane(&s, 1)->id, RDMA_CM_EVENT_TIMEWAIT_EXIT);
		assert_int_equal(lm_transport_poll(s.t, 1, 10, &res, &err), -ENETDOWN);
		assert_non_null(strstr(err.msg, "rdma_cm"));
		assert_int_equal(lm_transport_poll(s.t, 0, 10, &res, &err), 0);
		side_end(&s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_comes_instead_is_told_in_words),
		cmocka_unit_test(an_error_without_a_status_is_an_error),
		cmocka_unit_test(a_lane_that_is_refused_tries_the_next_pair),
		cmocka_unit_test(an_event_that_comes_twice_costs_an_attempt_at_the_most),
		cmocka_unit_test(when_all_pairs_fail_the_last_reason_is_told),
		cmocka_unit_test(an_open_lane_whose_peer_hangs_up_is_lost),
		cmocka_unit_test(an_open_lane_whose_device_is_removed_is_lost),
		cmocka_unit_test(an_open_lane_does_not_mind_the_rest),
		cmocka_unit_test(an_accepted_lane_that_breaks_is_waited_for_again),
		cmocka_unit_test(a_lane_that_hangs_up_before_all_are_there_is_waited_for_again),
		cmocka_unit_test(a_listener_does_not_mind_events_that_are_not_its_own),
		cmocka_unit_test(a_listener_ends_with_its_device_and_lanes_come_over_another),
		cmocka_unit_test(a_channel_that_cannot_be_read_ends_the_wait),
		cmocka_unit_test(an_open_lane_that_cannot_hear_its_events_is_lost),
	};

	return cmocka_run_group_tests_name("rdma events", tests, NULL, NULL);
}
