/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening lanes with rdma_cm.  Nothing here blocks: every event channel is
 * non-blocking and all of them are polled together, with the session's cancel_fd,
 * until the deadline.  Strangers are told apart by the token in the private data of
 * their request, before anything is made for them.
 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include "cleanup.h"
#include "clock.h"
#include "rdma.h"

#define BACKLOG 128
#define RESOLVE_MS 2000
/* 4.096 us << 16 is 268 ms: with seven retries a lane gives up after two seconds and more. */
#define ACK_TIMEOUT 16
#define READS_MAX 16
/* A pair of rails that has not connected by then makes room for another. */
#define ATTEMPT_NS (3 * LM_NS_PER_S)
/* How often the destination looks whether a rail that was lost can be listened on. */
#define LISTEN_AGAIN_NS (200 * LM_NS_PER_MS)

/* ---- events ---- */

int rd_channel_make(struct rdma_event_channel **ret)
{
	struct rdma_event_channel *c = rdma_create_event_channel();

	if (!c)
		return errno ? -errno : -ENODEV;
	if (fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK) || fcntl(c->fd, F_SETFD, FD_CLOEXEC)) {
		int r = -errno;

		rdma_destroy_event_channel(c);
		errno = -r;
		return r;
	}
	*ret = c;
	return 0;
}

int rd_event_next(struct rdma_event_channel *channel, struct rd_event *ret)
{
	struct rdma_cm_event *e;

	if (rdma_get_cm_event(channel, &e))
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? -EAGAIN : -errno;
	*ret = (struct rd_event){ .type = e->event, .status = e->status, .id = e->id };
	if (e->event == RDMA_CM_EVENT_CONNECT_REQUEST && e->param.conn.private_data &&
	    e->param.conn.private_data_len >= sizeof(ret->hello)) {
		memcpy(&ret->hello, e->param.conn.private_data, sizeof(ret->hello));
		ret->has_hello = true;
	}
	rdma_ack_cm_event(e);
	return 0;
}

/* ---- both sides ---- */

static struct rd_hello hello_make(const struct lm_transport_params *p, unsigned lane)
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

static struct rdma_conn_param conn_param(const struct rd_lane *l)
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

/* The transport's use of the device that this id is bound to. */
static int use_find(struct rdma *t, struct rdma_cm_id *id, struct rd_use **ret, struct lm_error *err)
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

static void opened(struct rd_lane *l)
{
	struct ibv_qp_init_attr unused;
	struct ibv_qp_attr a;

	/* How memory is registered is decided once. */
	if (!l->t->base.is_open && (ibv_query_qp(l->id->qp, &a, IBV_QP_PATH_MTU, &unused) || a.path_mtu < IBV_MTU_4096))
		l->use->small_packets = true;
	l->state = RDMA_LANE_OPEN;
	rd_device_add_lane(l->use->dev, l);
}

static unsigned missing(const struct rdma *t)
{
	unsigned n = 0;

	for (unsigned i = 0; i < t->base.nlanes; i++)
		n += t->lanes[i].state != RDMA_LANE_OPEN;
	return n;
}

/*
 * Until something happens on a lane or the extra channel; an error when it is over.
 * only: nothing but this lane is looked at; NULL: all.
 */
static int wait_events(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
		       struct rdma_event_channel *extra, struct lm_error *err)
{
	struct pollfd fds[LM_LANES_MAX + 2];
	int64_t until = p->deadline_ns;
	unsigned n = t->base.nlanes;

	for (unsigned i = 0; i < n; i++) {
		const struct rd_lane *l = &t->lanes[i];

		fds[i] = (struct pollfd){ .fd = -1, .events = POLLIN };
		if (only && l != only)
			continue;
		fds[i].fd = l->channel ? l->channel->fd : -1;
		if (l->attempt_until_ns && l->state != RDMA_LANE_OPEN)
			until = lm_deadline_min(until, l->attempt_until_ns);
	}
	fds[n] = (struct pollfd){ .fd = p->cancel_fd, .events = POLLIN };
	fds[n + 1] = (struct pollfd){ .fd = extra ? extra->fd : -1, .events = POLLIN };
	if (poll(fds, n + 2, lm_deadline_poll_ms(until)) < 0 && errno != EINTR)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "poll");
	if (fds[n].revents)
		return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "cancelled");
	if (lm_now_ns() >= p->deadline_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "RDMA: %u of %u lanes have not come (a firewall before UDP port "
			      "4791? MTU?)", only ? 1 : missing(t), n);
	return 0;
}

/* ---- destination ---- */

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
	r = errno ? -errno : -EIO;
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

/* In a time that does not depend on where they differ. */
static bool same_bytes(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;
	volatile uint8_t diff = 0;

	while (n--)
		diff |= *x++ ^ *y++;
	return !diff;
}

/*
 * The lane that a request asks for, or NULL: not ours, or there already.  A source
 * that asks again has given its first attempt up.
 */
