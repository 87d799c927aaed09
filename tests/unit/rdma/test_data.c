/* SPDX-License-Identifier: Apache-2.0 */
/* An open lane at work: work that the device does not take, completions that tell of errors, the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "side.h"

static struct lm_error err;
static struct lm_poll_result res;
static struct side s;
static const struct lm_run page = { .len = LM_PAGE_SIZE };
static const struct lm_run zero = { .offset = LM_PAGE_SIZE, .len = LM_PAGE_SIZE, .kind = LM_RUN_ZERO };

/* Two lanes; of the second nothing may change.  The file has a hole: what is written goes through the lane's buffer. */
static void begin(enum lm_side side, enum lm_direction direction)
{
	side_begin(&s, side, 2, 1);
	s.p.direction = direction;
	assert_int_equal(side_open(&s, &err), 0);
	side_add_region(&s);
	if (lm_transport_is_active(s.t))
		side_give_key(side_lane(&s, 0), 0);
	side_remember(&s, 1);
}

static int poll_lane(int timeout_ms)
{
	return lm_transport_poll(s.t, 0, timeout_ms, &res, &err);
}

/* The lane is lost, with these words and code; the other is not. */
static void is_lost(int r, int code, const char *words)
{
	assert_int_equal(r, code);
	assert_true(side_says_why(r, &err));
	assert_int_equal(err.scope, LM_SCOPE_LANE);
	assert_non_null(strstr(err.msg, words));
	assert_int_equal(side_lane(&s, 0)->id->qp->state, IBV_QPS_ERR);
	assert_int_equal(poll_lane(10), -ESHUTDOWN);
	assert_true(side_is_unchanged(&s, 1));
	fake_fail_call = NULL;
	fake_completes = true; /* or the farewell is waited for */
	side_end(&s);
}

/* ---- calls that fail ---- */

static int write_page(void)
{
	return lm_transport_write(s.t, 0, &page, 1, &err);
}

static int write_zero(void)
{
	return lm_transport_write(s.t, 0, &zero, 1, &err);
}

static int write_without_a_key(void)
{
	side_lane(&s, 0)->peer[0].chunks[0].state = RDMA_PEER_UNKNOWN;
	return lm_transport_write(s.t, 0, &page, 1, &err);
}

static int flush(void)
{
	return lm_transport_flush(s.t, 0, 1, &err);
}

static void work_that_the_device_does_not_take_ends_the_lane(void **state)
{
	static int (*const calls[])(void) = { write_page, write_zero, write_without_a_key, flush };

	(void)state;
	for (unsigned i = 0; i < 2 * sizeof(calls) / sizeof(calls[0]); i++) {
		begin(LM_SOURCE, LM_PUSH);
		fake_errno = i % 2 ? 0 : ENOMEM;
		errno = 0;
		fake_fail_call = "ibv_post_send";
		is_lost(calls[i / 2](), i % 2 ? -EIO : -ENOMEM, "the device does not take work");
	}
}

static void an_answer_that_the_device_does_not_take_ends_the_lane(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		begin(LM_DEST, LM_PUSH);
		side_say(side_lane(&s, 0), RDMA_FLUSH, 1, NULL, 0, 0);
		fake_errno = i ? 0 : ENOMEM;
		errno = 0;
		fake_fail_call = "ibv_post_send";
		is_lost(poll_lane(0), i ? -EIO : -ENOMEM, "the device does not take work");
	}
}

static void a_buffer_that_cannot_be_given_back_ends_the_lane(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		begin(i < 2 ? LM_SOURCE : LM_DEST, LM_PUSH);
		side_say(side_lane(&s, 0), RDMA_CREDIT, 0, NULL, 0, 0);
		fake_errno = i % 2 ? 0 : ENOMEM;
		errno = 0;
		fake_fail_call = "ibv_post_recv";
		is_lost(poll_lane(0), i % 2 ? -EIO : -ENOMEM, "the device does not take receive buffers");
	}
}

