/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-copy: the stages, and after each scan the decision what follows. */
#include <string.h>
#include "engine/base/clock.h"
#include "precopy.h"

/* ---- its life ---- */

static int sets_init(struct lm_precopy *p)
{
	struct lm_pageset *sets[] = { &p->dirty, &p->holes, &p->copying, &p->again, &p->absent, &p->existing };

	for (unsigned i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		if (lm_pageset_init(sets[i], &p->c->ram))
			return -ENOMEM;
	return 0;
}

int lm_precopy_init(struct lm_precopy *p, struct lm_ctx *c, struct lm_error *err)
{
	int r;

	p->c = c;
	r = lm_copier_init(&p->copier, &c->ram, c->transport, c->pool, err);
	if (r)
		return r;
	p->copier.throttle.max_bytes_per_s = c->opt.max_bandwidth_bytes_per_s;
	p->copier.stall_ns = c->opt.peer_timeout_ns;
	return 0;
}

void lm_precopy_fini(struct lm_precopy *p)
{
	struct lm_pageset *sets[] = { &p->dirty, &p->holes, &p->copying, &p->again, &p->absent, &p->existing };

	lm_lanes_fini(p);
	lm_dirty_close(p->tracker);
	p->tracker = NULL;
	for (unsigned i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		lm_pageset_fini(sets[i]);
	lm_copier_fini(&p->copier);
}

/* ---- the stages ---- */

int lm_precopy_arm(struct lm_precopy *p, struct lm_error *err)
{
	int r = sets_init(p);

	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "out of memory for the dirty bitmaps");
	lm_converge_init(&p->converge, &p->c->opt);
	r = lm_vm_tracker(p->c->vm, &p->c->ram, &p->tracker, err);
	if (!r)
		r = lm_dirty_start(p->tracker, err);
	p->last_scan_ns = lm_now_ns();
	return r;
}

/*
 * Round 0 copies all that exists here, and all that the destination has where nothing is
 * here (a file that was used before): that must become zero.
 */
static int first_set(struct lm_precopy *p, struct lm_error *err)
{
	for (unsigned i = 0; i < p->c->ram.nregions; i++) {
		struct lm_bitmap *dirty = &p->dirty.maps[i];
		const struct lm_bitmap *filled = &p->copier.filled.maps[i];
		int r = lm_region_existing(&p->c->ram.regions[i], 0, dirty->nbits, dirty, err);

		if (r)
			return r;
		p->c->summary.existing_pages += lm_bitmap_count(dirty);
		lm_bitmap_and_not(&p->holes.maps[i], filled, dirty);
		lm_bitmap_or(dirty, filled);
	}
	return 0;
}

int lm_precopy_first(struct lm_precopy *p, struct lm_error *err)
{
	struct lm_round round = { 0 };
	int64_t begin = lm_now_ns(), drained;
	/*
	 * Here the drain comes first.  Arming was the scan; what was in flight then must
	 * have landed before we look, because where existence is a matter of content
	 * (hugetlbfs) a page that waits for its data looks like a hole.
	 */
	int r = lm_vm_drain(p->c->vm, lm_ctx_vm_deadline(p->c), err);

	drained = lm_now_ns();
	round.drain_ns = drained - begin;
	if (!r)
		r = first_set(p, err);
	round.scan_ns = lm_now_ns() - drained;
	round.dirty_pages = lm_pageset_count(&p->dirty);
	/*
	 * With post-copy from the start all of it stays behind, and these pages are not called holes: the guest
	 * may write to one before the next scan, which would not tell.
	 */
	if (!r && p->c->opt.postcopy != LM_POSTCOPY_NOW)
		r = lm_precopy_round(p, &round, false, true, err);
	lm_pageset_clear_all(&p->holes);
	return r;
}

static bool postcopy_due(const struct lm_precopy *p, unsigned round)
{
	const struct lm_options *o = &p->c->opt;

	return o->postcopy == LM_POSTCOPY_NOW || lm_precopy_postcopy_asked(p, lm_now_ns()) ||
	       (o->postcopy_after_rounds && round >= o->postcopy_after_rounds);
}

static int decide(struct lm_precopy *p, const struct lm_round *round, struct lm_decision *d, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_DECISION };

	p->converge.can_postcopy = p->postcopy_allowed;
	p->converge.postcopy_now = postcopy_due(p, round->round);
	lm_converge_decide(&p->converge, round->round, round->dirty_pages, round->scan_ns, p->c->control.rtt_ns, d);
	e.u.decision = *d;
	lm_ctx_event(p->c, &e);
	p->postcopy = d->kind == LM_DECIDE_POSTCOPY;
	if (d->kind != LM_DECIDE_ABORT)
		return 0;
	p->c->summary.outcome = LM_OUTCOME_STALLED;
	return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
		      "pre-copy does not converge (%s): allow more with --max-downtime or --max-bandwidth, "
		      "or use --on-stall force", d->reason);
}

int lm_precopy_rounds(struct lm_precopy *p, struct lm_error *err)
{
	struct lm_decision d = { 0 };

	do {
		struct lm_round round = { .round = p->c->summary.rounds };
		int r = lm_precopy_tick(p, err);

		if (!r)
			r = lm_precopy_scan(p, &round, err);
		if (!r)
			r = decide(p, &round, &d, err);
		/* What is left behind is read when the guest has stopped and its I/O has landed: no drain. */
		if (!r && d.kind != LM_DECIDE_POSTCOPY)
			r = lm_precopy_round(p, &round, true, d.kind == LM_DECIDE_CONTINUE, err);
		if (!r)
			r = lm_ctx_stage(p->c, "precopy", err);
		if (r)
			return r;
	} while (d.kind == LM_DECIDE_CONTINUE);
	return lm_ctx_bear_outage(p->c, false, err);
}

int lm_precopy_last_scan(struct lm_precopy *p, struct lm_round *ret_round, struct lm_error *err)
{
	*ret_round = (struct lm_round){ .round = p->c->summary.rounds };
	return lm_precopy_scan(p, ret_round, err);
}

int lm_precopy_last_copy(struct lm_precopy *p, struct lm_round *round, struct lm_error *err)
{
	return lm_precopy_round(p, round, false, false, err); /* stopped and drained already */
}
