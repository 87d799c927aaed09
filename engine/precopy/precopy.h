/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pre-copy at the source: rounds of scan, drain, copy, until the rest is small enough to be
 * copied while the guest stands still.
 *
 * The order within a round is a safety rule.  A disk read with O_DIRECT pins its
 * page when it is submitted and fills it later, without a page fault.  A scan that
 * clears the page's written flag in between, followed by a copy that runs before
 * the data lands, would lose the data: no later scan finds it.  The drain between
 * scan and copy waits for all I/O that was in flight at the scan; I/O that starts
 * later faults anew and is found by the next scan (the grace period of RCU).
 */
#ifndef LM_PRECOPY_H
#define LM_PRECOPY_H

#include <stdatomic.h>
#include "converge.h"
#include "copy.h"
#include "engine/context/context.h"
#include "lanes.h"

struct lm_precopy {
	struct lm_ctx *c;
	struct lm_dirty *tracker;
	struct lm_copier copier;
	struct lm_converge converge;
	struct lm_lanes lanes;
	/* Sets of pages */
	struct lm_pageset dirty;    /* written since they were copied last, as the last scan saw it */
	struct lm_pageset holes;    /* of dirty: the guest has given them back, so they are zero */
	struct lm_pageset copying;  /* what this round copies */
	struct lm_pageset again;    /* of copying: what a lost lane may not have brought */
	struct lm_pageset absent;   /* pages that the VM has not mapped; scratch of a scan */
	struct lm_pageset existing; /* pages that are in the file all the same; scratch of a scan */
	int64_t last_scan_ns;       /* when the scan before began */
	/* Post-copy as the way out */
	bool postcopy_allowed;      /* both sides agree that it may be */
	bool postcopy;              /* decided: pages will stay behind */
	bool denied;                /* the user was told that the post-copy asked for is not possible */
	_Atomic bool postcopy_asked; /* by the user, any thread */
	/* The round that is copied */
	unsigned round;
	uint64_t round_pages, round_done0;
	int64_t round_began_ns, next_early_scan_ns;
	bool may_interrupt;         /* the copy may end early: another scan, and a decision, follow */
	/* Signs of life, and progress */
	int64_t last_ping_ns, last_progress_ns;
	int64_t asked_ns;           /* when the first PING was sent after the peer was last heard */
	uint64_t last_progress_bytes;
};

/* c->transport is open, c->pool has a thread for each of its lanes; both outlive p. */
int lm_precopy_init(struct lm_precopy *p, struct lm_ctx *c, struct lm_error *err);
void lm_precopy_fini(struct lm_precopy *p); /* takes a zeroed one */

/* From here on the kernel notes which pages the VM writes. */
int lm_precopy_arm(struct lm_precopy *p, struct lm_error *err);
/* Round 0: all memory that exists. */
int lm_precopy_first(struct lm_precopy *p, struct lm_error *err);
/* Further rounds, until the guest is to be paused; p->postcopy tells how. */
int lm_precopy_rounds(struct lm_precopy *p, struct lm_error *err);
/* The guest is stopped and its I/O has landed: what was written since the last scan, into p->dirty. */
int lm_precopy_last_scan(struct lm_precopy *p, struct lm_round *ret_round, struct lm_error *err);
/* The same guest: copy it. */
int lm_precopy_last_copy(struct lm_precopy *p, struct lm_round *round, struct lm_error *err);

/* Checks the peer, the user's requests and the clock; to be called several times a second while waiting. */
int lm_precopy_tick(struct lm_precopy *p, struct lm_error *err);

/* ---- between the files of this folder ---- */

/* scan.c: adds to dirty what was written (and discarded) since the scan before; fills *round. */
int lm_precopy_scan(struct lm_precopy *p, struct lm_round *round, struct lm_error *err);
/* The same for written pages only, on this thread alone, while the lanes copy. */
int lm_precopy_scan_early(struct lm_precopy *p, struct lm_error *err);
/* round.c: drain, and copy what is in dirty; may_interrupt: another scan follows before the guest stops. */
int lm_precopy_round(struct lm_precopy *p, struct lm_round *round, bool drain, bool may_interrupt,
		     struct lm_error *err);
/* tick.c */
int lm_precopy_check(struct lm_precopy *p, bool vm_exited, struct lm_error *err);
bool lm_precopy_postcopy_asked(const struct lm_precopy *p, int64_t now_ns);

#endif
