/* SPDX-License-Identifier: Apache-2.0 */
#include "hist.h"

/* Below LM_HIST_SUB each value has a bucket; above, the four bits after the highest choose. */
static unsigned bucket_of(uint64_t v)
{
	unsigned top;

	if (v < LM_HIST_SUB)
		return (unsigned)v;
	top = 63 - (unsigned)__builtin_clzll(v);
	return (top - 3) * LM_HIST_SUB + (unsigned)(v >> (top - 4) & (LM_HIST_SUB - 1));
}

static int64_t bucket_end(unsigned b)
{
	unsigned top = b / LM_HIST_SUB + 3;

	if (b < LM_HIST_SUB)
		return b;
	return (int64_t)((((UINT64_C(1) << 4 | b % LM_HIST_SUB) + 1) << (top - 4)) - 1);
}

void lm_hist_add(struct lm_hist *h, int64_t ns)
{
	uint64_t v = ns > 0 ? (uint64_t)ns : 0;
	unsigned b = bucket_of(v);

	h->buckets[b < LM_HIST_BUCKETS ? b : LM_HIST_BUCKETS - 1]++;
	h->count++;
	h->sum_ns = (int64_t)v > INT64_MAX - h->sum_ns ? INT64_MAX : h->sum_ns + (int64_t)v;
	if ((int64_t)v > h->max_ns)
		h->max_ns = (int64_t)v;
}

int64_t lm_hist_quantile(const struct lm_hist *h, double q)
{
	uint64_t seen = 0, want = (uint64_t)(q * (double)h->count);

	if (!h->count)
		return 0;
	if (want >= h->count)
		want = h->count - 1;
	for (unsigned b = 0; b < LM_HIST_BUCKETS; b++) {
		seen += h->buckets[b];
		if (seen > want)
			return bucket_end(b) < h->max_ns ? bucket_end(b) : h->max_ns;
	}
	return h->max_ns;
}
