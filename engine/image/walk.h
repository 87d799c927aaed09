/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All chunks of a guest's memory, in groups that the threads of a pool take one after the
 * other.  The session's thread starts it and waits; it stops early when one fails, when the
 * session is cancelled, or when the VM is gone.
 */
#ifndef LM_IMAGE_WALK_H
#define LM_IMAGE_WALK_H

#include <stdatomic.h>
#include "image.h"
#include "engine/context/context.h"

struct lm_image_walk {
	struct lm_ctx *c;
	void *opaque; /* for group */
	/* Any thread: n chunks of a region, from its chunk number first on; the bytes that moved. */
	int (*group)(struct lm_image_walk *w, unsigned region, uint64_t first, unsigned n, uint64_t *ret_bytes,
		     struct lm_error *err);
	uint64_t region_group0[LM_REGIONS_MAX + 1];
	_Atomic uint64_t cursor, bytes, groups_done;
	_Atomic bool stop, failed;
	struct lm_error error; /* of the first that failed; read it when the job has ended */
};

/* group is set.  0 when all of it is done. */
int lm_image_walk(struct lm_image_walk *w, struct lm_ctx *c, struct lm_error *err);

#endif