static void a_completion_queue_that_cannot_be_read_ends_the_lane(void **state)
{
	(void)state;
	begin(LM_SOURCE, LM_PUSH);
	fake_fail_call = "ibv_poll_cq";
	is_lost(poll_lane(0), -EIO, "the completion queue cannot be read");
}

static void a_completion_queue_that_cannot_be_armed_ends_the_lane_that_waits(void **state)
{
	(void)state;
	begin(LM_SOURCE, LM_PUSH);
	fake_fail_call = "ibv_req_notify_cq";
	assert_int_equal(poll_lane(0), 0);
	is_lost(poll_lane(10), -ENOMEM, "the completion queue cannot be armed");
}

static void a_buffer_to_copy_through_that_cannot_be_had_ends_the_lane(void **state)
{
	(void)state;
	begin(LM_SOURCE, LM_PUSH);
	fake_fail_call = "ibv_reg_mr";
	is_lost(write_page(), -ENOMEM, "cannot register a buffer to copy through");
}

static bool a_message_comes(void)
{
	fake_idle = NULL;
	side_say(side_lane(&s, 0), RDMA_CREDIT, 0, NULL, 0, 0);
	return true;
}

/* The event is there still: the next wait is short, and takes it. */
static void an_event_that_cannot_be_taken_is_taken_later(void **state)
{
	int64_t began;

	(void)state;
	begin(LM_DEST, LM_PUSH);
	fake_idle = a_message_comes;
	fake_fail_call = "ibv_get_cq_event";
	assert_int_equal(poll_lane(1000), 0);
	assert_int_equal(side_lane(&s, 0)->owed, 1);
	assert_true(side_lane(&s, 0)->armed);
	fake_fail_call = NULL;
	began = lm_now_ns();
	assert_int_equal(poll_lane(1000), 0);
	assert_false(side_lane(&s, 0)->armed);
	assert_in_range(lm_now_ns() - began, 0, 900 * LM_NS_PER_MS);
	side_end(&s);
}

static void what_comes_while_the_lane_sleeps_wakes_it(void **state)
{
	int64_t began;

	(void)state;
	begin(LM_SOURCE, LM_PUSH);
	fake_idle = a_message_comes;
	began = lm_now_ns();
	assert_int_equal(poll_lane(1000), 0);
	assert_int_equal(side_lane(&s, 0)->owed, 1);
	assert_in_range(lm_now_ns() - began, 0, 900 * LM_NS_PER_MS);
	assert_true(side_is_unchanged(&s, 1));
	side_end(&s);
}

/* ---- completions ---- */

struct meaning {
	enum ibv_wc_status status;
	int code;
	const char *words;
};

static const struct meaning meanings[] = {
	{ IBV_WC_LOC_LEN_ERR, -EMSGSIZE, "longer than its buffer" },
	{ IBV_WC_LOC_PROT_ERR, -EFAULT, "could not read or write guest memory" },
	{ IBV_WC_WR_FLUSH_ERR, -ECONNRESET, "hung up" },
	{ IBV_WC_REM_INV_REQ_ERR, -EPROTO, "refused the request" },
	{ IBV_WC_REM_ACCESS_ERR, -EACCES, "refused the access" },
	{ IBV_WC_REM_OP_ERR, -EREMOTEIO, "could not carry it out" },
	{ IBV_WC_RETRY_EXC_ERR, -ETIMEDOUT, "no answer from the peer" },
	{ IBV_WC_RNR_RETRY_EXC_ERR, -ETIMEDOUT, "takes no messages" },
	{ IBV_WC_FATAL_ERR, -EIO, "the device has failed" },
};

static struct meaning meaning_of(enum ibv_wc_status status)
{
	for (unsigned i = 0; i < sizeof(meanings) / sizeof(meanings[0]); i++)
		if (meanings[i].status == status)
			return meanings[i];
	return (struct meaning){ status, -EIO, "vendor code 0x77" };
}

