/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What save and restore have in common.
 *
 * The rule of one running guest, without a peer that could be asked: what decides is on the disk.
 * A save is complete when the image has its final name; until then the guest goes on here, whoever
 * dies.  A restore is complete when it has marked the image as used; until then nobody runs the
 * guest from the image.  Guardians check exactly that (guardian.h).
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
 * Makes existing and marks the pages that exist.  Where the file tells its holes, the whole file
 * is asked at once, because each answer makes the kernel walk all data up to the next hole.  On
 * hugetlbfs the content has to be read, so nothing is done here: lm_image_existing_group() does
 * it, on all threads.
 */
int lm_image_existing(struct lm_ctx *c, struct lm_pageset *existing, struct lm_error *err);
int lm_image_existing_group(struct lm_ctx *c, struct lm_pageset *existing, unsigned region, uint64_t first, unsigned n,
			    struct lm_error *err);
/* The OPENED event. */
void lm_image_opened(struct lm_ctx *c);

#endif
