/* SPDX-License-Identifier: Apache-2.0 */
/* Time: CLOCK_MONOTONIC nanoseconds; a deadline is an absolute time on that clock. */
#ifndef LM_CLOCK_H
#define LM_CLOCK_H

#include <stdint.h>
#include <time.h>

#define LM_NS_PER_S  INT64_C(1000000000)
#define LM_NS_PER_MS INT64_C(1000000)
#define LM_NO_DEADLINE INT64_MAX

static inline int64_t lm_clock_ns(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return t.tv_sec * LM_NS_PER_S + t.tv_nsec;
}

static inline int64_t lm_now_ns(void)
{
	return lm_clock_ns(CLOCK_MONOTONIC);
}

static inline int64_t lm_deadline_after(int64_t ns)
{
	return ns <= 0 || ns == LM_NO_DEADLINE ? LM_NO_DEADLINE : lm_now_ns() + ns;
}

/* For poll(2): rounded up, -1 for no deadline, 0 when it has passed. */
static inline int lm_deadline_poll_ms(int64_t deadline_ns)
{
	int64_t left;

	if (deadline_ns == LM_NO_DEADLINE)
		return -1;
	left = deadline_ns - lm_now_ns();
	if (left <= 0)
		return 0;
	left = (left + LM_NS_PER_MS - 1) / LM_NS_PER_MS;
	return left > INT32_MAX ? INT32_MAX : (int)left;
}

static inline int64_t lm_deadline_min(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

#endif
