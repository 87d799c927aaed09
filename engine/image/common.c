/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "common.h"

#define THREADS 4 /* so many requests are enough for a disk to be busy */

int64_t lm_image_lock_deadline(const struct lm_ctx *c)
{
	return lm_deadline_after(c->opt.peer_timeout_ns);
}

int lm_image_lock_ids(struct lm_handover *h, struct lm_image_lock *ret, struct lm_error *err)
{
	LM_AUTO_FREE struct lm_lock_notes *notes = calloc(1, sizeof(*notes));
	struct lm_lock_note note;
	int r;

	if (!notes)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	r = lm_locks_announce(&h->locks, notes, lm_image_lock_deadline(h->c), err);
	for (unsigned i = 0; !r && i < notes->n; i++) {
		r = lm_lock_note_get(notes->note[i], &note, err);
		memcpy(ret[i].id, note.id, sizeof(ret[i].id));
	}
	return r;
}

unsigned lm_image_threads(const struct lm_ctx *c)
{
	return c->opt.lanes ? c->opt.lanes : THREADS;
}

int lm_image_existing(struct lm_ctx *c, struct lm_pageset *existing, struct lm_error *err)
{
	int r = 0;

	if (lm_pageset_init(existing, &c->ram))
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (unsigned i = 0; !r && i < c->ram.nregions; i++)
		if (c->ram.regions[i].page_size == LM_PAGE_SIZE)
			r = lm_region_existing(&c->ram.regions[i], 0, lm_region_npages(&c->ram.regions[i]),
					       &existing->maps[i], err);
	return r;
}

int lm_image_existing_group(struct lm_ctx *c, struct lm_pageset *existing, unsigned region, uint64_t first, unsigned n,
			    struct lm_error *err)
{
	struct lm_bitmap *map = &existing->maps[region];
	uint64_t page = first * LM_IMAGE_CHUNK_PAGES, left = map->nbits - page, npages = n * LM_IMAGE_CHUNK_PAGES;

	if (c->ram.regions[region].page_size == LM_PAGE_SIZE)
		return 0;
	return lm_region_existing(&c->ram.regions[region], page, left < npages ? left : npages, map, err);
}

void lm_image_opened(struct lm_ctx *c)
{
	strcpy(c->summary.transport, "image");
	c->summary.lanes = lm_image_threads(c);
	lm_ctx_opened(c, !c->opt.address ? c->opt.image : c->side == LM_SOURCE ? c->opt.address : c->peer);
}
