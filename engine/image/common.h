/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What save and restore have in common.
 *
 * The rule of one running guest, without a peer that could be asked: what decides is on
 * the disk.  A save has happened when the image has its name; until then the guest runs on
 * here, whoever dies.  A restore has happened when the image is marked as used by it; until
 * then nobody runs the guest from it.  Guardians look at just that (guardian.h).
 *
 * Storage locks: a save releases them last of all; a restore takes them first of all, and
 * only when nobody has held them since.
 */
#ifndef LM_IMAGE_COMMON_H
#define LM_IMAGE_COMMON_H

#include "engine/base/pageset.h"
#include "engine/context/context.h"
#include "engine/switchover/handover.h"
#include "image.h"

int64_t lm_image_lock_deadline(const struct lm_ctx *c);
/* The id of each lock that this host holds, into ret[i].id. */
int lm_image_lock_ids(struct lm_handover *h, struct lm_image_lock *ret, struct lm_error *err);
unsigned lm_image_threads(const struct lm_ctx *c);
/*
 * Which pages exist, into existing, which it makes.  Where the file is asked for its holes that is done for all of
 * it at once: an answer looks at all the data up to the next hole.  On hugetlbfs, where content is looked
 * at, it does nothing: lm_image_existing_group() does it, on all threads.
 */
int lm_image_existing(struct lm_ctx *c, struct lm_pageset *existing, struct lm_error *err);
int lm_image_existing_group(struct lm_ctx *c, struct lm_pageset *existing, unsigned region, uint64_t first, unsigned n,
			    struct lm_error *err);
/* The OPENED event. */
void lm_image_opened(struct lm_ctx *c);

#endif
