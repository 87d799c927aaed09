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

/* A thread that sleeps never sleeps longer than this because of what other threads charge. */
#define LM_THROTTLE_DEBT_NS INT64_C(40000000)

struct lm_throttle {
	uint64_t max_bytes_per_s; /* 0: no limit */
	_Atomic int64_t booked_ns;
};

/* Count bytes that had to be sent at once, up to a debt of LM_THROTTLE_DEBT_NS. Never sleeps. */
void lm_throttle_charge(struct lm_throttle *t, uint64_t bytes);
/* Whether there is allowance left, half of the debt included. */
bool lm_throttle_allows(const struct lm_throttle *t);
/* Returns early when *stop becomes true. */
void lm_throttle(struct lm_throttle *t, uint64_t bytes, const _Atomic bool *stop);

#endif
