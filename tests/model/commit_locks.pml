/* SPDX-License-Identifier: Apache-2.0 */
/* Storage locks, for commit.pml: what one step with one lock does, and steps with all of them. */

#if LOCKS
/* Once; 0 in the code is owned here.  acquire of ../../storage for one that is offered, ours, or free. */
inline reclaim_one(r)
{
	if
	:: lk[i] == at_source -> skip
	:: lk[i] == offered -> lk[i] = at_source; again[i] = true
#ifdef BREAK_LOCK_FREE
	:: lk[i] == free -> lk[i] = at_source; again[i] = true
#else
	/* The peer had it, and may have run the guest to its end: only who knows that it did not takes it back. */
	:: lk[i] == free && never_ran -> lk[i] = at_source; again[i] = true
#endif
#ifdef BREAK_LOCK_PROOF
	:: lk[i] == at_dest -> lk[i] = at_source
#endif
	:: else -> r = taken
	fi
}

inline take_one(r)
{
	if
	:: lk[i] == at_dest -> skip
#ifdef BREAK_LOCK_VERSION
	:: lk[i] == offered -> lk[i] = at_dest
#else
	:: lk[i] == offered && !again[i] -> lk[i] = at_dest
#endif
	:: else -> r = taken
	fi
}

/* A call that fails may have done its work all the same. */
#define EACH_LOCK(down, from, to, one, r) \
	r = owned; i = from; \
	do \
	:: r == owned && i != to -> \
		if \
		:: atomic { !down -> one(r); if :: r == owned -> i = i + (to > from -> 1 : -1) :: else fi } \
		:: atomic { down -> r = unreachable } \
		:: atomic { down -> one(r); r = unreachable } \
		fi \
	:: else -> break \
	od
#define RECLAIM_ALL(r)  EACH_LOCK(down_s, 0, LOCKS, reclaim_one, r)
#ifdef BREAK_ORDER
#define TAKE_ALL(r)     EACH_LOCK(down_d, LOCKS - 1, -1, take_one, r)
#else
#define TAKE_ALL(r)     EACH_LOCK(down_d, 0, LOCKS, take_one, r)
#endif

inline release_one(r)
{
	if
	:: lk[i] == at_dest -> lk[i] = free
	:: else -> skip
	fi
}
/* The first comes last: whoever gets it finds the others free. */
#define GIVE_BACK(r)    EACH_LOCK(down_d, LOCKS - 1, -1, release_one, r)

/* lm_handover_offer: lm_guardian_offer, lm_locks_offer; LOCK_OFFER */
#define OFFER_ALL \
	g_offered = true; g_offering = true; \
	if :: ph_s == PAUSED :: else -> g_offering = false; goto undo fi; \
	out = true; \
	EACH_LOCK(down_s, 0, LOCKS, offer_one, r); \
	g_offering = false; \
	if :: r != owned -> goto undo :: else fi; \
	SEND(to_d, OFFER, undo)

inline offer_one(r)
{
	if
	:: lk[i] == at_source -> lk[i] = offered
	:: lk[i] == offered -> skip
	:: else -> r = taken
	fi
}
/* acquire, by resolve at the destination: was offered it */
inline acquire_one(r)
{
	if
	:: lk[i] == at_dest -> skip
	:: lk[i] == offered && !third_asks -> lk[i] = at_dest
	:: else -> r = taken
	fi
}
#define ACQUIRE_ALL(r)  EACH_LOCK(down_d, 0, LOCKS, acquire_one, r)
#ifdef BREAK_LOCK_FREE
#define mine_s(i)       (lk[i] == at_source || lk[i] == offered || lk[i] == free)
#else
#define mine_s(i)       (lk[i] == at_source || lk[i] == offered)
#endif
#define mine_d(i)       (lk[i] == at_dest || (lk[i] == offered && !third_asks))
#else
#define RECLAIM_ALL(r)  r = owned
#define TAKE_ALL(r)     r = owned
#define GIVE_BACK(r)    skip
#endif
