/* SPDX-License-Identifier: Apache-2.0 */
/* A lane that was shut is opened again, or stays as shut as it was, while the others work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "side.h"

static struct lm_error err;
static struct lm_poll_result res;
static struct side s;
static enum lm_direction direction = LM_PUSH;

/* Two lanes, over two rails; one is lost. */
static void one_is_lost(enum lm_side side)
{
	side_begin(&s, side, 2, 2);
	s.p.direction = direction;
	assert_int_equal(side_open(&s, &err), 0);
	side_add_region(&s);
	lm_transport_shut(s.t, 1);
	side_remember(&s, 0);
}

static void it_is_back(void)
{
	assert_int_equal(side_reopen(&s, 1, &err), 0);
	assert_int_equal(lm_transport_poll(s.t, 1, 10, &res, &err), 0);
	assert_true(side_is_unchanged(&s, 0));
}

/* An attempt that failed: words about the lane, which is of no use and holds nothing, and the other does not know. */
static void it_is_not(int r)
{
	assert_true(side_says_why(r, &err));
	assert_null(side_lane(&s, 1)->channel);
	assert_null(side_lane(&s, 1)->id);
	assert_int_equal(err.scope, LM_SCOPE_LANE);
	assert_int_equal(lm_transport_poll(s.t, 1, 10, &res, &err), -ESHUTDOWN);
	assert_true(side_is_unchanged(&s, 0));
}

/* ---- any call fails ---- */

/* Now; what has failed then succeeds. */
static void with_a_failure(void)
{
	int r;

	side_fail();
	r = side_reopen(&s, 1, &err);
	fake_fail_at = 0;
	if (r) {
		it_is_not(r);
		it_is_back();
	}
	assert_true(side_is_unchanged(&s, 0));
}

static void again(enum lm_side side)
{
	one_is_lost(side);
	with_a_failure();
	assert_int_equal(lm_transport_poll(s.t, 0, 10, &res, &err), 0);
	side_end(&s);
}

static void source_again(void)
{
	again(LM_SOURCE);
}

static void dest_again(void)
{
	again(LM_DEST);
}

static void any_call_may_fail_and_the_next_attempt_succeeds(void **state)
{
	(void)state;
	side_each_call_fails(source_again);
	side_each_call_fails(dest_again);
}

static void in_post_copy_too(void **state)
{
	(void)state;
	direction = LM_PULL;
	side_each_call_fails(source_again);
	side_each_call_fails(dest_again);
	direction = LM_PUSH;
}

/* The device is another one now: its memory is registered when it is asked for. */
static void over_a_new_device(enum lm_side side)
{
	one_is_lost(side);
	fake_at[1] = 5;
	if (side == LM_DEST)
		fake_event(fake_listener(1), RDMA_CM_EVENT_DEVICE_REMOVAL);
	else
		fake_at[0] = 6; /* lane 0 is there already */
	with_a_failure();
	side_end(&s);
}

static void source_over_a_new_device(void)
{
	over_a_new_device(LM_SOURCE);
}

static void dest_over_a_new_device(void)
{
	over_a_new_device(LM_DEST);
}

static void any_call_may_fail_over_a_device_that_is_new(void **state)
{
	(void)state;
	side_each_call_fails(source_over_a_new_device);
	side_each_call_fails(dest_over_a_new_device);
}

/* ---- source ---- */

static void whatever_comes_instead_is_told_of_the_lane(void **state)
{
	static const enum rdma_cm_event_type due[] = { RDMA_CM_EVENT_ADDR_RESOLVED, RDMA_CM_EVENT_ROUTE_RESOLVED,
						       RDMA_CM_EVENT_ESTABLISHED };

	(void)state;
	for (unsigned at = 0; at < 3; at++)
		for (unsigned event = 0; event <= RDMA_CM_EVENT_TIMEWAIT_EXIT; event++) {
			if (event == due[at] || event == RDMA_CM_EVENT_CONNECT_REQUEST)
				continue;
			one_is_lost(LM_SOURCE);
			fake_instead(due[at], 1, 1, (enum rdma_cm_event_type)event, FAKE_NOTHING);
			it_is_not(side_reopen(&s, 1, &err));
			it_is_back();
			side_end(&s);
		}
}

static void it_shows_the_new_token(void **state)
{
	(void)state;
	one_is_lost(LM_SOURCE);
	it_is_back();
	assert_memory_equal(fake_hello.token, s.p.token, LM_TOKEN_SIZE);
	assert_int_equal(lm_le16_get(fake_hello.lane), 1);
	side_end(&s);
}

static void while_another_works_it_keeps_to_its_rail(void **state)
{
	(void)state;
	one_is_lost(LM_SOURCE);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, 1, 3, RDMA_CM_EVENT_REJECTED, FAKE_NOTHING);
	for (unsigned i = 0; i < 3; i++)
		it_is_not(side_reopen(&s, 1, &err));
	it_is_back();
	assert_int_equal(side_lane(&s, 1)->pair, 1);
	side_end(&s);
}

