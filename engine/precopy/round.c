/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pre-copy: one round.  The lanes copy; the session's thread waits for them, and meanwhile looks at
 * the peer, at lanes that are lost or come back, and at what the guest writes.
 */
#include <poll.h>
#include "engine/base/clock.h"
#include "precopy.h"

/* From one early scan to the next: this, and a part of the time since the round began. */
#define EARLY_SCAN_NS    (80 * LM_NS_PER_MS)
#define EARLY_SCAN_SHARE 8

/* ---- a scan while the round is copied ---- */

static bool early_scan_is_due(struct lm_precopy *p, int64_t now)
{
	if (!p->may_interrupt || !p->postcopy_allowed || now < p->next_early_scan_ns)
		return false;
	/* An early scan takes time and protects the written pages anew, so it stays a small part of the round. */
	p->next_early_scan_ns = now + EARLY_SCAN_NS + (now - p->round_began_ns) / EARLY_SCAN_SHARE;
	return true;
}

/*
 * The pages that it finds would also be dirty at the round's end; they are drained and copied like
 * all others.  When there are so many that only post-copy can follow, the round ends here.
 */
static int early_scan(struct lm_precopy *p, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	struct lm_copy_totals t;
	int r = lm_precopy_scan_early(p, err);

	if (r)
		return r;
	lm_copier_totals(&p->copier, &t);
	p->converge.can_postcopy = true;
	if (lm_converge_hopeless(&p->converge, lm_pageset_count(&p->dirty), p->round_pages,
				 t.done_pages - p->round_done0, begin - p->round_began_ns))
		lm_copier_interrupt(&p->copier);
	return 0;
}

/* ---- waiting ---- */

/* Waits at most 100 ms for news; *ret_done: done_fd (-1: none) is readable.  Then looks at everything once. */
static int wait_and_check(struct lm_precopy *p, int done_fd, bool *ret_done, struct lm_error *err)
{
	struct pollfd fds[5] = {
		{ .fd = done_fd, .events = POLLIN },
		{ .fd = lm_control_fd(&p->c->control), .events = POLLIN },
		{ .fd = p->c->cancel_fd, .events = POLLIN },
		{ .fd = p->c->vm->pidfd, .events = POLLIN },
		{ .fd = lm_lanes_fd(p), .events = POLLIN },
	};
	int r;

	*ret_done = false;
	if (poll(fds, 5, 100) < 0 && errno != EINTR)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "poll");
	if (fds[0].revents) {
		*ret_done = true;
		return 0;
	}
	r = lm_precopy_check(p, fds[3].revents != 0, err);
	return r ? r : lm_lanes_tick(p, err);
}

static int wait_job(struct lm_precopy *p, struct lm_error *err)
{
	bool done = false;
	int r = 0;

	while (!r && !done) {
		r = wait_and_check(p, lm_pool_done_fd(p->c->pool), &done, err);
		if (!r && !done && early_scan_is_due(p, lm_now_ns()))
			r = early_scan(p, err);
	}
	return r;
}

/* No lane is left; err says why.  Waits until one is back, the time is out, or something else ends the wait. */
static int await_lane(struct lm_precopy *p, struct lm_error *err)
{
	int64_t until = lm_lanes_wait_until(p);
	struct lm_error why = *err;
	bool unused;

	if (!until)
		return why.code;
	if (lm_now_ns() < until)
		lm_ctx_log(p->c, LM_LOG_WARN, "no lane is left: waiting for one for at most %.1f s",
			   (double)(until - lm_now_ns()) / 1e9);
	while (!lm_copier_live_lanes(&p->copier)) {
		int r;

		if (lm_now_ns() >= until) {
			*err = why;
			return lm_err_prefix(err, "none has come back within --recover-timeout");
		}
		r = wait_and_check(p, -1, &unused, err);
		if (r)
			return r;
	}
	return 0;
}

/* ---- the copy ---- */