/* Of what was sent, and of a receive buffer. */
static void every_status_that_is_an_error_ends_the_lane_in_words(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++)
		for (unsigned status = 1; status <= IBV_WC_TM_RNDV_INCOMPLETE; status++) {
			struct meaning m = meaning_of((enum ibv_wc_status)status);

			begin(i % 2 ? LM_DEST : LM_SOURCE, LM_PUSH);
			fake_completes = false;
			fake_complete(side_lane(&s, 0)->cq, (i / 2 ? UINT64_C(1) << 63 : 0) | 1, m.status);
			is_lost(poll_lane(0), m.code, m.words);
		}
}

static void words_of_the_device_go_before_those_of_the_completion(void **state)
{
	(void)state;
	begin(LM_SOURCE, LM_PUSH);
	fake_event(side_lane(&s, 0)->id, RDMA_CM_EVENT_DEVICE_REMOVAL);
	fake_complete(side_lane(&s, 0)->cq, 1, IBV_WC_WR_FLUSH_ERR);
	assert_int_equal(poll_lane(0), -ENETDOWN);
	assert_non_null(strstr(err.msg, "the RDMA device was removed"));
	side_end(&s);
}

static void after_a_farewell_what_is_flushed_is_no_error(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		begin(i ? LM_DEST : LM_SOURCE, LM_PUSH);
		side_say(side_lane(&s, 0), RDMA_CLOSE, 0, NULL, 0, 0);
		fake_complete(side_lane(&s, 0)->cq, 1, IBV_WC_WR_FLUSH_ERR);
		fake_event(side_lane(&s, 0)->id, RDMA_CM_EVENT_DISCONNECTED);
		assert_int_equal(poll_lane(0), 0);
		assert_true(res.closed);
		side_end(&s);
	}
}

static void what_was_still_to_be_fetched_is_one(void **state)
{
	(void)state;
	begin(LM_DEST, LM_PULL);
	side_say(side_lane(&s, 0), RDMA_CLOSE, 0, NULL, 0, 0);
	fake_complete(side_lane(&s, 0)->cq, 1, IBV_WC_WR_FLUSH_ERR);
	is_lost(poll_lane(0), -ECONNRESET, "the source hung up");
}

/* Completions that nobody has earned are the device's fault, and hurt nobody. */
static void completions_of_work_that_was_never_given_count_nothing(void **state)
{
	(void)state;
	begin(LM_SOURCE, LM_PUSH);
	fake_complete(side_lane(&s, 0)->cq, 1000, IBV_WC_SUCCESS);
	assert_int_equal(poll_lane(0), 0);
	assert_int_equal(res.bytes, 0);
	assert_int_equal(side_lane(&s, 0)->completed, 0);
	side_end(&s);
}

/* ---- all that a lane does ---- */

static int drive_source(void)
{
	int r = lm_transport_write(s.t, 0, &zero, 1, &err);

	if (r == 1)
		r = write_page();
	if (r == 1)
		r = flush();
	if (!r)
		r = poll_lane(10);
	if (!r && side_lane(&s, 0)->flush_seq) {
		side_say(side_lane(&s, 0), RDMA_FLUSHED, 1, NULL, 0, 0);
		r = poll_lane(10);
	}
	assert_true(r || res.flushed == side_lane(&s, 0)->flush_seq);
	return r;
}

static int drive_dest(void)
{
	struct rd_zero z = { lm_le32(0), lm_le32(LM_RUN_ZERO), lm_le64(0), lm_le64(LM_PAGE_SIZE) };
	struct rd_want w = { lm_le32(0), lm_le32(1) };

	side_say(side_lane(&s, 0), RDMA_ZERO, 0, &z, 1, sizeof(z));
	side_say(side_lane(&s, 0), RDMA_WANT, 0, &w, 1, sizeof(w));
	side_say(side_lane(&s, 0), RDMA_FLUSH, 1, NULL, 0, 0);
	return poll_lane(0) ?: poll_lane(0);
}

