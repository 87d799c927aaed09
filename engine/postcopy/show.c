/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy, destination: pages that are whole are given back to the guest before it touches
 * them, beside what is fetched.
 */
#include "both.h"

/* Stretches of whole pages that the guest gets back at once, so that touching them costs nothing. */
#define RELEASE_PAGES 512
#define RELEASE_MAX 256
/* Whole pages between them are shown so many at a time (a multiple of 64): 2 ms. */
#define SHOW_PAGES 4096

void lm_postcopy_show_end(struct lm_postcopy_dest *p)
{
	lm_pageset_fini(&p->watched);
	lm_pageset_fini(&p->to_show);
}

/*
 * What came in pre-copy is whole, and every first touch of it is a fault all the same:
 * without this the guest ran at an eighth of its speed until it had touched its memory
 * once.  Long stretches are released: a touch of them costs nothing, not even a look of
 * ours.  The kernel splits its map of the process for each of them, so they are few, and
 * what lies between is shown step by step while the rest is fetched.
 */
static void release_whole(struct lm_postcopy_dest *p)
{
	struct lm_ctx *c = p->both.c;
	unsigned left = RELEASE_MAX;
	struct lm_error e = { 0 };

	for (unsigned i = 0; i < c->ram.nregions; i++) {
		uint64_t page = 0, first, n, unit = c->ram.regions[i].page_size >> LM_PAGE_SHIFT;

		while (left && lm_arrival_whole_stretch(&p->puller.arrival, i, &page,
							 unit > RELEASE_PAGES ? unit : RELEASE_PAGES, &first, &n)) {
			left--;
			if (lm_pager_release(p->pager, i, first, n, &e)) {
				lm_ctx_log(c, LM_LOG_DEBUG, "pages stay watched: %s", e.msg);
				return;
			}
			lm_bitmap_clear_range(&p->watched.maps[i], first, n);
		}
	}
}

void lm_postcopy_show_begin(struct lm_postcopy_dest *p)
{
	struct lm_ctx *c = p->both.c;

	if (lm_pageset_init(&p->watched, &c->ram) || lm_pageset_init(&p->to_show, &c->ram)) {
		lm_postcopy_show_end(p);
		p->show_region = c->ram.nregions;
		return;
	}
	for (unsigned i = 0; i < c->ram.nregions; i++)
		if (c->ram.regions[i].page_size == LM_PAGE_SIZE)
			lm_bitmap_set_range(&p->watched.maps[i], 0, p->watched.maps[i].nbits);
	release_whole(p);
}

/* Of [first, first + n): those that are whole, watched, and there.  A hole stays one until it is touched. */
static int to_be_shown(struct lm_postcopy_dest *p, unsigned region, uint64_t first, uint64_t n, struct lm_bitmap *ret,
		       struct lm_error *err)
{
	const struct lm_bitmap *watched = &p->watched.maps[region];
	uint64_t ignored;
	int r;

	if (!lm_bitmap_next_run(watched, first, first + n, &ignored))
		return 0;
	r = lm_region_existing(&p->both.c->ram.regions[region], first, n, ret, err);
	for (uint64_t w = first / 64; w < (first + n + 63) / 64; w++)
		ret->words[w] &= watched->words[w];
	lm_arrival_mask_whole(&p->puller.arrival, region, first, n, ret);
	return r;
}

bool lm_postcopy_show_some(struct lm_postcopy_dest *p)
{
	struct lm_ctx *c = p->both.c;
	uint64_t first = p->show_page, pos, end, at, n;
	unsigned region = p->show_region;
	struct lm_error e = { 0 };
	struct lm_bitmap *pages;
	int r;

	if (region == c->ram.nregions)
		return false;
	pages = &p->to_show.maps[region];
	end = pages->nbits - first < SHOW_PAGES ? pages->nbits : first + SHOW_PAGES;
	r = to_be_shown(p, region, first, end - first, pages, &e);
	for (pos = first; !r && (n = lm_bitmap_next_run(pages, pos, end, &at)); pos = at + n)
		r = lm_pager_place(p->pager, region, at, n, &e);
	if (r)
		lm_ctx_log(c, LM_LOG_DEBUG, "pages are shown when they are touched: %s", e.msg);
	p->show_page = end;
	if (r || end == pages->nbits) {
		p->show_page = 0;
		p->show_region = r ? c->ram.nregions : region + 1;
	}
	return true;
}
