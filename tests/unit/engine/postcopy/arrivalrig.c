/* SPDX-License-Identifier: Apache-2.0 */
#include "arrivalrig.h"

const uint64_t region_pages[NREGIONS] = { 1000, 4 * HUGE_UNIT, 1 };

struct rig *rig_new(void)
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

void rig_free(struct rig *g)
{
	lm_arrival_fini(&g->a);
	for (unsigned i = 0; i < NREGIONS; i++)
		lm_bitmap_fini(&g->whole[i]);
	free(g);
}

uint64_t remaining(struct rig *g)
{
	return atomic_load(&g->a.remaining);
}

struct lm_page_fault fault(unsigned region, uint64_t page)
{
	return (struct lm_page_fault){ .region = region, .page = page };
}

void assert_run(const struct lm_run *run, unsigned region, uint64_t first, uint64_t n, enum lm_run_kind kind)
{
	assert_int_equal(run->region, region);
	assert_int_equal(run->offset >> LM_PAGE_SHIFT, first);
	assert_int_equal(run->len >> LM_PAGE_SHIFT, n);
	assert_int_equal(run->kind, kind);
}

void assert_drained(struct rig *g)
{
	struct lm_run run;

	assert_false(lm_arrival_claim_next(&g->a, 64, &run));
}
