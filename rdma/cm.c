/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening lanes with rdma_cm: events, and what the source (connect.c) and the
 * destination (accept.c) share.  Nothing blocks: every event channel is non-blocking
 * and all of them are polled together, with the session's cancel_fd, until the deadline.
 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include "engine/base/clock.h"
#include "cm.h"

#define READS_MAX 16

/* ---- events ---- */

/* ---- what both sides say and use ---- */

struct rd_hello rd_hello_make(const struct lm_transport_params *p, unsigned lane)
{
	struct rd_hello h = {
		.magic = lm_le32(RDMA_HELLO_MAGIC), .version = lm_le16(RDMA_VERSION),
		.direction = lm_le16((uint16_t)p->direction),
		.lane = lm_le16((uint16_t)lane), .nlanes = lm_le16((uint16_t)p->nlanes),
	};

	memcpy(h.token, p->token, sizeof(h.token));
	return h;
}

static uint8_t depth_of(int max)
{
	return (uint8_t)(max < 1 ? 1 : max > READS_MAX ? READS_MAX : max);
}

struct rdma_conn_param rd_conn_param(const struct rd_lane *l)
{
	const struct ibv_device_attr *a = &l->use->dev->attr.orig_attr;

	return (struct rdma_conn_param){
		.responder_resources = depth_of(a->max_qp_rd_atom), .initiator_depth = depth_of(a->max_qp_init_rd_atom),
		.retry_count = 7, .rnr_retry_count = 7,
	};
}

/*
 * One more device.  While lanes work: those that clear pages look at all uses (place.c), so this
 * one is whole when it counts, and registers nothing before they have seen that it does.
 */
static int use_add(struct rdma *t, struct rd_use *u, struct rdma_cm_id *id, struct lm_error *err)
{
	int r = rd_device_get(id, &u->dev, err);

	if (!r && t->base.is_open)
		r = rd_use_add_memory(t, u, err);
	if (r) {
		for (unsigned i = 0; i < LM_REGIONS_MAX; i++)
			rd_mem_put(u->mem[i]);
		rd_device_put(u->dev);
		memset(u, 0, sizeof(*u));
		return r;
	}
	atomic_fetch_add(&t->nuses, 1);
	for (unsigned i = 0; i < t->base.nlanes; i++)
		while (atomic_load(&t->lanes[i].placing))
			sched_yield();
	return 0;
}

int rd_use_find(struct rdma *t, struct rdma_cm_id *id, struct rd_use **ret, struct lm_error *err)
{
	unsigned i = 0, n = atomic_load(&t->nuses);
	int r;

	while (i < n && t->uses[i].dev->verbs != id->verbs)
		i++;
	if (i == RDMA_RAILS_MAX)
		return lm_err(err, -ENOSPC, LM_SCOPE_SESSION, "more than %d RDMA devices", RDMA_RAILS_MAX);
	if (i == n) {
		r = use_add(t, &t->uses[i], id, err);
		if (r)
			return r;
	}
	*ret = &t->uses[i];
	return 0;
}

void rd_lane_opened(struct rd_lane *l)
{
	struct ibv_qp_init_attr unused;
	struct ibv_qp_attr a;

	/* How memory is registered is decided once. */
	if (!l->t->base.is_open && (ibv_query_qp(l->id->qp, &a, IBV_QP_PATH_MTU, &unused) || a.path_mtu < IBV_MTU_4096))
		l->use->small_packets = true;
	l->state = RDMA_LANE_OPEN;
	rd_device_add_lane(l->use->dev, l);
}

unsigned rd_lanes_missing(const struct rdma *t)
{
	unsigned n = 0;

	for (unsigned i = 0; i < t->base.nlanes; i++)
		n += t->lanes[i].state != RDMA_LANE_OPEN;
	return n;
}

int rd_cm_wait(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
	       struct rdma_event_channel *extra, struct lm_error *err)
{
	struct pollfd fds[LM_LANES_MAX + 3];
	int64_t until = p->deadline_ns;
	unsigned n = t->base.nlanes;
	int r;

	for (unsigned i = 0; i < n; i++) {
		const struct rd_lane *l = &t->lanes[i];

		fds[i] = (struct pollfd){ .fd = -1, .events = POLLIN };
		if (only && l != only)
			continue;
		fds[i].fd = l->channel && !atomic_load(&l->shut) ? l->channel->fd : -1;
		if (l->attempt_until_ns && l->state != RDMA_LANE_OPEN)
			until = lm_deadline_min(until, l->attempt_until_ns);
	}
	fds[n] = (struct pollfd){ .fd = p->cancel_fd, .events = POLLIN };
	fds[n + 1] = (struct pollfd){ .fd = extra ? extra->fd : -1, .events = POLLIN };
	fds[n + 2] = (struct pollfd){ .fd = lm_transport_peer_fd(p), .events = POLLIN };
	if (poll(fds, n + 3, lm_deadline_poll_ms(until)) < 0 && errno != EINTR)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "poll");
	if (fds[n].revents)
		return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "cancelled");
	r = fds[n + 2].revents ? p->peer_said(p->peer_opaque, err) : 0;
	if (r)
		return r;
	if (lm_now_ns() >= p->deadline_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "RDMA: %u of %u lanes have not come (a firewall before UDP port "
			      "4791? MTU?)", only ? 1 : rd_lanes_missing(t), n);
	return 0;
}