static void when_none_works_any_rail_will_do(void **state)
{
	(void)state;
	one_is_lost(LM_SOURCE);
	lm_transport_shut(s.t, 0);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, 1, 9, RDMA_CM_EVENT_UNREACHABLE, FAKE_NOTHING);
	assert_int_equal(side_reopen(&s, 1, &err), -ETIMEDOUT);
	assert_int_equal(side_reopen(&s, 1, &err), 0);
	assert_int_equal(side_lane(&s, 1)->pair, 0);
	assert_int_equal(side_lane(&s, 1)->home, 1);
	side_end(&s);
}

/* ---- destination ---- */

static bool nobody(void)
{
	return false;
}

static bool those_who_are_not_meant_then_the_lane(void)
{
	static struct side old;

	if (fake_rejected)
		return side_requests();
	/* What the lane that works has not heard yet is for its own thread. */
	fake_event(side_lane(&s, 0)->id, RDMA_CM_EVENT_DISCONNECTED);
	old = s;
	old.p.token[0]--;
	return side_request(&old, 0, 1) && side_request(&s, 0, 0);
}

static void only_the_lane_that_is_meant_with_the_new_token_is_taken(void **state)
{
	(void)state;
	one_is_lost(LM_DEST);
	fake_idle = those_who_are_not_meant_then_the_lane;
	it_is_back();
	assert_int_equal(fake_rejected, 2);
	side_end(&s);
}

static void nobody_comes_until_the_deadline_or_the_end(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		one_is_lost(i ? LM_SOURCE : LM_DEST);
		fake_idle = nobody;
		fake_instead(RDMA_CM_EVENT_ROUTE_RESOLVED, FAKE_ANY, 2, FAKE_NOTHING, FAKE_NOTHING);
		it_is_not(side_reopen(&s, 1, &err));
		assert_in_range((lm_now_ns() - s.p.deadline_ns) / LM_NS_PER_MS, 0, 500);
		s.p.cancel_fd = eventfd(1, EFD_CLOEXEC);
		assert_int_equal(side_reopen(&s, 1, &err), -ECANCELED);
		close(s.p.cancel_fd);
		side_end(&s);
	}
}

static unsigned waits;

static bool a_device_goes_and_comes_back(void)
{
	if (!waits++) {
		fake_at[1] = FAKE_GONE;
		fake_event(fake_listener(1), RDMA_CM_EVENT_DEVICE_REMOVAL);
		return true;
	}
	assert_true(waits < 9 || fake_listener(1));
	if (fake_listener(1))
		return side_request(&s, 1, 1);
	if (waits == 5)
		fake_at[1] = 7; /* the same address, by another device */
	return false;
}

static void a_rail_that_is_back_is_listened_on_where_it_was(void **state)
{
	uint16_t port;

	(void)state;
	one_is_lost(LM_DEST);
	port = rdma_get_src_port(fake_listener(1));
	waits = 0;
	fake_idle = a_device_goes_and_comes_back;
	it_is_back();
	assert_int_equal(rdma_get_src_port(fake_listener(1)), port);
	assert_string_equal(side_lane(&s, 1)->use->dev->name, "fake7");
	assert_true(side_lane(&s, 1)->use->late);
	assert_int_equal(side_lane(&s, 1)->use->mem[0]->mode, RDMA_MODE_CHUNK);
	side_end(&s);
}

/* ---- both ---- */

static void after_ten_devices_there_is_none_more(void **state)
{
	(void)state;
	side_ready(&s, LM_SOURCE, 1, 1);
	for (unsigned i = 1; i <= RDMA_RAILS_MAX; i++) {
		lm_transport_shut(s.t, 0);
		fake_at[0] = i;
		assert_int_equal(side_reopen(&s, 0, &err), i < RDMA_RAILS_MAX ? 0 : -ENOSPC);
	}
	assert_non_null(strstr(err.msg, "more than 10 RDMA devices"));
	side_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_call_may_fail_and_the_next_attempt_succeeds),
		cmocka_unit_test(in_post_copy_too),
		cmocka_unit_test(any_call_may_fail_over_a_device_that_is_new),
		cmocka_unit_test(whatever_comes_instead_is_told_of_the_lane),
		cmocka_unit_test(it_shows_the_new_token),
		cmocka_unit_test(while_another_works_it_keeps_to_its_rail),
		cmocka_unit_test(when_none_works_any_rail_will_do),
		cmocka_unit_test(only_the_lane_that_is_meant_with_the_new_token_is_taken),
		cmocka_unit_test(nobody_comes_until_the_deadline_or_the_end),
		cmocka_unit_test(a_rail_that_is_back_is_listened_on_where_it_was),
		cmocka_unit_test(after_ten_devices_there_is_none_more),
	};

	return cmocka_run_group_tests_name("rdma again", tests, NULL, NULL);
}
