/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions over an image: save (save.c), restore (restore.c), and both joined by a control
 * channel (quick.c).
 *
 * The rule of one running guest, without a peer that could be asked: what decides is on
 * the disk.  A save has happened when the image has its name; until then the guest runs on
 * here, whoever dies.  A restore has happened when the image is marked as used by it; until
 * then nobody runs the guest there.  Guardians look at just that (guardian.h).
 *
 * Storage locks: a save releases them last of all; a restore takes them first of all, and
 * only when nobody has held them since.
 */
#ifndef LM_IMAGE_SESSION_H
#define LM_IMAGE_SESSION_H

#include "image.h"
#include "engine/session/session.h"

struct lm_image_session {
	/* save */
	struct lm_image_writer writer;
	struct lm_image_head head;
	struct lm_pageset existing;
	struct lm_image_lock saved_locks[LM_IMAGE_LOCKS_MAX];
	uint8_t *state;         /* device state; while it is saved, the relay's thread's */
	uint64_t state_bytes, state_room;
	bool saved;             /* the image has its name and is on the disk */
	/* restore */
	struct lm_image image;
	enum lm_image_mark before;        /* its mark when it was opened */
	uint8_t use[LM_IMAGE_ID_SIZE];    /* what this session marks it with */
};

int lm_image_session_new(struct lm_session *s, struct lm_error *err);
int64_t lm_image_lock_deadline(const struct lm_session *s);
/* The id of each lock that this host holds, into ret[i].id. */
int lm_image_lock_ids(struct lm_session *s, struct lm_image_lock *ret, struct lm_error *err);
unsigned lm_image_threads(const struct lm_session *s);
/*
 * Which pages exist, into existing.  Where the file is asked for its holes that is done for all of it
 * at once: an answer looks at all the data up to the next hole.  On hugetlbfs, where content is looked
 * at, nothing: lm_image_existing_group() does it, on all threads.
 */
int lm_image_existing(struct lm_session *s, struct lm_error *err);
int lm_image_existing_group(struct lm_session *s, unsigned region, uint64_t first, unsigned n, struct lm_error *err);
void lm_image_opened_event(struct lm_session *s);

/* save.c, in this order: what `quick` does between others */
int lm_save_pause(struct lm_session *s, struct lm_error *err);
int lm_save_write(struct lm_session *s, struct lm_error *err);
/* restore.c: the same */
int lm_restore_read_image(struct lm_session *s, struct lm_error *err);
int lm_restore_fill(struct lm_session *s, struct lm_error *err);
int lm_restore_load(struct lm_session *s, struct lm_error *err);
/* Storage locks that were offered, the mark, the guest. */
int lm_restore_run_guest(struct lm_session *s, bool runs, struct lm_error *err);
/* quick.c */
int lm_quick_run(struct lm_session *s, struct lm_error *err);
int lm_quick_receive(struct lm_session *s, struct lm_error *err);

/* transport_image.c: "fetches" out of an image; the image must outlive it. */
struct lm_transport *lm_transport_image_new(const struct lm_image *img);

#endif
