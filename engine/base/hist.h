/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A histogram of durations: 16 buckets per power of two, so that a quantile is at
 * most 1/16 above the true one.  No locks.
 */
#ifndef LM_HIST_H
#define LM_HIST_H

#include <stdint.h>

#define LM_HIST_SUB 16
#define LM_HIST_BUCKETS (60 * LM_HIST_SUB)

struct lm_hist {
	uint64_t count;
	int64_t sum_ns, max_ns;
	uint32_t buckets[LM_HIST_BUCKETS];
};

void lm_hist_add(struct lm_hist *h, int64_t ns);
/* Upper bound of the bucket in which the quantile (0..1) lies, at most max; 0 when nothing was added. */
int64_t lm_hist_quantile(const struct lm_hist *h, double q);

#endif
