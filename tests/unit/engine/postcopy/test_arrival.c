/* SPDX-License-Identifier: Apache-2.0 */
/* Which page is missing, coming or whole: never claimed twice, never lost, and who waits is told. */
#include <pthread.h>
#include "unit.h"
#include "engine/postcopy/arrival.h"

#define HUGE_UNIT 512
#define NREGIONS 3

/* Regions of small pages, of huge pages, and a single page. */
static const uint64_t region_pages[NREGIONS] = { 1000, 4 * HUGE_UNIT, 1 };

struct rig {
	struct lm_arrival a;
	struct lm_ram ram;
	struct lm_region regions[NREGIONS];
	struct lm_bitmap whole[NREGIONS];
};

static struct rig *rig_new(void)
{
	struct rig *g = calloc(1, sizeof(*g));

	for (unsigned i = 0; i < NREGIONS; i++) {
		g->regions[i] = (struct lm_region){ .size = region_pages[i] * LM_PAGE_SIZE,
						    .page_size = i == 1 ? HUGE_UNIT * LM_PAGE_SIZE : LM_PAGE_SIZE,
						    .fd = -1 };
		assert_int_equal(lm_bitmap_init(&g->whole[i], region_pages[i]), 0);
		lm_bitmap_set_range(&g->whole[i], 0, region_pages[i]);
	}
	g->ram = (struct lm_ram){ .regions = g->regions, .nregions = NREGIONS };
	assert_int_equal(lm_arrival_init(&g->a, &g->ram, g->whole), 0);
	return g;
}

static void rig_free(struct rig *g)
{
	lm_arrival_fini(&g->a);
	for (unsigned i = 0; i < NREGIONS; i++)
		lm_bitmap_fini(&g->whole[i]);
	free(g);
}

static uint64_t remaining(struct rig *g)
{
	return atomic_load(&g->a.remaining);
}

static struct lm_page_fault fault(unsigned region, uint64_t page)
{
	return (struct lm_page_fault){ .region = region, .page = page };
}

static void assert_run(const struct lm_run *run, unsigned region, uint64_t first, uint64_t n, enum lm_run_kind kind)
{
	assert_int_equal(run->region, region);
	assert_int_equal(run->offset >> LM_PAGE_SHIFT, first);
	assert_int_equal(run->len >> LM_PAGE_SHIFT, n);
	assert_int_equal(run->kind, kind);
}

/* Nothing is left to claim. */
static void assert_drained(struct rig *g)
{
	struct lm_run run;

	assert_false(lm_arrival_claim_next(&g->a, 64, &run));
}

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

/* The guest runs while pages are named: what is said last is how it was when it stopped. */
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
	/* Two of them, of which a lane wants fewer pages than one has. */
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
	/* All four are taken: there is nothing else that near. */
	assert_false(lm_arrival_claim_after(&g->a, &run, 4, &more));
	assert_true(lm_arrival_claim_after(&g->a, &run, 6, &more));
	assert_run(&more, 0, 995, 2, LM_RUN_DATA);
	assert_true(lm_arrival_claim_after(&g->a, &run, UINT64_MAX, &more));
	assert_run(&more, 0, 997, 3, LM_RUN_DATA);
	assert_false(lm_arrival_claim_after(&g->a, &run, 64, &more));
	assert_false(lm_arrival_claim_after(&g->a, &more, 64, &run)); /* nothing lies behind the region */
	rig_free(g);
}

/* ---- waiters ---- */

