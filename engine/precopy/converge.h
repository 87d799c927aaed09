/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to stop copying and switch over.  Pure arithmetic, no clock, no I/O.
 *
 * Prediction: were the guest stopped now, the last round would have to find and
 * copy about as many pages as the scan before this decision found (rounds get
 * shorter while pre-copy converges, so that number is an upper estimate), at the
 * throughput that the lanes have shown:
 *
 *     predicted = scan + round trip + dirty pages / throughput
 *
 * It covers what depends on the guest's memory.  What QEMU itself needs to stop the
 * guest and to save and load its devices comes on top and is printed in the summary.
 *
 * Pre-copy has stalled when LM_STALL_ROUNDS rounds in a row brought no prediction
 * that was at least a tenth better than the best one before.
 *
 * Where post-copy can follow, pre-copy goes on only while it pays: a round has to
 * bring the prediction down by a quarter; the first one counts against all of
 * memory.  It costs a pass over what is dirty; the same pages would otherwise be
 * fetched once, after the switchover.  What a round finds dirty at its end only grows
 * while it lasts: when that has become too much, the rest of the round is for nothing
 * and need not be copied (lm_converge_hopeless).
 */
#ifndef LM_CONVERGE_H
#define LM_CONVERGE_H

#include "engine/migrate_rdma.h"

#define LM_STALL_ROUNDS 5
#define LM_ROUNDS_MIN_FOR_STALL 3

struct lm_converge {
	int64_t max_downtime_ns;
	enum lm_on_stall on_stall;
	uint64_t cap_bytes_per_s; /* --max-bandwidth; 0: none */
	bool can_postcopy;        /* both sides agree: the way out when rounds do not pay */
	bool postcopy_now;        /* the user, or a limit of the user, demands it */
	/* learned */
	double bytes_per_s;       /* smoothed throughput of the lanes; 0: nothing measured yet */
	int64_t best_ns;          /* best prediction so far; 0: none */
	int64_t before_ns;        /* the prediction before this one; 0: none */
	unsigned rounds_without_gain;
};

void lm_converge_init(struct lm_converge *c, const struct lm_options *options);
/* A round has ended: learn its throughput. */
void lm_converge_round(struct lm_converge *c, const struct lm_round *round);
/*
 * In a round of round_pages, of which done_pages were copied in since_ns, dirty_pages
 * have been written since it began: whether the decision at its end can only be post-copy.
 */
bool lm_converge_hopeless(const struct lm_converge *c, uint64_t dirty_pages, uint64_t round_pages,
			  uint64_t done_pages, int64_t since_ns);
/* A scan has found dirty_pages and taken scan_ns: decide what follows.  Fills *ret. */
void lm_converge_decide(struct lm_converge *c, unsigned round, uint64_t dirty_pages, int64_t scan_ns,
			int64_t rtt_ns, struct lm_decision *ret);

#endif
