/* SPDX-License-Identifier: Apache-2.0 */
/* The end of a lane in LM_PULL: what was counted is whole, and nothing lands after it. */
#include <unistd.h>
#include "transport_contract.h"

#define MIB (UINT64_C(1) << 20)
#define RUN_PAGES 16

static struct lm_error err;

/* Fetches region 0 from its start, run after run, until an error. */
struct fetcher {
	struct rig *rig;
	pthread_t thread;
	_Atomic uint64_t whole;
	int result;
};

static void *fetch_all(void *arg)
{
	struct fetcher *f = arg;
	uint64_t at = 0;
	struct lm_error e;

	while (!f->result && f->rig->fetch[0].whole < f->rig->size / (RUN_PAGES * PAGE)) {
		struct lm_run run = data_run(0, at, RUN_PAGES * PAGE);
		int r = at < f->rig->size ? fetch_try(f->rig, 0, &run, 1, &e) : -EAGAIN;

		if (r > 0)
			at += run.len;
		f->result = r == -EAGAIN ? fetch_poll(f->rig, 0, 50, &e) : r < 0 ? r : 0;
		atomic_store(&f->whole, f->rig->fetch[0].whole);
	}
	return NULL;
}

static void fetcher_start(struct fetcher *f, struct rig *rig, uint64_t until_whole)
{
	*f = (struct fetcher){ .rig = rig };
	pump_start(rig, 0);
	assert_int_equal(pthread_create(&f->thread, NULL, fetch_all, f), 0);
	while (atomic_load(&f->whole) < until_whole)
		usleep(10);
}

/*
 * The lane's thread has ended: what was counted is there, and what was not can be
 * had from elsewhere, because nothing overwrites it.
 */
static void expect_end(struct fetcher *f)
{
	struct rig *rig = f->rig;
	struct lm_poll_result res;
	uint64_t before;

	lm_transport_fence_lane(rig->dst.t, 0);
	expect_data(rig, 0, 0, rig->fetch[0].whole * RUN_PAGES * PAGE);
	for (unsigned i = 0; i < RIG_REGIONS; i++)
		memset(rig->dst.region[i].host, 0x11, rig->size);
	before = dest_hash(rig);
	usleep(3000);
	assert_true(lm_transport_poll(rig->dst.t, 0, 5, &res, &err) < 0);
	assert_int_equal(res.fetched, rig->fetch[0].whole);
	assert_true(dest_hash(rig) == before);
}

void nothing_that_was_fetched_lands_after_shut(void **state)
{
	for (unsigned trial = 0; trial < 6; trial++) {
		struct rig *rig = rig_open_pull(*state, 1, 8 * MIB);
		struct fetcher f;

		fetcher_start(&f, rig, 1 + trial * trial);
		lm_transport_shut(rig->dst.t, 0);
		pthread_join(f.thread, NULL);
		if (f.result) { /* else it was faster than we were */
			assert_int_equal(f.result, -ESHUTDOWN);
			expect_end(&f);
		}
		rig_free(rig);
	}
}

void a_cut_at_the_source_leaves_whole_what_was_counted(void **state)
{
	for (unsigned trial = 0; trial < 4; trial++) {
		struct rig *rig = rig_open_pull(*state, 1, 8 * MIB);
		struct fetcher f;

		fetcher_start(&f, rig, 1 + trial * trial);
		lm_transport_shut(rig->src.t, 0);
		pthread_join(f.thread, NULL);
		if (f.result) {
			assert_true(f.result == -ECONNRESET || f.result == -EPIPE);
			expect_end(&f);
		}
		rig_free(rig);
	}
}

void one_fetching_lane_cut_leaves_the_others_alive(void **state)
{
	struct rig *rig = rig_open_pull(*state, 3, 64 * PAGE);
	struct lm_run run = data_run(0, 0, PAGE);

	lm_transport_shut(rig->dst.t, 1);
	assert_int_equal(fetch_try(rig, 1, &run, 1, &err), -ESHUTDOWN);
	assert_int_equal(err.scope, LM_SCOPE_LANE);
	assert_true(source_poll_until_error(rig, 1, 2000, &err) < 0);
	assert_int_equal(err.scope, LM_SCOPE_LANE);
	pump_start(rig, 0);
	pump_start(rig, 2);
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	run.region = 1;
	assert_int_equal(fetch_runs(rig, 2, &run, 1), 0);
	expect_data(rig, 0, 0, PAGE);
	expect_data(rig, 1, 0, PAGE);
	rig_free(rig);
}

void the_end_of_the_peer_is_reported_to_who_fetches(void **state)
{
	for (unsigned owing = 0; owing < 2; owing++) {
		struct rig *rig = rig_open_pull(*state, 1, 64 * PAGE);
		struct lm_run run = data_run(0, 0, 2 * PAGE);
		struct lm_poll_result res = { 0 };
		int r = 0;

		pump_start(rig, 0);
		assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
		pump_stop(rig, 0);
		if (rig->backend->rdma && owing) { /* answered by the device: nothing is owed for long */
			rig_free(rig);
			return;
		}
		if (owing)
			assert_int_equal(fetch_try(rig, 0, &run, 1, &err), 1);
		lm_transport_free(rig->src.t);
		rig->src.t = NULL;
		for (int i = 0; i < 200 && !r && !res.closed; i++)
			r = lm_transport_poll(rig->dst.t, 0, 20, &res, &err);
		assert_int_equal(r, owing ? -ECONNRESET : 0);
		assert_int_equal(res.closed, !owing);
		assert_int_equal(res.fetched, 1);
		expect_data(rig, 0, 0, 2 * PAGE);
		rig_free(rig);
	}
}

void the_end_of_the_peer_is_reported_to_who_answers(void **state)
{
	struct rig *rig = rig_open_pull(*state, 1, 64 * PAGE);
	struct lm_run run = data_run(0, 0, 2 * PAGE);

	pump_start(rig, 0);
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	lm_transport_free(rig->dst.t);
	rig->dst.t = NULL;
	for (int i = 0; i < 500 && !rig->pumps[0].result; i++)
		usleep(10000);
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].result, 1);
	rig_free(rig);

	rig = rig_open_pull(*state, 1, 64 * PAGE);
	lm_transport_shut(rig->dst.t, 0);
	assert_int_equal(source_poll_until_error(rig, 0, 2000, &err), -ECONNRESET);
	rig_free(rig);
}

void nothing_that_was_fetched_lands_after_close(void **state)
{
	struct rig *rig = rig_open_pull(*state, 1, 64 * PAGE);
	struct lm_run run = data_run(0, 0, 64 * PAGE);
	uint64_t before = dest_hash(rig);

	assert_int_equal(fetch_try(rig, 0, &run, 1, &err), 1);
	lm_transport_free(rig->dst.t);
	rig->dst.t = NULL;
	pump_start(rig, 0);
	for (int i = 0; i < 500 && !rig->pumps[0].result; i++)
		usleep(10000);
	pump_stop(rig, 0);
	assert_true(rig->pumps[0].result != 0);
	assert_true(dest_hash(rig) == before);
	rig_free(rig);
}
