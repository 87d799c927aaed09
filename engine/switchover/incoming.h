/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's part of a switchover, whatever its memory came through (lanes or an image): the VM loads its
 * device state, and runs the guest, or is ended.
 *
 * Once loading has begun, the VM has only a part of the guest, so every failure ends the VM.
 */
#ifndef LM_INCOMING_H
#define LM_INCOMING_H

#include "engine/context/context.h"
#include "guardian.h"
#include "handover.h"

struct lm_incoming {
	struct lm_ctx *c;
	struct lm_guardian *guardian;
	struct lm_handover *handover;
	int state_fd;      /* towards the VM; -1: not loading */
	int64_t load_ns;   /* what loading took */
	bool load_begun;
	bool committed;    /* COMMIT has come */
	bool may_have_run; /* the VM was told to run, and has not answered that it refused */
};

/* The VM waits for its device state, which lm_incoming_write_state() gives it; end_state: there is no more. */
int lm_incoming_begin_load(struct lm_incoming *in, struct lm_error *err);
int lm_incoming_write_state(struct lm_incoming *in, const uint8_t *p, size_t len, struct lm_error *err);
void lm_incoming_end_state(struct lm_incoming *in);
/* From here on the guest may run here and nowhere else.  Tells the guardian, too. */
void lm_incoming_commit(struct lm_incoming *in, bool run);
/* After lm_incoming_commit(), with the locks taken. */
int lm_incoming_run_guest(struct lm_incoming *in, bool run, struct lm_error *err);
/* The guest will not run here. true: it certainly never ran here and never can, which ABORT tells the source. */
bool lm_incoming_undo(struct lm_incoming *in, const struct lm_error *why);
/* RESUMED, which the source waits for.  resume_ns: from COMMIT on. */
int lm_incoming_send_resumed(struct lm_incoming *in, int64_t resume_ns, struct lm_error *err);
/*
 * RESUMED could not be sent.  The guest runs here all the same, so this side is not in doubt.  The
 * source is, unless it comes back.
 */
void lm_incoming_warn_untold(struct lm_incoming *in, bool comes_back, const struct lm_error *why);
void lm_incoming_fini(struct lm_incoming *in);

/* What COMMIT says: whether the guest ran when it was paused. */
int lm_incoming_parse_commit(const struct lm_msg *msg, bool *ret_run, struct lm_error *err);

#endif
