/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy as the source sees it, after COMMIT: it answers, and looks for a destination that is lost. */
#include <poll.h>
#include "engine/base/clock.h"
#include "engine/context/connect.h"
#include "both.h"

/*
 * The destination gets no other messages from us, so ping often enough for a short --peer-timeout; the
 * destination's is most likely the same.
 */
#define PING_NS (1 * LM_NS_PER_S)
#define PINGS_PER_TIMEOUT 4
#define TRY_AGAIN_NS (200 * LM_NS_PER_MS)
/* The last word (WHOLE) may be on its way when the lanes close. */
#define LAST_WORD_NS (2 * LM_NS_PER_S)

static void account(struct lm_postcopy_source *p, const struct lm_postcopy_stats *stats)
{
	struct lm_ctx *c = p->both.c;
	unsigned recoveries = c->summary.postcopy.recoveries;

	c->summary.postcopy = *stats;
	c->summary.postcopy.recoveries = recoveries;
	lm_postcopy_event(&p->both, &c->summary.postcopy);
}

static const char *lane_error(const struct lm_postcopy_both *both, unsigned lane)
{
	return ((const struct lm_postcopy_source *)both)->lane_errors[lane].msg; /* both is its first member */
}

/* 1: the destination has everything. */
static int handle(struct lm_postcopy_source *p, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_postcopy_stats stats;
	int r;

	switch (msg->type) {
	case LM_MSG_MISSING:
		r = lm_wire_get_missing(msg->payload, msg->len, &stats, err);
		if (r)
			return r;
		account(p, &stats);
		/* While pages are missing the destination closes no lane, so a lane that ended has failed. */
		if (stats.missing_pages)
			lm_postcopy_tell_lanes(&p->both, atomic_load(&p->failed), lane_error);
		return 0;
	case LM_MSG_LANE_OPEN:
		return lm_postcopy_lane_open(p, msg, err);
	case LM_MSG_WHOLE:
		return 1;
	case LM_MSG_RESUMED: /* of a COMMIT whose answer was waited for no longer */
		return 0;
	default:
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination sent %s in post-copy",
			      lm_msg_name(msg->type));
	}
}

static int tick(struct lm_postcopy_source *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int64_t now = lm_now_ns(), every = c->opt.peer_timeout_ns / PINGS_PER_TIMEOUT;

	if (now - c->control.last_heard_ns > c->opt.peer_timeout_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the destination has not answered for %.1f s",
			      (double)c->opt.peer_timeout_ns / 1e9);
	if (now - p->last_ping_ns < (every < PING_NS ? every : PING_NS))
		return 0;
	p->last_ping_ns = now;
	return lm_control_ping(&c->control, lm_ctx_peer_deadline(c), err);
}

/* 1: the destination has everything; an error: it is lost. */
static int answer(struct lm_postcopy_source *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int64_t closing = 0;

	for (;;) {
		struct pollfd fds[2] = { { .fd = lm_control_fd(&c->control), .events = POLLIN },
				       { .fd = lm_comeback_fd(&p->both.comeback), .events = POLLIN } };
		struct lm_msg msg;
		int r;

		poll(fds, 2, 100);
		lm_postcopy_source_lanes_tick(p);
		r = lm_control_try_recv(&c->control, &msg, err);
		if (r > 0)
			r = handle(p, &msg, err);
		if (!r)
			r = tick(p, err);
		if (r)
			return r;
		/* While one lane is left the destination goes on; it knows better than this side which lanes work. */
		if (atomic_load(&p->ended) <= p->both.nlanes) {
			closing = 0;
			continue;
		}
		if (!closing)
			closing = lm_now_ns();
		if (lm_now_ns() - closing > LAST_WORD_NS)
			return lm_err(err, -ECONNRESET, LM_SCOPE_SESSION, "no lane is left");
	}
}

