/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session, from its making to its end: the public struct lm_session.  It has a context, the guardian and the
 * storage locks, and the parts of the four kinds of work: to send a guest, to receive one, to save one into an
 * image and to restore one from it.
 *
 * One thread runs a session.  lm_session_cancel() and lm_session_postcopy() may come from any.
 */
#ifndef LM_SESSION_H
#define LM_SESSION_H

#include "dest.h"
#include "engine/image/quick.h"
#include "source.h"

enum lm_mode { LM_MODE_LIVE, LM_MODE_SAVE, LM_MODE_RESTORE };

struct lm_session {
	enum lm_mode mode;
	struct lm_ctx ctx;
	struct lm_guardian guardian;
	struct lm_handover handover;
	/* By side */
	struct lm_source src;
	struct lm_dest dst;
	/* By mode */
	struct lm_save save;       /* with src.out */
	struct lm_restore restore; /* with dst.in and dst.pull */
};

/* options (from malloc), vm and cancel_fd become the session's, also on error. */
int lm_session_new(struct lm_options *options, enum lm_side side, struct lm_vm *vm, int cancel_fd,
		   struct lm_session **ret, struct lm_error *err);
int lm_session_new_save(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
			struct lm_error *err);
int lm_session_new_restore(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
			   struct lm_error *err);
/*
 * A session that goes on with a post-copy.  vm has no ops but detach; ram and pager
 * (destination) and state become the session's, also on error.
 */
int lm_session_new_recover(struct lm_options *options, enum lm_side side, struct lm_vm *vm, int cancel_fd,
			   struct lm_ram *ram, struct lm_pager *pager, struct lm_pcstate *state,
			   struct lm_session **ret, struct lm_error *err);

/* options.c: 0, or -EINVAL with what is wrong. */
int lm_options_check(const struct lm_options *o, enum lm_mode mode, struct lm_error *err);

#endif