static void drive(enum lm_side side)
{
	int r;

	begin(side, LM_PUSH);
	side_fail();
	lm_err_clear(&err);
	r = side == LM_SOURCE ? drive_source() : drive_dest();
	if (r) {
		assert_true(side_says_why(r, &err));
		assert_int_equal(err.scope, LM_SCOPE_LANE);
	}
	assert_true(side_is_unchanged(&s, 1));
	side_end(&s);
}

static void source_at_work(void)
{
	drive(LM_SOURCE);
}

static void dest_at_work(void)
{
	drive(LM_DEST);
}

static void any_call_of_a_lane_at_work_may_fail(void **state)
{
	(void)state;
	side_each_call_fails(source_at_work);
	side_each_call_fails(dest_at_work);
}

/* ---- the end ---- */

static int64_t end_takes_ns(void)
{
	int64_t began = lm_now_ns();

	side_end(&s);
	return lm_now_ns() - began;
}

static void a_farewell_that_cannot_be_sent_is_not_waited_for(void **state)
{
	static const char *const calls[] = { "ibv_post_send", "ibv_poll_cq", NULL };

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		begin(LM_SOURCE, LM_PUSH);
		fake_fail_call = calls[i];
		assert_in_range(end_takes_ns(), 0, 150 * LM_NS_PER_MS);
	}
	begin(LM_SOURCE, LM_PUSH);
	fake_completes = false;
	for (unsigned i = 0; i < 2; i++)
		fake_complete(side_lane(&s, i)->cq, 1, IBV_WC_RETRY_EXC_ERR);
	assert_in_range(end_takes_ns(), 0, 150 * LM_NS_PER_MS);
}

static void a_farewell_that_nobody_confirms_is_waited_for_but_not_long(void **state)
{
	(void)state;
	begin(LM_DEST, LM_PUSH);
	fake_completes = false;
	assert_in_range(end_takes_ns(), 200 * LM_NS_PER_MS, 1000 * LM_NS_PER_MS);
}

static void everything_goes_though_destroying_fails(void **state)
{
	static const char *const calls[] = { "ibv_dealloc_pd", "ibv_dereg_mr", "ibv_destroy_comp_channel", "ibv_destroy_cq",
					     "ibv_modify_qp", "rdma_destroy_id", "rdma_disconnect" };

	(void)state;
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		begin(LM_DEST, LM_PUSH);
		fake_fail_call = calls[i];
		side_end(&s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(work_that_the_device_does_not_take_ends_the_lane),
		cmocka_unit_test(an_answer_that_the_device_does_not_take_ends_the_lane),
		cmocka_unit_test(a_buffer_that_cannot_be_given_back_ends_the_lane),
		cmocka_unit_test(a_completion_queue_that_cannot_be_read_ends_the_lane),
		cmocka_unit_test(a_completion_queue_that_cannot_be_armed_ends_the_lane_that_waits),
		cmocka_unit_test(a_buffer_to_copy_through_that_cannot_be_had_ends_the_lane),
		cmocka_unit_test(an_event_that_cannot_be_taken_is_taken_later),
		cmocka_unit_test(what_comes_while_the_lane_sleeps_wakes_it),
		cmocka_unit_test(every_status_that_is_an_error_ends_the_lane_in_words),
		cmocka_unit_test(words_of_the_device_go_before_those_of_the_completion),
		cmocka_unit_test(after_a_farewell_what_is_flushed_is_no_error),
		cmocka_unit_test(what_was_still_to_be_fetched_is_one),
		cmocka_unit_test(completions_of_work_that_was_never_given_count_nothing),
		cmocka_unit_test(any_call_of_a_lane_at_work_may_fail),
		cmocka_unit_test(a_farewell_that_cannot_be_sent_is_not_waited_for),
		cmocka_unit_test(a_farewell_that_nobody_confirms_is_waited_for_but_not_long),
		cmocka_unit_test(everything_goes_though_destroying_fails),
	};

	return cmocka_run_group_tests_name("rdma data", tests, NULL, NULL);
}
