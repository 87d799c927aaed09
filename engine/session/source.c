/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source: a const table of stages that run one after another.  Whatever
 * fails, lm_outgoing_undo() brings the guest back, the peer is told, and
 * nothing but the error is left.
 */
#include <stdio.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/context/connect.h"
#include "engine/context/lanes.h"
#include "engine/context/negotiate.h"
#include "source.h"

/* ---- the peer ---- */

static int open_control(struct lm_source *src, struct lm_error *err)
{
	return lm_ctx_connect(src->c, lm_deadline_min(lm_deadline_after(LM_CONNECT_TIMEOUT_NS), src->c->deadline_ns), err);
}

static int send_open(struct lm_ctx *c, struct lm_error *err)
{
	char transports[sizeof(((struct lm_open *)NULL)->transports)];
	int r = lm_ctx_transports(c, c->opt.address, transports, sizeof(transports), err);

	return r ? r : lm_ctx_send_open(c, LM_MSG_OPEN, transports, err);
}

/* Whether pages may stay behind; an error when the user wants nothing else. */
static int settle_postcopy(struct lm_source *src, bool theirs, struct lm_error *err)
{
	const struct lm_options *o = &src->c->opt;
	bool allowed = o->postcopy != LM_POSTCOPY_NEVER && !o->verify && theirs;
	const char *why = o->verify ? "--verify excludes it" : "the destination does not allow it, or cannot do it";

	src->precopy.postcopy_allowed = allowed;
	if (!allowed && (o->postcopy_after_rounds || o->postcopy_after_ns))
		lm_ctx_log(src->c, LM_LOG_WARN, "no post-copy: %s", why);
	if (o->postcopy == LM_POSTCOPY_NOW && !allowed)
		return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION, "post-copy is asked for, but %s", why);
	return 0;
}

static int open_lanes(struct lm_source *src, const struct lm_opened *opened, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	struct lm_transport_params p = lm_ctx_transport_params(c, LM_PUSH, c->summary.lanes);
	int r;

	memcpy(p.token, opened->token, sizeof(p.token));
	p.endpoint = opened->endpoint;
	r = lm_ctx_open_lanes(c, &p, err);
	if (!r)
		r = lm_pool_new(c->summary.lanes, &c->pool, err);
	if (!r)
		r = lm_precopy_init(&src->precopy, c, err);
	return r ? r : lm_lanes_init(&src->precopy, &p, opened->reopen, err);
}

/* The destination's choice must be one that we may use, too: it is the peer's word. */
static int take_opened(struct lm_source *src, const struct lm_opened *opened, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	char chosen[LM_TRANSPORT_NAME_MAX];
	int r = lm_ctx_choose(c, opened->transport, c->opt.address, chosen, err);

	if (r)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION,
			      "the peer sent a bad message: OPENED with a transport that was not offered");
	c->summary.lanes = opened->nlanes;
	r = settle_postcopy(src, opened->postcopy, err);
	if (!r)
		r = lm_ctx_make_transport(c, chosen, err);
	return r ? r : open_lanes(src, opened, err);
}

/* Register what we read from, learn where it goes. */
static int bind_regions(struct lm_ctx *c, const struct lm_msg *ready, struct lm_error *err)
{
	struct lm_key unused[LM_REGIONS_MAX];
	int r = lm_ctx_register(c, c->transport, unused, err);

	return r ? r : lm_ctx_bind(c, c->transport, ready, err);
}

/*
 * RESIDENT... READY: what the destination's memory holds already, and where it is.  The destination
 * may take long to register its memory; it pings meanwhile.
 */