static void who_waits_is_asked_for_once_and_released_when_it_is_shown(void **state)
{
	struct rig *g = rig_new();
	struct lm_page_fault f = fault(0, 7), same = fault(0, 7), other = fault(0, 9);
	struct lm_postcopy_stats stats = { 0 };
	struct lm_run run, none;

	(void)state;
	lm_arrival_leave(&g->a, 0, 0, 100, false);
	assert_int_equal(lm_arrival_fault(&g->a, &f, 1000, false, &none), LM_PAGE_MISSING);
	assert_int_equal(lm_arrival_fault(&g->a, &same, 2000, false, &none), LM_PAGE_MISSING);
	assert_int_equal(lm_arrival_fault(&g->a, &other, 3000, false, &none), LM_PAGE_MISSING);
	assert_int_equal(atomic_load(&g->a.waiting), 2); /* two pages, however many threads */
	assert_true(lm_arrival_next_waiter(&g->a, &run));
	assert_run(&run, 0, 7, 1, LM_RUN_DATA);
	lm_arrival_whole(&g->a, &run);
	lm_arrival_shown(&g->a, &run, 5000);
	assert_int_equal(atomic_load(&g->a.waiting), 1);
	assert_true(lm_arrival_next_waiter(&g->a, &run));
	assert_run(&run, 0, 9, 1, LM_RUN_DATA);
	assert_false(lm_arrival_next_waiter(&g->a, &none));
	lm_arrival_stats(&g->a, &stats);
	assert_int_equal(stats.faults, 2); /* one of them still waits */
	assert_int_equal(stats.waited_ns, 4000); /* since the first */
	lm_arrival_whole(&g->a, &run);
	lm_arrival_shown(&g->a, &run, 6000);
	lm_arrival_stats(&g->a, &stats);
	assert_int_equal(stats.faults, 2);
	assert_int_equal(stats.waited_ns, 7000);
	assert_int_equal(stats.fault_max_ns, 4000);
	rig_free(g);
}

static void what_is_given_back_is_asked_for_anew(void **state)
{
	struct rig *g = rig_new();
	struct lm_page_fault f = fault(0, 20);
	struct lm_run run, again;

	(void)state;
	lm_arrival_leave(&g->a, 0, 0, 100, false);
	assert_true(lm_arrival_claim_next(&g->a, 50, &run));
	assert_int_equal(lm_arrival_fault(&g->a, &f, 0, true, &again), LM_PAGE_COMING);
	assert_false(lm_arrival_next_waiter(&g->a, &again));
	lm_arrival_give_back(&g->a, &run);
	assert_int_equal(remaining(g), 100);
	assert_true(lm_arrival_next_waiter(&g->a, &again));
	assert_run(&again, 0, 20, 1, LM_RUN_DATA);
	assert_false(lm_arrival_next_waiter(&g->a, &again));
	rig_free(g);
}

