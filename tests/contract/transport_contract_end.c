/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a lane: cut, shut, closed; above all that nothing lands after it. */
#include <stdlib.h>
#include <unistd.h>
#include "transport_contract.h"

#define MIB (UINT64_C(1) << 20)

static struct lm_error err;

void one_lane_cut_leaves_the_others_alive(void **state)
{
	struct rig *rig = rig_open(*state, 3, 64 * PAGE);
	struct lm_run run = data_run(0, 0, PAGE);

	lm_transport_shut(rig->src.t, 1);
	assert_true(lm_transport_write(rig->src.t, 1, &run, 1, &err) < 0);
	assert_int_equal(err.scope, LM_SCOPE_LANE);
	assert_true(dest_poll_until_error(rig, 1, 2000, &err) < 0);
	assert_int_equal(err.scope, LM_SCOPE_LANE);
	pump_start(rig, 0);
	pump_start(rig, 2);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	run.region = 1;
	assert_int_equal(send_runs(rig, 2, &run, 1), 0);
	expect_data(rig, 0, 0, PAGE);
	expect_data(rig, 1, 0, PAGE);
	rig_free(rig);
}

static void *poll_long(void *arg)
{
	struct side *s = arg;
	struct lm_poll_result res;
	int64_t until = lm_now_ns() + 10 * LM_NS_PER_S;

	s->open_result = 0;
	while (!s->open_result && lm_now_ns() < until)
		s->open_result = lm_transport_poll(s->t, 0, 10000, &res, &s->err);
	return NULL;
}

void shut_from_another_thread_ends_a_waiting_poll(void **state)
{
	for (int side = 0; side < 2; side++) {
		struct rig *rig = rig_open(*state, 1, 64 * PAGE);
		struct side *s = side ? &rig->dst : &rig->src;
		int64_t start = lm_now_ns();
		pthread_t thread;

		assert_int_equal(pthread_create(&thread, NULL, poll_long, s), 0);
		usleep(20000);
		lm_transport_shut(s->t, 0);
		pthread_join(thread, NULL);
		assert_int_equal(s->open_result, -ESHUTDOWN);
		/* The loop has nothing that wakes it up but its own short naps. */
		assert_true(lm_now_ns() - start < 11 * LM_NS_PER_S);
		if (rig->backend->listen)
			assert_true(lm_now_ns() - start < 2 * LM_NS_PER_S);
		rig_free(rig);
	}
}

/* RDMA: the source has the keys of all of region 0, so that it needs no poll any more. */
static void fetch_keys(struct rig *rig)
{
	struct lm_run ends[2] = { data_run(0, 0, PAGE), data_run(0, rig->size - PAGE, PAGE) };

	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, ends, 2), 0);
	pump_stop(rig, 0);
}

static void fill_lane(struct rig *rig)
{
	uint64_t at = 0;
	int r = 1;

	if (rig->backend->rdma)
		fetch_keys(rig);
	for (; at < rig->size && r > 0; at += 16 * PAGE) {
		struct lm_run run = data_run(0, at, 16 * PAGE);

		r = lm_transport_write(rig->src.t, 0, &run, 1, &err);
	}
}

/*
 * The first page of region 0 that has not come; pages come one after the other.
 * Looks while they come, as a guest would that must not run yet.
 */
