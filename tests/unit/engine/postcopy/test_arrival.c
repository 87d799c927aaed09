/* SPDX-License-Identifier: Apache-2.0 */
/* Which page is missing, coming or whole, and in which order the lanes claim pages. */
#include "arrivalrig.h"

/* ---- states ---- */

static void a_page_is_missing_then_coming_then_whole(void **state)
{
	struct rig *g = rig_new();
	struct lm_page_fault f = fault(0, 10);
	struct lm_run run, none;

	(void)state;
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &none), LM_PAGE_WHOLE);
	lm_arrival_leave(&g->a, 0, 10, 1, false);
	assert_int_equal(remaining(g), 1);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, false, &none), LM_PAGE_MISSING);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &run), LM_PAGE_CLAIMED);
	assert_run(&run, 0, 10, 1, LM_RUN_DATA);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &none), LM_PAGE_COMING);
	assert_drained(g);
	assert_int_equal(remaining(g), 1);
	lm_arrival_whole(&g->a, &run);
	assert_int_equal(remaining(g), 0);
	assert_true(lm_bitmap_test(&g->whole[0], 10));
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &none), LM_PAGE_WHOLE);
	rig_free(g);
}

static void pages_that_are_named_twice_count_once(void **state)
{
	struct lm_postcopy_stats stats = { 0 };
	struct rig *g = rig_new();

	(void)state;
	lm_arrival_leave(&g->a, 0, 10, 20, false);
	lm_arrival_leave(&g->a, 0, 20, 20, false);
	lm_arrival_leave(&g->a, 0, 5, 1, true);
	lm_arrival_leave(&g->a, 0, 5, 1, true);
	lm_arrival_stats(&g->a, &stats);
	assert_int_equal(stats.left_pages, 31);
	assert_int_equal(stats.missing_pages, 31);
	rig_free(g);
}

/* The guest runs while the source names pages: the last word about a page says how it was when the guest stopped. */
static void the_last_word_about_a_page_is_kept(void **state)
{
	struct rig *g = rig_new();
	struct lm_run run;

	(void)state;
	lm_arrival_leave(&g->a, 0, 10, 3, false);
	lm_arrival_leave(&g->a, 0, 11, 1, true);
	lm_arrival_leave(&g->a, 0, 100, 3, true);
	lm_arrival_leave(&g->a, 0, 101, 1, false);
	assert_int_equal(remaining(g), 6);
	for (unsigned i = 0; i < 6; i++) {
		bool zero = i == 1 || i == 3 || i == 5;

		assert_true(lm_arrival_claim_next(&g->a, 64, &run));
		assert_run(&run, 0, (i < 3 ? 10 : 97) + i, 1, zero ? LM_RUN_ZERO : LM_RUN_DATA);
	}
	assert_drained(g);
	rig_free(g);
}

static void runs_are_of_one_kind_and_as_long_as_they_may(void **state)
{
	struct rig *g = rig_new();
	struct lm_run run;

	(void)state;
	lm_arrival_leave(&g->a, 0, 0, 100, false);
	lm_arrival_leave(&g->a, 0, 40, 100, true);
	assert_true(lm_arrival_claim_next(&g->a, 32, &run));
	assert_run(&run, 0, 0, 32, LM_RUN_DATA);
	assert_true(lm_arrival_claim_next(&g->a, 32, &run));
	assert_run(&run, 0, 32, 8, LM_RUN_DATA);
	assert_true(lm_arrival_claim_next(&g->a, 1000, &run));
	assert_run(&run, 0, 40, 100, LM_RUN_ZERO);
	assert_drained(g);
	rig_free(g);
}

/* ---- huge pages ---- */

static void a_huge_page_moves_as_one(void **state)
{
	struct rig *g = rig_new();
	struct lm_page_fault f = fault(1, HUGE_UNIT);
	struct lm_run run;

	(void)state;
	lm_arrival_leave(&g->a, 1, HUGE_UNIT + 5, 1, false);
	assert_int_equal(remaining(g), HUGE_UNIT);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &run), LM_PAGE_CLAIMED);
	assert_run(&run, 1, HUGE_UNIT, HUGE_UNIT, LM_RUN_DATA);
	lm_arrival_whole(&g->a, &run);
	assert_int_equal(remaining(g), 0);
	/* Two huge pages: a lane gets one of them as a whole, although it wants fewer pages than one has. */
	lm_arrival_leave(&g->a, 1, HUGE_UNIT - 1, 2, false);
	assert_true(lm_arrival_claim_next(&g->a, 16, &run) && run.len == HUGE_UNIT * LM_PAGE_SIZE);
	assert_int_equal((run.offset >> LM_PAGE_SHIFT) % HUGE_UNIT, 0);
	assert_true(lm_arrival_claim_next(&g->a, 2 * HUGE_UNIT - 1, &run) && run.len == HUGE_UNIT * LM_PAGE_SIZE);
	assert_drained(g);
	rig_free(g);
}

