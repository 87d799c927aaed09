/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storage locks in a migration: engine/PROTOCOL.md, "Storage locks".
 *
 * The guest may run where all locks are held, and nowhere else.  The source holds them until it
 * offers them, which it does when its QEMU has let go of the disks; the destination
 * takes them after COMMIT and before it runs the guest.  After an offer the source
 * takes them back before it runs the guest, whatever it has heard.
 *
 * All of it does nothing and returns 0 when the guest has no locks.
 */
#ifndef LM_HANDOVER_H
#define LM_HANDOVER_H

#include "engine/context/context.h"
#include "engine/lock/locks.h"
#include "guardian.h"

struct lm_handover {
	struct lm_ctx *c;
	struct lm_guardian *guardian;
	struct lm_locks locks;       /* none when locks.n is 0 */
	struct lm_lock_notes answer; /* source: from the destination */
	struct lm_lock_notes offer;  /* destination: from the source; n is 0 until it came */
	bool offered;                /* source: the guest may run here only after lm_handover_reclaim() */
	bool disks_idle;             /* source: QEMU has given up its disks, so no I/O of the guest is in flight */
	int64_t offer_ns, take_ns;   /* what it took */
};

/* The source acquires the locks; the destination only checks whether it can use them. c and guardian outlive h. */
int lm_handover_open(struct lm_handover *h, struct lm_ctx *c, struct lm_guardian *guardian, struct lm_error *err);
void lm_handover_close(struct lm_handover *h); /* takes a zeroed one; the locks stay as they are */
/* Source, after READY: both sides see the same storage, and the destination is prepared. */
int lm_handover_announce(struct lm_handover *h, struct lm_error *err);
/* Source, guest stopped and QEMU done with the disks: offer, and tell the destination. */
int lm_handover_offer(struct lm_handover *h, struct lm_error *err);
/* Source, before the guest may run again: 0 when it may.  Tries until the deadline; final errors: locks.h. */
int lm_handover_reclaim(struct lm_handover *h, int64_t deadline_ns, struct lm_error *err);
/* Destination: LOCK_ANNOUNCE has come, or LOCK_OFFER. */
int lm_handover_prepare(struct lm_handover *h, const struct lm_msg *msg, struct lm_error *err);
int lm_handover_offered(struct lm_handover *h, const struct lm_msg *msg, struct lm_error *err);
/* Destination, after COMMIT: 0 when the guest may run here. */
int lm_handover_take(struct lm_handover *h, struct lm_error *err);
/* Destination, when the VM is known to be gone without having run: the source can have them again. */
void lm_handover_give_back(struct lm_handover *h);
/* After the guest has begun to run: its VM keeps what shows that the holder lives. */
void lm_handover_keep(struct lm_handover *h);

#endif
