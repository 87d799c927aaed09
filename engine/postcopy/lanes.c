/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes that come back in post-copy, while the others go on.
 *
 * The destination asks for it, because only it is sure to notice: over RDMA the source's
 * part of a lane has nothing to do, and so nothing to fail with.  LANE_OPEN says which lane, and what
 * it will show; the source ends what it still has of that lane and connects it, and the destination waits for
 * it.  There is no answer: the lane stands at either side, or it does not, and is tried again later.
 * What the lane had been fetching was given back when it failed, behind the fence (puller.c), and its
 * source only reads memory that does not change, so nothing has to be agreed before.
 */
#include "engine/session/session.h"

int lm_postcopy_lanes_init(struct lm_session *s, const struct lm_transport_params *p, struct lm_error *err)
{
	s->pull.gone = 0;
	if (!s->pull.transport->ops->reopen || (s->side == LM_DEST && !(s->control.features & LM_HELLO_LANES)))
		return 0;
	return lm_comeback_init(&s->pull.comeback, p, err);
}

/* ---- destination ---- */

static void end_here(struct lm_session *s)
{
	struct lm_comeback *c = &s->pull.comeback;
	unsigned lane;

	if (lm_comeback_end(c, &lane)) {
		lm_session_log(s, LM_LOG_DEBUG, "post-copy: lane %u is not back yet: %s", lane, c->error.msg);
		lm_comeback_failed(c, lane, LM_LANE_RETRY_MAX_NS);
		return;
	}
	s->pull.gone &= ~(UINT64_C(1) << lane);
	lm_puller_lane_back(&s->pull.puller, lane);
	lm_postcopy_tell_back(s, lane);
}

static int ask_for(struct lm_session *s, unsigned lane, struct lm_error *err)
{
	int64_t wait_ns = lm_deadline_min(LM_LANE_ACCEPT_NS, 2 * s->opt.peer_timeout_ns);
	uint8_t token[LM_TOKEN_SIZE];
	int r = lm_lanes_send_open(s, lane, token, err);

	if (r)
		return r;
	lm_puller_lane_wait(&s->pull.puller, lane);
	return lm_comeback_begin(&s->pull.comeback, s->pull.transport, lane, token, lm_deadline_after(wait_ns), err);
}

int lm_postcopy_lanes_tick(struct lm_session *s, struct lm_error *err)
{
	struct lm_comeback *c = &s->pull.comeback;
	uint64_t fresh;
	int lane;

	if (!c->can)
		return 0;
	if (lm_comeback_over(c))
		end_here(s);
	fresh = atomic_load(&s->pull.puller.failed) & ~s->pull.gone;
	for (unsigned i = 0; i <= s->pull.nlanes; i++)
		if (fresh >> i & 1)
			lm_comeback_failed(c, i, LM_LANE_RETRY_MAX_NS);
	s->pull.gone |= fresh;
	lane = lm_comeback_next(c, s->pull.gone);
	return lane < 0 ? 0 : ask_for(s, (unsigned)lane, err);
}

/* A lane that has come back just now is not used: all are closed next. */
void lm_postcopy_lanes_settle(struct lm_session *s)
{
	struct lm_comeback *c = &s->pull.comeback;
	unsigned unused;

	if (lm_comeback_fd(c) < 0)
		return;
	lm_comeback_cancel(c);
	lm_comeback_end(c, &unused);
}

/* ---- source ---- */

static void end_there(struct lm_session *s)
{
	struct lm_comeback *c = &s->pull.comeback;
	unsigned lane;

	if (lm_comeback_end(c, &lane)) {
		lm_session_log(s, LM_LOG_DEBUG, "post-copy: lane %u is not back yet: %s", lane, c->error.msg);
		return;
	}
	lm_err_clear(&s->pull.lane_errors[lane]);
	atomic_fetch_and(&s->pull.failed, ~(UINT64_C(1) << lane));
	atomic_fetch_sub(&s->pull.ended, 1);
	lm_pool_restart_worker(s->pull.pool, lane);
	lm_postcopy_tell_back(s, lane);
}

static const char *lost_there(const struct lm_session *s, unsigned lane)
{
	(void)s;
	(void)lane;
	return "the destination has lost it";
}

/* An attempt before this one the destination has given up, whatever we think of it. */
int lm_postcopy_lane_open(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_comeback *c = &s->pull.comeback;
	uint8_t token[LM_TOKEN_SIZE];
	unsigned lane;
	int r = lm_wire_get_lane_open(msg->payload, msg->len, s->pull.nlanes + 1, &lane, token, err);

	if (!r && !c->can)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN, which this transport cannot");
	if (r)
		return r;
	if (lm_comeback_fd(c) >= 0) {
		lm_comeback_cancel(c);
		end_there(s);
	}
	lm_postcopy_tell_lanes(s, UINT64_C(1) << lane, lost_there);
	lm_transport_shut(s->pull.transport, lane);
	lm_pool_wait_worker(s->pull.pool, lane);
	return lm_comeback_begin(c, s->pull.transport, lane, token, lm_deadline_after(LM_LANE_ATTEMPT_NS), err);
}

void lm_postcopy_lanes_look(struct lm_session *s)
{
	if (lm_comeback_over(&s->pull.comeback))
		end_there(s);
}
