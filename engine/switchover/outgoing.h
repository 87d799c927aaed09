/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's part of a switchover, whatever its memory goes through (lanes or an image): the VM is paused, its
 * device state is saved, COMMIT is sent, or all of it is undone.
 *
 * Until the kernel has taken all of COMMIT, every failure brings the guest back here.  From then
 * on only the destination's answer (RESUMED, or ABORT: "it never ran and never will") or the
 * storage locks tell where the guest runs.
 */
#ifndef LM_OUTGOING_H
#define LM_OUTGOING_H

#include "engine/context/context.h"
#include "engine/postcopy/postcopy.h"
#include "guardian.h"
#include "handover.h"
#include "relay.h"

struct lm_outgoing {
	struct lm_ctx *c;
	struct lm_guardian *guardian;
	struct lm_handover *handover;
	struct lm_postcopy_source *postcopy; /* NULL: no pages stay behind, whatever happens */
	struct lm_relay relay;   /* of the device state, from the VM */
	int64_t stopped_seen_ns; /* when we learned that the guest stopped, CLOCK_MONOTONIC */
};

/*
 * -ESTALE: memory was plugged, unplugged or resized since the start, so our map of it is old.  It asks
 * the VM, which takes a millisecond or two.
 */
int lm_outgoing_check_layout(struct lm_outgoing *o, struct lm_error *err);
/* Begin to pause; the VM writes its device state to vm_fd (closed here).  c->deadline_ns bounds the pause. */
int lm_outgoing_pause(struct lm_outgoing *o, int vm_fd, struct lm_error *err);
/* At most timeout_ms; 0: the guest has stopped, and the times are noted.  -EAGAIN: not yet. */
int lm_outgoing_pause_wait(struct lm_outgoing *o, int timeout_ms, struct lm_error *err);
/* Wait until the relay has delivered the last byte of the device state. */
int lm_outgoing_save_state(struct lm_outgoing *o, struct lm_error *err);
/* COMMIT, and its answer: 0 when the guest runs at the destination. */
int lm_outgoing_commit(struct lm_outgoing *o, struct lm_error *err);
/* Bring the guest back to life here, whatever the stage.  Does nothing once COMMIT was sent. */
void lm_outgoing_undo(struct lm_outgoing *o);
void lm_outgoing_fini(struct lm_outgoing *o); /* takes a zeroed one */

#endif
