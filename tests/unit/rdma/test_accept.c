/* SPDX-License-Identifier: Apache-2.0 */
/* The destination listens and accepts: strangers, lanes that come twice, whatever fails. */
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

/* ---- listening ---- */

static void it_listens_on_every_rail_and_says_where(void **state)
{
	struct rd_rail rails[RDMA_RAILS_MAX];
	unsigned n;

	(void)state;
	side_begin(&s, LM_DEST, 1, 2);
	assert_int_equal(side_listen(&s, &err), 0);
	assert_int_equal(rd_endpoint_get(s.endpoint, rails, &n, &err), 0);
	assert_int_equal(n, 2);
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(fake_net_of(&rails[i].addr.sa), i);
		assert_int_equal(rd_addr_port(&rails[i].addr), ntohs(rdma_get_src_port(fake_listener(i))));
		assert_int_equal(rails[i].mbps, 100000);
	}
	side_end(&s);
}

static void listening_fails(void)
{
	int r;

	side_begin(&s, LM_DEST, 2, 2);
	side_fail();
	r = side_listen(&s, &err);
	assert_true(!r || side_says_why(r, &err));
	side_end(&s);
}

static void a_call_of_listening_that_fails_is_told(void **state)
{
	static const char *const calls[] = { "rdma_create_event_channel", "rdma_create_id", "rdma_bind_addr", "rdma_listen" };

	(void)state;
	side_each_call_fails(listening_fails);
	for (unsigned i = 0; i < 4; i++) {
		int r;

		side_begin(&s, LM_DEST, 2, 2);
		fake_fail_call = calls[i];
		r = side_listen(&s, &err);
		assert_true(side_says_why(r, &err));
		side_end(&s);
	}
}

/* ---- accepting ---- */

static void all_lanes_that_come_are_taken(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 4, 2);
	assert_int_equal(side_open(&s, &err), 0);
	assert_non_null(strstr(s.t->info, "fake0:1 x2"));
	assert_non_null(strstr(s.t->info, "fake1:1 x2"));
	assert_int_equal(fake_rejected, 0);
	side_end(&s);
}

static void accepting(void)
{
	int r;

	side_begin(&s, LM_DEST, 3, 2);
	assert_int_equal(side_listen(&s, &err), 0);
	side_fail();
	r = side_open(&s, &err);
	assert_true(r ? side_says_why(r, &err) : !rd_lanes_missing(side_rdma(&s)));
	assert_true(lm_now_ns() < s.p.deadline_ns);
	side_end(&s);
}

static void each_call_of_accepting_that_fails_is_told_or_made_again(void **state)
{
	(void)state;
	side_each_call_fails(accepting);
}

/* The request has gone meanwhile, as far as anybody can tell. */
static void an_accept_that_fails_waits_for_another_request(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 2, 1);
	assert_int_equal(side_listen(&s, &err), 0);
	fake_fail_call = "rdma_accept";
	assert_int_equal(side_open(&s, &err), -ETIMEDOUT);
	assert_non_null(strstr(err.msg, "2 of 2 lanes have not come"));
	side_end(&s);
}

static void nobody_comes(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 2, 1);
	fake_idle = NULL;
	assert_int_equal(side_open(&s, &err), -ETIMEDOUT);
	assert_int_equal(err.scope, LM_SCOPE_SESSION);
	side_end(&s);
	side_begin(&s, LM_DEST, 2, 1);
	s.p.cancel_fd = eventfd(1, EFD_CLOEXEC);
	fake_idle = NULL;
	assert_int_equal(side_open(&s, &err), -ECANCELED);
	close(s.p.cancel_fd);
	side_end(&s);
}

/* ---- strangers ---- */

static struct rd_hello wrong(unsigned i)
{
	struct rd_hello h = rd_hello_make(&s.p, 0);

	switch (i) {
	case 0: h.magic = lm_le32(0); break;
	case 1: h.version = lm_le16(2); break;
	case 2: h.direction = lm_le16(LM_PULL); break;
	case 3: h.lane = lm_le16(2); break;
	case 4: h.lane = lm_le16(65535); break;
	case 5: h.nlanes = lm_le16(3); break;
	case 6: h.reserved = lm_le32(1); break;
	case 7: h.token[0]++; break;
	default: h.token[LM_TOKEN_SIZE - 1]++; break;
	}
	return h;
}

#define WRONG 9

