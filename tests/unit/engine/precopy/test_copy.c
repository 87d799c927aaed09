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

static void copy_everything(bool tcp)
{
	struct rig *g = rig_new(tcp);
	struct lm_copy_totals t;

	rig_fill(g, 1);
	rig_reuse_dest(g, 2);
	rig_all(g);
	rig_assert_copied(g, 0);
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
	rig_assert_copied(g, 0);
	for (unsigned round = 0; round < 20; round++) {
		lm_pageset_clear_all(&g->todo);
		for (unsigned i = 0; i < 300; i++) {
			unsigned r = (unsigned)(unit_random(&x) % RIG_REGIONS);
			uint64_t page = unit_random(&x) % g->todo.maps[r].nbits;

			memset(rig_page(&g->src, r, page), unit_random(&x) % 2 ? (int)(x % 256) : 0, LM_PAGE_SIZE);
			lm_bitmap_set(&g->todo.maps[r], page);
		}
		rig_assert_copied(g, 0);
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
	rig_assert_copied(g, 0);
	assert_int_equal(rig_page(&g->dst, 2, 4095)[0], 1);
	memset(rig_page(&g->src, 2, 4095), 0, LM_PAGE_SIZE);
	rig_assert_copied(g, 0);
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
	rig_assert_copied(g, 0); /* (comparing reads the holes, hence the order) */
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
	rig_assert_copied(g, 0);
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
	rig_assert_copied(g, 0);
	assert_true(lm_now_ns() - begin > 180 * LM_NS_PER_MS); /* of 250 */
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
		cmocka_unit_test(stop_ends_a_copy_that_is_stuck),
		cmocka_unit_test(stop_ends_a_copy_that_waits_for_bandwidth),
		cmocka_unit_test(an_interrupted_copy_tells_what_it_has_not_begun),
		cmocka_unit_test(more_memory_than_chunks_can_count_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