static void a_huge_page_that_is_zero_in_part_is_fetched(void **state)
{
	struct rig *g = rig_new();
	struct lm_run run;

	(void)state;
	lm_arrival_leave(&g->a, 1, 3, 1, true);
	lm_arrival_leave(&g->a, 1, HUGE_UNIT, HUGE_UNIT, true);
	while (lm_arrival_claim_next(&g->a, 4096, &run))
		assert_int_equal(run.kind, LM_RUN_DATA);
	rig_free(g);
}

static void nothing_is_fetched_around_a_huge_page(void **state)
{
	struct rig *g = rig_new();
	struct lm_page_fault f = fault(1, 0);
	struct lm_run run, more;

	(void)state;
	lm_arrival_leave(&g->a, 1, 0, 4 * HUGE_UNIT, false);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &run), LM_PAGE_CLAIMED);
	assert_false(lm_arrival_claim_after(&g->a, &run, 64, &more));
	rig_free(g);
}

/* ---- order ---- */

static void the_background_goes_on_behind_the_last_fault_and_comes_round(void **state)
{
	struct rig *g = rig_new();
	struct lm_page_fault f = fault(0, 500);
	struct lm_run run;

	(void)state;
	lm_arrival_leave(&g->a, 0, 0, 1000, false);
	lm_arrival_leave(&g->a, 1, 0, HUGE_UNIT, false);
	lm_arrival_leave(&g->a, 2, 0, 1, false);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &run), LM_PAGE_CLAIMED);
	assert_true(lm_arrival_claim_next(&g->a, 499, &run));
	assert_run(&run, 0, 501, 499, LM_RUN_DATA);
	assert_true(lm_arrival_claim_next(&g->a, 1000, &run));
	assert_run(&run, 1, 0, HUGE_UNIT, LM_RUN_DATA);
	assert_true(lm_arrival_claim_next(&g->a, 1000, &run));
	assert_run(&run, 2, 0, 1, LM_RUN_DATA);
	assert_true(lm_arrival_claim_next(&g->a, 1000, &run));
	assert_run(&run, 0, 0, 500, LM_RUN_DATA);
	assert_drained(g);
	rig_free(g);
}

static void neighbours_lie_behind_the_run_and_within_the_bound(void **state)
{
	struct rig *g = rig_new();
	struct lm_page_fault f = fault(0, 990);
	struct lm_run run, more;

	(void)state;
	lm_arrival_leave(&g->a, 0, 0, 1000, false);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &run), LM_PAGE_CLAIMED);
	assert_true(lm_arrival_claim_after(&g->a, &run, 4, &more));
	assert_run(&more, 0, 991, 4, LM_RUN_DATA);
	/* All four are claimed: no other page is that near. */
	assert_false(lm_arrival_claim_after(&g->a, &run, 4, &more));
	assert_true(lm_arrival_claim_after(&g->a, &run, 6, &more));
	assert_run(&more, 0, 995, 2, LM_RUN_DATA);
	assert_true(lm_arrival_claim_after(&g->a, &run, UINT64_MAX, &more));
	assert_run(&more, 0, 997, 3, LM_RUN_DATA);
	assert_false(lm_arrival_claim_after(&g->a, &run, 64, &more));
	assert_false(lm_arrival_claim_after(&g->a, &more, 64, &run)); /* nothing lies behind the region */
	rig_free(g);
}

/* ---- after an engine's death ---- */

static void after_a_restart_what_is_not_whole_is_missing(void **state)
{
	struct lm_postcopy_stats stats = { 0 };
	struct rig *g = rig_new();
	struct lm_run run;

	(void)state;
	lm_bitmap_clear_range(&g->whole[0], 990, 10);
	lm_bitmap_clear_range(&g->whole[2], 0, 1);
	lm_arrival_resume(&g->a);
	lm_arrival_stats(&g->a, &stats);
	assert_int_equal(stats.left_pages, 11);
	assert_int_equal(stats.missing_pages, 11);
	assert_true(lm_arrival_claim_next(&g->a, 64, &run));
	assert_run(&run, 0, 990, 10, LM_RUN_DATA);
	assert_true(lm_arrival_claim_next(&g->a, 64, &run));
	assert_run(&run, 2, 0, 1, LM_RUN_DATA);
	assert_drained(g);
	rig_free(g);
}

