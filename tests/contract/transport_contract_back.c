/* SPDX-License-Identifier: Apache-2.0 */
/* A lane that failed is opened again while the others work. */
#include <sys/eventfd.h>
#include <unistd.h>
#include "transport_contract.h"

#define LANES 3
#define BACK 1

static struct lm_error err;

/* Both ends shut lane BACK; its pump has ended. */
static struct rig *rig_with_a_dead_lane(const struct backend *b)
{
	struct rig *rig = rig_open(b, LANES, 64 * PAGE);

	pump_start_all(rig);
	for (unsigned i = 0; i < LANES; i++)
		assert_int_equal(send_runs(rig, i, &(struct lm_run){ .region = 1, .offset = i * PAGE, .len = PAGE }, 1), 0);
	lm_transport_shut(rig->src.t, BACK);
	lm_transport_shut(rig->dst.t, BACK);
	pump_stop(rig, BACK);
	lm_transport_fence_lane(rig->dst.t, BACK);
	return rig;
}

static bool cannot(struct rig *rig)
{
	bool ret = !rig->src.t->ops->reopen;

	if (ret)
		assert_int_equal(lm_transport_reopen(rig->src.t, BACK, &rig->params[LM_SOURCE], &err), -EINVAL);
	return ret;
}

static void send_over_all(struct rig *rig, uint64_t offset)
{
	for (unsigned i = 0; i < LANES; i++) {
		struct lm_run run = data_run(0, offset + i * PAGE, PAGE);

		assert_int_equal(send_runs(rig, i, &run, 1), 0);
		expect_data(rig, 0, run.offset, PAGE);
	}
}

void a_lane_that_failed_comes_back_while_others_work(void **state)
{
	struct rig *rig = rig_with_a_dead_lane(*state);

	for (unsigned i = 0; i < 3 && !cannot(rig); i++) {
		rig_reopen(rig, BACK, i ? "the second token" : "the first token!", 5000);
		assert_int_equal(rig->src.open_result, 0);
		assert_int_equal(rig->dst.open_result, 0);
		pump_start(rig, BACK);
		send_over_all(rig, (4 + i * LANES) * PAGE);
		lm_transport_shut(rig->src.t, BACK);
		lm_transport_shut(rig->dst.t, BACK);
		pump_stop(rig, BACK);
		lm_transport_fence_lane(rig->dst.t, BACK);
	}
	rig_free(rig);
}

/* Its count of what is whole begins anew. */
void a_fetching_lane_that_failed_comes_back_while_others_work(void **state)
{
	struct rig *rig = rig_open_pull(*state, LANES, 64 * PAGE);
	uint64_t at = 0;

	for (unsigned i = 0; i < LANES; i++)
		pump_start(rig, i);
	for (unsigned i = 0; i < 4; i++) {
		for (unsigned lane = 0; lane < LANES; lane++, at += PAGE) {
			struct lm_run run = data_run(1, at, PAGE);

			assert_int_equal(fetch_runs(rig, lane, &run, 1), 0);
			expect_data(rig, 1, at, PAGE);
		}
		lm_transport_shut(rig->dst.t, BACK);
		lm_transport_shut(rig->src.t, BACK);
		pump_stop(rig, BACK);
		lm_transport_fence_lane(rig->dst.t, BACK);
		if (cannot(rig))
			break;
		rig_reopen(rig, BACK, i ? "the second token" : "the first token!", 5000);
		assert_int_equal(rig->src.open_result, 0);
		assert_int_equal(rig->dst.open_result, 0);
		memset(&rig->fetch[BACK], 0, sizeof(rig->fetch[BACK]));
		pump_start(rig, BACK);
	}
	rig_free(rig);
}

/* Who shows another token, such as that of an attempt before, is a stranger. */
void a_lane_that_shows_an_old_token_stays_out(void **state)
{
	struct rig *rig = rig_with_a_dead_lane(*state);
	struct lm_poll_result res;

	if (!cannot(rig)) {
		memcpy(rig->params[LM_SOURCE].token, "an old token....", LM_TOKEN_SIZE);
		rig_reopen(rig, BACK, NULL, 700);
		assert_true(rig->src.open_result < 0);
		assert_int_equal(rig->dst.open_result, -ETIMEDOUT);
		/* As shut as before, and the next attempt succeeds. */
		assert_int_equal(lm_transport_poll(rig->dst.t, BACK, 0, &res, &err), -ESHUTDOWN);
		assert_int_equal(lm_transport_poll(rig->src.t, BACK, 0, &res, &err), -ESHUTDOWN);
		lm_transport_shut(rig->dst.t, BACK);
		rig_reopen(rig, BACK, "the next token..", 5000);
		assert_int_equal(rig->src.open_result, 0);
		assert_int_equal(rig->dst.open_result, 0);
		pump_start(rig, BACK);
		send_over_all(rig, 16 * PAGE);
	}
	rig_free(rig);
}

void an_attempt_to_come_back_can_be_cancelled(void **state)
{
	struct rig *rig = rig_with_a_dead_lane(*state);
	int fd = eventfd(1, EFD_CLOEXEC);

	assert_true(fd >= 0);
	if (!cannot(rig)) {
		int64_t begin = lm_now_ns();

		rig->params[LM_SOURCE].cancel_fd = rig->params[LM_DEST].cancel_fd = fd;
		memcpy(rig->params[LM_SOURCE].token, "of another one..", LM_TOKEN_SIZE);
		rig_reopen(rig, BACK, NULL, 10000);
		assert_true(rig->src.open_result < 0);
		assert_int_equal(rig->dst.open_result, -ECANCELED);
		assert_true(lm_now_ns() - begin < 5 * LM_NS_PER_S);
	}
	close(fd);
	rig_free(rig);
}

/* Its first word is none of an end. */
static int second_word_ends(void *opaque, struct lm_error *err)
{
	unsigned *words = opaque;

	return ++*words < 2 ? 0 : lm_err(err, -ECONNABORTED, LM_SCOPE_SESSION, "no lane will come");
}

/* The other side does not open.  The loop waits for nobody. */
void what_the_peer_says_ends_the_wait_for_its_lanes(void **state)
{
	for (enum lm_side side = LM_SOURCE; side <= LM_DEST && ((const struct backend *)*state)->listen; side++) {
		struct rig *rig = rig_new(*state, LANES, 64 * PAGE, false);
		struct lm_transport_params *p = &rig->params[side];
		struct lm_error err = { 0 };
		unsigned words = 0;

		p->peer_fd = eventfd(1, EFD_CLOEXEC);
		p->peer_said = second_word_ends;
		p->peer_opaque = &words;
		assert_int_equal(lm_transport_listen(rig->dst.t, &rig->params[LM_DEST], rig->endpoint, &err), 0);
		assert_int_equal(lm_transport_open(side == LM_SOURCE ? rig->src.t : rig->dst.t, p, &err), -ECONNABORTED);
		assert_non_null(strstr(err.msg, "no lane will come"));
		assert_int_equal(words, 2);
		close(p->peer_fd);
		rig_free(rig);
	}
}