static bool strangers_then_lanes(void)
{
	static const uint8_t longer[48];
	struct rd_hello h = rd_hello_make(&s.p, 0);
	int live = fake_live;

	if (fake_rejected)
		return side_requests();
	for (unsigned i = 0; i < WRONG; i++) {
		struct rd_hello bad = wrong(i);

		assert_true(fake_request(0, &bad, sizeof(bad)));
	}
	fake_request(0, NULL, 0);
	fake_request(0, &h, sizeof(h) - 1);
	fake_request(0, longer, sizeof(longer));
	assert_int_equal(fake_live, live + WRONG + 3);
	return true;
}

/* At a price of nothing: what a request costs is an id, which goes with it. */
static void strangers_are_rejected_and_lanes_come_in_behind_them(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 2, 1);
	fake_idle = strangers_then_lanes;
	assert_int_equal(side_open(&s, &err), 0);
	assert_int_equal(fake_rejected, WRONG + 3);
	side_end(&s);
}

static bool strangers_without_end(void)
{
	for (unsigned i = 0; i < 200; i++)
		fake_request(0, NULL, 0);
	usleep(1000);
	return true;
}

static void however_many_strangers_there_are_the_deadline_is_kept(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 1, 1);
	fake_idle = strangers_without_end;
	s.p.deadline_ns = lm_deadline_after(100 * LM_NS_PER_MS);
	assert_int_equal(side_open(&s, &err), -ETIMEDOUT);
	assert_in_range(fake_rejected, 200, 1000000);
	side_end(&s);
}

/* ---- lanes that come twice ---- */

static bool twice(void)
{
	/* The first attempt was given up by the source before it stood. */
	return side_request(&s, 0, 0) && side_request(&s, 1, 0);
}

static void a_source_that_asks_again_has_given_its_first_attempt_up(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 1, 2);
	fake_idle = twice;
	assert_int_equal(side_open(&s, &err), 0);
	assert_int_equal(fake_rejected, 0);
	assert_non_null(strstr(s.t->info, "fake1:1 x1"));
	side_end(&s);
}

static unsigned step;

static bool a_lane_and_again_the_lane(void)
{
	switch (step++) {
	case 0: return side_request(&s, 0, 0);
	case 1: return side_request(&s, 0, 0); /* it stands */
	default: return side_request(&s, 0, 1);
	}
}

static void a_lane_that_stands_is_not_taken_from_its_owner(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 2, 1);
	step = 0;
	fake_idle = a_lane_and_again_the_lane;
	assert_int_equal(side_open(&s, &err), 0);
	assert_int_equal(fake_rejected, 1);
	side_end(&s);
}

static bool a_lane_that_breaks_and_comes_again(void)
{
	switch (step++) {
	case 0: return side_request(&s, 0, 0);
	case 1:
		fake_event(side_lane(&s, 0)->id, RDMA_CM_EVENT_DISCONNECTED);
		return side_request(&s, 0, 0); /* at the same moment */
	default: return side_request(&s, 0, 1);
	}
}

static void a_lane_that_broke_is_free_for_the_request_behind_it(void **state)
{
	(void)state;
	side_begin(&s, LM_DEST, 2, 1);
	step = 0;
	fake_idle = a_lane_that_breaks_and_comes_again;
	assert_int_equal(side_open(&s, &err), 0);
	assert_int_equal(fake_rejected, 0);
	assert_false(side_lane(&s, 0)->hung_up);
	side_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_listens_on_every_rail_and_says_where),
		cmocka_unit_test(a_call_of_listening_that_fails_is_told),
		cmocka_unit_test(all_lanes_that_come_are_taken),
		cmocka_unit_test(each_call_of_accepting_that_fails_is_told_or_made_again),
		cmocka_unit_test(an_accept_that_fails_waits_for_another_request),
		cmocka_unit_test(nobody_comes),
		cmocka_unit_test(strangers_are_rejected_and_lanes_come_in_behind_them),
		cmocka_unit_test(however_many_strangers_there_are_the_deadline_is_kept),
		cmocka_unit_test(a_source_that_asks_again_has_given_its_first_attempt_up),
		cmocka_unit_test(a_lane_that_stands_is_not_taken_from_its_owner),
		cmocka_unit_test(a_lane_that_broke_is_free_for_the_request_behind_it),
	};

	return cmocka_run_group_tests_name("rdma accept", tests, NULL, NULL);
}