static int recv_ready(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	/* At most as many messages as the smallest extents could need. */
	uint64_t left = c->summary.ram_bytes / LM_PAGE_SIZE / LM_WIRE_EXTENTS_MAX + c->ram.nregions;

	for (;; left--) {
		struct lm_msg msg;
		int r = lm_control_recv_patient(&c->control, &msg, c->opt.peer_timeout_ns, c->deadline_ns, err);

		if (r)
			return r;
		if (msg.type == LM_MSG_READY)
			return bind_regions(c, &msg, err);
		if (msg.type != LM_MSG_RESIDENT || !left)
			return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent %s where READY was due",
				      lm_msg_name(msg.type));
		r = lm_wire_get_resident(msg.payload, msg.len, src->precopy.copier.filled.maps, c->ram.nregions, err);
		if (r)
			return r;
	}
}

static int negotiate(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	struct lm_opened opened;
	struct lm_msg msg;
	int r = lm_ram_map(&c->ram, false, err);

	if (!r)
		r = send_open(c, err);
	if (!r)
		r = lm_control_expect(&c->control, LM_MSG_OPENED, &msg, lm_ctx_peer_deadline(c), err);
	if (!r)
		r = lm_wire_get_opened(msg.payload, msg.len, c->summary.lanes, &opened, err);
	if (!r)
		r = take_opened(src, &opened, err);
	if (!r)
		r = recv_ready(src, err);
	if (!r)
		r = lm_handover_announce(src->out.handover, err);
	if (!r)
		r = lm_control_ping(&c->control, lm_ctx_peer_deadline(c), err);
	if (r)
		return r;
	lm_ctx_log(c, LM_LOG_DEBUG, "transport: %s", c->transport->info);
	lm_ctx_opened(c, c->opt.address);
	return 0;
}

/* ---- the stages ---- */

static int arm(struct lm_source *src, struct lm_error *err)
{
	return lm_precopy_arm(&src->precopy, err);
}

static int first_round(struct lm_source *src, struct lm_error *err)
{
	return lm_precopy_first(&src->precopy, err);
}

static int more_rounds(struct lm_source *src, struct lm_error *err)
{
	return lm_precopy_rounds(&src->precopy, err);
}

static const struct {
	const char *name; /* fault point and STAGE event, before run */
	int (*run)(struct lm_source *src, struct lm_error *err);
} stages[] = {
	{ "open", open_control },
	{ "hello", negotiate },
	{ "opened", arm },
	{ "armed", first_round },
	{ "round", more_rounds },
	{ "prepare", lm_source_switchover },
};

static bool may_undo(const struct lm_ctx *c)
{
	return c->summary.outcome != LM_OUTCOME_IN_DOUBT && c->summary.outcome != LM_OUTCOME_INTERRUPTED;
}

int lm_source_run(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	int r = 0;

	c->deadline_ns = lm_deadline_after(c->opt.timeout_ns);
	if (c->recovering)
		return lm_postcopy_serve(&src->postcopy, err);
	for (unsigned i = 0; !r && i < sizeof(stages) / sizeof(stages[0]); i++) {
		r = lm_ctx_stage(c, stages[i].name, err);
		if (!r)
			r = stages[i].run(src, err);
	}
	if (r && may_undo(c)) {
		lm_outgoing_undo(&src->out);
		if (c->control.stream) /* sends nothing to a peer that told us */
			lm_control_send_abort(&c->control, err, lm_deadline_after(LM_ABORT_TIMEOUT_NS));
	}
	lm_ctx_urgent(c, false);
	return r;
}

/* ---- its life ---- */

void lm_source_init(struct lm_source *src, struct lm_ctx *c, struct lm_guardian *guardian, struct lm_handover *handover)
{
	src->c = c;
	src->precopy.c = c;
	src->postcopy.both.c = c;
	src->out = (struct lm_outgoing){ .c = c, .guardian = guardian, .handover = handover, .postcopy = &src->postcopy };
}

void lm_source_fini(struct lm_source *src)
{
	if (!src->c)
		return;
	lm_outgoing_fini(&src->out);
	lm_precopy_fini(&src->precopy);
	/* A session that ended before COMMIT, or after the last page, leaves nothing of a post-copy behind. */
	lm_postcopy_source_end(&src->postcopy, src->c->commit_sent || src->c->recovering);
}
