/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The storage locks of one guest: always all of them, in the order of the command line,
 * which is the same on both hosts.
 *
 * One of two hosts gets the guest when both want it: the one that gets the first lock,
 * because both begin with it and take and reclaim exclude each other (lock.h).
 * Whoever has the first one can get the others as soon as the storage answers.  So a
 * host that gives locks back does it from the last to the first.
 *
 * Results of acquire, take and reclaim, for all locks together:
 *   0        this host holds all of them and may write
 *   final    (lm_locks_final()) another host has one, or can have it: this host may not
 *            write, and waiting does not help; l->failed says which
 *   other    not known (storage that does not answer): this host may not write now;
 *            calling again may help
 *
 * Threads and blocking as in lock.h.
 */
#ifndef LM_LOCKS_H
#define LM_LOCKS_H

#include "lock.h"

struct lm_locks {
	struct lm_lock *lock[LM_LOCKS_MAX];
	unsigned n;
	unsigned failed; /* index of the lock at which the last call ended with an error */
	/*
	 * Some call of acquire, take or reclaim may have made this host the owner of the
	 * first `touched` locks, by what is known here: what give_back has to look at.
	 */
	unsigned touched;
	int64_t spent_ns; /* the last call's time */
};

/* Notes of all locks, one after the other. */
struct lm_lock_notes {
	unsigned n;
	uint8_t note[LM_LOCKS_MAX][LM_LOCK_NOTE_SIZE];
};

/* The same URI twice, or more than LM_LOCKS_MAX: -EINVAL.  *ret is zeroed after an error. */
int lm_locks_open(const char *const *uris, unsigned n, const struct lm_lock_params *p, struct lm_locks *ret,
		  struct lm_error *err);
void lm_locks_close(struct lm_locks *l); /* takes a zeroed one */

/* What each does with one lock: lock.h.  They end with the first lock that fails. */
int lm_locks_acquire(struct lm_locks *l, int64_t deadline_ns, struct lm_error *err);
int lm_locks_announce(struct lm_locks *l, struct lm_lock_notes *ret, int64_t deadline_ns, struct lm_error *err);
/* Another number of notes than locks: -EMEDIUMTYPE. */
int lm_locks_prepare(struct lm_locks *l, const struct lm_lock_notes *announce, struct lm_lock_notes *ret_answer,
		     int64_t deadline_ns, struct lm_error *err);
int lm_locks_offer(struct lm_locks *l, const struct lm_lock_notes *answer, bool disks_idle, struct lm_lock_notes *ret,
		   int64_t deadline_ns, struct lm_error *err);
/*
 * These two try a lock again, until the deadline, as long as the error is not final: a path
 * may come back.  At least once.
 */
int lm_locks_take(struct lm_locks *l, const struct lm_lock_notes *offer, int64_t deadline_ns, struct lm_error *err);
/* free_too: lm_lock_reclaim() */
int lm_locks_reclaim(struct lm_locks *l, bool free_too, int64_t deadline_ns, struct lm_error *err);
/*
 * From the last to the first; ends at the first that cannot be released.  Locks that are not this
 * host's are no error.
 */
int lm_locks_release(struct lm_locks *l, int64_t deadline_ns, struct lm_error *err);
/*
 * After a take that did not get all locks, when the guest will never run here: gives back those that
 * take may have got.
 */
int lm_locks_give_back(struct lm_locks *l, int64_t deadline_ns, struct lm_error *err);

bool lm_locks_final(int r);
/*
 * One line for people about who has a lock: the first one that this host does not hold or, when it
 * holds all, the last one.  Changes nothing.
 */
int lm_locks_query(struct lm_locks *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err);

#endif
