/* SPDX-License-Identifier: Apache-2.0 */
/* A guest goes into an image. */
#ifndef LM_SAVE_H
#define LM_SAVE_H

#include "common.h"
#include "engine/switchover/outgoing.h"

struct lm_save {
	struct lm_ctx *c;
	struct lm_outgoing *out;
	struct lm_image_writer writer;
	struct lm_image_head head;
	struct lm_pageset existing;
	struct lm_image_lock saved_locks[LM_IMAGE_LOCKS_MAX];
	uint8_t *state;         /* device state; while it is saved, the relay's thread's */
	uint64_t state_bytes, state_room;
	bool saved;             /* the image has its name and is on the disk */
};

/* Creates the image under a temporary name.  c and out outlive sv. */
int lm_save_init(struct lm_save *sv, struct lm_ctx *c, struct lm_outgoing *out, struct lm_error *err);
/* For a guardian: whether the image has its name. */
struct lm_guardian_witness lm_save_witness(const struct lm_save *sv);
int lm_save_run(struct lm_save *sv, struct lm_error *err);
void lm_save_close(struct lm_save *sv); /* takes a zeroed one; an image without its name goes */

/* ---- the steps, in this order: quick.c has others between them ---- */

int lm_save_begin(struct lm_save *sv, struct lm_error *err);
int lm_save_pause(struct lm_save *sv, struct lm_error *err);
int lm_save_write(struct lm_save *sv, struct lm_error *err);
/* The image gets its final name, also on the disk. */
int lm_save_name(struct lm_save *sv, struct lm_error *err);
/* r: how it went; when it failed the guest runs on here. */
int lm_save_end(struct lm_save *sv, int r, struct lm_error *err);

#endif
