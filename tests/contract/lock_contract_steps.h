/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the lock contract do and look at again and again. */
#ifndef LOCK_CONTRACT_STEPS_H
#define LOCK_CONTRACT_STEPS_H

#include "lock_contract.h"

/* The backend under test. */
extern const struct world *world;

/* The hosts of a test whose struct hosts is called t. */
#define A (&t.h[0])
#define B (&t.h[1])
#define C (&t.h[2])
#define TELL(h, op) host_do(h, op, NULL, NULL, NULL)
#define TELL_NOTE(h, op, from) host_do(h, op, from, NULL, NULL)

/* This host can write, and no other. */
void only(struct hosts *t, const struct host *owner);
/* The third host, which has no part in the hand-over, cannot get the lock. */
void stranger_refused(struct hosts *t);
/* Show says this state, and a holder with this in its name. */
void shown(struct host *h, enum lm_lock_holder state, const char *holder);

/* A hand-over up to the destination's answer, up to the offer, and as a whole. */
void prepared(struct host *from, struct host *to);
void offered(struct host *from, struct host *to);
void handed_over(struct host *from, struct host *to);

/* lock_contract_crash.c */
void a_crash_at_any_point_leaves_one_owner(void **state);
void what_a_dead_host_held_stays_until_it_is_broken(void **state);
void a_new_process_of_the_host_goes_on(void **state);

/* lock_contract_notes.c */
void a_spoilt_note_takes_nothing(void **state);
void notes_of_another_kind_or_to_oneself_are_refused(void **state);
void another_storage_is_noticed(void **state);

#endif
