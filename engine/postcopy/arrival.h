/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy, destination: which pages are whole, and who waits for which.
 *
 * A page that was left behind is missing, then on the way (claimed by exactly one lane), then
 * whole; a lane that dies gives back what was on its way.  A page is never fetched while it is on
 * the way or whole: a second copy could land on what the guest has written since.  For the same
 * reason it is marked whole before the guest can see it: an engine that goes on after a crash must
 * not fetch it again.
 *
 * Everything counts in 4 KiB pages and moves in pages of the region (hugetlbfs:
 * whole huge pages).  All calls are thread-safe and short.
 */
#ifndef LM_ARRIVAL_H
#define LM_ARRIVAL_H

#include <pthread.h>
#include <stdatomic.h>
#include "engine/base/hist.h"
#include "engine/vm/pager.h"
#include "engine/base/pageset.h"
#include "engine/transport/transport.h"

#define LM_WAITERS_MAX 4096

struct lm_waiter {
	unsigned region;
	uint64_t page;
	int64_t since_ns;
	bool asked; /* its page was claimed for it, or was on the way already */
};

struct lm_arrival {
	const struct lm_ram *ram;
	pthread_mutex_t mutex;
	/* Under the mutex: */
	struct lm_bitmap *whole;   /* per region; the caller's memory (a mapped file): it outlives this process */
	struct lm_pageset missing; /* neither whole nor on the way */
	struct lm_pageset zero;    /* of missing: nothing to fetch, the content is zero */
	struct lm_waiter waiters[LM_WAITERS_MAX];
	unsigned nwaiters;
	struct lm_hist waits;
	unsigned cursor_region;    /* where the background goes on: behind the last fault */
	uint64_t cursor_page;
	uint64_t left_behind;      /* pages named by leave() */
	_Atomic uint64_t remaining; /* pages that are not whole; written under the mutex */
	_Atomic unsigned waiting;   /* nwaiters, for a look without the mutex */
};

/* whole: one bitmap per region, that of a page is set when it is whole; stays the caller's. */
int lm_arrival_init(struct lm_arrival *a, const struct lm_ram *ram, struct lm_bitmap *whole);
void lm_arrival_fini(struct lm_arrival *a); /* takes a zeroed one */

/* The source leaves these behind.  Before the first fault is answered. */
void lm_arrival_leave(struct lm_arrival *a, unsigned region, uint64_t first, uint64_t n, bool zero);
/* After a restart: what is not whole is missing. */
void lm_arrival_resume(struct lm_arrival *a);

enum lm_page_state { LM_PAGE_WHOLE, LM_PAGE_COMING, LM_PAGE_CLAIMED, LM_PAGE_MISSING };

/*
 * A thread of the guest waits for a page since since_ns.  WHOLE: show it at once.
 * COMING: it will be shown when it is whole.  CLAIMED (only if can_fetch): *ret_run
 * is its page, the caller's to fetch (kind DATA) or to clear (kind ZERO).  MISSING:
 * noted, see lm_arrival_next_waiter().  At most LM_WAITERS_MAX wait at a time: the caller
 * takes no more faults from the pager than there is room for.
 */
enum lm_page_state lm_arrival_fault(struct lm_arrival *a, const struct lm_page_fault *f, int64_t since_ns,
				    bool can_fetch, struct lm_run *ret_run);
/* Claim a page that a thread of the guest waits for and that no lane fetches yet. */
bool lm_arrival_next_waiter(struct lm_arrival *a, struct lm_run *ret_run);
/* Claim missing pages right behind a run, at most max_pages. */
bool lm_arrival_claim_after(struct lm_arrival *a, const struct lm_run *run, uint64_t max_pages,
			    struct lm_run *ret_run);
/* Claim the next missing pages for the background. */
bool lm_arrival_claim_next(struct lm_arrival *a, uint64_t max_pages, struct lm_run *ret_run);
/* A claimed run is whole.  Before the guest may see it. */
void lm_arrival_whole(struct lm_arrival *a, const struct lm_run *run);
/* It has been shown to the guest, so the threads that waited for it go on. */
void lm_arrival_shown(struct lm_arrival *a, const struct lm_run *run, int64_t now_ns);
/* A claimed run will not come by this lane, for certain. */
void lm_arrival_give_back(struct lm_arrival *a, const struct lm_run *run);
/* The whole pages around a page, at most max_pages in all: to be shown together. */
void lm_arrival_around(struct lm_arrival *a, unsigned region, uint64_t page, uint64_t max_pages,
		       uint64_t *ret_first, uint64_t *ret_n);
/* Next stretch of at least min_pages, from *page on, in which everything is whole; moves *page on. */
bool lm_arrival_whole_stretch(struct lm_arrival *a, unsigned region, uint64_t *page, uint64_t min_pages,
			      uint64_t *ret_first, uint64_t *ret_n);
/* Clear in pages those of [first, first + n) that are not whole; first: a multiple of 64. */
void lm_arrival_mask_whole(struct lm_arrival *a, unsigned region, uint64_t first, uint64_t n,
			   struct lm_bitmap *pages);
void lm_arrival_stats(struct lm_arrival *a, struct lm_postcopy_stats *stats);

#endif
