/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/random.h>
#include "engine/session/session.h"
#include "engine/base/testhook.h"

static void lane_event(struct lm_session *s, unsigned lane, bool back, const char *why)
{
	struct lm_event e = { .type = LM_EVENT_LANE };

	e.u.lane.lane = lane;
	e.u.lane.live = lm_copier_live_lanes(&s->src.copier);
	e.u.lane.back = back;
	e.u.lane.why = why;
	lm_session_event(s, &e);
}

/* ---- when ---- */

/* All were lost, and since then no lane has lived for long enough to call it over. */
static void look_at_live(struct lm_session *s)
{
	struct lm_lanes *l = &s->src.lanes;
	int64_t now = lm_now_ns();

	if (!lm_copier_live_lanes(&s->src.copier)) {
		if (!l->none_since_ns)
			l->none_since_ns = now;
		return;
	}
	for (unsigned i = 0; i < s->src.copier.nlanes; i++)
		if (!atomic_load(&s->src.copier.lanes[i].dead) && now - l->comeback.lane[i].back_ns > LM_LANE_STEADY_NS)
			l->none_since_ns = 0;
}

int64_t lm_lanes_wait_until(const struct lm_session *s)
{
	const struct lm_lanes *l = &s->src.lanes;

	if (!l->comeback.can || s->opt.recover_timeout_ns <= 0)
		return 0;
	return (l->none_since_ns ? l->none_since_ns : lm_now_ns()) + s->opt.recover_timeout_ns;
}

static void back_off(struct lm_session *s, unsigned lane)
{
	struct lm_lanes *l = &s->src.lanes;

	lm_comeback_failed(&l->comeback, lane, l->none_since_ns ? LM_LANE_RETRY_NS : LM_LANE_RETRY_MAX_NS);
}

/* ---- dropping ---- */

/* What took the lane may have taken the control channel as well: while the guest runs, that is waited for, too. */
static int64_t answer_deadline(const struct lm_session *s)
{
	int64_t more_ns = s->src.pause_begun ? 0 : s->patience_ns;

	return lm_deadline_min(lm_session_peer_deadline(s) + more_ns, s->src.deadline_ns);
}

static int tell_drop(struct lm_session *s, unsigned lane, struct lm_error *err)
{
	struct le32 number = lm_le32(lane);
	struct lm_msg msg;
	uint32_t answer;
	int r = lm_control_send(&s->control, LM_MSG_LANE_DROP, &number, sizeof(number), lm_session_peer_deadline(s), err);

	if (!r)
		r = lm_control_expect(&s->control, LM_MSG_LANE_DROPPED, &msg, answer_deadline(s), err);
	if (r == -ETIMEDOUT && !lm_copier_live_lanes(&s->src.copier))
		return lm_err_prefix(err, "no lane is left");
	if (!r)
		r = lm_wire_get_u32(msg.payload, msg.len, "LANE_DROPPED", &answer, err);
	if (!r && answer != lane)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination dropped another lane");
	return r;
}

int lm_lanes_drop(struct lm_session *s, uint64_t lanes, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;

	look_at_live(s);
	lanes &= ~l->dropped;
	for (unsigned i = 0; i < s->src.copier.nlanes; i++) {
		const char *why = s->src.copier.lanes[i].error.msg;
		int r;

		if (!(lanes >> i & 1))
			continue;
		lm_session_log(s, LM_LOG_WARN, "lane %u is lost: %s", i, why);
		lane_event(s, i, false, why);
		lm_transport_shut(s->transport, i);
		lm_pool_wait_worker(s->pool, i);
		r = tell_drop(s, i, err);
		if (r)
			return r;
		l->dropped |= UINT64_C(1) << i;
		back_off(s, i);
	}
	return 0;
}

static uint64_t dead_lanes(const struct lm_session *s)
{
	uint64_t dead = 0;

	for (unsigned i = 0; i < s->src.copier.nlanes; i++)
		if (atomic_load(&s->src.copier.lanes[i].dead))
			dead |= UINT64_C(1) << i;
	return dead;
}

