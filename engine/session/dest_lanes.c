/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's lanes: a thread for each, which places what comes; lanes that are
 * given up and come back (LANE_DROP, LANE_OPEN); and the fence, behind which nothing of the
 * source can reach guest RAM.
 */
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "session.h"
#include "engine/base/testhook.h"

/* The lane's thread, started again after LANE_OPEN: false when the source did not come. */
static bool open_again(struct lm_session *s, unsigned lane)
{
	struct lm_dest_reopen *o = &s->dst.reopen;
	int r;

	if (!atomic_exchange(&o->begun, false))
		return true;
	r = lm_transport_reopen(s->transport, lane, &o->params, &s->dst.lane_errors[lane]);
	atomic_store(&o->under_way, false);
	return !r;
}

void lm_dest_place_worker(void *ctx, unsigned lane)
{
	struct lm_session *s = ctx;
	struct lm_error *err = &s->dst.lane_errors[lane];

	if (!open_again(s, lane))
		return;
	while (!atomic_load_explicit(&s->dst.stop, memory_order_relaxed)) {
		struct lm_poll_result res;
		int r = lm_transport_poll(s->transport, lane, 100, &res, err);

		/* What the last call has placed counts, however it ended. */
		atomic_fetch_add_explicit(&s->dst.placed[lane], res.bytes, memory_order_relaxed);
		if (r || res.closed)
			break;
	}
	/* Whatever the reason, nothing more of this lane may land; the source finds out by itself. */
	lm_transport_shut(s->transport, lane);
}

uint64_t lm_dest_placed_bytes(const struct lm_session *s)
{
	uint64_t sum = 0;

	for (unsigned i = 0; s->dst.placed && i < s->summary.lanes; i++)
		sum += atomic_load(&s->dst.placed[i]);
	return sum;
}

/* Until the attempt that is under way has succeeded or failed; at most LM_LANE_ACCEPT_NS. */
void lm_dest_reopen_wait(struct lm_session *s)
{
	const struct timespec step = { 0, 200000 };

	while (atomic_load(&s->dst.reopen.under_way))
		nanosleep(&step, NULL);
}

static void reopen_cancel(struct lm_session *s)
{
	uint64_t one = 1;

	if (atomic_load(&s->dst.reopen.under_way) && write(s->dst.reopen.stop_fd, &one, sizeof(one)) < 0) {
		/* The counter is at its limit: it is readable, which is all we want. */
	}
	lm_dest_reopen_wait(s);
}

/*
 * After this no byte of the source can reach guest RAM.  What it costs, the guest waits
 * for: memory stays registered until the session ends.
 */
void lm_dest_fence(struct lm_session *s)
{
	if (!s->transport)
		return;
	atomic_store(&s->dst.stop, true);
	reopen_cancel(s); /* whose lane nobody may shut */
	if (s->pool) {
		for (unsigned i = 0; i < s->summary.lanes; i++)
			lm_transport_shut(s->transport, i);
		lm_pool_finish(s->pool);
	}
	lm_transport_fence(s->transport);
}

int lm_dest_lane_drop(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct le32 answer;
	bool attempt;
	uint32_t lane;
	int r = lm_wire_get_u32(msg->payload, msg->len, "LANE_DROP", &lane, err);

	if (r)
		return r;
	if (lane >= s->summary.lanes)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_DROP of lane %u of %u", lane, s->summary.lanes);
	s->dst.lane_dropped = true;
	/* Given up by the source: so do we.  Another lane's attempt goes on. */
	attempt = s->dst.reopen.lane == lane && atomic_load(&s->dst.reopen.under_way);
	if (attempt)
		reopen_cancel(s);
	if (!lm_broken("lane-drop")) {
		lm_transport_shut(s->transport, lane);
		lm_pool_wait_worker(s->pool, lane);
		lm_transport_fence_lane(s->transport, lane); /* or what it was placing lands over what replaces it */
	}
	if (s->dst.lane_errors[lane].code)
		lm_session_log(s, attempt ? LM_LOG_DEBUG : LM_LOG_WARN, "lane %u is dropped: %s", lane,
			       s->dst.lane_errors[lane].msg);
	s->dst.reopen.dropped |= UINT64_C(1) << lane;
	answer = lm_le32(lane);
	return lm_control_send(&s->control, LM_MSG_LANE_DROPPED, &answer, sizeof(answer),
			       lm_session_peer_deadline(s), err);
}

static int reopen_begin(struct lm_session *s, unsigned lane, const uint8_t token[static LM_TOKEN_SIZE],
			struct lm_error *err)
{
	struct lm_dest_reopen *o = &s->dst.reopen;
	uint64_t n;

	memcpy(o->params.token, token, LM_TOKEN_SIZE);
	o->params.deadline_ns = lm_deadline_after(lm_deadline_min(LM_LANE_ACCEPT_NS, 2 * s->opt.peer_timeout_ns));
	if (read(o->stop_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
	lm_err_clear(&s->dst.lane_errors[lane]);
	o->lane = lane;
	atomic_store(&o->begun, true);
	atomic_store(&o->under_way, true);
	if (lm_pool_restart_worker(s->pool, lane))
		return 0;
	atomic_store(&o->begun, false);
	atomic_store(&o->under_way, false);
	return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN of lane %u, which works", lane);
}

/*
 * A lane that was dropped comes back.  What it was before can reach nothing any more, and its
 * thread has ended: that is what LANE_DROPPED has said, so a lane that was not dropped is refused.
 */
int lm_dest_lane_open(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	uint8_t token[LM_TOKEN_SIZE];
	unsigned lane;
	int r = lm_wire_get_lane_open(msg->payload, msg->len, s->summary.lanes, &lane, token, err);

	if (r)
		return r;
	if (!s->transport->ops->reopen)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN, which this transport cannot");
	if (!(s->dst.reopen.dropped >> lane & 1))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN of lane %u, which was not dropped", lane);
	s->dst.reopen.dropped &= ~(UINT64_C(1) << lane);
	lm_session_log(s, LM_LOG_DEBUG, "lane %u: the source tries it again", lane);
	return reopen_begin(s, lane, token, err);
}
