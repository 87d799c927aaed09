/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's part of opening lanes: each tries pairs of rails, one after the other,
 * until it is connected or none is left.
 */
#include <string.h>
#include "engine/base/clock.h"
#include "cm.h"

#define RESOLVE_MS 2000
/* 4.096 us << 16 is 268 ms: with seven retries a lane gives up after two seconds and more. */
#define ACK_TIMEOUT 16
/* A pair of rails that has not connected by then makes room for another. */
#define ATTEMPT_NS (3 * LM_NS_PER_S)

/* ---- an attempt ---- */

struct connecting {
	struct rdma *t;
	const struct lm_transport_params *p;
	struct rd_rail local[RDMA_RAILS_MAX], peer[RDMA_RAILS_MAX];
	struct rd_pair pairs[RDMA_PAIRS_MAX];
	unsigned npairs;
	struct lm_error last; /* why the last attempt failed */
};

static int attempt_failed(struct rd_lane *l, struct connecting *c, int code, const char *what)
{
	const struct rd_pair *pair = &c->pairs[l->pair];

	return lm_err_errno(&c->last, code, LM_SCOPE_SESSION, "lane %u: %s towards the destination's rail %u", l->index, what,
			    pair->peer);
}

static int lane_resolve(struct rd_lane *l, struct connecting *c)
{
	const struct rd_pair *pair = &c->pairs[l->pair];
	struct sockaddr *from = pair->local < 0 ? NULL : &c->local[pair->local].addr.sa;
	uint8_t timeout = ACK_TIMEOUT;
	int r = rd_channel_make(&l->channel);

	if (r)
		return attempt_failed(l, c, r, "rdma_cm");
	if (rdma_create_id(l->channel, &l->id, NULL, RDMA_PS_TCP))
		return attempt_failed(l, c, rd_errno(), "rdma_cm");
	/* A device that does not know it keeps its own. */
	rdma_set_option(l->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout));
	if (rdma_resolve_addr(l->id, from, &c->peer[pair->peer].addr.sa, RESOLVE_MS))
		return attempt_failed(l, c, rd_errno(), "no route");
	l->state = RDMA_LANE_ADDR;
	return 0;
}

/* Begin with the next pair of rails; an error when none is left. */
static int lane_attempt(struct rd_lane *l, struct connecting *c)
{
	for (;;) {
		int k = rd_pair_choose(c->pairs, c->npairs, l->index, l->attempt);

		if (k < 0)
			return c->last.code ? c->last.code : -EHOSTUNREACH;
		l->pair = (unsigned)k;
		l->attempt_until_ns = lm_now_ns() + ATTEMPT_NS;
		if (!lane_resolve(l, c))
			return 0;
		c->pairs[k].dead = true;
		l->attempt++;
		rd_lane_reset(l);
	}
}

/* ---- events ---- */

static int addr_resolved(struct rd_lane *l, struct connecting *c)
{
	int r = rd_use_find(c->t, l->id, &l->use, &c->last);

	if (r)
		return r;
	if (rdma_resolve_route(l->id, RESOLVE_MS))
		return attempt_failed(l, c, rd_errno(), "no route");
	l->state = RDMA_LANE_ROUTE;
	return 0;
}

static int route_resolved(struct rd_lane *l, struct connecting *c)
{
	struct rd_hello hello = rd_hello_make(c->p, l->index);
	struct rdma_conn_param param;
	int r = rd_lane_setup(l, &c->last);

	if (r)
		return r;
	param = rd_conn_param(l);
	param.private_data = &hello;
	param.private_data_len = sizeof(hello);
	if (rdma_connect(l->id, &param))
		return attempt_failed(l, c, rd_errno(), "cannot connect");
	l->state = RDMA_LANE_CONNECT;
	return 0;
}

static int established(struct rd_lane *l, struct connecting *c)
{
	int r = rd_lane_restrict(l);

	if (r)
		return attempt_failed(l, c, r, "the device cannot restrict a connection");
	rd_lane_opened(l);
	return 0;
}

static int event_failed(struct rd_lane *l, struct connecting *c, const struct rd_event *e)
{
	switch (e->type) {
	case RDMA_CM_EVENT_REJECTED:
		return attempt_failed(l, c, -ECONNREFUSED, "refused (it does not know this session, or nobody listens)");
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
		return attempt_failed(l, c, e->status < 0 ? e->status : -EHOSTUNREACH, "no route");
	case RDMA_CM_EVENT_UNREACHABLE:
		return attempt_failed(l, c, -ETIMEDOUT, "no answer (a firewall before UDP port 4791?)");
	default:
		return attempt_failed(l, c, e->status < 0 ? e->status : -ECONNABORTED, rdma_event_str(e->type));
	}
}

static int lane_event(struct rd_lane *l, struct connecting *c, const struct rd_event *e)
{
	if (e->type == RDMA_CM_EVENT_ADDR_RESOLVED && l->state == RDMA_LANE_ADDR)
		return addr_resolved(l, c);
	if (e->type == RDMA_CM_EVENT_ROUTE_RESOLVED && l->state == RDMA_LANE_ROUTE)
		return route_resolved(l, c);
	if (e->type == RDMA_CM_EVENT_ESTABLISHED && l->state == RDMA_LANE_CONNECT)
		return established(l, c);
	return event_failed(l, c, e);
}

