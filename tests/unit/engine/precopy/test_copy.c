/* SPDX-License-Identifier: Apache-2.0 */
/* The copier: what arrives, what is left out, what is never read, and lanes that die. */
#include <poll.h>
#include <pthread.h>
#include <unistd.h>
#include "unit.h"
#include "copyrig.h"

static struct lm_error err;

static struct lm_copy_totals totals(const struct rig *g)
{
	struct lm_copy_totals t;

	lm_copier_totals(&g->copier, &t);
	return t;
}

static void assert_copied(struct rig *g, int redos_wanted)
{
	int r = rig_copy(g, &err);

	if (r < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(r, redos_wanted);
	assert_true(rig_equal(g));
}

static void copy_everything(bool tcp)
{
	struct rig *g = rig_new(tcp);
	struct lm_copy_totals t;

	rig_fill(g, 1);
	rig_reuse_dest(g, 2);
	rig_all(g);
	assert_copied(g, 0);
	t = totals(g);
	assert_int_equal(t.done_pages, 1 + 1025 + 4096);
	assert_int_equal(t.sent_pages + t.zero_pages + t.skipped_pages, t.done_pages);
	assert_int_equal(t.bytes, t.sent_pages * LM_PAGE_SIZE);
	assert_true(t.zero_pages > 0 && t.skipped_pages > 0);
	rig_free(g);
}

static void all_pages_arrive_in_process(void **state)
{
	(void)state;
	copy_everything(false);
}

static void all_pages_arrive_over_tcp(void **state)
{
	(void)state;
	copy_everything(true);
}

static void many_rounds_keep_both_sides_equal(void **state)
{
	struct rig *g = rig_new(true);
	uint64_t x = 5;

	(void)state;
	rig_fill(g, 1);
	rig_all(g);
	assert_copied(g, 0);
	for (unsigned round = 0; round < 20; round++) {
		lm_pageset_clear_all(&g->todo);
		for (unsigned i = 0; i < 300; i++) {
			unsigned r = (unsigned)(unit_random(&x) % RIG_REGIONS);
			uint64_t page = unit_random(&x) % g->todo.maps[r].nbits;

			memset(rig_page(&g->src, r, page), unit_random(&x) % 2 ? (int)(x % 256) : 0, LM_PAGE_SIZE);
			lm_bitmap_set(&g->todo.maps[r], page);
		}
		assert_copied(g, 0);
	}
	rig_free(g);
}

static void pages_that_are_not_to_do_are_left_alone(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	rig_fill(g, 3);
	memset(rig_page(&g->dst, 2, 7), 0x11, LM_PAGE_SIZE);
	memset(rig_page(&g->dst, 2, 9), 0x22, LM_PAGE_SIZE);
	memset(rig_page(&g->src, 2, 8), 0x33, LM_PAGE_SIZE);
	lm_bitmap_set(&g->todo.maps[2], 8);
	assert_int_equal(rig_copy(g, &err), 0);
	assert_int_equal(rig_page(&g->dst, 2, 7)[0], 0x11);
	assert_int_equal(rig_page(&g->dst, 2, 8)[4095], 0x33);
	assert_int_equal(rig_page(&g->dst, 2, 9)[0], 0x22);
	assert_int_equal(totals(g).done_pages, 1);
	rig_free(g);
}

static void nothing_to_do_is_done_at_once(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	assert_int_equal(rig_copy(g, &err), 0);
	assert_int_equal(totals(g).done_pages, 0);
	assert_int_equal(g->copier.lanes[0].flush_seq, 0);
	rig_free(g);
}

/* ---- zeros ---- */

static void a_zero_page_is_left_out_where_the_destination_is_zero(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	/* The rubbish stands for "was not written": `filled` says that it is zero. */
	memset(rig_page(&g->dst, 1, 3), 0x77, LM_PAGE_SIZE);
	lm_bitmap_set(&g->todo.maps[1], 3);
	assert_int_equal(rig_copy(g, &err), 0);
	assert_int_equal(rig_page(&g->dst, 1, 3)[0], 0x77);
	assert_int_equal(totals(g).skipped_pages, 1);
	assert_int_equal(totals(g).bytes, 0);
	rig_free(g);
}

static void a_zero_page_is_sent_where_the_destination_may_hold_something(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	memset(rig_page(&g->dst, 1, 3), 0x77, LM_PAGE_SIZE);
	lm_bitmap_set(&g->copier.filled.maps[1], 3);
	lm_bitmap_set(&g->todo.maps[1], 3);
	assert_int_equal(rig_copy(g, &err), 0);
	assert_true(rig_equal(g));
	assert_int_equal(totals(g).zero_pages, 1);
	assert_int_equal(totals(g).bytes, 0);
	/* From now on it is zero there: not again. */
	assert_int_equal(rig_copy(g, &err), 0);
	assert_int_equal(totals(g).zero_pages, 1);
	assert_int_equal(totals(g).skipped_pages, 1);
	rig_free(g);
}

static void a_page_that_was_sent_and_became_zero_is_sent_as_zero(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	memset(rig_page(&g->src, 2, 4095), 1, LM_PAGE_SIZE);
	lm_bitmap_set(&g->todo.maps[2], 4095);
	assert_copied(g, 0);
	assert_int_equal(rig_page(&g->dst, 2, 4095)[0], 1);
	memset(rig_page(&g->src, 2, 4095), 0, LM_PAGE_SIZE);
	assert_copied(g, 0);
	assert_int_equal(totals(g).zero_pages, 1);
	rig_free(g);
}

static void holes_are_sent_as_zero_and_never_read(void **state)
{
	struct rig *g = rig_new(false);
	uint64_t before;

	(void)state;
	memset(rig_page(&g->src, 2, 10), 1, LM_PAGE_SIZE);
	memset(rig_page(&g->dst, 2, 11), 2, LM_PAGE_SIZE);
	lm_bitmap_set_range(&g->todo.maps[2], 10, 500);
	lm_bitmap_set_range(&g->holes.maps[2], 11, 499);
	lm_bitmap_set(&g->copier.filled.maps[2], 11);
	before = rig_blocks(&g->src);
	assert_copied(g, 0); /* (comparing reads the holes, hence the order) */
	assert_int_equal(totals(g).zero_pages, 1);
	assert_int_equal(totals(g).sent_pages, 1);
	assert_int_equal(totals(g).skipped_pages, 498);
	rig_free(g);
	/* The same once more, looking at the blocks before anything else reads them; and that reading shows. */
	for (unsigned with_holes = 0; with_holes <= 1; with_holes++) {
		g = rig_new(false);
		lm_bitmap_set_range(&g->todo.maps[2], 0, 500);
		if (with_holes)
			lm_bitmap_set_range(&g->holes.maps[2], 0, 500);
		before = rig_blocks(&g->src);
		assert_int_equal(rig_copy(g, &err), 0);
		assert_int_equal(rig_blocks(&g->src) - before, with_holes ? 0 : 500 * LM_PAGE_SIZE / 512);
		rig_free(g);
	}
}

/* ---- bandwidth ---- */

/* Region 2, which is 16 MiB of data, in MiB/s. */
static double copy_rate(struct rig *g, uint8_t byte)
{
	int64_t begin;

	memset(g->src.regions[2].host, byte, 4096 * LM_PAGE_SIZE);
	lm_bitmap_set_range(&g->todo.maps[2], 0, 4096);
	begin = lm_now_ns();
	assert_copied(g, 0);
	return 16 * 1e9 / (double)(lm_now_ns() - begin);
}

static void the_bandwidth_cap_is_kept_within_a_factor(void **state)
{
	struct rig *g = rig_new(false);
	double rate, machine = copy_rate(g, 0x5b);

	(void)state;
	g->copier.throttle.max_bytes_per_s = 32u << 20; /* half a second */
	rate = copy_rate(g, 0x5a);
	/* The last booking of each lane goes out at once: three of sixteen.  A slow machine cannot do the rest. */
	if (rate > 1.35 * 32 || rate < 0.3 * (machine < 32 ? machine : 32))
		fail_msg("%.1f MiB/s with a cap of 32, %.1f without", rate, machine);
	rig_free(g);
}

static void a_pause_does_not_save_up_bandwidth(void **state)
{
	struct rig *g = rig_new(false);
	int64_t begin;

	(void)state;
	memset(g->src.regions[2].host, 0x5a, 4096 * LM_PAGE_SIZE);
	g->copier.throttle.max_bytes_per_s = 64u << 20;
	lm_bitmap_set_range(&g->todo.maps[2], 0, 64);
	assert_int_equal(rig_copy(g, &err), 0);
	unit_sleep_ms(300);
	lm_bitmap_set_range(&g->todo.maps[2], 0, 4096);
	begin = lm_now_ns();
	assert_copied(g, 0);
	assert_true(lm_now_ns() - begin > 180 * LM_NS_PER_MS); /* of 250 */
	rig_free(g);
}

/* ---- lanes that die ---- */

/*
 * Who takes which chunk is a matter of luck.  The rig sees to it that a lane with a fault takes one; for
 * more than that the lanes are slowed down.  What is still luck is tried again until what the test is
 * about has happened; the result is checked in any case.
 */
#define SHARED (200u << 20)
#define TRIES 50

static void until_it_happens(bool (*attempt)(void))
{
	for (unsigned i = 0; i < TRIES; i++)
		if (attempt())
			return;
	fail_msg("no lane has died");
}

/* Copies everything with a lane that fails; the number of redos. */
static int copy_with(struct rig *g, unsigned lane, enum rig_fault fault, unsigned write)
{
	int redos;

	rig_fill(g, 4);
	rig_reuse_dest(g, 5);
	rig_all(g);
	g->copier.throttle.max_bytes_per_s = SHARED;
	g->all_faults = true;
	g->fault[lane] = fault;
	g->fault_write[lane] = write;
	redos = rig_copy(g, &err);
	if (redos < 0)
		fail_msg("%s", err.msg);
	assert_true(rig_equal(g));
	return redos;
}

static bool lane_dies(bool tcp, enum rig_fault fault, unsigned write)
{
	struct rig *g = rig_new(tcp);
	int redos = copy_with(g, 1, fault, write);

	assert_int_equal(lm_copier_live_lanes(&g->copier), RIG_LANES - redos);
	rig_free(g);
	return redos == 1;
}

static bool first_write_fails(void)
{
	return lane_dies(false, RIG_FAIL, 0);
}

static bool second_write_fails(void)
{
	return lane_dies(false, RIG_FAIL, 1);
}

static bool second_write_fails_over_tcp(void)
{
	return lane_dies(true, RIG_FAIL, 1);
}

static void pages_of_a_lane_that_failed_go_out_on_another(void **state)
{
	(void)state;
	until_it_happens(first_write_fails);
	until_it_happens(second_write_fails);
	until_it_happens(second_write_fails_over_tcp);
}

static bool all_is_lost(void)
{
	return lane_dies(false, RIG_LOSE, 0);
}

static bool half_is_lost_over_tcp(void)
{
	return lane_dies(true, RIG_LOSE, 1);
}

static void pages_that_a_lane_has_lost_in_flight_go_out_on_another(void **state)
{
	(void)state;
	until_it_happens(all_is_lost);
	until_it_happens(half_is_lost_over_tcp);
}

static bool mute_failure(void)
{
	return lane_dies(false, RIG_FAIL_MUTE, 0);
}

static void a_lane_that_fails_without_a_word_is_not_forgotten(void **state)
{
	(void)state;
	until_it_happens(mute_failure);
}

static bool peer_hangs_up(void)
{
	return lane_dies(false, RIG_HANG_UP, 0);
}

static void a_lane_that_the_peer_has_closed_is_dropped(void **state)
{
	(void)state;
	until_it_happens(peer_hangs_up);
}

static bool nothing_moves(void)
{
	struct rig *g = rig_new(false);
	int redos;

	g->copier.stall_ns = LM_NS_PER_S; /* the others must not be held up for so long */
	redos = copy_with(g, 0, RIG_FULL, 0);
	assert_int_equal(g->copier.lanes[0].dead, redos == 1);
	rig_free(g);
	return redos == 1;
}

static void a_lane_on_which_nothing_moves_is_dropped(void **state)
{
	(void)state;
	until_it_happens(nothing_moves);
}

static bool lane_is_dropped_and_comes_back(void)
{
	struct rig *g = rig_new(false);
	int redos = copy_with(g, 2, RIG_LOSE, 0);
	uint64_t pages = g->written_pages[2];

	g->fault[2] = RIG_OK;
	rig_fill(g, 8);
	assert_copied(g, 0);
	if (redos)
		assert_int_equal(g->written_pages[2], pages);
	rig_free(g);
	return redos == 1;
}

static void a_dropped_lane_is_not_used_again(void **state)
{
	(void)state;
	until_it_happens(lane_is_dropped_and_comes_back);
}

/*
 * Lane 1 loses its pages, comes back while the job runs or when its workers have just ended, and has work
 * again: in this job, if there is any left, and in the next.
 */
static bool lane_comes_back_in_the_job(void)
{
	struct rig *g = rig_new(false);
	uint64_t dropped;
	int r;

	rig_fill(g, 14);
	rig_reuse_dest(g, 15);
	rig_all(g);
	g->copier.throttle.max_bytes_per_s = SHARED;
	g->all_faults = true;
	g->fault[1] = RIG_LOSE;
	g->reopens = true;
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	lm_pool_wait_worker(g->pool, 1);
	if (atomic_load(&g->copier.lanes[1].dead)) {
		assert_int_equal(lm_copier_live_lanes(&g->copier), RIG_LANES - 1);
		g->fault[1] = RIG_OK;
		lm_copier_revive(&g->copier, 1);
		assert_int_equal(lm_copier_live_lanes(&g->copier), RIG_LANES);
		assert_true(lm_pool_restart_worker(g->pool, 1));
	}
	r = lm_copier_finish(&g->copier, &dropped, &err);
	if (r == 1) {
		uint64_t pages = g->written_pages[1];

		assert_int_equal(dropped, 0); /* no lane is dead, but pages are lost */
		lm_copier_redo(&g->copier, dropped, &g->lost);
		assert_ok(lm_copier_finish(&g->copier, &dropped, &err), err);
		r = g->written_pages[1] > pages;
	}
	assert_true(rig_equal(g));
	rig_free(g);
	return r == 1;
}

static void a_lane_that_comes_back_takes_part_and_what_it_lost_goes_out_again(void **state)
{
	(void)state;
	until_it_happens(lane_comes_back_in_the_job);
}

/* Lane 0 loses its pages, lane 1 loses them again. */
static bool two_die_in_turn(void)
{
	struct rig *g = rig_new(false);
	uint64_t dropped;
	int r;

	rig_fill(g, 9);
	rig_reuse_dest(g, 10);
	rig_all(g);
	g->copier.throttle.max_bytes_per_s = SHARED;
	g->all_faults = true;
	g->fault[0] = RIG_LOSE;
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	r = lm_copier_finish(&g->copier, &dropped, &err);
	if (r == 1) {
		assert_int_equal(dropped, 1);
		g->fault[1] = RIG_LOSE;
		lm_copier_redo(&g->copier, dropped, &g->lost);
		r = lm_copier_finish(&g->copier, &dropped, &err);
	}
	if (r == 1) {
		assert_int_equal(dropped, 2);
		lm_copier_redo(&g->copier, dropped, &g->lost);
		assert_int_equal(lm_copier_finish(&g->copier, &dropped, &err), 0);
	}
	assert_true(rig_equal(g));
	r = lm_copier_live_lanes(&g->copier) == 1;
	rig_free(g);
	return r;
}

static void two_lanes_may_die_one_after_the_other(void **state)
{
	(void)state;
	until_it_happens(two_die_in_turn);
}

static bool two_die_at_once(void)
{
	struct rig *g = rig_new(false);
	int redos;

	g->fault[0] = RIG_FAIL;
	redos = copy_with(g, 2, RIG_LOSE, 0);
	redos = redos == 1 && lm_copier_live_lanes(&g->copier) == 1;
	rig_free(g);
	return redos;
}

static void lanes_may_die_in_the_same_job(void **state)
{
	(void)state;
	until_it_happens(two_die_at_once);
}

static void a_zero_that_replaces_what_a_dropped_lane_has_placed_goes_out(void **state)
{
	struct rig *g = rig_new(false);
	uint64_t dropped;

	(void)state;
	/* Lane 0 places the page, then fails before the flush; the guest clears the page before the redo. */
	memset(rig_page(&g->src, 0, 0), 9, LM_PAGE_SIZE);
	lm_bitmap_set(&g->todo.maps[0], 0);
	for (unsigned i = 0; i < RIG_LANES; i++)
		g->copier.lanes[i].dead = i != 0;
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	lm_pool_finish(g->pool);
	memcpy(rig_page(&g->dst, 0, 0), rig_page(&g->src, 0, 0), LM_PAGE_SIZE);
	g->copier.lanes[0].dead = true;
	lm_err(&g->copier.lanes[0].error, -EIO, LM_SCOPE_LANE, "cut");
	g->copier.lanes[1].dead = false;
	assert_int_equal(lm_copier_finish(&g->copier, &dropped, &err), 1);
	memset(rig_page(&g->src, 0, 0), 0, LM_PAGE_SIZE);
	lm_bitmap_clear(&g->copier.filled.maps[0], 0); /* as if the lane had come no further than "zero" */
	lm_copier_redo(&g->copier, dropped, &g->lost);
	assert_int_equal(lm_copier_finish(&g->copier, &dropped, &err), 0);
	assert_true(rig_equal(g));
	rig_free(g);
}

static void without_a_lane_left_the_copy_fails(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	rig_fill(g, 12);
	rig_all(g);
	for (unsigned i = 0; i < RIG_LANES; i++)
		g->fault[i] = RIG_FAIL;
	assert_true(rig_copy(g, &err) < 0);
	assert_int_equal(err.code, -EIO);
	assert_int_equal(err.scope, LM_SCOPE_SESSION);
	assert_non_null(strstr(err.msg, "no lane is left"));
	assert_non_null(strstr(err.msg, "the test ended this lane"));
	rig_free(g);
}

/* ---- stop ---- */

static void stop_ends_a_copy_that_is_stuck(void **state)
{
	struct rig *g = rig_new(true);
	struct pollfd p = { .fd = lm_pool_done_fd(g->pool), .events = POLLIN };
	uint64_t dropped;
	int64_t begin;

	(void)state;
	rig_fill(g, 13);
	rig_all(g);
	for (unsigned i = 0; i < RIG_LANES; i++)
		g->fault[i] = RIG_FULL;
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	assert_int_equal(poll(&p, 1, 50), 0);
	begin = lm_now_ns();
	lm_copier_stop(&g->copier);
	assert_fails(lm_copier_finish(&g->copier, &dropped, &err), -ECANCELED, err);
	assert_true(lm_now_ns() - begin < 2 * LM_NS_PER_S);
	rig_free(g);
}

static void stop_ends_a_copy_that_waits_for_bandwidth(void **state)
{
	struct rig *g = rig_new(false);
	uint64_t dropped;
	int64_t begin;

	(void)state;
	memset(g->src.regions[2].host, 1, 4096 * LM_PAGE_SIZE);
	rig_all(g);
	g->copier.throttle.max_bytes_per_s = 1000; /* hours */
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	unit_sleep_ms(30);
	begin = lm_now_ns();
	lm_copier_stop(&g->copier);
	assert_fails(lm_copier_finish(&g->copier, &dropped, &err), -ECANCELED, err);
	assert_true(lm_now_ns() - begin < 2 * LM_NS_PER_S);
	rig_free(g);
}

/* What was not begun is told, page by page: what was done and the rest are all of it. */
static void assert_interrupted(struct rig *g)
{
	struct lm_pageset rest;
	uint64_t all = lm_pageset_count(&g->todo);
	struct lm_copy_totals before = totals(g), after;
	int r;

	lm_pageset_init(&rest, &g->src);
	r = rig_copy(g, &err);
	if (r < 0)
		fail_msg("%s", err.msg);
	lm_copier_rest(&g->copier, &rest);
	after = totals(g);
	for (unsigned region = 0; region < RIG_REGIONS; region++)
		for (uint64_t p = 0; p < lm_region_npages(&g->src.regions[region]); p++) {
			bool left = lm_bitmap_test(&rest.maps[region], p);

			if (left)
				assert_true(lm_bitmap_test(&g->todo.maps[region], p));
			else if (lm_bitmap_test(&g->todo.maps[region], p))
				assert_memory_equal(rig_page(&g->src, region, p), rig_page(&g->dst, region, p), LM_PAGE_SIZE);
		}
	/* A chunk that died with its lane may have been counted in part. */
	assert_true(after.done_pages - before.done_pages + lm_pageset_count(&rest) >= all);
	if (!r)
		assert_int_equal(after.done_pages - before.done_pages + lm_pageset_count(&rest), all);
	/* The next job is a whole one again. */
	assert_true(rig_copy(g, &err) >= 0);
	assert_true(rig_equal(g));
	lm_pageset_fini(&rest);
}

static void *interrupt_main(void *arg)
{
	struct rig *g = arg;

	while (!totals(g).done_pages)
		;
	lm_copier_interrupt(&g->copier);
	return NULL;
}

static void an_interrupted_copy_tells_what_it_has_not_begun(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		struct rig *g = rig_new(i & 1);
		pthread_t t;

		rig_fill(g, i + 1);
		rig_reuse_dest(g, i + 2);
		rig_all(g);
		g->copier.throttle.max_bytes_per_s = 60u << 20;
		if (i >= 2) { /* with a lane that dies; late, so that it may be after the interrupt, too */
			g->fault[1] = i & 2 ? RIG_FAIL : RIG_LOSE;
			g->fault_write[1] = i / 2;
		}
		pthread_create(&t, NULL, interrupt_main, g);
		assert_interrupted(g);
		pthread_join(t, NULL);
		rig_free(g);
	}
}

