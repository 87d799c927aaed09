/* SPDX-License-Identifier: Apache-2.0 */
/* The source opens lanes, and one of them again: whatever fails, another pair of rails serves, or it is told. */
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
static struct side s;

static void open_fails(int code, const char *words)
{
	lm_err_clear(&err);
	assert_int_equal(side_open(&s, &err), code);
	assert_int_equal(err.scope, LM_SCOPE_SESSION);
	assert_non_null(strstr(err.msg, words));
	side_end(&s);
}

/* ---- opening ---- */

static void every_lane_shows_the_session_and_its_number(void **state)
{
	struct rd_hello want;

	(void)state;
	side_begin(&s, LM_SOURCE, 3, 1);
	assert_int_equal(side_open(&s, &err), 0);
	want = rd_hello_make(&s.p, 2);
	assert_memory_equal(&fake_hello, &want, sizeof(want));
	assert_string_equal(s.t->info, "rdma, lanes fake0:1 x3; memory not registered yet");
	side_end(&s);
}

static void lanes_are_spread_over_the_rails(void **state)
{
	(void)state;
	side_begin(&s, LM_SOURCE, 4, 2);
	assert_int_equal(side_open(&s, &err), 0);
	assert_non_null(strstr(s.t->info, "fake0:1 x2"));
	assert_non_null(strstr(s.t->info, "fake1:1 x2"));
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(side_lane(&s, i)->home, side_lane(&s, i)->pair);
	side_end(&s);
}

/* What is lost with one rail is whatever the other can do as well. */
static void with_two_rails(void)
{
	int r;

	side_begin(&s, LM_SOURCE, 3, 2);
	side_fail();
	r = side_open(&s, &err);
	if (r) {
		assert_true(side_says_why(r, &err));
		/* Before there are rails. */
		assert_true(!strcmp(fake_failed, "rdma_create_event_channel") || !strcmp(fake_failed, "getifaddrs"));
	}
	assert_true(lm_now_ns() < s.p.deadline_ns);
	side_end(&s);
}

static void with_two_rails_any_one_call_may_fail(void **state)
{
	(void)state;
	side_each_call_fails(with_two_rails);
}

static void with_one_rail(void)
{
	int r;

	side_begin(&s, LM_SOURCE, 2, 1);
	side_fail();
	r = side_open(&s, &err);
	assert_true(r ? side_says_why(r, &err) : !rd_lanes_missing(side_rdma(&s)));
	assert_true(lm_now_ns() < s.p.deadline_ns);
	side_end(&s);
}

static void with_one_rail_a_call_that_fails_is_told(void **state)
{
	(void)state;
	side_each_call_fails(with_one_rail);
}

/* Not once, but every time: the open fails in words, or it was not needed. */
static void a_call_that_always_fails_is_told(void **state)
{
	static const char *const calls[] = {
		"getifaddrs", "ibv_alloc_pd", "ibv_create_comp_channel", "ibv_create_cq", "ibv_modify_qp", "ibv_post_recv",
		"ibv_query_device", "ibv_query_port", "ibv_reg_mr", "rdma_bind_addr", "rdma_connect",
		"rdma_create_event_channel", "rdma_create_id", "rdma_create_qp", "rdma_get_cm_event", "rdma_resolve_addr",
		"rdma_resolve_route",
	};

	(void)state;
	for (unsigned i = 0; i < 2 * sizeof(calls) / sizeof(calls[0]); i++) {
		int r;

		side_begin(&s, LM_SOURCE, 2, 2);
		fake_errno = i % 2 ? 0 : EIO;
		fake_fail_call = calls[i / 2];
		r = side_open(&s, &err);
		assert_true(side_says_why(r, &err));
		side_end(&s);
	}
}

static void what_is_only_better_may_fail(void **state)
{
	static const char *const calls[] = { "ibv_query_qp", "ibv_query_gid_ex", "rdma_ack_cm_event", "rdma_set_option",
					     "rdma_destroy_id" };

	(void)state;
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		side_begin(&s, LM_SOURCE, 2, 1);
		fake_fail_call = calls[i];
		assert_int_equal(side_open(&s, &err), 0);
		assert_int_equal(side_rdma(&s)->uses[0].small_packets, i == 0); /* not known: the worse */
		side_end(&s);
	}
}

/* ---- time ---- */

static void a_pair_that_does_not_answer_makes_room_for_another(void **state)
{
	int64_t began;

	(void)state;
	side_begin(&s, LM_SOURCE, 4, 2);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, 0, 100, FAKE_NOTHING, FAKE_NOTHING);
	began = lm_now_ns();
	assert_int_equal(side_open(&s, &err), 0);
	assert_in_range((lm_now_ns() - began) / LM_NS_PER_MS, 2900, 3500);
	assert_non_null(strstr(s.t->info, "fake1:1 x4"));
	side_end(&s);
}

