/* SPDX-License-Identifier: Apache-2.0 */
/* Pre-copy: what the session's thread looks at while lanes work: the user, the peer, the VM, the clock. */
#include "engine/base/clock.h"
#include "precopy.h"

#define PROGRESS_NS (200 * LM_NS_PER_MS)
#define PING_NS     (1 * LM_NS_PER_S)

static void progress(struct lm_precopy *p, int64_t now)
{
	struct lm_event e = { .type = LM_EVENT_PROGRESS };
	int64_t since = now - p->last_progress_ns;
	struct lm_copy_totals t;

	if (since < PROGRESS_NS)
		return;
	lm_copier_totals(&p->copier, &t);
	e.u.progress = (struct lm_progress){
		.round = p->round,
		.total_pages = p->c->summary.existing_pages,
		.done_pages = t.done_pages - p->round_done0,
		.round_pages = p->round_pages,
		.bytes = t.bytes,
		.bytes_per_s = (uint64_t)((double)(t.bytes - p->last_progress_bytes) * 1e9 / (double)since),
	};
	p->last_progress_ns = now;
	p->last_progress_bytes = t.bytes;
	lm_ctx_event(p->c, &e);
}

bool lm_precopy_postcopy_asked(const struct lm_precopy *p, int64_t now_ns)
{
	return atomic_load_explicit(&p->postcopy_asked, memory_order_relaxed) ||
	       (p->c->opt.postcopy_after_ns && now_ns - p->c->started_ns >= p->c->opt.postcopy_after_ns);
}

/* The user, or a time limit, asks for post-copy: that does not wait for the end of the round. */
static void switch_early(struct lm_precopy *p)
{
	if (p->postcopy_allowed) {
		if (p->may_interrupt)
			lm_copier_interrupt(&p->copier);
	} else if (!p->denied) {
		p->denied = true;
		lm_ctx_log(p->c, LM_LOG_WARN, "post-copy was asked for, but %s: going on without it",
			   p->c->opt.postcopy == LM_POSTCOPY_NEVER ? "it is not allowed here" : p->c->opt.verify ?
			   "--verify excludes it" : "the destination does not allow it, or cannot do it");
	}
}

/* While the guest runs here the network may be away for longer than a peer may be silent. */
static int64_t silence_ns(const struct lm_precopy *p)
{
	return p->c->opt.peer_timeout_ns + (p->c->pause_begun ? 0 : p->c->outage_ns);
}

static int hear_peer(struct lm_precopy *p, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_control_try_recv(&p->c->control, &msg, err);

	if (r > 0)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination sent %s while copying",
			      lm_msg_name(msg.type));
	return r;
}

/* Only a peer that was pinged owes an answer, and a drain may keep this side from pinging for long. */
static int check_silence(const struct lm_precopy *p, int64_t now, struct lm_error *err)
{
	if (p->asked_ns <= p->c->control.last_heard_ns || now - p->asked_ns <= silence_ns(p))
		return 0;
	return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the destination has not answered for %.1f s",
		      (double)silence_ns(p) / 1e9);
}

static int check_deadline(const struct lm_precopy *p, int64_t now, struct lm_error *err)
{
	if (now <= p->c->deadline_ns)
		return 0;
	return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "%s", p->c->pause_begun ?
		      "the guest would be paused for longer than --max-pause" : "not ready to switch over within --timeout");
}

static int ping(struct lm_precopy *p, int64_t now, struct lm_error *err)
{
	if (now - p->last_ping_ns <= PING_NS)
		return 0;
	p->last_ping_ns = now;
	if (p->asked_ns <= p->c->control.last_heard_ns)
		p->asked_ns = now;
	return lm_control_ping(&p->c->control, lm_ctx_peer_deadline(p->c), err);
}

int lm_precopy_check(struct lm_precopy *p, bool vm_exited, struct lm_error *err)
{
	int64_t now = lm_now_ns();
	int r = lm_ctx_check_cancel(p->c, err);

	if (!r)
		r = hear_peer(p, err);
	if (!r && vm_exited)
		r = lm_err(err, -ESRCH, LM_SCOPE_VM, "the guest's QEMU has exited");
	if (!r)
		r = check_silence(p, now, err);
	if (lm_precopy_postcopy_asked(p, now))
		switch_early(p);
	if (!r)
		r = check_deadline(p, now, err);
	if (!r)
		r = ping(p, now, err);
	progress(p, now);
	return r;
}

int lm_precopy_tick(struct lm_precopy *p, struct lm_error *err)
{
	return lm_precopy_check(p, false, err);
}