__attribute__((no_sanitize("thread"))) static uint64_t frontier(const struct rig *rig)
{
	const volatile uint64_t *mem = (const volatile uint64_t *)rig->dst.region[0].host;
	uint64_t lo = 0, hi = rig->size / PAGE;

	while (lo < hi) {
		uint64_t mid = (lo + hi) / 2;

		if (mem[mid * PAGE / 8] != UINT64_C(0x0101010101010101) * OLD_BYTE)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* RDMA: the packet that the device is just placing, and no other, may land until the lane is fenced. */
void nothing_lands_after_shut_at_the_destination(void **state)
{
	for (unsigned trial = 0; trial < (RIG_SLOW ? 4 : 12); trial++) {
		struct rig *rig = rig_open(*state, 1, 16 * MIB);
		struct lm_poll_result res;
		uint64_t then;

		fill_lane(rig);
		pump_start(rig, 0); /* in the middle of placing */
		while (frontier(rig) < 16 * (trial + 1))
			;
		lm_transport_shut(rig->dst.t, 0);
		then = frontier(rig);
		if (rig->backend->rdma) {
			while (!atomic_load(&rig->pumps[0].result))
				usleep(100);
			lm_transport_fence_lane(rig->dst.t, 0);
			assert_in_range(frontier(rig), then, then + 1);
			then = frontier(rig);
		}
		usleep(5000);
		assert_int_equal(frontier(rig), then);
		pump_stop(rig, 0);
		assert_int_equal(rig->pumps[0].result, -ESHUTDOWN);
		assert_int_equal(lm_transport_poll(rig->dst.t, 0, 0, &res, &err), -ESHUTDOWN);
		assert_int_equal(frontier(rig), then);
		rig_free(rig);
	}
}

void nothing_lands_after_close_at_the_destination(void **state)
{
	struct rig *rig = rig_open(*state, 1, 16 * MIB);
	uint64_t then = dest_hash(rig);
	struct lm_poll_result res = { 0 };
	int r = 0;

	fill_lane(rig);
	lm_transport_free(rig->dst.t);
	rig->dst.t = NULL;
	if (rig->backend->rdma)
		then = dest_hash(rig); /* what was placed before needed no poll */
	for (int i = 0; i < 20 && !r && !res.closed; i++)
		r = lm_transport_poll(rig->src.t, 0, 5, &res, &err);
	assert_true(r < 0 || res.closed);
	assert_true(dest_hash(rig) == then);
	rig_free(rig);
}

/* As the destination does before it runs the guest: its threads end, then the fence. */
void nothing_lands_after_the_fence_at_the_destination(void **state)
{
	for (unsigned trial = 0; trial < 4; trial++) {
		struct rig *rig = rig_open(*state, 1, 16 * MIB);
		struct lm_poll_result res = { 0 };
		uint64_t then;
		int r = 0;

		fill_lane(rig);
		pump_start(rig, 0);
		while (frontier(rig) < 16 * (trial + 1))
			;
		pump_stop(rig, 0);
		lm_transport_fence(rig->dst.t);
		then = dest_hash(rig);
		assert_int_equal(lm_transport_poll(rig->dst.t, 0, 0, &res, &err), -ESHUTDOWN);
		for (int i = 0; i < 100 && !r && !res.closed; i++)
			r = lm_transport_poll(rig->src.t, 0, 20, &res, &err);
		assert_true(r < 0 || res.closed);
		lm_transport_fence(rig->dst.t);
		assert_true(dest_hash(rig) == then);
		rig_free(rig);
	}
}

void without_the_fence_late_writes_land(void **state)
{
	struct rig *rig = rig_open(*state, 1, 16 * MIB);
	int64_t until = lm_now_ns() + 20 * LM_NS_PER_S;
	uint64_t then;

	fill_lane(rig);
	setenv("LM_BREAK", "fence", 1);
	lm_transport_fence(rig->dst.t);
	unsetenv("LM_BREAK");
	then = frontier(rig);
	assert_true(then < rig->size / PAGE);
	pump_start(rig, 0);
	while (frontier(rig) == then && lm_now_ns() < until)
		usleep(1000);
	assert_true(frontier(rig) > then);
	rig_free(rig);
}

void an_orderly_close_is_told_from_a_cut(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);
	struct lm_run run = data_run(0, 0, PAGE);

	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	lm_transport_free(rig->src.t);
	rig->src.t = NULL;
	usleep(50000);
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].result, 1);
	rig_free(rig);

	rig = rig_open(*state, 1, 64 * PAGE);
	lm_transport_shut(rig->src.t, 0);
	assert_int_equal(dest_poll_until_error(rig, 0, 2000, &err), -ECONNRESET);
	rig_free(rig);
}
