/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include "engine/base/clock.h"
#include "converge.h"
#include "engine/base/region.h"

/* Rounds below this size measure latency, not throughput. */
#define MEASURE_BYTES (UINT64_C(1) << 20)
#define SMOOTH 0.5
/* A round is worth it when it brings the prediction down by this part. */
#define PAYS 4
/* Nothing measured (a guest that is all zeros): assume 1 Gbit/s. */
#define GUESS_BYTES_PER_S 125e6

void lm_converge_init(struct lm_converge *c, const struct lm_options *options)
{
	memset(c, 0, sizeof(*c));
	c->max_downtime_ns = options->max_downtime_ns;
	c->on_stall = options->on_stall;
	c->cap_bytes_per_s = options->max_bandwidth_bytes_per_s;
}

static double throughput(const struct lm_converge *c)
{
	double v = c->bytes_per_s > 0 ? c->bytes_per_s : GUESS_BYTES_PER_S;

	return c->cap_bytes_per_s && v > (double)c->cap_bytes_per_s ? (double)c->cap_bytes_per_s : v;
}

/* What it takes to copy so many pages. */
static int64_t copy_ns(const struct lm_converge *c, uint64_t pages)
{
	double ns = (double)(pages << LM_PAGE_SHIFT) * 1e9 / throughput(c);

	return ns > 1e18 ? INT64_C(1000000000000000000) : (int64_t)ns;
}

void lm_converge_round(struct lm_converge *c, const struct lm_round *round)
{
	double now;

	if (round->bytes < MEASURE_BYTES || round->copy_ns <= 0)
		return;
	now = (double)round->bytes * 1e9 / (double)round->copy_ns;
	c->bytes_per_s = c->bytes_per_s > 0 ? SMOOTH * now + (1 - SMOOTH) * c->bytes_per_s : now;
	/* The first decision compares with the first round itself. */
	if (!c->before_ns)
		c->before_ns = copy_ns(c, round->dirty_pages);
}

bool lm_converge_hopeless(const struct lm_converge *c, uint64_t dirty_pages, uint64_t round_pages,
			  uint64_t done_pages, int64_t since_ns)
{
	double per_page = done_pages ? (double)since_ns / (double)done_pages : 0;

	return c->can_postcopy && dirty_pages >= round_pages - round_pages / PAYS &&
	       per_page * (double)dirty_pages > (double)c->max_downtime_ns;
}

static bool stalled(struct lm_converge *c, unsigned round, int64_t predicted_ns)
{
	if (!c->best_ns || predicted_ns < c->best_ns - c->best_ns / 10) {
		c->best_ns = predicted_ns;
		c->rounds_without_gain = 0;
		return false;
	}
	c->rounds_without_gain++;
	return round >= LM_ROUNDS_MIN_FOR_STALL && c->rounds_without_gain >= LM_STALL_ROUNDS;
}

static enum lm_decision_kind on_stall(const struct lm_converge *c)
{
	switch (c->on_stall) {
	case LM_STALL_FORCE:
		return LM_DECIDE_FORCE;
	case LM_STALL_ABORT:
		return LM_DECIDE_ABORT;
	case LM_STALL_WAIT:
		break;
	}
	return LM_DECIDE_CONTINUE;
}

static bool pays(struct lm_converge *c, int64_t predicted_ns)
{
	bool pays = !c->before_ns || predicted_ns < c->before_ns - c->before_ns / PAYS;

	c->before_ns = predicted_ns;
	return pays;
}

static void decide_postcopy(const struct lm_converge *c, uint64_t dirty_pages, struct lm_decision *ret)
{
	ret->kind = LM_DECIDE_POSTCOPY;
	snprintf(ret->reason, sizeof(ret->reason), "%llu pages stay behind: %s", (unsigned long long)dirty_pages,
		 c->postcopy_now ? "post-copy was asked for" : "another round would not pay");
}

void lm_converge_decide(struct lm_converge *c, unsigned round, uint64_t dirty_pages, int64_t scan_ns,
			int64_t rtt_ns, struct lm_decision *ret)
{
	bool stall;

	memset(ret, 0, sizeof(*ret));
	ret->round = round;
	ret->max_downtime_ns = c->max_downtime_ns;
	ret->predicted_ns = scan_ns + rtt_ns + copy_ns(c, dirty_pages);
	if (ret->predicted_ns <= c->max_downtime_ns) {
		ret->kind = LM_DECIDE_SWITCHOVER;
		snprintf(ret->reason, sizeof(ret->reason), "last round of %llu pages predicted to take %.2f ms",
			 (unsigned long long)dirty_pages, (double)ret->predicted_ns / 1e6);
		return;
	}
	if (c->can_postcopy && (!pays(c, ret->predicted_ns) || c->postcopy_now)) {
		decide_postcopy(c, dirty_pages, ret);
		return;
	}
	stall = stalled(c, round, ret->predicted_ns);
	ret->kind = stall ? on_stall(c) : LM_DECIDE_CONTINUE;
	snprintf(ret->reason, sizeof(ret->reason),
		 "last round of %llu pages would take %.2f ms%s", (unsigned long long)dirty_pages,
		 (double)ret->predicted_ns / 1e6,
		 stall ? "; no progress: the guest writes as fast as the lanes copy" : "");
}
