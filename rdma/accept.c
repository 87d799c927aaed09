/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's part of opening lanes: it listens on every rail and accepts.
 * Strangers are told apart by the token in the private data of their request, before
 * anything is made for them.
 */
#include "engine/base/clock.h"
#include "cm.h"

#define BACKLOG 128
/* How often we look whether a rail that was lost can be listened on. */
#define LISTEN_AGAIN_NS (200 * LM_NS_PER_MS)

/* ---- listening ---- */

/* The address has a port from the first time on: a rail that was lost listens where the source looks for it. */
static int listen_at(struct rdma *t, unsigned i, struct lm_error *err)
{
	struct rd_rail *rail = &t->listening[i];
	const char *what = "make an id for";
	struct rdma_cm_id *id = NULL;
	int r;

	if (rdma_create_id(t->listen_channel, &id, NULL, RDMA_PS_TCP)) {
		id = NULL;
		goto fail;
	}
	what = "bind to";
	if (rdma_bind_addr(id, &rail->addr.sa))
		goto fail;
	what = "listen on";
	if (rdma_listen(id, BACKLOG))
		goto fail;
	rd_addr_set_port(&rail->addr, ntohs(rdma_get_src_port(id)));
	t->listeners[i] = id;
	return 0;
fail:
	r = rd_errno();
	if (id)
		rdma_destroy_id(id);
	return lm_err_errno(err, r, LM_SCOPE_SESSION, "rdma_cm cannot %s %s port %u", what, rail->dev, rail->port);
}

int rd_cm_listen(struct rdma *t, const struct lm_transport_params *p, uint8_t ret_endpoint[LM_ENDPOINT_SIZE],
		   struct lm_error *err)
{
	int r = rd_rails_find(p->rails, p->nrails, t->listening, &t->nlisteners, err);

	if (r) {
		t->nlisteners = 0;
		return r;
	}
	r = rd_channel_make(&t->listen_channel);
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "rdma_cm");
	for (unsigned i = 0; !r && i < t->nlisteners; i++)
		r = listen_at(t, i, err);
	if (!r)
		rd_endpoint_put(t->listening, t->nlisteners, ret_endpoint);
	return r;
}

/* Where a device has come back. */
static void listen_again(struct rdma *t)
{
	for (unsigned i = 0; i < t->nlisteners; i++)
		if (!t->listeners[i])
			listen_at(t, i, NULL);
}

/* With its device a listener ends. */
static void listener_gone(struct rdma *t, const struct rdma_cm_id *id)
{
	for (unsigned i = 0; i < t->nlisteners; i++) {
		if (t->listeners[i] != id)
			continue;
		rdma_destroy_id(t->listeners[i]);
		t->listeners[i] = NULL;
	}
}

void rd_cm_unlisten(struct rdma *t)
{
	while (t->nlisteners) {
		struct rdma_cm_id **id = &t->listeners[--t->nlisteners];

		if (*id)
			rdma_destroy_id(*id);
		*id = NULL;
	}
	if (t->listen_channel)
		rdma_destroy_event_channel(t->listen_channel);
	t->listen_channel = NULL;
}

/* ---- requests ---- */

/* The time it takes does not depend on where they differ. */
static bool same_bytes(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;
	volatile uint8_t diff = 0;

	while (n--)
		diff |= *x++ ^ *y++;
	return !diff;
}

/* A connection that breaks before all stand: the source may try again. */
static void hear_accepted(struct rd_lane *l)
{
	struct rd_event e;

	while (l->state == RDMA_LANE_CONNECT) {
		int r = rd_event_next(l->channel, &e);

		if (r == -EAGAIN)
			return;
		if (!r && e.type == RDMA_CM_EVENT_ESTABLISHED)
			rd_lane_opened(l);
		else
			rd_lane_reset(l);
	}
	if (l->state == RDMA_LANE_OPEN)
		rd_lane_hear(l);
	if (l->hung_up)
		rd_lane_reset(l);
}

/*
 * The lane that a request asks for, or NULL: not ours, or there already.  A source
 * that asks again has given its first attempt up.
 */
