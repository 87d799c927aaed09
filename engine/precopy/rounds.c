/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pre-copy: rounds of scan, drain, copy.
 *
 * The order within a round is a safety rule.  A disk read with O_DIRECT pins its
 * page when it is submitted and fills it later, without a page fault.  A scan that
 * clears the page's written flag in between, followed by a copy that runs before
 * the data lands, would lose the data: no later scan finds it.  The drain between
 * scan and copy waits for all I/O that was in flight at the scan; I/O that starts
 * later faults anew and is found by the next scan (the grace period of RCU).
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/session/session.h"
#include "engine/base/testhook.h"

#define PROGRESS_NS (200 * LM_NS_PER_MS)
#define PING_NS     (1 * LM_NS_PER_S)
/* Between two looks at what was written while a round is copied: this, and a part of the time since it began. */
#define LOOK_NS     (80 * LM_NS_PER_MS)
#define LOOK_SHARE  8
/* Ranges of a parallel scan; below this size one thread is faster than waking more. */
#define SCAN_PAGES  (UINT64_C(1) << 16)
#define SCAN_ALONE_BYTES (UINT64_C(1) << 30)

/* ---- scan ---- */

struct scan {
	struct lm_session *s;
	_Atomic uint64_t cursor; /* counts ranges over all regions */
	struct lm_error errors[LM_LANES_MAX];
};

static int scan_range(struct lm_session *s, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	struct lm_source *src = &s->src;

	return lm_dirty_collect(src->tracker, region, first, n, &src->dirty.maps[region],
				s->ram.may_discard ? &src->absent.maps[region] : NULL, err);
}

/* The cursor's position -> a range, which cuts no huge page; false past the end. */
static bool scan_at(const struct lm_ram *ram, uint64_t at, unsigned *region, uint64_t *first, uint64_t *n)
{
	for (*region = 0; *region < ram->nregions; (*region)++) {
		uint64_t npages = lm_region_npages(&ram->regions[*region]);
		uint64_t huge = ram->regions[*region].page_size >> LM_PAGE_SHIFT;
		uint64_t step = huge > SCAN_PAGES ? huge : SCAN_PAGES;
		uint64_t ranges = (npages + step - 1) / step;

		if (at < ranges) {
			*first = at * step;
			*n = npages - *first < step ? npages - *first : step;
			return true;
		}
		at -= ranges;
	}
	return false;
}

static void scan_worker(void *ctx, unsigned worker)
{
	struct scan *scan = ctx;
	struct lm_error *err = &scan->errors[worker];
	uint64_t first, n;
	unsigned region;

	while (scan_at(&scan->s->ram, atomic_fetch_add(&scan->cursor, 1), &region, &first, &n))
		if (scan_range(scan->s, region, first, n, err))
			return;
}

static int scan_all(struct lm_session *s, struct lm_error *err)
{
	struct scan scan = { .s = s };

	if (lm_ram_size(&s->ram) < SCAN_ALONE_BYTES) {
		scan_worker(&scan, 0);
	} else {
		lm_pool_start(s->pool, scan_worker, &scan);
		lm_pool_finish(s->pool);
	}
	for (unsigned i = 0; i < LM_LANES_MAX; i++)
		if (scan.errors[i].code) {
			*err = scan.errors[i];
			return err->code;
		}
	return 0;
}

/*
 * Pages that the VM has not mapped: where the file has a hole as well, the guest
 * has given the memory back (balloon).  Such a page is not written as the kernel
 * sees it; it goes out as a zero if the destination holds anything for it.
 */
static int find_discarded(struct lm_session *s, unsigned region, struct lm_error *err)
{
	struct lm_source *src = &s->src;
	struct lm_bitmap *absent = &src->absent.maps[region], *holes = &src->holes.maps[region];
	const struct lm_bitmap *filled = &src->copier.filled.maps[region], *dirty = &src->dirty.maps[region];
	uint64_t pos = 0, first, n;

	for (uint64_t i = 0; i < lm_bitmap_nwords(absent->nbits); i++)
		absent->words[i] &= filled->words[i] | dirty->words[i];
	while ((n = lm_bitmap_next_run(absent, pos, absent->nbits, &first))) {
		int r = lm_region_existing(&s->ram.regions[region], first, n, &src->lost.maps[region], err);

		if (r)
			return r;
		pos = first + n;
	}
	/* lost is free between jobs: here it holds the pages that exist after all. */
	for (uint64_t i = 0; i < lm_bitmap_nwords(absent->nbits); i++) {
		holes->words[i] = absent->words[i] & ~src->lost.maps[region].words[i];
		src->dirty.maps[region].words[i] |= holes->words[i];
	}
	lm_bitmap_clear_all(&src->lost.maps[region]);
	return 0;
}

