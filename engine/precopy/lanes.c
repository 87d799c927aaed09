/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "engine/base/clock.h"
#include "engine/base/testhook.h"
#include "engine/context/lanes.h"
#include "precopy.h"

static void lane_event(struct lm_precopy *p, unsigned lane, bool back, const char *why)
{
	struct lm_event e = { .type = LM_EVENT_LANE };

	e.u.lane.lane = lane;
	e.u.lane.live = lm_copier_live_lanes(&p->copier);
	e.u.lane.back = back;
	e.u.lane.why = why;
	lm_ctx_event(p->c, &e);
}

/* ---- when ---- */

/* All lanes were lost, and since then none has worked for long enough to count as back. */
static void note_live(struct lm_precopy *p)
{
	struct lm_lanes *l = &p->lanes;
	int64_t now = lm_now_ns();

	if (!lm_copier_live_lanes(&p->copier)) {
		if (!l->none_since_ns)
			l->none_since_ns = now;
		return;
	}
	for (unsigned i = 0; i < p->copier.nlanes; i++)
		if (!atomic_load(&p->copier.lanes[i].dead) && now - l->comeback.lane[i].back_ns > LM_LANE_STEADY_NS)
			l->none_since_ns = 0;
}

int64_t lm_lanes_wait_until(const struct lm_precopy *p)
{
	const struct lm_lanes *l = &p->lanes;

	if (!l->comeback.can || p->c->opt.recover_timeout_ns <= 0)
		return 0;
	return (l->none_since_ns ? l->none_since_ns : lm_now_ns()) + p->c->opt.recover_timeout_ns;
}

static void back_off(struct lm_precopy *p, unsigned lane)
{
	struct lm_lanes *l = &p->lanes;

	lm_comeback_failed(&l->comeback, lane, l->none_since_ns ? LM_LANE_RETRY_NS : LM_LANE_RETRY_MAX_NS);
}

/* ---- dropping ---- */

/* What took the lane may have taken the control channel as well: while the guest runs, that is waited for, too. */
static int64_t answer_deadline(const struct lm_precopy *p)
{
	int64_t more_ns = p->c->pause_begun ? 0 : p->c->outage_ns;

	return lm_deadline_min(lm_ctx_peer_deadline(p->c) + more_ns, p->c->deadline_ns);
}

static int tell_drop(struct lm_precopy *p, unsigned lane, struct lm_error *err)
{
	struct le32 number = lm_le32(lane);
	struct lm_msg msg;
	uint32_t answer;
	int r = lm_control_send(&p->c->control, LM_MSG_LANE_DROP, &number, sizeof(number), lm_ctx_peer_deadline(p->c), err);

	if (!r)
		r = lm_control_expect(&p->c->control, LM_MSG_LANE_DROPPED, &msg, answer_deadline(p), err);
	if (r == -ETIMEDOUT && !lm_copier_live_lanes(&p->copier))
		return lm_err_prefix(err, "no lane is left");
	if (!r)
		r = lm_wire_get_u32(msg.payload, msg.len, "LANE_DROPPED", &answer, err);
	if (!r && answer != lane)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination dropped another lane");
	return r;
}

int lm_lanes_drop(struct lm_precopy *p, uint64_t lanes, struct lm_error *err)
{
	struct lm_lanes *l = &p->lanes;

	note_live(p);
	lanes &= ~l->dropped;
	for (unsigned i = 0; i < p->copier.nlanes; i++) {
		const char *why = p->copier.lanes[i].error.msg;
		int r;

		if (!(lanes >> i & 1))
			continue;
		lm_ctx_log(p->c, LM_LOG_WARN, "lane %u is lost: %s", i, why);
		lane_event(p, i, false, why);
		lm_transport_shut(p->c->transport, i);
		lm_pool_wait_worker(p->c->pool, i);
		r = tell_drop(p, i, err);
		if (r)
			return r;
		l->dropped |= UINT64_C(1) << i;
		back_off(p, i);
	}
	return 0;
}