static int lane_next(struct rd_lane *l, struct connecting *c)
{
	c->pairs[l->pair].dead = true;
	l->attempt++;
	rd_lane_reset(l);
	return lane_attempt(l, c);
}

static bool others_live(const struct connecting *c, unsigned pair)
{
	for (unsigned i = 0; i < c->npairs; i++)
		if (i != pair && !c->pairs[i].dead)
			return true;
	return false;
}

static int lane_hear(struct rd_lane *l, struct connecting *c)
{
	struct rd_event e;
	int r = 0;

	while (l->state != RDMA_LANE_OPEN && !(r = rd_event_next(l->channel, &e)))
		if (lane_event(l, c, &e))
			return lane_next(l, c);
	if (r && r != -EAGAIN) {
		attempt_failed(l, c, r, "rdma_cm tells nothing");
		return lane_next(l, c);
	}
	if (l->state == RDMA_LANE_OPEN)
		rd_lane_hear(l);
	/* The destination waits for this lane as if it had never come. */
	if (l->hung_up) {
		attempt_failed(l, c, -ECONNRESET, "the connection broke before all lanes were there");
		return lane_next(l, c);
	}
	if (l->state == RDMA_LANE_OPEN || lm_now_ns() < l->attempt_until_ns)
		return 0;
	if (!others_live(c, l->pair)) {
		l->attempt_until_ns = 0;
		return 0;
	}
	attempt_failed(l, c, -ETIMEDOUT, "no answer");
	return lane_next(l, c);
}

/* ---- all lanes ---- */

static int plan(struct connecting *c, struct lm_error *err)
{
	unsigned nlocal = 0, npeer = 0;
	int r = rd_endpoint_get(c->p->endpoint, c->peer, &npeer, err);

	if (!r)
		r = rd_rails_find(c->p->rails, c->p->nrails, c->local, &nlocal, err);
	if (r)
		return r;
	c->npairs = rd_pairs_make(c->local, nlocal, c->p->nrails, c->peer, npeer, c->pairs);
	memcpy(c->t->local, c->local, sizeof(c->t->local));
	memcpy(c->t->peer, c->peer, sizeof(c->t->peer));
	memcpy(c->t->pairs, c->pairs, sizeof(c->t->pairs));
	c->t->npairs = c->npairs;
	if (!c->npairs)
		return lm_err(err, -EHOSTUNREACH, LM_SCOPE_SESSION,
			      "none of our RDMA rails has an address of the destination's kind");
	return 0;
}

int rd_cm_connect(struct rdma *t, const struct lm_transport_params *p, struct lm_error *err)
{
	struct connecting c = { .t = t, .p = p };
	int r = plan(&c, err);

	if (r)
		return r;
	for (unsigned i = 0; !r && i < p->nlanes; i++)
		r = lane_attempt(&t->lanes[i], &c);
	while (!r && rd_lanes_missing(t)) {
		r = rd_cm_wait(t, NULL, p, NULL, err);
		if (r)
			return r;
		for (unsigned i = 0; !r && i < p->nlanes; i++)
			r = lane_hear(&t->lanes[i], &c);
	}
	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "RDMA: %.400s", c.last.code ? c.last.msg : "no pair of rails is left");
	for (unsigned i = 0; i < p->nlanes; i++)
		t->lanes[i].home = t->lanes[i].pair;
	return 0;
}

/* ---- one lane again ---- */

static bool another_works(const struct rdma *t, const struct rd_lane *l)
{
	for (unsigned i = 0; i < t->base.nlanes; i++)
		if (&t->lanes[i] != l && t->lanes[i].state == RDMA_LANE_OPEN && !atomic_load(&t->lanes[i].shut))
			return true;
	return false;
}

/*
 * The pair that the lane had, so that a rail that is back gets its lanes back.  When no lane
 * works, any rail is good enough: they are tried in turn.
 */
static unsigned pair_again(const struct rdma *t, struct rd_lane *l)
{
	return (l->home + (another_works(t, l) ? 0 : l->returns++)) % t->npairs;
}

int rd_cm_connect_again(struct rdma *t, struct rd_lane *l, const struct lm_transport_params *p, struct lm_error *err)
{
	struct connecting c = { .t = t, .p = p, .npairs = t->npairs };
	int r;

	memcpy(c.local, t->local, sizeof(c.local));
	memcpy(c.peer, t->peer, sizeof(c.peer));
	memcpy(c.pairs, t->pairs, sizeof(c.pairs));
	for (unsigned i = 0; i < c.npairs; i++)
		c.pairs[i].dead = true;
	l->pair = pair_again(t, l);
	c.pairs[l->pair].dead = false;
	l->attempt_until_ns = 0;
	r = lane_resolve(l, &c);
	while (!r && l->state != RDMA_LANE_OPEN) {
		r = rd_cm_wait(t, l, p, NULL, err);
		if (r)
			return r;
		r = lane_hear(l, &c);
	}
	if (r)
		return lm_err(err, r, LM_SCOPE_LANE, "RDMA: %.400s", c.last.code ? c.last.msg : "the rail is not back");
	return 0;
}