/* Adds to dirty what was written (and discarded) since the scan before. */
static int scan_dirty(struct lm_session *s, struct lm_round *round, struct lm_error *err)
{
	struct lm_source *src = &s->src;
	int64_t begin = lm_now_ns(), since = begin - src->last_scan_ns;
	int r;

	if (s->ram.may_discard)
		lm_pageset_clear_all(&src->absent);
	r = scan_all(s, err);
	for (unsigned i = 0; !r && s->ram.may_discard && !lm_broken("discard") && i < s->ram.nregions; i++)
		r = find_discarded(s, i, err);
	if (r)
		return r;
	src->last_scan_ns = begin;
	round->dirty_pages = lm_pageset_count(&src->dirty);
	round->scan_ns = lm_now_ns() - begin;
	round->dirty_pages_per_s = since > 0 ? (uint64_t)((double)round->dirty_pages * 1e9 / (double)since) : 0;
	return 0;
}

/* ---- copy ---- */

static void progress(struct lm_session *s, int64_t now)
{
	struct lm_event e = { .type = LM_EVENT_PROGRESS };
	struct lm_source *src = &s->src;
	struct lm_copy_totals t;
	int64_t since = now - src->last_progress_ns;

	if (since < PROGRESS_NS)
		return;
	lm_copier_totals(&src->copier, &t);
	e.u.progress = (struct lm_progress){
		.round = src->round,
		.total_pages = s->summary.existing_pages,
		.done_pages = t.done_pages - src->round_done0,
		.round_pages = src->round_pages,
		.bytes = t.bytes,
		.bytes_per_s = (uint64_t)((double)(t.bytes - src->last_progress_bytes) * 1e9 / (double)since),
	};
	src->last_progress_ns = now;
	src->last_progress_bytes = t.bytes;
	lm_session_event(s, &e);
}

/* By a person, or by the clock: neither waits for the end of a round. */
static bool postcopy_asked(const struct lm_session *s, int64_t now_ns)
{
	return atomic_load_explicit(&s->postcopy_asked, memory_order_relaxed) ||
	       (s->opt.postcopy_after_ns && now_ns - s->started_ns >= s->opt.postcopy_after_ns);
}

static void switch_early(struct lm_session *s)
{
	struct lm_source *src = &s->src;

	if (s->pull.allowed) {
		if (src->may_stop)
			lm_copier_interrupt(&src->copier);
	} else if (!src->denied) {
		src->denied = true;
		lm_session_log(s, LM_LOG_WARN, "post-copy was asked for, but %s: going on without it",
			       s->opt.postcopy == LM_POSTCOPY_NEVER ? "it is not allowed here" : s->opt.verify ?
			       "--verify excludes it" : "the destination does not allow it, or cannot do it");
	}
}

static int64_t silence_ns(const struct lm_session *s)
{
	return s->opt.peer_timeout_ns + (s->src.pause_begun ? 0 : s->patience_ns);
}

/* What has to be looked at while lanes work: the peer, the user, the clock, the VM. */
static int tick(struct lm_session *s, bool vm_exited, struct lm_error *err)
{
	struct lm_source *src = &s->src;
	int64_t now = lm_now_ns();
	struct lm_msg msg;
	int r = lm_session_check_cancel(s, err);

	if (!r)
		r = lm_control_try_recv(&s->control, &msg, err);
	if (r > 0)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination sent %s while copying",
			      lm_msg_name(msg.type));
	if (!r && vm_exited)
		r = lm_err(err, -ESRCH, LM_SCOPE_VM, "the guest's QEMU has exited");
	/* Only a peer that was asked owes an answer: a drain may keep us from asking for long. */
	if (!r && src->asked_ns > s->control.last_heard_ns && now - src->asked_ns > silence_ns(s))
		r = lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the destination has not answered for %.1f s",
			   (double)silence_ns(s) / 1e9);
	if (postcopy_asked(s, now))
		switch_early(s);
	if (!r && !src->pause_begun && now > src->deadline_ns)
		r = lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "not ready to switch over within --timeout");
	if (!r && src->pause_begun && now > src->deadline_ns)
		r = lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the guest would be paused for longer than --max-pause");
	if (!r && now - src->last_ping_ns > PING_NS) {
		src->last_ping_ns = now;
		if (src->asked_ns <= s->control.last_heard_ns)
			src->asked_ns = now;
		r = lm_control_ping(&s->control, lm_session_peer_deadline(s), err);
	}
	progress(s, now);
	return r;
}