static void a_lane_that_breaks_before_all_are_there_is_opened_again(void **state)
{
	(void)state;
	side_begin(&s, LM_SOURCE, 4, 2);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, 0, 1, RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_DISCONNECTED);
	assert_int_equal(side_open(&s, &err), 0);
	assert_non_null(strstr(s.t->info, "fake1:1 x3"));
	for (unsigned i = 0; i < 4; i++)
		assert_false(side_lane(&s, i)->hung_up);
	side_end(&s);
	side_begin(&s, LM_SOURCE, 2, 1);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, 0, 1, RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_DISCONNECTED);
	open_fails(-ECONNRESET, "broke before all lanes were there");
}

static void a_single_pair_has_until_the_deadline(void **state)
{
	static const enum rdma_cm_event_type due[] = { RDMA_CM_EVENT_ADDR_RESOLVED, RDMA_CM_EVENT_ROUTE_RESOLVED,
						       RDMA_CM_EVENT_ESTABLISHED };

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		side_begin(&s, LM_SOURCE, 3, 1);
		fake_instead(due[i], FAKE_ANY, 1, FAKE_NOTHING, FAKE_NOTHING);
		lm_err_clear(&err);
		assert_int_equal(side_open(&s, &err), -ETIMEDOUT);
		assert_non_null(strstr(err.msg, "1 of 3 lanes have not come"));
		assert_in_range((lm_now_ns() - s.p.deadline_ns) / LM_NS_PER_MS, 0, 500);
		side_end(&s);
	}
}

static void cancelling_ends_the_wait(void **state)
{
	(void)state;
	side_begin(&s, LM_SOURCE, 2, 1);
	s.p.cancel_fd = eventfd(1, EFD_CLOEXEC);
	fake_instead(RDMA_CM_EVENT_ESTABLISHED, FAKE_ANY, 1, FAKE_NOTHING, FAKE_NOTHING);
	assert_int_equal(side_open(&s, &err), -ECANCELED);
	close(s.p.cancel_fd);
	side_end(&s);
}

/* ---- rails ---- */

static void without_a_device_it_says_so(void **state)
{
	(void)state;
	side_begin(&s, LM_SOURCE, 1, 0);
	open_fails(-EPROTO, "endpoint"); /* of no rails */
	side_begin(&s, LM_SOURCE, 1, 1);
	fake_ndevices = 0;
	open_fails(-ENODEV, "no RDMA device");
	side_begin(&s, LM_SOURCE, 1, 1);
	fake_port_state = IBV_PORT_DOWN;
	open_fails(-ENODEV, "no active port");
	side_begin(&s, LM_SOURCE, 1, 1);
	s.p.insecure = false;
	open_fails(-EACCES, "--insecure");
}

static void a_rail_that_was_named_is_found_by_its_gid(void **state)
{
	static const char *const good[] = { "fake1:1:1" }, *const bad[] = { "fake1:1:0" };

	(void)state;
	side_begin(&s, LM_SOURCE, 2, 2);
	s.p.rails = good;
	s.p.nrails = 1;
	assert_int_equal(side_open(&s, &err), 0);
	assert_non_null(strstr(s.t->info, "fake1:1 x2"));
	side_end(&s);
	side_begin(&s, LM_SOURCE, 2, 2);
	s.p.rails = bad;
	s.p.nrails = 1;
	open_fails(-ENODEV, "fake1");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_lane_shows_the_session_and_its_number),
		cmocka_unit_test(lanes_are_spread_over_the_rails),
		cmocka_unit_test(with_two_rails_any_one_call_may_fail),
		cmocka_unit_test(with_one_rail_a_call_that_fails_is_told),
		cmocka_unit_test(a_call_that_always_fails_is_told),
		cmocka_unit_test(what_is_only_better_may_fail),
		cmocka_unit_test(a_pair_that_does_not_answer_makes_room_for_another),
		cmocka_unit_test(a_lane_that_breaks_before_all_are_there_is_opened_again),
		cmocka_unit_test(a_single_pair_has_until_the_deadline),
		cmocka_unit_test(cancelling_ends_the_wait),
		cmocka_unit_test(without_a_device_it_says_so),
		cmocka_unit_test(a_rail_that_was_named_is_found_by_its_gid),
	};

	return cmocka_run_group_tests_name("rdma connect", tests, NULL, NULL);
}
