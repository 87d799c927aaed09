/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "arrival.h"
#include "engine/base/cleanup.h"

static uint64_t unit_of(const struct lm_arrival *a, unsigned region)
{
	return a->ram->regions[region].page_size >> LM_PAGE_SHIFT;
}

int lm_arrival_init(struct lm_arrival *a, const struct lm_ram *ram, struct lm_bitmap *whole)
{
	memset(a, 0, sizeof(*a));
	pthread_mutex_init(&a->mutex, NULL);
	a->ram = ram;
	a->whole = whole;
	if (!lm_pageset_init(&a->missing, ram) && !lm_pageset_init(&a->zero, ram))
		return 0;
	lm_arrival_fini(a);
	return -ENOMEM;
}

void lm_arrival_fini(struct lm_arrival *a)
{
	if (!a->ram)
		return;
	lm_pageset_fini(&a->missing);
	lm_pageset_fini(&a->zero);
	pthread_mutex_destroy(&a->mutex);
	memset(a, 0, sizeof(*a));
}

void lm_arrival_leave(struct lm_arrival *a, unsigned region, uint64_t first, uint64_t n, bool zero)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);
	uint64_t unit = unit_of(a, region), end = (first + n + unit - 1) / unit * unit, known;

	first = first / unit * unit;
	n = end - first;
	known = lm_bitmap_count_range(&a->missing.maps[region], first, n);
	a->left_behind += n - known;
	atomic_fetch_add(&a->remaining, n - known);
	lm_bitmap_set_range(&a->missing.maps[region], first, n);
	lm_bitmap_clear_range(&a->whole[region], first, n);
	/* In a huge page that is zero only in part, nothing counts as zero. */
	if (zero && unit == 1)
		lm_bitmap_set_range(&a->zero.maps[region], first, n);
	else
		lm_bitmap_clear_range(&a->zero.maps[region], first, n);
}

/*
 * An engine that was killed while it marked a huge page has not shown the page: a page that is marked
 * only in part is not whole.
 */
static void unmark_parts(struct lm_arrival *a, unsigned region)
{
	struct lm_bitmap *whole = &a->whole[region];
	uint64_t unit = unit_of(a, region);

	for (uint64_t first = 0; unit > 1 && first < whole->nbits; first += unit)
		if (lm_bitmap_count_range(whole, first, unit) != unit)
			lm_bitmap_clear_range(whole, first, unit);
}

void lm_arrival_resume(struct lm_arrival *a)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);
	uint64_t sum = 0;

	for (unsigned i = 0; i < a->ram->nregions; i++) {
		struct lm_bitmap *missing = &a->missing.maps[i];

		unmark_parts(a, i);
		lm_bitmap_set_range(missing, 0, missing->nbits);
		for (uint64_t w = 0; w < lm_bitmap_nwords(missing->nbits); w++)
			missing->words[w] &= ~a->whole[i].words[w];
		sum += lm_bitmap_count(missing);
	}
	a->left_behind = sum;
	atomic_store(&a->remaining, sum);
}

/* ---- claims; under the mutex ---- */

static struct lm_run claim(struct lm_arrival *a, unsigned region, uint64_t first, uint64_t n)
{
	bool zero = lm_bitmap_test(&a->zero.maps[region], first);

	lm_bitmap_clear_range(&a->missing.maps[region], first, n);
	return (struct lm_run){ .region = region, .kind = zero ? LM_RUN_ZERO : LM_RUN_DATA,
				.offset = first << LM_PAGE_SHIFT, .len = n << LM_PAGE_SHIFT };
}

/* How many of the n missing pages from first on have its kind. */
static uint64_t same_kind(const struct lm_arrival *a, unsigned region, uint64_t first, uint64_t n)
{
	const struct lm_bitmap *zero = &a->zero.maps[region];
	uint64_t at, run = lm_bitmap_next_run(zero, first, first + n, &at);

	if (!run)
		return n;
	return at == first ? run : at - first;
}