int lm_precopy_tick(struct lm_session *s, struct lm_error *err)
{
	return tick(s, false, err);
}

/* ---- a look at what was written, while a round is copied ---- */

static bool look_is_due(struct lm_session *s, int64_t now)
{
	struct lm_source *src = &s->src;

	if (!src->may_stop || !s->pull.allowed || now < src->next_look_ns)
		return false;
	/* Looking costs a scan, and what was written is protected anew: it stays a small part of the round. */
	src->next_look_ns = now + LOOK_NS + (now - src->round_began_ns) / LOOK_SHARE;
	return true;
}

/*
 * What it finds is dirty at the round's end all the same: scanned early, and drained and
 * copied after that, as everything else.  This thread alone: the others copy.
 */
static int look(struct lm_session *s, struct lm_error *err)
{
	struct lm_source *src = &s->src;
	int64_t begin = lm_now_ns();
	struct lm_copy_totals t;

	for (unsigned i = 0; i < s->ram.nregions; i++) {
		uint64_t npages = lm_region_npages(&s->ram.regions[i]);
		int r = lm_dirty_collect(src->tracker, i, 0, npages, &src->dirty.maps[i], NULL, err);

		if (r)
			return r;
	}
	lm_copier_totals(&src->copier, &t);
	src->converge.can_postcopy = true;
	if (lm_converge_hopeless(&src->converge, lm_pageset_count(&src->dirty), src->round_pages,
				 t.done_pages - src->round_done0, begin - src->round_began_ns))
		lm_copier_interrupt(&src->copier);
	return 0;
}

static int wait_job(struct lm_session *s, struct lm_error *err)
{
	struct pollfd p[5] = {
		{ .fd = lm_pool_done_fd(s->pool), .events = POLLIN },
		{ .fd = lm_control_fd(&s->control), .events = POLLIN },
		{ .fd = s->cancel_fd, .events = POLLIN },
		{ .fd = s->vm->pidfd, .events = POLLIN },
	};

	for (;;) {
		int r;

		p[4] = (struct pollfd){ .fd = lm_lanes_fd(s), .events = POLLIN };
		if (poll(p, 5, 100) < 0 && errno != EINTR)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "poll");
		if (p[0].revents)
			return 0;
		r = tick(s, p[3].revents != 0, err);
		if (!r)
			r = lm_lanes_tick(s, err);
		if (!r && look_is_due(s, lm_now_ns()))
			r = look(s, err);
		if (r)
			return r;
	}
}

/* No lane is left, err says why: until one is back, the time is out, or something else ends the wait. */
static int await_lane(struct lm_session *s, struct lm_error *err)
{
	int64_t until = lm_lanes_wait_until(s);
	struct lm_error why = *err;
	struct pollfd p[4] = {
		{ .fd = lm_control_fd(&s->control), .events = POLLIN },
		{ .fd = s->cancel_fd, .events = POLLIN },
		{ .fd = s->vm->pidfd, .events = POLLIN },
	};

	if (!until)
		return why.code;
	if (lm_now_ns() < until)
		lm_session_log(s, LM_LOG_WARN, "no lane is left: waiting for one for at most %.1f s",
			       (double)(until - lm_now_ns()) / 1e9);
	while (!lm_copier_live_lanes(&s->src.copier)) {
		int r;

		p[3] = (struct pollfd){ .fd = lm_lanes_fd(s), .events = POLLIN };
		if (lm_now_ns() >= until) {
			*err = why;
			return lm_err_prefix(err, "none has come back within --recover-timeout");
		}
		if (poll(p, 4, 100) < 0 && errno != EINTR)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "poll");
		r = tick(s, p[2].revents != 0, err);
		if (!r)
			r = lm_lanes_tick(s, err);
		if (r)
			return r;
	}
	return 0;
}

/* One job until its end: 0, 1: lanes have died (redo), or an error. */
static int run_job(struct lm_session *s, uint64_t *ret_dropped, struct lm_error *err)
{
	struct lm_source *src = &s->src;
	int r = wait_job(s, err);

	*ret_dropped = 0;
	if (r)
		return r;
	r = lm_copier_finish(&src->copier, ret_dropped, err);
	if (!r)
		return 0;
	if (!*ret_dropped && r < 0)
		return r;
	/* Nothing of these lanes may land any more before their pages go out on others. */
	r = r > 0 ? lm_lanes_drop(s, *ret_dropped, err) : await_lane(s, err);
	return r ? r : 1;
}

