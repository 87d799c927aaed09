/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of this folder. */
#ifndef LM_POSTCOPY_BOTH_H
#define LM_POSTCOPY_BOTH_H

#include "postcopy.h"

/* both.c: what both sides tell the user */
void lm_postcopy_event(struct lm_postcopy_both *p, const struct lm_postcopy_stats *stats);
/* Tells the user which lanes failed (a bit each) since the last call, and that the others go on. */
void lm_postcopy_tell_lanes(struct lm_postcopy_both *p, uint64_t failed,
			    const char *(*why)(const struct lm_postcopy_both *p, unsigned lane));
void lm_postcopy_tell_back(struct lm_postcopy_both *p, unsigned lane);
/* The time it takes does not depend on where they differ. */
bool lm_secret_equal(const uint8_t a[static LM_TOKEN_SIZE], const uint8_t b[static LM_TOKEN_SIZE]);
/* Lanes and limits as the engine before us noted them in the state file. */
void lm_postcopy_read_state(struct lm_postcopy_both *p);

/*
 * source.c: POSTCOPY_OPENED has come: open the lanes, tell how our memory is reached, and answer
 * from here on.  close may be called without open.
 */
int lm_postcopy_source_open_lanes(struct lm_postcopy_source *p, const struct lm_msg *msg, struct lm_error *err);
void lm_postcopy_source_close_lanes(struct lm_postcopy_source *p);

/*
 * dest.c: open lanes, and tell the source where by POSTCOPY_OPENED; POSTCOPY_KEYS is its answer.
 * close may be called without open.
 */
int lm_postcopy_dest_open_lanes(struct lm_postcopy_dest *p, struct lm_error *err);
int lm_postcopy_bind_keys(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err);
void lm_postcopy_dest_close_lanes(struct lm_postcopy_dest *p);

/*
 * status.c: put the figures into the summary; also tell them to the user, and by MISSING to the
 * source; whether the VM is lost.
 */
void lm_postcopy_collect_stats(struct lm_postcopy_dest *p);
int lm_postcopy_send_status(struct lm_postcopy_dest *p, struct lm_error *err);
int lm_postcopy_vm_error(struct lm_postcopy_dest *p, struct lm_error *err);

/* dest_recover.c: threads go on showing what is whole; wait for the source to come back. */
int lm_postcopy_dest_recover(struct lm_postcopy_dest *p, struct lm_error *err);
/* The source keeps its memory until it has heard that every page is here. */
void lm_postcopy_tell_source(struct lm_postcopy_dest *p);

/*
 * dest_lanes.c, source_lanes.c: lanes that come back while the others go on.  Call init after the
 * transport was opened with these parameters.  If one of the two sides cannot bring lanes back,
 * nothing more happens.
 */
int lm_postcopy_dest_lanes_init(struct lm_postcopy_dest *p, const struct lm_transport_params *params, struct lm_error *err);
/* Several times a second while pages are fetched: try, take back. */
int lm_postcopy_dest_lanes_tick(struct lm_postcopy_dest *p, struct lm_error *err);
/* No attempt is under way afterwards. */
void lm_postcopy_dest_lanes_settle(struct lm_postcopy_dest *p);
int lm_postcopy_source_lanes_init(struct lm_postcopy_source *p, const struct lm_transport_params *params,
				  struct lm_error *err);
/* LANE_OPEN has come: begin; and, to be called several times a second: see whether the lane is back. */
int lm_postcopy_lane_open(struct lm_postcopy_source *p, const struct lm_msg *msg, struct lm_error *err);
void lm_postcopy_source_lanes_tick(struct lm_postcopy_source *p);

/*
 * show.c: once the guest runs, pages that are whole are given back to it before it touches them.  Only on
 * tmpfs: a huge page that is whole is a stretch by itself.  When memory is short nothing is shown early.
 */
void lm_postcopy_show_begin(struct lm_postcopy_dest *p);
/* A step of about 2 ms; false when all has been shown.  What is missing still is shown as it comes. */
bool lm_postcopy_show_some(struct lm_postcopy_dest *p);
void lm_postcopy_show_end(struct lm_postcopy_dest *p); /* takes one that was not begun */

#endif
