/* SPDX-License-Identifier: Apache-2.0 */
/* Asynchronous events of a device: which lanes they end, in which words. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "side.h"

#define LANES 3

static struct lm_error err;
static struct side s;

/* Lanes 0 and 2 over fake0, lane 1 over fake1. */
static void begin(enum lm_side side)
{
	side_ready(&s, side, LANES, 2);
	assert_string_equal(side_lane(&s, 1)->use->dev->name, "fake1");
}

static void tell(unsigned device, struct ibv_async_event e)
{
	assert_true(fake_async(device, e));
	fake_async_wait(device);
}

/* A bit per lane; and each that is lost says these words, of its device. */
static unsigned lost(const char *text)
{
	unsigned ret = 0;

	for (unsigned i = 0; i < LANES; i++) {
		struct lm_poll_result res;
		struct pollfd p = { .fd = side_lane(&s, i)->event_fd, .events = POLLIN };
		bool woken = poll(&p, 1, 0) == 1;
		int r = lm_transport_poll(s.t, i, 0, &res, &err);

		assert_int_equal(woken, r != 0);
		if (!r)
			continue;
		assert_int_equal(r, -ENETDOWN);
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_non_null(strstr(err.msg, text));
		assert_non_null(strstr(err.msg, i == 1 ? "fake1, port 1" : "fake0, port 1"));
		ret |= 1u << i;
	}
	return ret;
}

static void a_port_that_goes_down_ends_the_lanes_over_it(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		begin(i ? LM_DEST : LM_SOURCE);
		tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_PORT_ERR, .element.port_num = 2 });
		assert_int_equal(lost(""), 0);
		tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_PORT_ERR, .element.port_num = 1 });
		assert_int_equal(lost("its port went down: check cable"), 5);
		for (unsigned k = 0; k < LANES; k++)
			assert_int_equal(side_lane(&s, k)->id->qp->state, k == 1 ? IBV_QPS_RESET : IBV_QPS_ERR);
		side_end(&s);
	}
}

static void a_device_that_fails_ends_all_lanes_over_it(void **state)
{
	(void)state;
	begin(LM_SOURCE);
	tell(1, (struct ibv_async_event){ .event_type = IBV_EVENT_DEVICE_FATAL });
	assert_int_equal(lost("the RDMA device has failed or was removed"), 2);
	tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_DEVICE_FATAL });
	assert_int_equal(lost("the RDMA device has failed or was removed"), 7);
	side_end(&s);
}

static void an_error_of_a_queue_pair_ends_its_lane(void **state)
{
	static const enum ibv_event_type types[] = { IBV_EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR, IBV_EVENT_QP_ACCESS_ERR };

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		begin(LM_DEST);
		tell(0, (struct ibv_async_event){ .event_type = types[i], .element.qp = side_lane(&s, 2)->id->qp });
		assert_int_equal(lost("the device reports an error of the connection"), 4);
		side_end(&s);
	}
}

static void an_error_of_a_completion_queue_ends_its_lane(void **state)
{
	(void)state;
	begin(LM_SOURCE);
	tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_CQ_ERR, .element.cq = side_lane(&s, 0)->cq });
	assert_int_equal(lost("its completion queue has failed"), 1);
	side_end(&s);
}

static void other_events_end_nothing(void **state)
{
	(void)state;
	begin(LM_SOURCE);
	for (unsigned type = 0; type <= IBV_EVENT_WQ_FATAL; type++)
		if (type != IBV_EVENT_PORT_ERR && type != IBV_EVENT_DEVICE_FATAL)
			tell(0, (struct ibv_async_event){ .event_type = type });
	assert_int_equal(lost(""), 0);
	side_end(&s);
}

static void the_first_reason_stays(void **state)
{
	(void)state;
	begin(LM_SOURCE);
	lm_transport_shut(s.t, 2);
	tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_PORT_ERR, .element.port_num = 1 });
	tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_DEVICE_FATAL });
	assert_string_equal(atomic_load(&side_lane(&s, 0)->why), "its port went down: check cable, switch and `ip link`");
	assert_null(atomic_load(&side_lane(&s, 2)->why));
	side_end(&s);
}

static void a_lane_that_is_back_hears_of_its_device_again(void **state)
{
	struct lm_poll_result res;

	(void)state;
	begin(LM_SOURCE);
	lm_transport_shut(s.t, 0);
	assert_int_equal(side_reopen(&s, 0, &err), 0);
	assert_int_equal(lm_transport_poll(s.t, 0, 10, &res, &err), 0); /* it was woken when it was shut */
	tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_QP_FATAL, .element.qp = side_lane(&s, 0)->id->qp });
	assert_int_equal(lost("an error of the connection"), 1);
	side_end(&s);
}

static void a_fenced_lane_hears_of_nothing(void **state)
{
	(void)state;
	begin(LM_DEST);
	lm_transport_fence(s.t);
	for (unsigned i = 0; i < LANES; i++)
		assert_null(side_lane(&s, i)->id->qp);
	tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_DEVICE_FATAL });
	side_end(&s);
}

static void a_lane_that_is_fenced_leaves_the_others_be(void **state)
{
	(void)state;
	begin(LM_DEST);
	lm_transport_fence_lane(s.t, 0);
	lm_transport_fence_lane(s.t, 0);
	for (unsigned i = 0; i < LANES; i++)
		assert_int_equal(!side_lane(&s, i)->id->qp, i == 0);
	lm_transport_shut(s.t, 0);
	tell(0, (struct ibv_async_event){ .event_type = IBV_EVENT_PORT_ERR, .element.port_num = 1 });
	assert_null(atomic_load(&side_lane(&s, 0)->why));
	assert_non_null(atomic_load(&side_lane(&s, 2)->why));
	assert_int_equal(side_lane(&s, 2)->id->qp->state, IBV_QPS_ERR);
	assert_int_equal(side_lane(&s, 1)->id->qp->state, IBV_QPS_RESET);
	side_end(&s);
}

/* As a device does that is gone: it would be readable for ever. */
static void events_that_cannot_be_read_are_not_asked_for_for_ever(void **state)
{
	unsigned before;

	(void)state;
	begin(LM_SOURCE);
	fake_errno = EIO;
	fake_fail_call = "ibv_get_async_event";
	before = fake_calls;
	assert_true(fake_async(0, (struct ibv_async_event){ .event_type = IBV_EVENT_DEVICE_FATAL }));
	usleep(50000);
	fake_lock();
	assert_in_range(fake_calls - before, 1, 3);
	fake_unlock();
	assert_int_equal(lost(""), 0);
	side_end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_port_that_goes_down_ends_the_lanes_over_it),
		cmocka_unit_test(a_device_that_fails_ends_all_lanes_over_it),
		cmocka_unit_test(an_error_of_a_queue_pair_ends_its_lane),
		cmocka_unit_test(an_error_of_a_completion_queue_ends_its_lane),
		cmocka_unit_test(other_events_end_nothing),
		cmocka_unit_test(the_first_reason_stays),
		cmocka_unit_test(a_lane_that_is_back_hears_of_its_device_again),
		cmocka_unit_test(a_fenced_lane_hears_of_nothing),
		cmocka_unit_test(a_lane_that_is_fenced_leaves_the_others_be),
		cmocka_unit_test(events_that_cannot_be_read_are_not_asked_for_for_ever),
	};

	return cmocka_run_group_tests_name("rdma device", tests, NULL, NULL);
}