/* Copies src->todo; the set is empty afterwards. */
static int copy_todo(struct lm_session *s, struct lm_error *err)
{
	struct lm_source *src = &s->src;
	uint64_t dropped = 0;
	int r;

	lm_copier_start(&src->copier, &src->todo, &src->holes);
	while ((r = run_job(s, &dropped, err)) > 0)
		lm_copier_redo(&src->copier, dropped, &src->lost);
	if (!r)
		r = lm_lanes_settle(s, err);
	if (r) {
		lm_lanes_stop(s);
		lm_copier_stop(&src->copier);
		lm_copier_finish(&src->copier, &dropped, NULL);
		return r;
	}
	/* Interrupted: what was not copied is dirty as before. */
	if (atomic_load(&src->copier.enough))
		lm_copier_rest(&src->copier, &src->dirty);
	lm_pageset_clear_all(&src->todo);
	lm_pageset_clear_all(&src->lost);
	return r;
}

static void round_account(struct lm_session *s, struct lm_round *round, const struct lm_copy_totals *before)
{
	struct lm_copy_totals t;

	lm_copier_totals(&s->src.copier, &t);
	round->sent_pages = t.sent_pages - before->sent_pages;
	round->zero_pages = t.zero_pages - before->zero_pages;
	round->skipped_pages = t.skipped_pages - before->skipped_pages;
	round->bytes = t.bytes - before->bytes;
	if (round->copy_ns > 0)
		round->bytes_per_s = (uint64_t)((double)round->bytes * 1e9 / (double)round->copy_ns);
	s->summary.sent_pages = t.sent_pages;
	s->summary.zero_pages = t.zero_pages;
	s->summary.skipped_pages = t.skipped_pages;
	s->summary.bytes = t.bytes;
	s->summary.copying_ns += round->copy_ns;
	s->summary.rounds = round->round + 1;
}

/* Drain and copy what is in dirty.  may_stop: what is not copied is looked at again before the guest stops. */
static int round_copy(struct lm_session *s, struct lm_round *round, bool drain, bool may_stop, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_ROUND };
	struct lm_source *src = &s->src;
	struct lm_pageset t = src->todo;
	struct lm_copy_totals before;
	int64_t begin = lm_now_ns();
	int r = 0;

	src->todo = src->dirty;
	src->dirty = t;
	if (drain) {
		r = lm_vm_drain(s->vm, lm_session_vm_deadline(s), err);
		round->drain_ns = lm_now_ns() - begin;
	}
	if (r)
		return r;
	lm_copier_totals(&src->copier, &before);
	src->round = round->round;
	src->round_pages = round->dirty_pages;
	src->round_done0 = before.done_pages;
	begin = lm_now_ns();
	src->may_stop = may_stop;
	src->round_began_ns = begin;
	src->next_look_ns = begin + LOOK_NS;
	r = copy_todo(s, err);
	src->may_stop = false;
	round->copy_ns = lm_now_ns() - begin;
	if (r)
		return r;
	round_account(s, round, &before);
	lm_converge_round(&src->converge, round);
	e.u.round = *round;
	lm_session_event(s, &e);
	return 0;
}

/* ---- the stages ---- */

static int sets_init(struct lm_session *s)
{
	struct lm_pageset *sets[] = { &s->src.dirty, &s->src.absent, &s->src.holes, &s->src.todo, &s->src.lost };

	for (unsigned i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		if (lm_pageset_init(sets[i], &s->ram))
			return -ENOMEM;
	return 0;
}

int lm_precopy_arm(struct lm_session *s, struct lm_error *err)
{
	struct lm_source *src = &s->src;
	int r = sets_init(s);

	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "out of memory for the dirty bitmaps");
	lm_converge_init(&src->converge, &s->opt);
	r = lm_vm_tracker(s->vm, &s->ram, &src->tracker, err);
	if (!r)
		r = lm_dirty_start(src->tracker, err);
	src->last_scan_ns = lm_now_ns();
	return r;
}

/*
 * Round 0: all that exists here, and all that the destination has where nothing is
 * here (a file that was used before): that must become zero.
 */
