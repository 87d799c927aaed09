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
#include "both.h"
#include "engine/base/clock.h"
#include "engine/context/lanes.h"

int lm_postcopy_dest_lanes_init(struct lm_postcopy_dest *p, const struct lm_transport_params *params, struct lm_error *err)
{
	p->gone = 0;
	if (!p->both.transport->ops->reopen || !(p->both.c->control.features & LM_HELLO_LANES))
		return 0;
	return lm_comeback_init(&p->both.comeback, params, err);
}

static void end_here(struct lm_postcopy_dest *p)
{
	struct lm_comeback *c = &p->both.comeback;
	unsigned lane;

	if (lm_comeback_end(c, &lane)) {
		lm_ctx_log(p->both.c, LM_LOG_DEBUG, "post-copy: lane %u is not back yet: %s", lane, c->error.msg);
		lm_comeback_failed(c, lane, LM_LANE_RETRY_MAX_NS);
		return;
	}
	p->gone &= ~(UINT64_C(1) << lane);
	lm_puller_lane_back(&p->puller, lane);
	lm_postcopy_tell_back(&p->both, lane);
}

static int ask_for(struct lm_postcopy_dest *p, unsigned lane, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int64_t wait_ns = lm_deadline_min(LM_LANE_ACCEPT_NS, 2 * c->opt.peer_timeout_ns);
	uint8_t token[LM_TOKEN_SIZE];
	int r = lm_ctx_send_lane_open(c, lane, token, err);

	if (r)
		return r;
	lm_puller_lane_wait(&p->puller, lane);
	return lm_comeback_begin(&p->both.comeback, p->both.transport, lane, token, lm_deadline_after(wait_ns), err);
}

int lm_postcopy_dest_lanes_tick(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_comeback *c = &p->both.comeback;
	uint64_t fresh;
	int lane;

	if (!c->can)
		return 0;
	if (lm_comeback_over(c))
		end_here(p);
	fresh = atomic_load(&p->puller.failed) & ~p->gone;
	for (unsigned i = 0; i <= p->both.nlanes; i++)
		if (fresh >> i & 1)
			lm_comeback_failed(c, i, LM_LANE_RETRY_MAX_NS);
	p->gone |= fresh;
	lane = lm_comeback_next(c, p->gone);
	return lane < 0 ? 0 : ask_for(p, (unsigned)lane, err);
}

/* A lane that comes back at this moment is not used, because all are closed next. */
void lm_postcopy_dest_lanes_settle(struct lm_postcopy_dest *p)
{
	struct lm_comeback *c = &p->both.comeback;
	unsigned unused;

	if (lm_comeback_fd(c) < 0)
		return;
	lm_comeback_cancel(c);
	lm_comeback_end(c, &unused);
}
