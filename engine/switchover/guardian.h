/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guardian: a small process that outlives the engine.
 *
 * While the engine has the guest paused, the guest depends on the engine's life.
 * The guardian holds a copy of the connection to the VM and sees the engine's
 * death as the end of a socket.  What it then does depends on the phase, which
 * both share in one page of memory:
 *
 *   phase      source's guardian                  destination's guardian
 *   IDLE       nothing                            nothing
 *   PAUSED     undo the pause, run the guest      end the VM: it may never run
 *   REVOKED    undo it once more                  -
 *   COMMITTED  nothing: in doubt, say so          run the guest: the source never will
 *
 * With storage locks the guardian asks them, by handles of its own:
 *
 *   PAUSED, offered    take them back, then undo the pause;    as above (none was taken)
 *                      without them the guest stays paused
 *   COMMITTED          the same after a second: whoever gets   take them, then run the guest;
 *                      the first lock gets the guest           the source was first: end the VM
 *
 * While the engine makes its offer to the storage, a guardian does not act when the pause is too
 * long: it waits until the engine returns or dies, however long that takes, because the storage
 * may still carry the offer out.
 *
 * It also bounds the pause: when the guest has been PAUSED for longer than allowed
 * and the engine hangs, the guardian undoes the pause by itself.  PAUSED ->
 * COMMITTED (engine) and PAUSED -> REVOKED (guardian) are compare-and-swaps on the
 * same word: one of them wins, and an engine that lost must not send COMMIT.  It may
 * still pause the guest, when it was held up just before that: so its death is the
 * reason to look again.
 */
#ifndef LM_GUARDIAN_H
#define LM_GUARDIAN_H

#include <stdatomic.h>
#include "engine/lock/locks.h"
#include "engine/base/side.h"
#include "engine/vm/vm.h"

enum lm_phase { LM_PHASE_IDLE, LM_PHASE_PAUSED, LM_PHASE_REVOKED, LM_PHASE_COMMITTED };

/*
 * COMMITTED means that something is about to happen that cannot be taken back (a file
 * gets its name).  Where the guardian can see for itself whether it did, that decides:
 * it did not: as PAUSED.  It did: the source's guest is where it should be, the
 * destination's runs.
 */
struct lm_guardian_witness {
	bool (*happened)(const void *arg); /* NULL: there is nothing to see */
	const void *arg;                   /* as it is when the guardian is forked */
};

struct lm_guardian {
	struct lm_guardian_shared *shared; /* NULL: there is no guardian */
	int fd;                            /* our end of the socket; it closes when we die */
};

/* The guest's storage locks, as in struct lm_options. */
struct lm_guardian_locks {
	const char *const *uris;
	unsigned n;
	const char *host;
};

/*
 * Fork it.  Call before threads are made and before sockets to the peer are open:
 * it keeps only the VM's connection and stderr.
 */
int lm_guardian_start(struct lm_guardian *g, const struct lm_vm *vm, enum lm_side side,
		      const struct lm_guardian_locks *locks, struct lm_error *err);
int lm_guardian_start_with(struct lm_guardian *g, const struct lm_vm *vm, enum lm_side side,
			   const struct lm_guardian_locks *locks, const struct lm_guardian_witness *witness,
			   struct lm_error *err);
/* The guest is about to be paused (source) or loaded (destination). */
void lm_guardian_pause(struct lm_guardian *g, int64_t deadline_ns);
/* Whether the guest shall run when the guardian brings it back, or after COMMIT.  Starts as vm->info.running. */
void lm_guardian_run(struct lm_guardian *g, bool run);
/* Source: the locks are about to be offered.  false: the guardian has undone the pause, they must not be. */
bool lm_guardian_offer(struct lm_guardian *g);
/* Source: the offer has ended, well or not, and no request of it is on its way to the storage any more. */
void lm_guardian_offer_done(struct lm_guardian *g);
/* Source: they are this host's again. */
void lm_guardian_reclaimed(struct lm_guardian *g);
/* Source: the engine is about to undo the pause by itself, which may take until then. */
void lm_guardian_extend(struct lm_guardian *g, int64_t deadline_ns);
/* Destination, before lm_guardian_commit(): what the locks can be taken with. */
void lm_guardian_notes(struct lm_guardian *g, const struct lm_lock_notes *offer);
/* About to send COMMIT / COMMIT received.  false: the guardian has undone the pause. */
bool lm_guardian_commit(struct lm_guardian *g);
/* COMMIT was certainly not sent: back to PAUSED. */
void lm_guardian_uncommit(struct lm_guardian *g);
/* The guest needs no guarding any more. */
void lm_guardian_idle(struct lm_guardian *g);
/* Dismiss it and wait until it is gone.  May be called for a zeroed one. */
void lm_guardian_stop(struct lm_guardian *g);

#endif