static int first_set(struct lm_session *s, struct lm_error *err)
{
	struct lm_source *src = &s->src;

	for (unsigned i = 0; i < s->ram.nregions; i++) {
		struct lm_bitmap *dirty = &src->dirty.maps[i], *holes = &src->holes.maps[i];
		const struct lm_bitmap *filled = &src->copier.filled.maps[i];
		int r = lm_region_existing(&s->ram.regions[i], 0, dirty->nbits, dirty, err);

		if (r)
			return r;
		s->summary.existing_pages += lm_bitmap_count(dirty);
		for (uint64_t w = 0; w < lm_bitmap_nwords(dirty->nbits); w++) {
			holes->words[w] = filled->words[w] & ~dirty->words[w];
			dirty->words[w] |= filled->words[w];
		}
	}
	return 0;
}

int lm_precopy_first(struct lm_session *s, struct lm_error *err)
{
	struct lm_round round = { 0 };
	int64_t begin = lm_now_ns(), drained;
	/*
	 * Here the drain comes first.  Arming was the scan; what was in flight then must
	 * have landed before we look, because where existence is a matter of content
	 * (hugetlbfs) a page that waits for its data looks like a hole.
	 */
	int r = lm_vm_drain(s->vm, lm_session_vm_deadline(s), err);

	drained = lm_now_ns();
	round.drain_ns = drained - begin;
	if (!r)
		r = first_set(s, err);
	round.scan_ns = lm_now_ns() - drained;
	round.dirty_pages = lm_pageset_count(&s->src.dirty);
	/*
	 * All of it stays behind: then these pages are not called holes.  What was one when we looked
	 * may be written before the next scan, which would not tell.
	 */
	if (!r && s->opt.postcopy != LM_POSTCOPY_NOW)
		r = round_copy(s, &round, false, true, err);
	lm_pageset_clear_all(&s->src.holes);
	return r;
}

static bool postcopy_due(const struct lm_session *s, unsigned round)
{
	const struct lm_options *o = &s->opt;

	return o->postcopy == LM_POSTCOPY_NOW || postcopy_asked(s, lm_now_ns()) ||
	       (o->postcopy_after_rounds && round >= o->postcopy_after_rounds);
}

static int decide(struct lm_session *s, const struct lm_round *round, struct lm_decision *d, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_DECISION };

	s->src.converge.can_postcopy = s->pull.allowed;
	s->src.converge.postcopy_now = postcopy_due(s, round->round);
	lm_converge_decide(&s->src.converge, round->round, round->dirty_pages, round->scan_ns,
			   s->control.rtt_ns, d);
	e.u.decision = *d;
	lm_session_event(s, &e);
	s->src.postcopy = d->kind == LM_DECIDE_POSTCOPY;
	if (d->kind != LM_DECIDE_ABORT)
		return 0;
	s->summary.outcome = LM_OUTCOME_STALLED;
	return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
		      "pre-copy does not converge (%s): allow more with --max-downtime or --max-bandwidth, "
		      "or use --on-stall force", d->reason);
}

int lm_precopy_rounds(struct lm_session *s, struct lm_error *err)
{
	struct lm_decision d = { 0 };

	do {
		struct lm_round round = { .round = s->summary.rounds };
		int r = tick(s, false, err);

		if (!r)
			r = scan_dirty(s, &round, err);
		if (!r)
			r = decide(s, &round, &d, err);
		/* What is left behind is read when the guest has stopped and its I/O has landed: no drain. */
		if (!r && d.kind != LM_DECIDE_POSTCOPY)
			r = round_copy(s, &round, true, d.kind == LM_DECIDE_CONTINUE, err);
		if (!r)
			r = lm_session_stage(s, "precopy", err);
		if (r)
			return r;
	} while (d.kind == LM_DECIDE_CONTINUE);
	return lm_session_be_patient(s, false, err);
}

int lm_precopy_last(struct lm_session *s, struct lm_error *err)
{
	struct lm_round round = { .round = s->summary.rounds };
	int64_t begin;
	int r = scan_dirty(s, &round, err);

	s->summary.blackout.last_scan_ns = round.scan_ns;
	s->summary.blackout.last_pages = round.dirty_pages;
	if (!r)
		r = lm_session_stage(s, "last-copy", err);
	if (s->pull.armed) {
		begin = lm_now_ns();
		r = r ? r : lm_postcopy_leave(s, true, &s->summary.postcopy.left_pages, err);
		s->summary.blackout.last_copy_ns = lm_now_ns() - begin;
		s->summary.blackout.last_pages = 0;
		return r;
	}
	if (!r)
		r = round_copy(s, &round, false, false, err); /* stopped and drained already */
	s->summary.blackout.last_copy_ns = round.copy_ns;
	return r;
}
