/* SPDX-License-Identifier: Apache-2.0 */
/* What every unit test includes: cmocka and a few helpers. */
#ifndef UNIT_H
#define UNIT_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "engine/base/error.h"

/* The call must have succeeded; err is the struct it was given. */
#define assert_ok(call, err)                                               \
	do {                                                               \
		int assert_ok_r = (call);                                  \
		if (assert_ok_r)                                           \
			fail_msg("%s: %d: %s", #call, assert_ok_r, (err).msg); \
	} while (0)

/* The call must have failed with this code and described it. */
#define assert_fails(call, want, err)                                      \
	do {                                                               \
		int assert_fails_r;                                        \
		lm_err_clear(&(err));                                      \
		assert_fails_r = (call);                                   \
		if (assert_fails_r != (want) || (err).code != (want) || !(err).msg[0]) \
			fail_msg("%s: returned %d (%d wanted), error %d \"%s\"", #call, assert_fails_r, \
				 (want), (err).code, (err).msg);            \
	} while (0)

/* xorshift: the same numbers in every run. */
static inline uint64_t unit_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static inline void unit_sleep_ms(unsigned ms)
{
	struct timespec t = { ms / 1000, (long)(ms % 1000) * LM_NS_PER_MS };

	nanosleep(&t, NULL);
}

#endif
