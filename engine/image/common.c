/* SPDX-License-Identifier: Apache-2.0 */
/* What save and restore have in common. */
#include <stdlib.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "session.h"

#define THREADS 4 /* so many requests are enough for a disk to be busy */

int lm_image_session_new(struct lm_session *s, struct lm_error *err)
{
	s->img = calloc(1, sizeof(*s->img));
	if (!s->img)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	s->img->writer.fd = s->img->writer.dir_fd = -1;
	s->img->image.fd = s->img->image.direct_fd = -1;
	return 0;
}

int64_t lm_image_lock_deadline(const struct lm_session *s)
{
	return lm_deadline_after(s->opt.peer_timeout_ns);
}

int lm_image_lock_ids(struct lm_session *s, struct lm_image_lock *ret, struct lm_error *err)
{
	LM_AUTO_FREE struct lm_lock_notes *notes = calloc(1, sizeof(*notes));
	struct lm_lock_note note;
	int r;

	if (!notes)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	r = lm_locks_announce(&s->handover.locks, notes, lm_image_lock_deadline(s), err);
	for (unsigned i = 0; !r && i < notes->n; i++) {
		r = lm_lock_note_get(notes->note[i], &note, err);
		memcpy(ret[i].id, note.id, sizeof(ret[i].id));
	}
	return r;
}

unsigned lm_image_threads(const struct lm_session *s)
{
	return s->opt.lanes ? s->opt.lanes : THREADS;
}

int lm_image_existing(struct lm_session *s, struct lm_error *err)
{
	int r = 0;

	if (lm_pageset_init(&s->img->existing, &s->ram))
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		if (s->ram.regions[i].page_size == LM_PAGE_SIZE)
			r = lm_region_existing(&s->ram.regions[i], 0, lm_region_npages(&s->ram.regions[i]),
					       &s->img->existing.maps[i], err);
	return r;
}

int lm_image_existing_group(struct lm_session *s, unsigned region, uint64_t first, unsigned n, struct lm_error *err)
{
	struct lm_bitmap *existing = &s->img->existing.maps[region];
	uint64_t page = first * LM_IMAGE_CHUNK_PAGES, left = existing->nbits - page, npages = n * LM_IMAGE_CHUNK_PAGES;

	if (s->ram.regions[region].page_size == LM_PAGE_SIZE)
		return 0;
	return lm_region_existing(&s->ram.regions[region], page, left < npages ? left : npages, existing, err);
}

void lm_image_opened_event(struct lm_session *s)
{
	struct lm_event e = { .type = LM_EVENT_OPENED };

	s->opened = true;
	strcpy(s->summary.transport, "image");
	s->summary.lanes = lm_image_threads(s);
	e.u.opened.transport = s->summary.transport;
	e.u.opened.lanes = s->summary.lanes;
	e.u.opened.ram_bytes = s->summary.ram_bytes;
	e.u.opened.peer = !s->opt.address ? s->opt.image : s->side == LM_SOURCE ? s->opt.address : s->peer;
	lm_session_event(s, &e);
}

/* The guardian has a copy of the session's memory, as it is when it is forked. */
static bool was_saved(const void *arg)
{
	const struct lm_image_session *img = arg;

	return lm_image_is(img->writer.path, img->writer.id);
}

static bool was_marked(const void *arg)
{
	const struct lm_image_session *img = arg;

	return lm_image_marked_by(img->image.path, img->use);
}

struct lm_guardian_witness lm_image_session_witness(const struct lm_session *s)
{
	struct lm_guardian_witness w = { .arg = s->img };

	if (s->mode == LM_MODE_SAVE && !s->opt.address) /* else COMMIT decides */
		w.happened = was_saved;
	if (s->mode == LM_MODE_RESTORE)
		w.happened = was_marked;
	return w;
}

void lm_image_session_end(struct lm_session *s)
{
	struct lm_image_session *img = s->img;

	if (!img)
		return;
	/* A session that was opened and never run has made a file, too. */
	if (img->writer.chunks && !img->saved && !img->writer.renamed)
		lm_image_abandon(&img->writer, NULL);
	lm_image_writer_close(&img->writer);
	lm_pageset_fini(&img->existing);
	lm_image_close(&img->image);
	free(img->state);
	free(img);
	s->img = NULL;
}