/* One job until its end: 0, 1: lanes have died (do again what they had), or an error. */
static int run_job(struct lm_precopy *p, uint64_t *ret_dropped, struct lm_error *err)
{
	int r = wait_job(p, err);

	*ret_dropped = 0;
	if (r)
		return r;
	r = lm_copier_finish(&p->copier, ret_dropped, err);
	if (!r)
		return 0;
	if (!*ret_dropped && r < 0)
		return r;
	/* Nothing of these lanes may land any more before their pages go out on others. */
	r = r > 0 ? lm_lanes_drop(p, *ret_dropped, err) : await_lane(p, err);
	return r ? r : 1;
}

/* Copies p->copying; the set is empty afterwards. */
static int copy(struct lm_precopy *p, struct lm_error *err)
{
	uint64_t dropped = 0;
	int r;

	lm_copier_start(&p->copier, &p->copying, &p->holes);
	while ((r = run_job(p, &dropped, err)) > 0)
		lm_copier_redo(&p->copier, dropped, &p->again);
	if (!r)
		r = lm_lanes_settle(p, err);
	if (r) {
		lm_lanes_stop(p);
		lm_copier_stop(&p->copier);
		lm_copier_finish(&p->copier, &dropped, NULL);
		return r;
	}
	/* Interrupted: what was not copied is dirty as before. */
	if (atomic_load(&p->copier.interrupted))
		lm_copier_rest(&p->copier, &p->dirty);
	lm_pageset_clear_all(&p->copying);
	lm_pageset_clear_all(&p->again);
	return 0;
}

static void account(struct lm_precopy *p, struct lm_round *round, const struct lm_copy_totals *before)
{
	struct lm_summary *sum = &p->c->summary;
	struct lm_copy_totals t;

	lm_copier_totals(&p->copier, &t);
	round->sent_pages = t.sent_pages - before->sent_pages;
	round->zero_pages = t.zero_pages - before->zero_pages;
	round->skipped_pages = t.skipped_pages - before->skipped_pages;
	round->bytes = t.bytes - before->bytes;
	if (round->copy_ns > 0)
		round->bytes_per_s = (uint64_t)((double)round->bytes * 1e9 / (double)round->copy_ns);
	sum->sent_pages = t.sent_pages;
	sum->zero_pages = t.zero_pages;
	sum->skipped_pages = t.skipped_pages;
	sum->bytes = t.bytes;
	sum->copying_ns += round->copy_ns;
	sum->rounds = round->round + 1;
}

static void swap_dirty(struct lm_precopy *p)
{
	struct lm_pageset t = p->copying;

	p->copying = p->dirty;
	p->dirty = t;
}

static int drain(struct lm_precopy *p, struct lm_round *round, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	int r = lm_vm_drain(p->c->vm, lm_ctx_vm_deadline(p->c), err);

	round->drain_ns = lm_now_ns() - begin;
	return r;
}

int lm_precopy_round(struct lm_precopy *p, struct lm_round *round, bool drain_first, bool may_interrupt,
		     struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_ROUND };
	struct lm_copy_totals before;
	int r;

	swap_dirty(p);
	r = drain_first ? drain(p, round, err) : 0;
	if (r)
		return r;
	lm_copier_totals(&p->copier, &before);
	p->round = round->round;
	p->round_pages = round->dirty_pages;
	p->round_done0 = before.done_pages;
	p->round_began_ns = lm_now_ns();
	p->next_early_scan_ns = p->round_began_ns + EARLY_SCAN_NS;
	p->may_interrupt = may_interrupt;
	r = copy(p, err);
	p->may_interrupt = false;
	round->copy_ns = lm_now_ns() - p->round_began_ns;
	if (r)
		return r;
	account(p, round, &before);
	lm_converge_round(&p->converge, round);
	e.u.round = *round;
	lm_ctx_event(p->c, &e);
	return 0;
}
