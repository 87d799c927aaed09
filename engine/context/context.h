/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every phase of a migration may know: the options, the VM and its RAM, the control
 * channel, how far the migration is, and how to tell the user.  What a phase keeps for
 * itself is in that phase's own header.
 *
 * A context belongs to the thread that runs the session.  Exceptions: anybody may write to
 * cancel_fd; threads of lanes read ram and use the pool.
 */
#ifndef LM_CONTEXT_H
#define LM_CONTEXT_H

#include "engine/base/pool.h"
#include "engine/base/region.h"
#include "engine/base/side.h"
#include "engine/control/control.h"
#include "engine/transport/transport.h"
#include "engine/vm/vm.h"

/* Deadlines of steps that take milliseconds when all is well. */
#define LM_CONNECT_TIMEOUT_NS (10 * LM_NS_PER_S)
#define LM_ABORT_TIMEOUT_NS   (1 * LM_NS_PER_S)
#define LM_RESUME_TIMEOUT_NS  (10 * LM_NS_PER_S)
/*
 * A stranger on the destination's port has this long to say HELLO, and in a post-copy this long again
 * to say RECOVER.
 */
#define LM_HELLO_TIMEOUT_NS   (2 * LM_NS_PER_S)

struct lm_ctx {
	/* Constant once the session is made */
	struct lm_options opt;    /* a copy, so that the library may change it */
	struct lm_options *owned; /* what the VM logs through */
	enum lm_side side;
	bool recovering;          /* the session goes on with a post-copy whose engine died */
	struct lm_vm *vm;         /* owned */
	int cancel_fd;            /* owned; an eventfd, readable from the moment the user cancels */
	int listen_fd;            /* destination: owned; -1: it does not listen */
	char address[LM_ADDRESS_MAX]; /* destination: where it listens */
	int64_t started_ns;
	/* The peer, and the way to it */
	struct lm_ram ram;
	struct lm_control control;
	char peer[LM_ADDRESS_MAX]; /* destination: address of the source that has connected */
	struct lm_transport *transport; /* owned: the lanes of pre-copy */
	struct lm_pool *pool;           /* owned: a thread for each of those lanes */
	int64_t outage_ns;        /* pre-copy: so much longer than the peer timeout the network may be away */
	bool opened;              /* both sides agreed: from here on a failure is an abort */
	/* Source: how far it is */
	int64_t deadline_ns;      /* until then the guest has to be paused; after that, to run again somewhere */
	bool pause_begun, commit_sent;
	/* The guest stands still, so our threads come first; nice: what this thread had before. */
	bool urgent;
	int nice;
	struct lm_summary summary;
};

/* ---- what the user sees ---- */

/* Tells the user that the stage begins.  In test builds faults happen here; returns 0 or the fault's error. */
int lm_ctx_stage(struct lm_ctx *c, const char *name, struct lm_error *err);
void lm_ctx_event(struct lm_ctx *c, struct lm_event *event);
void lm_ctx_log(struct lm_ctx *c, enum lm_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* OPENED: both sides agree.  peer: for people. */
void lm_ctx_opened(struct lm_ctx *c, const char *peer);

/* ---- cancelling ---- */

/* Any thread. */
void lm_ctx_cancel(struct lm_ctx *c);
int lm_ctx_check_cancel(struct lm_ctx *c, struct lm_error *err);
/* Forget a cancel that the user asked for while nothing could be cancelled. */
void lm_ctx_forget_cancel(struct lm_ctx *c);

/* ---- time ---- */

/* For one answer of the peer, or of the VM. */
int64_t lm_ctx_peer_deadline(const struct lm_ctx *c);
int64_t lm_ctx_vm_deadline(const struct lm_ctx *c);
/*
 * Before the switchover the guest runs at the source, so waiting for the network loses nothing.
 * true: the control channel bears outage_ns more of silence; false: it does not.
 */
int lm_ctx_bear_outage(struct lm_ctx *c, bool bear, struct lm_error *err);
/* From the pause until the guest runs again: session, lanes and relay come before other threads (urgent.h). */
void lm_ctx_urgent(struct lm_ctx *c, bool urgent);

/* ---- the VM ---- */

/* Whether its process has exited.  A VM that only does not answer is not lost yet, so this waits for a second. */
bool lm_ctx_vm_gone(const struct lm_ctx *c);

/* Frees what it owns.  The phases have given back what they borrowed. */
void lm_ctx_fini(struct lm_ctx *c);

#endif
