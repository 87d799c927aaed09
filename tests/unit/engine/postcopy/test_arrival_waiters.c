/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of the guest that wait for a page, and threads of the engine that claim pages at the same time. */
#include <pthread.h>
#include "arrivalrig.h"

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
	/* The rig has fewer pages than there are places for waiters: the test fills the places by hand. */
	for (unsigned i = 0; i < LM_WAITERS_MAX; i++)
		g->a.waiters[i] = (struct lm_waiter){ .region = 1, .page = UINT64_MAX, .asked = true };
	g->a.nwaiters = LM_WAITERS_MAX;
	atomic_store(&g->a.waiting, LM_WAITERS_MAX);
	lm_arrival_leave(&g->a, 0, 0, 1, false);
	assert_int_equal(lm_arrival_fault(&g->a, &(struct lm_page_fault){ 0 }, 0, true, &run), LM_PAGE_CLAIMED);
	assert_int_equal(atomic_load(&g->a.waiting), LM_WAITERS_MAX);
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
		cmocka_unit_test(who_waits_is_asked_for_once_and_released_when_it_is_shown),
		cmocka_unit_test(what_is_given_back_is_asked_for_anew),
		cmocka_unit_test(more_waiters_than_there_is_room_for_are_not_written_past_the_end),
		cmocka_unit_test(no_page_is_ever_claimed_twice_or_lost),
	};

	return cmocka_run_group_tests_name("arrival-waiters", tests, NULL, NULL);
}