static struct rd_lane *hello_lane(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
				  const struct rd_event *e)
{
	unsigned lane = lm_le16_get(e->hello.lane);
	struct rd_hello want = rd_hello_make(p, lane);

	if (!e->has_hello || !same_bytes(&want, &e->hello, sizeof(want)) || lane >= p->nlanes)
		return NULL;
	/* The other lanes have threads, whose they are. */
	if (only && only != &t->lanes[lane])
		return NULL;
	/* The end of an earlier connection is reported on another channel, which may not have been read yet. */
	if (t->lanes[lane].state == RDMA_LANE_OPEN)
		hear_accepted(&t->lanes[lane]);
	if (t->lanes[lane].state == RDMA_LANE_CONNECT)
		rd_lane_reset(&t->lanes[lane]);
	return t->lanes[lane].state == RDMA_LANE_NEW ? &t->lanes[lane] : NULL;
}

static int accept_lane(struct rdma *t, struct rd_lane *l, struct lm_error *err)
{
	struct rdma_conn_param param;
	int r = rd_channel_make(&l->channel);

	if (!r && rdma_migrate_id(l->id, l->channel))
		r = rd_errno();
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "rdma_cm");
	r = rd_use_find(t, l->id, &l->use, err);
	if (!r)
		r = rd_lane_setup(l, err);
	if (r)
		return r;
	param = rd_conn_param(l);
	if (rdma_accept(l->id, &param)) {
		rd_lane_reset(l); /* the request has gone meanwhile: there will be another */
		return 0;
	}
	r = rd_lane_restrict(l);
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "RDMA device %s cannot restrict a connection", l->use->dev->name);
	l->state = RDMA_LANE_CONNECT;
	return 0;
}

static int hear_request(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
			const struct rd_event *e, struct lm_error *err)
{
	struct rd_lane *l = hello_lane(t, only, p, e);
	int r;

	if (!l) {
		rdma_reject(e->id, NULL, 0);
		rdma_destroy_id(e->id);
		return 0;
	}
	l->id = e->id;
	r = accept_lane(t, l, err);
	if (r)
		rd_lane_reset(l);
	return r;
}

/* A few at a time: however many strangers there are, the deadline is looked at. */
static int hear_requests(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
			 struct lm_error *err)
{
	struct rd_event e;
	int r = 0;

	for (unsigned n = 0; !r && n < BACKLOG; n++) {
		r = rd_event_next(t->listen_channel, &e);
		if (r)
			return r == -EAGAIN ? 0 : lm_err_errno(err, r, LM_SCOPE_SESSION, "rdma_cm tells of no requests");
		if (e.type == RDMA_CM_EVENT_CONNECT_REQUEST)
			r = hear_request(t, only, p, &e, err);
		else if (e.type == RDMA_CM_EVENT_DEVICE_REMOVAL)
			listener_gone(t, e.id);
	}
	return r;
}

/* ---- until all lanes are there ---- */

int rd_cm_accept(struct rdma *t, const struct lm_transport_params *p, struct lm_error *err)
{
	int r = 0;

	while (!r && rd_lanes_missing(t)) {
		r = rd_cm_wait(t, NULL, p, t->listen_channel, err);
		if (!r)
			r = hear_requests(t, NULL, p, err);
		for (unsigned i = 0; !r && i < t->base.nlanes; i++)
			hear_accepted(&t->lanes[i]);
	}
	return r;
}

/* Rails whose device comes back meanwhile are listened on again. */
int rd_cm_accept_again(struct rdma *t, struct rd_lane *l, const struct lm_transport_params *p, struct lm_error *err)
{
	int r = 0;

	while (!r && l->state != RDMA_LANE_OPEN) {
		r = hear_requests(t, l, p, err);
		listen_again(t);
		l->attempt_until_ns = lm_deadline_after(LISTEN_AGAIN_NS);
		if (!r)
			r = rd_cm_wait(t, l, p, t->listen_channel, err);
		if (!r)
			hear_accepted(l);
	}
	return r;
}
