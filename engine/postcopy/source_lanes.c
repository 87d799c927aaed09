/* SPDX-License-Identifier: Apache-2.0 */
/* Lanes that come back in post-copy, as the source sees it: dest_lanes.c says how. */
#include "both.h"
#include "engine/base/clock.h"

int lm_postcopy_source_lanes_init(struct lm_postcopy_source *p, const struct lm_transport_params *params,
				  struct lm_error *err)
{
	return p->both.transport->ops->reopen ? lm_comeback_init(&p->both.comeback, params, err) : 0;
}

static void end_there(struct lm_postcopy_source *p)
{
	struct lm_comeback *c = &p->both.comeback;
	unsigned lane;

	if (lm_comeback_end(c, &lane)) {
		lm_ctx_log(p->both.c, LM_LOG_DEBUG, "post-copy: lane %u is not back yet: %s", lane, c->error.msg);
		return;
	}
	lm_err_clear(&p->lane_errors[lane]);
	atomic_fetch_and(&p->failed, ~(UINT64_C(1) << lane));
	atomic_fetch_sub(&p->ended, 1);
	lm_pool_restart_worker(p->pool, lane);
	lm_postcopy_tell_back(&p->both, lane);
}

static const char *lost_there(const struct lm_postcopy_both *p, unsigned lane)
{
	(void)p;
	(void)lane;
	return "the destination has lost it";
}

/* The destination has given up any earlier attempt, even if it is still under way here. */
int lm_postcopy_lane_open(struct lm_postcopy_source *p, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_comeback *c = &p->both.comeback;
	uint8_t token[LM_TOKEN_SIZE];
	unsigned lane;
	int r = lm_wire_get_lane_open(msg->payload, msg->len, p->both.nlanes + 1, &lane, token, err);

	if (!r && !c->can)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN, which this transport cannot");
	if (r)
		return r;
	if (lm_comeback_fd(c) >= 0) {
		lm_comeback_cancel(c);
		end_there(p);
	}
	lm_postcopy_tell_lanes(&p->both, UINT64_C(1) << lane, lost_there);
	lm_transport_shut(p->both.transport, lane);
	lm_pool_wait_worker(p->pool, lane);
	return lm_comeback_begin(c, p->both.transport, lane, token, lm_deadline_after(LM_LANE_ATTEMPT_NS), err);
}

void lm_postcopy_source_lanes_tick(struct lm_postcopy_source *p)
{
	if (lm_comeback_over(&p->both.comeback))
		end_there(p);
}
