/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source: a const table of stages that run one after another.  Whatever
 * fails, lm_switchover_undo() brings the guest back, the peer is told, and
 * nothing but the error is left.
 */
#include <stdio.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/base/cleanup.h"
#include "session.h"

static unsigned default_lanes(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : n > 4 ? 4 : (unsigned)n;
}

int lm_source_connect(struct lm_session *s, int64_t deadline, struct lm_error *err)
{
	struct lm_stream *stream;
	char software[32];
	int r;

	r = lm_stream_connect(s->opt.address, s->opt.insecure, deadline, s->cancel_fd, &stream, err);
	if (r)
		return r;
	r = lm_control_open(&s->control, stream, s->cancel_fd, err);
	if (r) {
		lm_stream_close(stream);
		return r;
	}
	r = lm_stream_set_peer_timeout(stream, s->opt.peer_timeout_ns, err);
	if (!r)
		r = lm_control_hello(&s->control, deadline, software, err);
	if (!r)
		lm_session_log(s, LM_LOG_DEBUG, "the destination runs %s", software);
	return r;
}

static int source_connect(struct lm_session *s, struct lm_error *err)
{
	return lm_source_connect(s, lm_deadline_min(lm_deadline_after(LM_CONNECT_TIMEOUT_NS), s->src.deadline_ns), err);
}

int lm_source_send_open(struct lm_session *s, enum lm_msg_type type, const char *transports, struct lm_error *err)
{
	LM_AUTO_FREE struct lm_open *open = calloc(1, sizeof(*open));
	LM_AUTO_FREE uint8_t *buf = malloc(LM_WIRE_PAYLOAD_MAX);

	if (!open || !buf)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	snprintf(open->transports, sizeof(open->transports), "%s", transports);
	open->info = s->vm->info;
	open->nlanes = s->opt.lanes ? s->opt.lanes : default_lanes();
	open->verify = s->opt.verify;
	open->nlocks = s->opt.nlocks;
	open->nregions = s->ram.nregions;
	for (unsigned i = 0; i < s->ram.nregions; i++) {
		memcpy(open->regions[i].name, s->ram.regions[i].name, sizeof(open->regions[i].name));
		open->regions[i].size = s->ram.regions[i].size;
		open->regions[i].page_size = s->ram.regions[i].page_size;
	}
	s->summary.lanes = open->nlanes;
	return lm_control_send(&s->control, type, buf, lm_wire_put_open(buf, open), lm_session_peer_deadline(s), err);
}

static int send_open(struct lm_session *s, struct lm_error *err)
{
	char transports[sizeof(((struct lm_open *)NULL)->transports)];
	int r = lm_session_transports(s, s->opt.address, transports, sizeof(transports), err);

	return r ? r : lm_source_send_open(s, LM_MSG_OPEN, transports, err);
}

static int connect_lanes(struct lm_session *s, const struct lm_opened *opened, struct lm_error *err)
{
	struct lm_transport_params p = lm_session_transport_params(s, LM_PUSH);

	int r;

	memcpy(p.token, opened->token, sizeof(p.token));
	p.endpoint = opened->endpoint;
	r = lm_session_open_lanes(s, &p, err);
	return r ? r : lm_lanes_init(s, &p, opened->reopen, err);
}

/* The destination's choice must be one that we may use, too: it is the peer's word. */
static int take_opened(struct lm_session *s, const struct lm_opened *opened, struct lm_error *err)
{
	char chosen[LM_TRANSPORT_NAME_MAX];
	int r = lm_session_choose(s, opened->transport, s->opt.address, chosen, err);

	if (r)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION,
			      "the peer sent a bad message: OPENED with a transport that was not offered");
	s->summary.lanes = opened->nlanes;
	s->pull.allowed = s->opt.postcopy != LM_POSTCOPY_NEVER && !s->opt.verify && opened->postcopy;
	if (!s->pull.allowed && (s->opt.postcopy_after_rounds || s->opt.postcopy_after_ns))
		lm_session_log(s, LM_LOG_WARN, "no post-copy: %s",
			       s->opt.verify ? "--verify excludes it" : "the destination does not allow it, or cannot do it");
	if (s->opt.postcopy == LM_POSTCOPY_NOW && !s->pull.allowed)
		return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION, "post-copy is asked for, but %s",
			      s->opt.verify ? "--verify excludes it" : "the destination does not allow it, or cannot do it");
	r = lm_session_make_transport(s, chosen, err);
	return r ? r : connect_lanes(s, opened, err);
}

/* Register what we read from, learn where it goes. */
static int bind_regions(struct lm_session *s, const struct lm_msg *ready, struct lm_error *err)
{
	struct lm_key keys[LM_REGIONS_MAX], mine;
	struct lm_keepalive keepalive;
	int r = lm_wire_get_ready(ready->payload, ready->len, s->ram.nregions, keys, err);

	if (!r)
		r = lm_keepalive_start(&keepalive, &s->control, err);
	if (r)
		return r;
	for (unsigned i = 0; !r && i < s->ram.nregions; i++) {
		r = lm_transport_region_add(s->transport, &s->ram.regions[i], &mine, err);
		if (!r)
			r = lm_transport_region_bind(s->transport, i, &keys[i], err);
	}
	lm_keepalive_stop(&keepalive);
	return r;
}

