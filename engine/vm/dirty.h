/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty-page trackers: which pages of guest RAM were written.
 *
 * The promise (checked by tests/contract): a store made before or during a
 * collect shows in that collect or in a later one, never in none.  A page may be
 * reported although it was not written.  Data that a device puts into memory
 * through a pinned page is covered by the engine's drain (engine/precopy/precopy.h).
 */
#ifndef LM_DIRTY_H
#define LM_DIRTY_H

#include "engine/base/region.h"

struct lm_dirty;

struct lm_dirty_ops {
	const char *name;
	/* Arm: from here on writes are seen. Slow the guest as little as possible. */
	int (*start)(struct lm_dirty *d, struct lm_error *err);
	/*
	 * Add to *written the pages of region `index` in [first, first + n) that were
	 * written since they were last collected, and arm them again.  Adds to
	 * *absent (NULL: not asked for) the pages that the VM has not mapped at
	 * present: where the file has a hole too, their content is zero now.
	 * Called by several threads at once for ranges that do not overlap; each range
	 * begins and ends at multiples of 64 pages and of the region's page_size (or its end), so bitmap words
	 * are never shared between threads.
	 * After an error the collection is lost and the session must be given up.
	 */
	int (*collect)(struct lm_dirty *d, unsigned index, uint64_t first, uint64_t n,
		       struct lm_bitmap *written, struct lm_bitmap *absent, struct lm_error *err);
	/* Disarm and free.  The VM goes on at full speed. */
	void (*close)(struct lm_dirty *d);
};

/* A backend embeds this first. */
struct lm_dirty {
	const struct lm_dirty_ops *ops;
	const struct lm_ram *ram; /* must outlive the tracker */
	bool started;
};

int lm_dirty_start(struct lm_dirty *d, struct lm_error *err);
int lm_dirty_collect(struct lm_dirty *d, unsigned index, uint64_t first, uint64_t n,
		     struct lm_bitmap *written, struct lm_bitmap *absent, struct lm_error *err);
void lm_dirty_close(struct lm_dirty *d); /* takes NULL */

#endif