/* The first missing pages in [from, end) of one kind, at most max (at least a unit). */
static bool claim_in(struct lm_arrival *a, unsigned region, uint64_t from, uint64_t end, uint64_t max,
		     struct lm_run *ret)
{
	uint64_t unit = unit_of(a, region), first, n;

	n = lm_bitmap_next_run(&a->missing.maps[region], from, end, &first);
	if (!n)
		return false;
	n = same_kind(a, region, first, n);
	max = max < unit ? unit : max / unit * unit;
	*ret = claim(a, region, first, n < max ? n : max);
	return true;
}

static uint64_t run_first(const struct lm_run *run)
{
	return run->offset >> LM_PAGE_SHIFT;
}

static uint64_t run_pages(const struct lm_run *run)
{
	return run->len >> LM_PAGE_SHIFT;
}

static void move_cursor(struct lm_arrival *a, const struct lm_run *run)
{
	a->cursor_region = run->region;
	a->cursor_page = run_first(run) + run_pages(run);
}

/* Threads that wait for the same page are one waiter: the first was there the longest. */
static void note_waiter(struct lm_arrival *a, const struct lm_page_fault *f, int64_t since_ns, bool asked)
{
	for (unsigned i = 0; i < a->nwaiters; i++)
		if (a->waiters[i].page == f->page && a->waiters[i].region == f->region)
			return;
	if (a->nwaiters == LM_WAITERS_MAX)
		return;
	a->waiters[a->nwaiters++] = (struct lm_waiter){ f->region, f->page, since_ns, asked };
	atomic_store(&a->waiting, a->nwaiters);
}

enum lm_page_state lm_arrival_fault(struct lm_arrival *a, const struct lm_page_fault *f, int64_t since_ns,
				    bool can_fetch, struct lm_run *ret_run)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);
	uint64_t unit = unit_of(a, f->region);
	bool missing;

	if (lm_bitmap_test(&a->whole[f->region], f->page))
		return LM_PAGE_WHOLE;
	missing = lm_bitmap_test(&a->missing.maps[f->region], f->page);
	note_waiter(a, f, since_ns, !missing || can_fetch);
	if (!missing)
		return LM_PAGE_COMING;
	if (!can_fetch)
		return LM_PAGE_MISSING;
	*ret_run = claim(a, f->region, f->page, unit);
	move_cursor(a, ret_run);
	return LM_PAGE_CLAIMED;
}

bool lm_arrival_next_waiter(struct lm_arrival *a, struct lm_run *ret_run)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);

	for (unsigned i = 0; i < a->nwaiters; i++) {
		struct lm_waiter *w = &a->waiters[i];

		if (w->asked || !lm_bitmap_test(&a->missing.maps[w->region], w->page))
			continue;
		w->asked = true;
		*ret_run = claim(a, w->region, w->page, unit_of(a, w->region));
		move_cursor(a, ret_run);
		return true;
	}
	return false;
}

bool lm_arrival_claim_after(struct lm_arrival *a, const struct lm_run *run, uint64_t max_pages,
			    struct lm_run *ret_run)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);
	uint64_t npages = lm_region_npages(&a->ram->regions[run->region]), from = run_first(run) + run_pages(run);
	uint64_t end = max_pages < npages - from ? from + max_pages : npages;

	end = end / unit_of(a, run->region) * unit_of(a, run->region);
	if (from >= end || !claim_in(a, run->region, from, end, max_pages, ret_run))
		return false;
	move_cursor(a, ret_run);
	return true;
}

bool lm_arrival_claim_next(struct lm_arrival *a, uint64_t max_pages, struct lm_run *ret_run)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);

	/* From the cursor to the end, then from the beginning to the cursor's region again. */
	for (unsigned i = 0; i <= a->ram->nregions; i++) {
		unsigned region = (a->cursor_region + i) % a->ram->nregions;
		uint64_t from = i ? 0 : a->cursor_page;

		if (!claim_in(a, region, from, a->missing.maps[region].nbits, max_pages, ret_run))
			continue;
		move_cursor(a, ret_run);
		return true;
	}
	return false;
}

