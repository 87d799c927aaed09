/* SPDX-License-Identifier: Apache-2.0 */
/* The state of every page of three regions during post-copy, without a network and without a VM. */
#ifndef ARRIVALRIG_H
#define ARRIVALRIG_H

#include "unit.h"
#include "engine/postcopy/arrival.h"

#define HUGE_UNIT 512
#define NREGIONS 3

/* Regions of small pages, of huge pages, and a single page. */
extern const uint64_t region_pages[NREGIONS];

struct rig {
	struct lm_arrival a;
	struct lm_ram ram;
	struct lm_region regions[NREGIONS];
	struct lm_bitmap whole[NREGIONS];
};

/* All pages are whole. */
struct rig *rig_new(void);
void rig_free(struct rig *g);
/* Pages that are not whole yet. */
uint64_t remaining(struct rig *g);
struct lm_page_fault fault(unsigned region, uint64_t page);
void assert_run(const struct lm_run *run, unsigned region, uint64_t first, uint64_t n, enum lm_run_kind kind);
/* Nothing is left to claim. */
void assert_drained(struct rig *g);

#endif
