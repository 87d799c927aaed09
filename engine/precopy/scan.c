/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-copy: which pages were written, or given back, since the scan before. */
#include "engine/base/clock.h"
#include "engine/base/testhook.h"
#include "precopy.h"

/* Ranges of a parallel scan; below this size one thread is faster than waking more. */
#define SCAN_PAGES  (UINT64_C(1) << 16)
#define SCAN_ALONE_BYTES (UINT64_C(1) << 30)

struct scan {
	struct lm_precopy *p;
	_Atomic uint64_t cursor; /* counts ranges over all regions */
	struct lm_error errors[LM_LANES_MAX];
};

/* The cursor's position -> a range, which cuts no huge page; false past the end. */
static bool scan_at(const struct lm_ram *ram, uint64_t at, unsigned *region, uint64_t *first, uint64_t *n)
{
	for (*region = 0; *region < ram->nregions; (*region)++) {
		uint64_t npages = lm_region_npages(&ram->regions[*region]);
		uint64_t huge = ram->regions[*region].page_size >> LM_PAGE_SHIFT;
		uint64_t step = huge > SCAN_PAGES ? huge : SCAN_PAGES;
		uint64_t ranges = (npages + step - 1) / step;

		if (at < ranges) {
			*first = at * step;
			*n = npages - *first < step ? npages - *first : step;
			return true;
		}
		at -= ranges;
	}
	return false;
}

static void scan_worker(void *opaque, unsigned worker)
{
	struct scan *scan = opaque;
	struct lm_precopy *p = scan->p;
	const struct lm_ram *ram = &p->c->ram;
	uint64_t first, n;
	unsigned region;

	while (scan_at(ram, atomic_fetch_add(&scan->cursor, 1), &region, &first, &n))
		if (lm_dirty_collect(p->tracker, region, first, n, &p->dirty.maps[region],
				     ram->may_discard ? &p->absent.maps[region] : NULL, &scan->errors[worker]))
			return;
}

static int scan_all(struct lm_precopy *p, struct lm_error *err)
{
	struct scan scan = { .p = p };

	if (lm_ram_size(&p->c->ram) < SCAN_ALONE_BYTES) {
		scan_worker(&scan, 0);
	} else {
		lm_pool_start(p->c->pool, scan_worker, &scan);
		lm_pool_finish(p->c->pool);
	}
	for (unsigned i = 0; i < LM_LANES_MAX; i++)
		if (scan.errors[i].code) {
			*err = scan.errors[i];
			return err->code;
		}
	return 0;
}

/*
 * Looks at pages that the VM has not mapped.  Where the file has a hole as well, the guest
 * has given the memory back (balloon).  The kernel does not count such a page as written;
 * it goes out as a zero if the destination holds anything for it.
 */
static int find_discarded(struct lm_precopy *p, unsigned region, struct lm_error *err)
{
	struct lm_bitmap *absent = &p->absent.maps[region], *existing = &p->existing.maps[region];
	struct lm_bitmap *dirty = &p->dirty.maps[region], *holes = &p->holes.maps[region];
	uint64_t pos = 0, first, n;

	lm_bitmap_keep_either(absent, &p->copier.filled.maps[region], dirty);
	while ((n = lm_bitmap_next_run(absent, pos, absent->nbits, &first))) {
		int r = lm_region_existing(&p->c->ram.regions[region], first, n, existing, err);

		if (r)
			return r;
		pos = first + n;
	}
	lm_bitmap_and_not(holes, absent, existing);
	lm_bitmap_or(dirty, holes);
	lm_bitmap_clear_all(existing);
	return 0;
}

int lm_precopy_scan(struct lm_precopy *p, struct lm_round *round, struct lm_error *err)
{
	int64_t begin = lm_now_ns(), since = begin - p->last_scan_ns;
	bool discards = p->c->ram.may_discard;
	int r;

	if (discards)
		lm_pageset_clear_all(&p->absent);
	r = scan_all(p, err);
	for (unsigned i = 0; !r && discards && !lm_broken("discard") && i < p->c->ram.nregions; i++)
		r = find_discarded(p, i, err);
	if (r)
		return r;
	p->last_scan_ns = begin;
	round->dirty_pages = lm_pageset_count(&p->dirty);
	round->scan_ns = lm_now_ns() - begin;
	round->dirty_pages_per_s = since > 0 ? (uint64_t)((double)round->dirty_pages * 1e9 / (double)since) : 0;
	return 0;
}

int lm_precopy_scan_early(struct lm_precopy *p, struct lm_error *err)
{
	const struct lm_ram *ram = &p->c->ram;
	int r = 0;

	for (unsigned i = 0; !r && i < ram->nregions; i++)
		r = lm_dirty_collect(p->tracker, i, 0, lm_region_npages(&ram->regions[i]), &p->dirty.maps[i], NULL, err);
	return r;
}