/* ---- ends of claims ---- */

void lm_arrival_whole(struct lm_arrival *a, const struct lm_run *run)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);

	lm_bitmap_set_range(&a->whole[run->region], run_first(run), run_pages(run));
	atomic_fetch_sub(&a->remaining, run_pages(run));
}

void lm_arrival_shown(struct lm_arrival *a, const struct lm_run *run, int64_t now_ns)
{
	uint64_t first = run_first(run), n = run_pages(run);
	unsigned kept = 0;

	if (!atomic_load(&a->waiting))
		return;
	pthread_mutex_lock(&a->mutex);
	for (unsigned i = 0; i < a->nwaiters; i++) {
		struct lm_waiter *w = &a->waiters[i];

		if (w->region == run->region && w->page >= first && w->page - first < n)
			lm_hist_add(&a->waits, now_ns - w->since_ns);
		else
			a->waiters[kept++] = *w;
	}
	a->nwaiters = kept;
	atomic_store(&a->waiting, kept);
	pthread_mutex_unlock(&a->mutex);
}

void lm_arrival_give_back(struct lm_arrival *a, const struct lm_run *run)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);
	uint64_t first = run_first(run), n = run_pages(run);

	lm_bitmap_set_range(&a->missing.maps[run->region], first, n);
	for (unsigned i = 0; i < a->nwaiters; i++) {
		struct lm_waiter *w = &a->waiters[i];

		if (w->region == run->region && w->page >= first && w->page - first < n)
			w->asked = false;
	}
}

/* ---- looks ---- */

void lm_arrival_around(struct lm_arrival *a, unsigned region, uint64_t page, uint64_t max_pages,
		       uint64_t *ret_first, uint64_t *ret_n)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);
	const struct lm_bitmap *whole = &a->whole[region];
	uint64_t unit = unit_of(a, region), block = max_pages < unit ? unit : max_pages / unit * unit;
	uint64_t first = page / block * block, end = first + block, at;

	if (end > whole->nbits)
		end = whole->nbits;
	for (at = first; at < page; at += unit)
		if (!lm_bitmap_test(whole, at))
			first = at + unit;
	for (at = page; at < end && lm_bitmap_test(whole, at); at += unit)
		;
	*ret_first = first;
	*ret_n = at - first;
}

bool lm_arrival_whole_stretch(struct lm_arrival *a, unsigned region, uint64_t *page, uint64_t min_pages,
			      uint64_t *ret_first, uint64_t *ret_n)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);
	const struct lm_bitmap *whole = &a->whole[region];
	uint64_t first, n;

	while ((n = lm_bitmap_next_run(whole, *page, whole->nbits, &first))) {
		*page = first + n;
		if (n < min_pages)
			continue;
		*ret_first = first;
		*ret_n = n;
		return true;
	}
	return false;
}

void lm_arrival_mask_whole(struct lm_arrival *a, unsigned region, uint64_t first, uint64_t n,
			   struct lm_bitmap *pages)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);

	for (uint64_t w = first / 64; w < (first + n + 63) / 64; w++)
		pages->words[w] &= a->whole[region].words[w];
}

void lm_arrival_stats(struct lm_arrival *a, struct lm_postcopy_stats *stats)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&a->mutex);

	stats->left_pages = a->left_behind;
	stats->missing_pages = atomic_load(&a->remaining);
	stats->faults = a->waits.count + a->nwaiters;
	stats->fault_p50_ns = lm_hist_quantile(&a->waits, 0.5);
	stats->fault_p99_ns = lm_hist_quantile(&a->waits, 0.99);
	stats->fault_max_ns = a->waits.max_ns;
	stats->waited_ns = a->waits.sum_ns;
}
