/* SPDX-License-Identifier: Apache-2.0 */
/* A guest comes out of an image. */
#ifndef LM_RESTORE_H
#define LM_RESTORE_H

#include "common.h"
#include "engine/postcopy/postcopy.h"
#include "engine/switchover/incoming.h"

struct lm_restore {
	struct lm_ctx *c;
	struct lm_incoming *in;
	struct lm_postcopy_dest *pull;    /* lazy: shows memory as it is touched */
	struct lm_image image;
	struct lm_pageset existing;
	uint8_t *state;                   /* device state */
	enum lm_image_mark before;        /* its mark when it was opened */
	uint8_t use[LM_IMAGE_ID_SIZE];    /* what this session marks it with */
};

/* Opens and checks the image; for a quick migration only its name, as it is written yet.  c, in, pull outlive rs. */
int lm_restore_init(struct lm_restore *rs, struct lm_ctx *c, struct lm_incoming *in, struct lm_postcopy_dest *pull,
		    struct lm_error *err);
/* For a guardian: whether this session has already marked the image. */
struct lm_guardian_witness lm_restore_witness(const struct lm_restore *rs);
int lm_restore_run(struct lm_restore *rs, struct lm_error *err);
void lm_restore_close(struct lm_restore *rs); /* takes a zeroed one */

/* ---- the steps, in this order: quick.c has others between them ---- */

int lm_restore_read_image(struct lm_restore *rs, struct lm_error *err);
int lm_restore_fill(struct lm_restore *rs, struct lm_error *err);
int lm_restore_load(struct lm_restore *rs, struct lm_error *err);
/* Storage locks that were offered, the mark, the guest. */
int lm_restore_run_guest(struct lm_restore *rs, bool runs, struct lm_error *err);
/* r: the result of the steps.  After a failure they are undone; after a lazy restore the rest is fetched now. */
int lm_restore_end(struct lm_restore *rs, int r, struct lm_error *err);

#endif
