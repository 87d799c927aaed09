/* SPDX-License-Identifier: Apache-2.0 */
/* A live migration at the destination. */
#ifndef LM_SESSION_DEST_H
#define LM_SESSION_DEST_H

#include <stdatomic.h>
#include "engine/postcopy/postcopy.h"
#include "engine/switchover/incoming.h"

enum lm_dest_state { LM_DEST_OPENING, LM_DEST_COPYING, LM_DEST_PREPARED, LM_DEST_LOADED, LM_DEST_DONE };

/* A lane that was lost and is connected again: its own thread waits for the source. */
struct lm_dest_reopen {
	struct lm_transport_params params;
	int stop_fd;             /* eventfd: give the attempt up; -1: not made */
	uint64_t dropped;        /* bits: LANE_DROP has come, and no LANE_OPEN since */
	unsigned lane;           /* of the last attempt */
	_Atomic bool begun;      /* set by the session's thread, taken by the lane's */
	_Atomic bool under_way;  /* cleared by the lane's thread: until then nobody else touches the lane */
};

struct lm_dest {
	struct lm_ctx *c;
	struct lm_incoming in;
	struct lm_postcopy_dest pull;
	enum lm_dest_state state;
	struct lm_open open;      /* what the source said */
	/* Lanes */
	_Atomic uint64_t *placed; /* data bytes, per lane, written by the lane's thread */
	_Atomic bool stop;        /* lane threads end */
	bool lane_dropped;
	struct lm_error *lane_errors; /* per lane, written by its thread before it ends */
	struct lm_dest_reopen reopen;
	/* Device state */
	uint64_t state_bytes;
	uint8_t *held;            /* the device state, when --verify holds it back; held_room bytes */
	size_t held_room;
};

/* All of these outlive d. */
void lm_dest_init(struct lm_dest *d, struct lm_ctx *c, struct lm_guardian *guardian, struct lm_handover *handover);
int lm_dest_run(struct lm_dest *d, struct lm_error *err);
void lm_dest_fini(struct lm_dest *d); /* takes a zeroed one */

/* ---- between the files of the destination ---- */

/* dest_open.c: OPEN has come: the same guest on both sides, a transport, lanes, memory. */
int lm_dest_handle_open(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);

/* dest_load.c: PREPARE, STATE, SAVED and COMMIT have come. */
int lm_dest_handle_prepare(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);
int lm_dest_handle_state(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);
int lm_dest_handle_saved(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);
int lm_dest_handle_commit(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);

/* dest_lanes.c */
/* A lane's thread: places what comes; opaque: struct lm_dest. */
void lm_dest_place_worker(void *opaque, unsigned lane);
/* Bytes that the lanes have placed; any thread. */
uint64_t lm_dest_placed_bytes(const struct lm_dest *d);
/* Wait until no lane is being opened again; at most LM_LANE_ACCEPT_NS. */
void lm_dest_reopen_wait(struct lm_dest *d);
/* After this no byte of the source can reach guest RAM.  May be called again. */
void lm_dest_fence(struct lm_dest *d);
int lm_dest_lane_drop(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);
int lm_dest_lane_open(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);

#endif
