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
#include "engine/base/testhook.h"
#include "dest.h"

/* The lane's thread, started again after LANE_OPEN: false when the source did not come. */
static bool open_again(struct lm_dest *d, unsigned lane)
{
	struct lm_dest_reopen *o = &d->reopen;
	int r;

	if (!atomic_exchange(&o->begun, false))
		return true;
	r = lm_transport_reopen(d->c->transport, lane, &o->params, &d->lane_errors[lane]);
	atomic_store(&o->under_way, false);
	return !r;
}

void lm_dest_place_worker(void *opaque, unsigned lane)
{
	struct lm_dest *d = opaque;
	struct lm_error *err = &d->lane_errors[lane];

	if (!open_again(d, lane))
		return;
	while (!atomic_load_explicit(&d->stop, memory_order_relaxed)) {
		struct lm_poll_result res;
		int r = lm_transport_poll(d->c->transport, lane, 100, &res, err);

		/* What the last call has placed counts, however it ended. */
		atomic_fetch_add_explicit(&d->placed[lane], res.bytes, memory_order_relaxed);
		if (r || res.closed)
			break;
	}
	/* Whatever the reason, nothing more of this lane may land; the source finds out by itself. */
	lm_transport_shut(d->c->transport, lane);
}

uint64_t lm_dest_placed_bytes(const struct lm_dest *d)
{
	uint64_t sum = 0;

	for (unsigned i = 0; d->placed && i < d->c->summary.lanes; i++)
		sum += atomic_load(&d->placed[i]);
	return sum;
}

/* Until the attempt that is under way has succeeded or failed; at most LM_LANE_ACCEPT_NS. */
void lm_dest_reopen_wait(struct lm_dest *d)
{
	const struct timespec step = { 0, 200000 };

	while (atomic_load(&d->reopen.under_way))
		nanosleep(&step, NULL);
}

static void reopen_cancel(struct lm_dest *d)
{
	uint64_t one = 1;

	if (atomic_load(&d->reopen.under_way) && write(d->reopen.stop_fd, &one, sizeof(one)) < 0) {
		/* The counter is at its limit: it is readable, which is all we want. */
	}
	lm_dest_reopen_wait(d);
}

/*
 * After this no byte of the source can reach guest RAM.  What it costs, the guest waits
 * for: memory stays registered until the session ends.
 */
void lm_dest_fence(struct lm_dest *d)
{
	if (!d->c->transport)
		return;
	atomic_store(&d->stop, true);
	reopen_cancel(d); /* whose lane nobody may shut */
	if (d->c->pool) {
		for (unsigned i = 0; i < d->c->summary.lanes; i++)
			lm_transport_shut(d->c->transport, i);
		lm_pool_finish(d->c->pool);
	}
	lm_transport_fence(d->c->transport);
}

int lm_dest_lane_drop(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	struct le32 answer;
	bool attempt;
	uint32_t lane;
	int r = lm_wire_get_u32(msg->payload, msg->len, "LANE_DROP", &lane, err);

	if (r)
		return r;
	if (lane >= d->c->summary.lanes)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_DROP of lane %u of %u", lane, d->c->summary.lanes);
	d->lane_dropped = true;
	/* Given up by the source: so do we.  Another lane's attempt goes on. */
	attempt = d->reopen.lane == lane && atomic_load(&d->reopen.under_way);
	if (attempt)
		reopen_cancel(d);
	if (!lm_broken("lane-drop")) {
		lm_transport_shut(d->c->transport, lane);
		lm_pool_wait_worker(d->c->pool, lane);
		lm_transport_fence_lane(d->c->transport, lane); /* otherwise its data could land over newer data */
	}
	if (d->lane_errors[lane].code)
		lm_ctx_log(d->c, attempt ? LM_LOG_DEBUG : LM_LOG_WARN, "lane %u is dropped: %s", lane,
			   d->lane_errors[lane].msg);
	d->reopen.dropped |= UINT64_C(1) << lane;
	answer = lm_le32(lane);
	return lm_control_send(&d->c->control, LM_MSG_LANE_DROPPED, &answer, sizeof(answer),
			       lm_ctx_peer_deadline(d->c), err);
}

static int reopen_begin(struct lm_dest *d, unsigned lane, const uint8_t token[static LM_TOKEN_SIZE],
			struct lm_error *err)
{
	struct lm_dest_reopen *o = &d->reopen;
	uint64_t n;

	memcpy(o->params.token, token, LM_TOKEN_SIZE);
	o->params.deadline_ns = lm_deadline_after(lm_deadline_min(LM_LANE_ACCEPT_NS, 2 * d->c->opt.peer_timeout_ns));
	if (read(o->stop_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
	lm_err_clear(&d->lane_errors[lane]);
	o->lane = lane;
	atomic_store(&o->begun, true);
	atomic_store(&o->under_way, true);
	if (lm_pool_restart_worker(d->c->pool, lane))
		return 0;
	atomic_store(&o->begun, false);
	atomic_store(&o->under_way, false);
	return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN of lane %u, which works", lane);
}

/*
 * A lane that was dropped comes back.  What it was before can reach nothing any more, and its
 * thread has ended: that is what LANE_DROPPED has said, so a lane that was not dropped is refused.
 */
int lm_dest_lane_open(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	uint8_t token[LM_TOKEN_SIZE];
	unsigned lane;
	int r = lm_wire_get_lane_open(msg->payload, msg->len, d->c->summary.lanes, &lane, token, err);

	if (r)
		return r;
	if (!d->c->transport->ops->reopen)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN, which this transport cannot");
	if (!(d->reopen.dropped >> lane & 1))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "LANE_OPEN of lane %u, which was not dropped", lane);
	d->reopen.dropped &= ~(UINT64_C(1) << lane);
	lm_ctx_log(d->c, LM_LOG_DEBUG, "lane %u: the source tries it again", lane);
	return reopen_begin(d, lane, token, err);
}