/* The destination may be long in registering its memory: it pings meanwhile. */
static int recv_opening(struct lm_session *s, struct lm_msg *msg, struct lm_error *err)
{
	int r;

	do {
		int64_t heard = s->control.last_heard_ns + s->opt.peer_timeout_ns;

		r = lm_control_recv(&s->control, msg, lm_deadline_min(heard, s->src.deadline_ns), err);
	} while (r == -ETIMEDOUT && lm_now_ns() < s->src.deadline_ns &&
		 lm_now_ns() < s->control.last_heard_ns + s->opt.peer_timeout_ns);
	return r;
}

/* RESIDENT... READY: what the destination's memory holds already, and where it is. */
static int recv_ready(struct lm_session *s, struct lm_error *err)
{
	/* As many as the smallest extents could need, and no more. */
	uint64_t left = s->summary.ram_bytes / LM_PAGE_SIZE / LM_WIRE_EXTENTS_MAX + s->ram.nregions;

	for (;; left--) {
		struct lm_msg msg;
		int r = recv_opening(s, &msg, err);

		if (r)
			return r;
		if (msg.type == LM_MSG_READY)
			return bind_regions(s, &msg, err);
		if (msg.type != LM_MSG_RESIDENT || !left)
			return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent %s where READY was due",
				      lm_msg_name(msg.type));
		r = lm_wire_get_resident(msg.payload, msg.len, s->src.copier.filled.maps, s->ram.nregions, err);
		if (r)
			return r;
	}
}

static void opened_event(struct lm_session *s)
{
	struct lm_event e = { .type = LM_EVENT_OPENED };

	s->opened = true;
	lm_session_log(s, LM_LOG_DEBUG, "transport: %s", s->transport->info);
	e.u.opened.transport = s->summary.transport;
	e.u.opened.lanes = s->summary.lanes;
	e.u.opened.ram_bytes = s->summary.ram_bytes;
	e.u.opened.peer = s->opt.address;
	lm_session_event(s, &e);
}

static int source_negotiate(struct lm_session *s, struct lm_error *err)
{
	struct lm_opened opened;
	struct lm_msg msg;
	int r = lm_ram_map(&s->ram, false, err);

	if (!r)
		r = send_open(s, err);
	if (!r)
		r = lm_control_expect(&s->control, LM_MSG_OPENED, &msg, lm_session_peer_deadline(s), err);
	if (!r)
		r = lm_wire_get_opened(msg.payload, msg.len, s->summary.lanes, &opened, err);
	if (!r)
		r = take_opened(s, &opened, err);
	if (!r)
		r = lm_pool_new(s->summary.lanes, &s->pool, err);
	if (!r)
		r = lm_copier_init(&s->src.copier, &s->ram, s->transport, s->pool, err);
	if (r)
		return r;
	s->src.copier.throttle.max_bytes_per_s = s->opt.max_bandwidth_bytes_per_s;
	s->src.copier.stall_ns = s->opt.peer_timeout_ns;
	r = recv_ready(s, err);
	if (!r)
		r = lm_handover_announce(s, err);
	if (!r)
		r = lm_control_ping(&s->control, lm_session_peer_deadline(s), err);
	if (!r)
		opened_event(s);
	return r;
}

struct source_stage {
	const char *name; /* fault point and STAGE event, before run */
	int (*run)(struct lm_session *s, struct lm_error *err);
};

static const struct source_stage stages[] = {
	{ "open", source_connect },
	{ "hello", source_negotiate },
	{ "opened", lm_precopy_arm },
	{ "armed", lm_precopy_first },
	{ "round", lm_precopy_rounds },
	{ "prepare", lm_switchover },
};

/* Tell the peer, unless it was the peer that told us. */
static void tell_peer(struct lm_session *s, const struct lm_error *why)
{
	if (s->control.stream)
		lm_control_send_abort(&s->control, why, lm_deadline_after(LM_ABORT_TIMEOUT_NS));
}

int lm_source_run(struct lm_session *s, struct lm_error *err)
{
	int r = 0;

	s->src.deadline_ns = lm_deadline_after(s->opt.timeout_ns);
	if (s->recovering)
		return lm_postcopy_serve(s, err);
	for (unsigned i = 0; !r && i < sizeof(stages) / sizeof(stages[0]); i++) {
		r = lm_session_stage(s, stages[i].name, err);
		if (!r)
			r = stages[i].run(s, err);
	}
	if (r && s->summary.outcome != LM_OUTCOME_IN_DOUBT && s->summary.outcome != LM_OUTCOME_INTERRUPTED) {
		lm_switchover_undo(s);
		tell_peer(s, err);
	}
	lm_session_urgent(s, false);
	return r;
}

void lm_source_cleanup(struct lm_session *s)
{
	struct lm_source *src = &s->src;
	struct lm_pageset *sets[] = { &src->dirty, &src->absent, &src->holes, &src->todo, &src->lost };

	lm_relay_stop(&src->relay);
	lm_lanes_fini(s);
	lm_dirty_close(src->tracker);
	src->tracker = NULL;
	for (unsigned i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		lm_pageset_fini(sets[i]);
	lm_copier_fini(&src->copier);
}