static int recover_once(struct lm_postcopy_source *p, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_wire_recover recover;
	struct lm_msg msg;
	int r = lm_ctx_connect(c, deadline_ns, err);

	memcpy(recover.secret, p->both.secret, sizeof(recover.secret));
	if (!r)
		r = lm_control_send(&c->control, LM_MSG_RECOVER, &recover, sizeof(recover),
				    lm_ctx_peer_deadline(c), err);
	if (!r)
		r = lm_control_recv(&c->control, &msg, lm_ctx_peer_deadline(c), err);
	if (!r && msg.type == LM_MSG_WHOLE) {
		p->whole = true;
		return 0;
	}
	if (!r && msg.type != LM_MSG_POSTCOPY_OPENED)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent %s where POSTCOPY_OPENED was due",
			   lm_msg_name(msg.type));
	return r ? r : lm_postcopy_source_open_lanes(p, &msg, err);
}

static void disconnect(struct lm_postcopy_source *p)
{
	lm_postcopy_source_close_lanes(p);
	lm_control_close(&p->both.c->control);
}

/* Look for the destination until --recover-timeout. */
static int recover(struct lm_postcopy_source *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int64_t deadline = lm_deadline_after(c->opt.recover_timeout_ns);
	struct timespec nap = { 0, TRY_AGAIN_NS };
	struct lm_error e = *err;

	lm_ctx_log(c, LM_LOG_WARN, "post-copy: the destination is lost (%s); trying to reach it", e.msg);
	if (c->opt.recover_timeout_ns <= 0)
		deadline = lm_now_ns();
	do {
		disconnect(p);
		if (lm_ctx_check_cancel(c, &e))
			break;
		if (!recover_once(p, lm_deadline_min(deadline, lm_deadline_after(LM_CONNECT_TIMEOUT_NS)), &e)) {
			c->summary.postcopy.recoveries++;
			p->both.state.head->committed = LM_PC_ANSWERED;
			p->last_ping_ns = lm_now_ns();
			c->control.cancel_fd = -1; /* there is no way back */
			lm_ctx_log(c, LM_LOG_INFO, "post-copy: the destination is back");
			return lm_ctx_stage(c, "recovered", err);
		}
		nanosleep(&nap, NULL);
	} while (lm_now_ns() < deadline);
	disconnect(p);
	c->summary.outcome = LM_OUTCOME_INTERRUPTED;
	return lm_err(err, -ENOTCONN, LM_SCOPE_SESSION,
		      "post-copy is interrupted: the destination cannot be reached (%.200s). The guest runs there and needs pages "
		      "of this host. Do not end the QEMU here; go on with `migrate-rdma recover` on both hosts", e.msg);
}

int lm_postcopy_find(struct lm_postcopy_source *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int r;

	p->both.began_ns = lm_now_ns();
	lm_ctx_forget_cancel(c);
	r = recover(p, err);
	if (r)
		c->summary.outcome = LM_OUTCOME_NONE; /* the caller knows what it means */
	return r;
}

int lm_postcopy_serve(struct lm_postcopy_source *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_error e = { 0 };
	int r = lm_ctx_stage(c, "postcopy", &e);

	c->summary.postcopy.used = true;
	/* Where we recover, COMMIT may not have been answered: the destination coming back is the answer. */
	if (!c->recovering)
		p->both.state.head->committed = LM_PC_ANSWERED;
	p->last_ping_ns = lm_now_ns();
	if (c->recovering)
		r = lm_err(&e, -ENOTCONN, LM_SCOPE_SESSION, "its engine or ours ended");
	while (r <= 0) {
		if (r) {
			r = recover(p, &e);
			if (r) {
				*err = e;
				return r;
			}
		}
		c->control.cancel_fd = -1; /* there is no way back */
		r = p->whole ? 1 : answer(p, &e);
		lm_ctx_forget_cancel(c);
	}
	lm_control_send(&c->control, LM_MSG_WHOLE, NULL, 0, lm_deadline_after(LM_ABORT_TIMEOUT_NS), NULL);
	lm_postcopy_source_close_lanes(p);
	c->summary.postcopy.missing_pages = 0;
	lm_pcstate_remove(&p->both.state);
	return lm_ctx_stage(c, "whole", err);
}