static uint64_t dead_lanes(const struct lm_precopy *p)
{
	uint64_t dead = 0;

	for (unsigned i = 0; i < p->copier.nlanes; i++)
		if (atomic_load(&p->copier.lanes[i].dead))
			dead |= UINT64_C(1) << i;
	return dead;
}

/* ---- an attempt ---- */

static int attempt_begin(struct lm_precopy *p, unsigned lane, struct lm_error *err)
{
	int64_t deadline = lm_deadline_min(lm_deadline_after(LM_LANE_ATTEMPT_NS), p->c->deadline_ns);
	uint8_t token[LM_TOKEN_SIZE];
	int r = lm_ctx_send_lane_open(p->c, lane, token, err);

	return r ? r : lm_comeback_begin(&p->lanes.comeback, p->c->transport, lane, token, deadline, err);
}

static void is_back(struct lm_precopy *p, unsigned lane)
{
	p->lanes.dropped &= ~(UINT64_C(1) << lane);
	lm_copier_revive(&p->copier, lane);
	lm_ctx_log(p->c, LM_LOG_INFO, "lane %u is back", lane);
	lane_event(p, lane, true, NULL);
	lm_pool_restart_worker(p->c->pool, lane); /* no job: it takes part in the next */
}

static int attempt_end(struct lm_precopy *p, struct lm_error *err)
{
	struct lm_comeback *c = &p->lanes.comeback;
	unsigned lane;

	if (!lm_comeback_end(c, &lane)) {
		is_back(p, lane);
		return 0;
	}
	lm_ctx_log(p->c, LM_LOG_DEBUG, "lane %u is not back yet: %s", lane, c->error.msg);
	back_off(p, lane);
	return tell_drop(p, lane, err);
}

/* ---- for round.c ---- */

int lm_lanes_tick(struct lm_precopy *p, struct lm_error *err)
{
	struct lm_lanes *l = &p->lanes;
	int r = 0, lane;

	if (!l->comeback.can)
		return 0;
	note_live(p);
	if (lm_comeback_over(&l->comeback))
		r = attempt_end(p, err);
	if (!r)
		r = lm_lanes_drop(p, dead_lanes(p), err);
	/* While the guest stands still the lanes that are left are enough. */
	if (r || lm_broken("lane-drop") || (p->c->pause_begun && lm_copier_live_lanes(&p->copier)))
		return r;
	lane = lm_comeback_next(&l->comeback, l->dropped);
	return lane < 0 ? 0 : attempt_begin(p, (unsigned)lane, err);
}

int lm_lanes_settle(struct lm_precopy *p, struct lm_error *err)
{
	struct lm_comeback *c = &p->lanes.comeback;

	if (lm_comeback_fd(c) < 0)
		return 0;
	lm_comeback_cancel(c);
	return attempt_end(p, err);
}

void lm_lanes_stop(struct lm_precopy *p)
{
	struct lm_comeback *c = &p->lanes.comeback;
	unsigned lane;

	if (lm_comeback_fd(c) < 0)
		return;
	lm_comeback_cancel(c);
	lm_comeback_end(c, &lane);
	lm_transport_shut(p->c->transport, lane);
}

int lm_lanes_fd(const struct lm_precopy *p)
{
	return lm_comeback_fd(&p->lanes.comeback);
}

int lm_lanes_init(struct lm_precopy *p, const struct lm_transport_params *params, bool can, struct lm_error *err)
{
	struct lm_lanes *l = &p->lanes;
	int r;

	*l = (struct lm_lanes){ 0 };
	if (!can || !p->c->transport->ops->reopen)
		return 0;
	r = lm_comeback_init(&l->comeback, params, err);
	p->c->outage_ns = p->c->opt.recover_timeout_ns;
	return r ? r : lm_ctx_bear_outage(p->c, true, err);
}

void lm_lanes_fini(struct lm_precopy *p)
{
	lm_lanes_stop(p);
	lm_comeback_fini(&p->lanes.comeback);
}