static void more_waiters_than_there_is_room_for_are_not_written_past_the_end(void **state)
{
	struct rig *g = rig_new();
	struct lm_run run;

	(void)state;
	/* There are fewer pages than places: fill the places by hand. */
	for (unsigned i = 0; i < LM_WAITERS_MAX; i++)
		g->a.waiters[i] = (struct lm_waiter){ .region = 1, .page = UINT64_MAX, .asked = true };
	g->a.nwaiters = LM_WAITERS_MAX;
	atomic_store(&g->a.waiting, LM_WAITERS_MAX);
	lm_arrival_leave(&g->a, 0, 0, 1, false);
	assert_int_equal(lm_arrival_fault(&g->a, &(struct lm_page_fault){ 0 }, 0, true, &run), LM_PAGE_CLAIMED);
	assert_int_equal(atomic_load(&g->a.waiting), LM_WAITERS_MAX);
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

/* The engine was killed while it marked a huge page: some of its bits are set. It was not shown then. */
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

/* ---- several threads ---- */

#define THREADS 6

struct storm {
	struct rig *g;
	_Atomic uint8_t owned[NREGIONS][4 * HUGE_UNIT]; /* claimed now */
	_Atomic unsigned wholes[NREGIONS][4 * HUGE_UNIT];
	_Atomic bool failed;
};

struct stormer {
	struct storm *s;
	uint64_t x;
	pthread_t thread;
};

static void own(struct storm *s, const struct lm_run *run, bool on)
{
	uint64_t first = run->offset >> LM_PAGE_SHIFT, n = run->len >> LM_PAGE_SHIFT;

	for (uint64_t p = first; p < first + n; p++)
		if (atomic_exchange(&s->owned[run->region][p], on) == on ||
		    (on && atomic_load(&s->wholes[run->region][p])))
			atomic_store(&s->failed, true);
}

static bool storm_claim(struct stormer *t, struct lm_run *run)
{
	struct lm_arrival *a = &t->s->g->a;
	struct lm_page_fault f;

	switch (unit_random(&t->x) % 3) {
	case 0:
		return lm_arrival_claim_next(a, 1 + unit_random(&t->x) % 40, run);
	case 1:
		return lm_arrival_next_waiter(a, run);
	default:
		f.region = (unsigned)(unit_random(&t->x) % NREGIONS);
		f.page = unit_random(&t->x) % region_pages[f.region];
		f.page -= f.region == 1 ? f.page % HUGE_UNIT : 0;
		return lm_arrival_fault(a, &f, lm_now_ns(), unit_random(&t->x) & 1, run) == LM_PAGE_CLAIMED;
	}
}

static void *storm_main(void *arg)
{
	struct stormer *t = arg;
	struct storm *s = t->s;
	struct lm_run run;

	while (atomic_load(&s->g->a.remaining) && !atomic_load(&s->failed)) {
		if (!storm_claim(t, &run))
			continue;
		own(s, &run, true);
		if (unit_random(&t->x) % 4 == 0) {
			own(s, &run, false);
			lm_arrival_give_back(&s->g->a, &run);
			continue;
		}
		for (uint64_t p = run.offset >> LM_PAGE_SHIFT, n = run.len >> LM_PAGE_SHIFT; n--; p++)
			atomic_fetch_add(&s->wholes[run.region][p], 1);
		own(s, &run, false);
		lm_arrival_whole(&s->g->a, &run);
		lm_arrival_shown(&s->g->a, &run, lm_now_ns());
	}
	return NULL;
}

static void no_page_is_ever_claimed_twice_or_lost(void **state)
{
	struct storm *s = calloc(1, sizeof(*s));
	struct stormer t[THREADS] = { 0 };

	(void)state;
	s->g = rig_new();
	for (unsigned i = 0; i < NREGIONS; i++)
		lm_arrival_leave(&s->g->a, i, 0, region_pages[i], false);
	lm_arrival_leave(&s->g->a, 0, 300, 333, true);
	for (unsigned i = 0; i < THREADS; i++) {
		t[i].s = s;
		t[i].x = 88172645463325252u + i * 1000003;
		pthread_create(&t[i].thread, NULL, storm_main, &t[i]);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(t[i].thread, NULL);
	assert_false(atomic_load(&s->failed));
	assert_int_equal(remaining(s->g), 0);
	for (unsigned i = 0; i < NREGIONS; i++)
		for (uint64_t p = 0; p < region_pages[i]; p++) {
			assert_int_equal(atomic_load(&s->wholes[i][p]), 1);
			assert_true(lm_bitmap_test(&s->g->whole[i], p));
		}
	assert_int_equal(atomic_load(&s->g->a.waiting), 0);
	rig_free(s->g);
	free(s);
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
		cmocka_unit_test(who_waits_is_asked_for_once_and_released_when_it_is_shown),
		cmocka_unit_test(what_is_given_back_is_asked_for_anew),
		cmocka_unit_test(more_waiters_than_there_is_room_for_are_not_written_past_the_end),
		cmocka_unit_test(around_a_page_is_what_is_whole_with_it_in_its_block),
		cmocka_unit_test(a_mask_leaves_what_is_whole),
		cmocka_unit_test(whole_stretches_are_long_enough_and_end),
		cmocka_unit_test(after_a_restart_what_is_not_whole_is_missing),
		cmocka_unit_test(a_huge_page_that_was_marked_in_part_is_missing_as_a_whole),
		cmocka_unit_test(no_page_is_ever_claimed_twice_or_lost),
	};

	return cmocka_run_group_tests_name("arrival", tests, NULL, NULL);
}