static void more_memory_than_chunks_can_count_is_refused(void **state)
{
	struct lm_ram ram = { .nregions = LM_REGIONS_MAX, .regions = calloc(LM_REGIONS_MAX, sizeof(*ram.regions)) };
	struct lm_copier c;
	struct lm_pool *pool;

	(void)state;
	for (unsigned i = 0; i < LM_REGIONS_MAX; i++)
		ram.regions[i].size = LM_REGION_SIZE_MAX;
	assert_ok(lm_pool_new(1, &pool, &err), err);
	assert_fails(lm_copier_init(&c, &ram, NULL, pool, &err), -EFBIG, err);
	lm_copier_fini(&c); /* once more does no harm */
	lm_pool_free(pool);
	free(ram.regions);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_pages_arrive_in_process),
		cmocka_unit_test(all_pages_arrive_over_tcp),
		cmocka_unit_test(many_rounds_keep_both_sides_equal),
		cmocka_unit_test(pages_that_are_not_to_do_are_left_alone),
		cmocka_unit_test(nothing_to_do_is_done_at_once),
		cmocka_unit_test(a_zero_page_is_left_out_where_the_destination_is_zero),
		cmocka_unit_test(a_zero_page_is_sent_where_the_destination_may_hold_something),
		cmocka_unit_test(a_page_that_was_sent_and_became_zero_is_sent_as_zero),
		cmocka_unit_test(holes_are_sent_as_zero_and_never_read),
		cmocka_unit_test(the_bandwidth_cap_is_kept_within_a_factor),
		cmocka_unit_test(a_pause_does_not_save_up_bandwidth),
		cmocka_unit_test(pages_of_a_lane_that_failed_go_out_on_another),
		cmocka_unit_test(pages_that_a_lane_has_lost_in_flight_go_out_on_another),
		cmocka_unit_test(a_lane_that_fails_without_a_word_is_not_forgotten),
		cmocka_unit_test(a_lane_that_the_peer_has_closed_is_dropped),
		cmocka_unit_test(a_lane_on_which_nothing_moves_is_dropped),
		cmocka_unit_test(a_dropped_lane_is_not_used_again),
		cmocka_unit_test(a_lane_that_comes_back_takes_part_and_what_it_lost_goes_out_again),
		cmocka_unit_test(two_lanes_may_die_one_after_the_other),
		cmocka_unit_test(lanes_may_die_in_the_same_job),
		cmocka_unit_test(a_zero_that_replaces_what_a_dropped_lane_has_placed_goes_out),
		cmocka_unit_test(without_a_lane_left_the_copy_fails),
		cmocka_unit_test(stop_ends_a_copy_that_is_stuck),
		cmocka_unit_test(stop_ends_a_copy_that_waits_for_bandwidth),
		cmocka_unit_test(an_interrupted_copy_tells_what_it_has_not_begun),
		cmocka_unit_test(more_memory_than_chunks_can_count_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
