/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bandwidth cap that several threads share: a time up to which the allowance is
 * spent.  Each thread books its bytes behind it and sleeps until its booking begins.
 */
#ifndef LM_THROTTLE_H
#define LM_THROTTLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What other threads charge makes a thread that sleeps sleep no longer than this. */
#define LM_THROTTLE_DEBT_NS INT64_C(40000000)

struct lm_throttle {
	uint64_t max_bytes_per_s; /* 0: no limit */
	_Atomic int64_t booked_ns;
};

/* What could not wait was sent: it counts, up to the debt of LM_THROTTLE_DEBT_NS.  Never sleeps. */
void lm_throttle_charge(struct lm_throttle *t, uint64_t bytes);
/* Whether there is allowance left, half of the debt included. */
bool lm_throttle_allows(const struct lm_throttle *t);
/* Returns early when *stop becomes true. */
void lm_throttle(struct lm_throttle *t, uint64_t bytes, const _Atomic bool *stop);

#endif