/* The engine was killed while it marked a huge page: some of its bits are set, but the VM has not got the page. */
static void a_huge_page_that_was_marked_in_part_is_missing_as_a_whole(void **state)
{
	struct rig *g = rig_new();
	struct lm_run run;

	(void)state;
	lm_bitmap_clear_range(&g->whole[1], HUGE_UNIT + 128, HUGE_UNIT - 128);
	lm_arrival_resume(&g->a);
	assert_int_equal(remaining(g), HUGE_UNIT);
	assert_false(lm_bitmap_test(&g->whole[1], HUGE_UNIT));
	assert_true(lm_arrival_claim_next(&g->a, 64, &run));
	assert_run(&run, 1, HUGE_UNIT, HUGE_UNIT, LM_RUN_DATA);
	assert_drained(g);
	rig_free(g);
}

/* ---- looks ---- */

static void around_a_page_is_what_is_whole_with_it_in_its_block(void **state)
{
	struct rig *g = rig_new();
	uint64_t first, n;

	(void)state;
	lm_arrival_around(&g->a, 0, 37, 16, &first, &n);
	assert_int_equal(first, 32);
	assert_int_equal(n, 16);
	lm_arrival_leave(&g->a, 0, 34, 1, false);
	lm_arrival_leave(&g->a, 0, 40, 1, false);
	lm_arrival_around(&g->a, 0, 37, 16, &first, &n);
	assert_int_equal(first, 35);
	assert_int_equal(n, 5);
	lm_arrival_around(&g->a, 0, 999, 16, &first, &n); /* 1000 is no multiple of 16 */
	assert_int_equal(first, 992);
	assert_int_equal(n, 8);
	lm_arrival_around(&g->a, 0, 37, 1, &first, &n);
	assert_int_equal(first, 37);
	assert_int_equal(n, 1);
	lm_arrival_around(&g->a, 2, 0, 16, &first, &n);
	assert_int_equal(n, 1);
	lm_arrival_around(&g->a, 1, HUGE_UNIT, 16, &first, &n);
	assert_int_equal(first, HUGE_UNIT);
	assert_int_equal(n, HUGE_UNIT);
	rig_free(g);
}

static void whole_stretches_are_long_enough_and_end(void **state)
{
	struct rig *g = rig_new();
	uint64_t page = 0, first, n;

	(void)state;
	lm_arrival_leave(&g->a, 0, 100, 1, false);
	lm_arrival_leave(&g->a, 0, 150, 1, true);
	assert_true(lm_arrival_whole_stretch(&g->a, 0, &page, 60, &first, &n));
	assert_int_equal(first, 0);
	assert_int_equal(n, 100);
	assert_true(lm_arrival_whole_stretch(&g->a, 0, &page, 60, &first, &n));
	assert_int_equal(first, 151);
	assert_int_equal(n, 849);
	assert_false(lm_arrival_whole_stretch(&g->a, 0, &page, 60, &first, &n));
	assert_false(lm_arrival_whole_stretch(&g->a, 0, &page, 60, &first, &n));
	rig_free(g);
}

static void a_mask_leaves_what_is_whole(void **state)
{
	struct rig *g = rig_new();
	struct lm_bitmap pages;

	(void)state;
	lm_arrival_leave(&g->a, 0, 100, 50, false);
	assert_int_equal(lm_bitmap_init(&pages, g->whole[0].nbits), 0);
	lm_bitmap_set_range(&pages, 0, pages.nbits);
	lm_arrival_mask_whole(&g->a, 0, 64, 100, &pages);
	assert_int_equal(lm_bitmap_count(&pages), pages.nbits - 50);
	assert_true(lm_bitmap_test(&pages, 99) && !lm_bitmap_test(&pages, 100));
	assert_true(!lm_bitmap_test(&pages, 149) && lm_bitmap_test(&pages, 150));
	lm_bitmap_fini(&pages);
	rig_free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_page_is_missing_then_coming_then_whole),
		cmocka_unit_test(pages_that_are_named_twice_count_once),
		cmocka_unit_test(the_last_word_about_a_page_is_kept),
		cmocka_unit_test(runs_are_of_one_kind_and_as_long_as_they_may),
		cmocka_unit_test(a_huge_page_moves_as_one),
		cmocka_unit_test(a_huge_page_that_is_zero_in_part_is_fetched),
		cmocka_unit_test(nothing_is_fetched_around_a_huge_page),
		cmocka_unit_test(the_background_goes_on_behind_the_last_fault_and_comes_round),
		cmocka_unit_test(neighbours_lie_behind_the_run_and_within_the_bound),
		cmocka_unit_test(around_a_page_is_what_is_whole_with_it_in_its_block),
		cmocka_unit_test(a_mask_leaves_what_is_whole),
		cmocka_unit_test(whole_stretches_are_long_enough_and_end),
		cmocka_unit_test(after_a_restart_what_is_not_whole_is_missing),
		cmocka_unit_test(a_huge_page_that_was_marked_in_part_is_missing_as_a_whole),
	};

	return cmocka_run_group_tests_name("arrival", tests, NULL, NULL);
}
