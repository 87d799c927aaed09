/* SPDX-License-Identifier: Apache-2.0 */
/* One lease of sanlock: looking at it on the disk, asking the daemon for it, letting it go. */
#ifndef LM_SANLOCK_LEASE_H
#define LM_SANLOCK_LEASE_H

#include "sanlock_state.h"

/* The error for what a call of the library returned. */
int san_failed(int rv, const char *what, struct lm_error *err);
/* The lease as it is on the disk. */
int san_look(const struct san *s, struct on_disk *ret, struct lm_error *err);
/* A connection to the daemon, if there is none yet. */
int san_enroll(struct san *s, struct lm_error *err);
/* Acquire the lease under a name; version: only that one (NULL: any).  -EAGAIN: it is changing hands. */
int san_ask(struct san *s, const char *name, const uint64_t *version, uint32_t more_flags, struct lm_error *err);
/* What the disk says after the daemon gave us the lease is the proof; sets the epoch. */
int san_proof(struct san *s, struct lm_error *err);
/* Release it, and give it another name on the disk. */
int san_let_go(struct san *s, const char *new_name, struct lm_error *err);

#endif