/* ---- an attempt ---- */

int lm_lanes_send_open(struct lm_session *s, unsigned lane, uint8_t ret_token[static LM_TOKEN_SIZE],
		       struct lm_error *err)
{
	struct lm_wire_lane_open open = { .lane = lm_le32(lane) };

	if (getrandom(open.token, sizeof(open.token), 0) != sizeof(open.token))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "no random numbers for a lane's token");
	memcpy(ret_token, open.token, LM_TOKEN_SIZE);
	return lm_control_send(&s->control, LM_MSG_LANE_OPEN, &open, sizeof(open), lm_session_peer_deadline(s), err);
}

static int attempt_begin(struct lm_session *s, unsigned lane, struct lm_error *err)
{
	int64_t deadline = lm_deadline_min(lm_deadline_after(LM_LANE_ATTEMPT_NS), s->src.deadline_ns);
	uint8_t token[LM_TOKEN_SIZE];
	int r = lm_lanes_send_open(s, lane, token, err);

	return r ? r : lm_comeback_begin(&s->src.lanes.comeback, s->transport, lane, token, deadline, err);
}

static void is_back(struct lm_session *s, unsigned lane)
{
	s->src.lanes.dropped &= ~(UINT64_C(1) << lane);
	lm_copier_revive(&s->src.copier, lane);
	lm_session_log(s, LM_LOG_INFO, "lane %u is back", lane);
	lane_event(s, lane, true, NULL);
	lm_pool_restart_worker(s->pool, lane); /* no job: it takes part in the next */
}

static int attempt_end(struct lm_session *s, struct lm_error *err)
{
	struct lm_comeback *c = &s->src.lanes.comeback;
	unsigned lane;

	if (!lm_comeback_end(c, &lane)) {
		is_back(s, lane);
		return 0;
	}
	lm_session_log(s, LM_LOG_DEBUG, "lane %u is not back yet: %s", lane, c->error.msg);
	back_off(s, lane);
	return tell_drop(s, lane, err);
}

/* ---- for rounds.c ---- */

int lm_lanes_tick(struct lm_session *s, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;
	int r = 0, lane;

	if (!l->comeback.can)
		return 0;
	look_at_live(s);
	if (lm_comeback_over(&l->comeback))
		r = attempt_end(s, err);
	if (!r)
		r = lm_lanes_drop(s, dead_lanes(s), err);
	/* While the guest stands still the lanes that are left are enough. */
	if (r || lm_broken("lane-drop") || (s->src.pause_begun && lm_copier_live_lanes(&s->src.copier)))
		return r;
	lane = lm_comeback_next(&l->comeback, l->dropped);
	return lane < 0 ? 0 : attempt_begin(s, (unsigned)lane, err);
}

int lm_lanes_settle(struct lm_session *s, struct lm_error *err)
{
	struct lm_comeback *c = &s->src.lanes.comeback;

	if (lm_comeback_fd(c) < 0)
		return 0;
	lm_comeback_cancel(c);
	return attempt_end(s, err);
}

void lm_lanes_stop(struct lm_session *s)
{
	struct lm_comeback *c = &s->src.lanes.comeback;
	unsigned lane;

	if (lm_comeback_fd(c) < 0)
		return;
	lm_comeback_cancel(c);
	lm_comeback_end(c, &lane);
	lm_transport_shut(s->transport, lane);
}

int lm_lanes_fd(const struct lm_session *s)
{
	return lm_comeback_fd(&s->src.lanes.comeback);
}

int lm_lanes_init(struct lm_session *s, const struct lm_transport_params *p, bool can, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;
	int r;

	*l = (struct lm_lanes){ 0 };
	if (!can || !s->transport->ops->reopen)
		return 0;
	r = lm_comeback_init(&l->comeback, p, err);
	s->patience_ns = s->opt.recover_timeout_ns;
	return r ? r : lm_session_be_patient(s, true, err);
}

void lm_lanes_fini(struct lm_session *s)
{
	lm_lanes_stop(s);
	lm_comeback_fini(&s->src.lanes.comeback);
}
