/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copying a set of pages over all lanes.
 *
 * RAM is cut into chunks of 4 MiB.  The lanes take chunks from a shared cursor, so
 * that a slow lane takes fewer (balanced by completion).  A lane that dies gives
 * its chunks back: once the destination has confirmed that nothing of that lane
 * can land any more (LANE_DROP), they are copied again by the others.
 *
 * Zero pages: the source keeps, per page, whether the destination may hold
 * something else than zeros (`filled`).  A page that is zero now is left out when
 * it does not, and sent as an explicit zero when it does.  That is the rule for
 * every round, the first included: there `filled` is what the destination said is
 * resident in its files.
 */
#ifndef LM_COPY_H
#define LM_COPY_H

#include <stdatomic.h>
#include "engine/base/pageset.h"
#include "engine/base/pool.h"
#include "engine/base/throttle.h"
#include "engine/transport/transport.h"

#define LM_CHUNK_PAGES 1024
/* Owner of the chunks that a failed lane had, once the lane has come back. */
#define LM_CHUNK_LOST 255

/* Counters of one lane, which its thread writes and any thread reads. */
struct lm_lane_stats {
	_Atomic uint64_t done_pages, sent_pages, zero_pages, skipped_pages, bytes;
} __attribute__((aligned(64)));

struct lm_lane {
	_Atomic bool dead; /* set by its thread, the last of what it does; cleared by the session's thread */
	struct lm_error error;
	uint64_t flush_seq;
	struct lm_run runs[LM_WRITE_MAX]; /* lane thread only */
	unsigned nruns;
	uint64_t bytes; /* of data in runs */
	struct lm_lane_stats stats;
};

struct lm_copier {
	const struct lm_ram *ram;
	struct lm_transport *transport;
	struct lm_pool *pool;
	int64_t stall_ns;                /* a lane that does not move for so long is dead */
	struct lm_throttle throttle;     /* all lanes together */
	struct lm_pageset filled;        /* chunk's owner, between jobs the session's thread */
	struct lm_lane *lanes;
	unsigned nlanes;
	uint32_t nchunks;
	uint32_t *region_chunk0;         /* first chunk of each region; nregions + 1 entries */
	/* One job */
	const struct lm_pageset *todo, *holes;
	_Atomic uint8_t *owner;          /* per chunk: lane + 1, or LM_CHUNK_LOST */
	bool has_lost;                   /* there are such chunks */
	_Atomic uint32_t cursor;
	_Atomic bool stop;
	_Atomic bool interrupted;           /* no more chunks are begun in this job */
};

/* Totals over all lanes since the copier was made. */
struct lm_copy_totals {
	uint64_t done_pages, sent_pages, zero_pages, skipped_pages, bytes;
};

/* ram, transport (open, regions added) and pool (one worker per lane) stay the caller's. */
int lm_copier_init(struct lm_copier *c, const struct lm_ram *ram, struct lm_transport *transport,
		   struct lm_pool *pool, struct lm_error *err);
void lm_copier_fini(struct lm_copier *c); /* takes a zeroed one */

/*
 * Start copying the pages of todo; those in holes (a subset, may be NULL) are zero
 * and must not be read.  Both stay untouched until the job has ended: wait for
 * lm_pool_done_fd() and call lm_copier_finish().
 */
void lm_copier_start(struct lm_copier *c, const struct lm_pageset *todo, const struct lm_pageset *holes);
/* From the session's thread: make the lanes give up soon. */
void lm_copier_stop(struct lm_copier *c);
/* From any thread: end the job that runs early, at the next chunk. */
void lm_copier_interrupt(struct lm_copier *c);
/* After finish: add to rest what an interrupted job has not begun. */
void lm_copier_rest(const struct lm_copier *c, struct lm_pageset *rest);
/*
 * Blocks until the job has ended.  0: every page of todo is placed and visible at
 * the destination.  1: lanes died during the job; *ret_dropped has their bits, and
 * once the destination has confirmed that they are dropped, lm_copier_redo()
 * starts the rest anew (no bits: the lanes have come back, but not what they had).
 * Error: the job was stopped, or no lane is left; then *ret_dropped is set, too, and the
 * rest can be started anew when a lane has come back.
 */
int lm_copier_finish(struct lm_copier *c, uint64_t *ret_dropped, struct lm_error *err);
/*
 * lost receives the pages that must go out again; it is the caller's, empty at the
 * first redo of a job and the same object at later ones, and stays until the job has ended.
 */
void lm_copier_redo(struct lm_copier *c, uint64_t dropped, struct lm_pageset *lost);
/*
 * From the session's thread, during a job or after it: this lane, which died, was dropped at
 * the destination and is connected again.  It takes part in the next job; in one that runs,
 * once its worker is started again.
 */
void lm_copier_revive(struct lm_copier *c, unsigned lane);
void lm_copier_totals(const struct lm_copier *c, struct lm_copy_totals *ret);
/* At any time. */
unsigned lm_copier_live_lanes(const struct lm_copier *c);

#endif