static struct rd_lane *hello_lane(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
				  const struct rd_event *e)
{
	unsigned lane = lm_le16_get(e->hello.lane);
	struct rd_hello want = hello_make(p, lane);

	if (!e->has_hello || !same_bytes(&want, &e->hello, sizeof(want)) || lane >= p->nlanes)
		return NULL;
	/* The other lanes have threads, whose they are. */
	if (only && only != &t->lanes[lane])
		return NULL;
	if (t->lanes[lane].state == RDMA_LANE_CONNECT)
		rd_lane_reset(&t->lanes[lane]);
	return t->lanes[lane].state == RDMA_LANE_NEW ? &t->lanes[lane] : NULL;
}

static int accept_lane(struct rdma *t, struct rd_lane *l, struct lm_error *err)
{
	struct rdma_conn_param param;
	int r = rd_channel_make(&l->channel);

	if (!r && rdma_migrate_id(l->id, l->channel))
		r = -errno;
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "rdma_cm");
	r = use_find(t, l->id, &l->use, err);
	if (!r)
		r = rd_lane_setup(l, err);
	if (r)
		return r;
	param = conn_param(l);
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

/* A connection that breaks before it stands: the source may try again. */
static void hear_accepted(struct rd_lane *l)
{
	struct rd_event e;

	while (l->channel && !rd_event_next(l->channel, &e)) {
		if (e.type == RDMA_CM_EVENT_ESTABLISHED && l->state == RDMA_LANE_CONNECT)
			opened(l);
		else if (l->state == RDMA_LANE_CONNECT || e.type == RDMA_CM_EVENT_DISCONNECTED) /* it will try again */
			rd_lane_reset(l);
	}
}

/* A few at a time: however many strangers there are, the deadline is looked at. */
static int hear_requests(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
			 struct lm_error *err)
{
	struct rd_event e;
	int r = 0;

	for (unsigned n = 0; !r && n < BACKLOG && !rd_event_next(t->listen_channel, &e); n++) {
		if (e.type == RDMA_CM_EVENT_CONNECT_REQUEST)
			r = hear_request(t, only, p, &e, err);
		else if (e.type == RDMA_CM_EVENT_DEVICE_REMOVAL)
			listener_gone(t, e.id);
	}
	return r;
}

int rd_cm_accept(struct rdma *t, const struct lm_transport_params *p, struct lm_error *err)
{
	int r = 0;

	while (!r && missing(t)) {
		r = wait_events(t, NULL, p, t->listen_channel, err);
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
			r = wait_events(t, l, p, t->listen_channel, err);
		if (!r)
			hear_accepted(l);
	}
	return r;
}

/* ---- source ---- */

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

	if (rd_channel_make(&l->channel))
		return attempt_failed(l, c, -errno, "rdma_cm");
	if (rdma_create_id(l->channel, &l->id, NULL, RDMA_PS_TCP))
		return attempt_failed(l, c, -errno, "rdma_cm");
	/* A device that does not know it keeps its own. */
	rdma_set_option(l->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout));
	if (rdma_resolve_addr(l->id, from, &c->peer[pair->peer].addr.sa, RESOLVE_MS))
		return attempt_failed(l, c, -errno, "no route");
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

static int addr_resolved(struct rd_lane *l, struct connecting *c)
{
	int r = use_find(c->t, l->id, &l->use, &c->last);

	if (r)
		return r;
	if (rdma_resolve_route(l->id, RESOLVE_MS))
		return attempt_failed(l, c, -errno, "no route");
	l->state = RDMA_LANE_ROUTE;
	return 0;
}

static int route_resolved(struct rd_lane *l, struct connecting *c)
{
	struct rd_hello hello = hello_make(c->p, l->index);
	struct rdma_conn_param param;
	int r = rd_lane_setup(l, &c->last);

	if (r)
		return r;
	param = conn_param(l);
	param.private_data = &hello;
	param.private_data_len = sizeof(hello);
	if (rdma_connect(l->id, &param))
		return attempt_failed(l, c, -errno, "cannot connect");
	l->state = RDMA_LANE_CONNECT;
	return 0;
}

static int established(struct rd_lane *l, struct connecting *c)
{
	int r = rd_lane_restrict(l);

	if (r)
		return attempt_failed(l, c, r, "the device cannot restrict a connection");
	opened(l);
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
	if (l->state == RDMA_LANE_OPEN) {
		l->hung_up |= e->type == RDMA_CM_EVENT_DISCONNECTED;
		return 0;
	}
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

	while (l->channel && !rd_event_next(l->channel, &e))
		if (lane_event(l, c, &e))
			return lane_next(l, c);
	if (l->state == RDMA_LANE_OPEN || lm_now_ns() < l->attempt_until_ns)
		return 0;
	if (!others_live(c, l->pair)) {
		l->attempt_until_ns = 0;
		return 0;
	}
	attempt_failed(l, c, -ETIMEDOUT, "no answer");
	return lane_next(l, c);
}

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
			      "none of our RDMA rails speaks the destination's kind of address");
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
	while (!r && missing(t)) {
		r = wait_events(t, NULL, p, NULL, err);
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
		r = wait_events(t, l, p, NULL, err);
		if (r)
			return r;
		r = lane_hear(l, &c);
	}
	if (r)
		return lm_err(err, r, LM_SCOPE_LANE, "RDMA: %.400s", c.last.code ? c.last.msg : "the rail is not back");
	return 0;
}
