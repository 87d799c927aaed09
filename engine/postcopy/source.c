/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy as the source sees it.  It names the pages that stay behind, keeps its
 * RAM as it is, and answers.  It decides nothing: what is fetched when is the
 * destination's affair, so that the source has nothing to remember but the secret.
 */
#include <poll.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/base/cleanup.h"
#include "engine/session/session.h"
#include "engine/base/urgent.h"

/* The destination hears nothing else from us: often enough for a short --peer-timeout, which will be its own, too. */
#define PING_NS (1 * LM_NS_PER_S)
#define PINGS_PER_TIMEOUT 4
#define TRY_AGAIN_NS (200 * LM_NS_PER_MS)
/* The last word (WHOLE) may be on its way when the lanes close. */
#define LAST_WORD_NS (2 * LM_NS_PER_S)

/* ---- lanes ---- */

static void answer_worker(void *ctx, unsigned lane)
{
	struct lm_session *s = ctx;
	struct lm_error *err = &s->pull.lane_errors[lane];

	if (lane == s->pull.nlanes)
		lm_urgent_begin(0);
	while (!atomic_load_explicit(&s->pull.stop, memory_order_relaxed)) {
		struct lm_poll_result res;
		int r = lm_transport_poll(s->pull.transport, lane, 100, &res, err);

		if (r || res.closed)
			break;
	}
	lm_transport_shut(s->pull.transport, lane);
	if (err->code)
		atomic_fetch_or(&s->pull.failed, UINT64_C(1) << lane);
	atomic_fetch_add(&s->pull.ended, 1);
}

static void close_lanes(struct lm_session *s)
{
	if (!s->pull.transport)
		return;
	lm_comeback_fini(&s->pull.comeback);
	atomic_store(&s->pull.stop, true);
	for (unsigned i = 0; i <= s->pull.nlanes; i++)
		lm_transport_shut(s->pull.transport, i);
	if (s->pull.pool)
		lm_pool_finish(s->pull.pool);
	lm_transport_free(s->pull.transport);
	s->pull.transport = NULL;
}

static int add_regions(struct lm_session *s, struct lm_key keys[static LM_REGIONS_MAX], struct lm_error *err)
{
	struct lm_keepalive keepalive;
	int r = lm_keepalive_start(&keepalive, &s->control, err);

	if (r)
		return r;
	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = lm_transport_region_add(s->pull.transport, &s->ram.regions[i], &keys[i], err);
	lm_keepalive_stop(&keepalive);
	return r;
}

static int threads_start(struct lm_session *s, struct lm_error *err)
{
	unsigned n = s->pull.nlanes + 1;

	if (!s->pull.lane_errors)
		s->pull.lane_errors = calloc(n, sizeof(*s->pull.lane_errors));
	if (!s->pull.lane_errors)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	if (!s->pull.pool) {
		int r = lm_pool_new(n, &s->pull.pool, err);

		if (r)
			return r;
	}
	for (unsigned i = 0; i < n; i++)
		lm_err_clear(&s->pull.lane_errors[i]);
	atomic_store(&s->pull.stop, false);
	atomic_store(&s->pull.ended, 0);
	atomic_store(&s->pull.failed, 0);
	s->pull.failed_told = 0;
	lm_pool_start(s->pull.pool, answer_worker, s);
	return 0;
}

/* POSTCOPY_OPENED: open the lanes, say how our memory is reached, and answer from here on. */
static int open_lanes(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_transport_params p = lm_session_transport_params(s, LM_PULL);
	struct lm_key keys[LM_REGIONS_MAX];
	struct lm_opened opened;
	int r = lm_wire_get_postcopy_opened(msg->payload, msg->len, s->pull.nlanes + 1, &opened, s->pull.secret, err);

	if (!r && strcmp(opened.transport, s->summary.transport))
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: another transport for post-copy");
	if (!r)
		r = lm_session_new_transport(opened.transport, &s->pull.transport, err);
	if (r)
		return r;
	memcpy(p.token, opened.token, sizeof(p.token));
	p.endpoint = opened.endpoint;
	r = lm_transport_open(s->pull.transport, &p, err);
	if (!r)
		r = add_regions(s, keys, err);
	if (!r)
		r = lm_postcopy_lanes_init(s, &p, err);
	if (!r)
		r = threads_start(s, err);
	if (!r)
		r = lm_control_send(&s->control, LM_MSG_POSTCOPY_KEYS, keys, s->ram.nregions * sizeof(keys[0]),
				    lm_session_peer_deadline(s), err);
	return r;
}

/* ---- before the switchover ---- */

static int state_create(struct lm_session *s, struct lm_error *err)
{
	struct lm_pcstate *st = &s->pull.state;
	int r = lm_pcstate_create(st, LM_SOURCE, s->vm->pid, &s->ram, err);

	if (r)
		return r;
	st->head->nlanes = s->pull.nlanes;
	memcpy(st->head->transport, s->summary.transport, sizeof(st->head->transport));
	memcpy(st->head->secret, s->pull.secret, sizeof(st->head->secret));
	return 0;
}

int lm_postcopy_prepare(struct lm_session *s, struct lm_error *err)
{
	struct lm_wire_postcopy postcopy = { lm_le64(s->opt.max_bandwidth_bytes_per_s) };
	struct lm_msg msg;
	uint64_t pages;
	int r = lm_session_stage(s, "postcopy-prepare", err);

	s->pull.nlanes = s->summary.lanes < LM_LANES_MAX ? s->summary.lanes : LM_LANES_MAX - 1;
	if (!r && lm_pageset_init(&s->pull.told, &s->ram))
		r = lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	if (!r)
		r = lm_control_send(&s->control, LM_MSG_POSTCOPY, &postcopy, sizeof(postcopy),
				    lm_session_peer_deadline(s), err);
	if (!r)
		r = lm_session_expect(s, LM_MSG_POSTCOPY_OPENED, &msg, s->opt.peer_timeout_ns + s->opt.qmp_timeout_ns,
				      s->src.deadline_ns, err);
	if (!r)
		r = open_lanes(s, &msg, err);
	if (!r)
		r = state_create(s, err);
	if (!r)
		r = lm_postcopy_leave(s, false, &pages, err);
	s->pull.armed = !r;
	return r;
}

/* ---- what stays behind ---- */

static int send_left_map(struct lm_session *s, unsigned region, const struct lm_bitmap *map,
			 enum lm_left_kind kind, uint8_t *buf, struct lm_error *err)
{
	struct lm_wire_left *w = (void *)buf;
	struct lm_wire_extent *x = (void *)(w + 1);
	uint64_t pos = 0, first, n;
	uint32_t count = 0;
	int r = 0;

	do {
		n = lm_bitmap_next_run(map, pos, map->nbits, &first);
		if (n)
			x[count++] = (struct lm_wire_extent){ lm_le64(first), lm_le64(n) };
		pos = first + n;
		if (!count || (n && count < LM_WIRE_EXTENTS_MAX))
			continue;
		*w = (struct lm_wire_left){ .region = lm_le32(region), .kind = lm_le32(kind), .count = lm_le32(count) };
		r = lm_control_send(&s->control, LM_MSG_LEFT, w, sizeof(*w) + count * sizeof(*x),
				    lm_session_peer_deadline(s), err);
		count = 0;
	} while (!r && n);
	return r;
}

/* dirty without holes is data, with holes zero.  todo is free between jobs: a scratch map. */
static int send_left_region(struct lm_session *s, unsigned region, uint8_t *buf, struct lm_error *err)
{
	const struct lm_bitmap *dirty = &s->src.dirty.maps[region], *holes = &s->src.holes.maps[region];
	struct lm_bitmap *scratch = &s->src.todo.maps[region];
	int r;

	for (uint64_t i = 0; i < lm_bitmap_nwords(dirty->nbits); i++)
		scratch->words[i] = dirty->words[i] & ~holes->words[i];
	r = send_left_map(s, region, scratch, LM_LEFT_DATA, buf, err);
	for (uint64_t i = 0; i < lm_bitmap_nwords(dirty->nbits); i++)
		scratch->words[i] = dirty->words[i] & holes->words[i];
	if (!r)
		r = send_left_map(s, region, scratch, LM_LEFT_ZERO, buf, err);
	lm_bitmap_clear_all(scratch);
	return r;
}

int lm_postcopy_leave(struct lm_session *s, bool last, uint64_t *ret_pages, struct lm_error *err)
{
	LM_AUTO_FREE uint8_t *buf = malloc(LM_WIRE_PAYLOAD_MAX);
	struct lm_wire_left end = { .kind = lm_le32(LM_LEFT_END) };
	int r = buf ? 0 : lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");

	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = send_left_region(s, i, buf, err);
	if (!r && last)
		r = lm_control_send(&s->control, LM_MSG_LEFT, &end, sizeof(end), lm_session_peer_deadline(s), err);
	if (r)
		return r;
	lm_pageset_or(&s->pull.told, &s->src.dirty);
	lm_pageset_clear_all(&s->src.dirty);
	lm_pageset_clear_all(&s->src.holes); /* of this scan */
	*ret_pages = lm_pageset_count(&s->pull.told);
	return 0;
}

/* ---- after COMMIT ---- */

static void account(struct lm_session *s, const struct lm_postcopy_stats *stats)
{
	unsigned recoveries = s->summary.postcopy.recoveries;

	s->summary.postcopy = *stats;
	s->summary.postcopy.recoveries = recoveries;
	lm_postcopy_event(s, &s->summary.postcopy);
}

static const char *lane_error(const struct lm_session *s, unsigned lane)
{
	return s->pull.lane_errors[lane].msg;
}

/* 1: the destination has everything. */
static int handle(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_postcopy_stats stats;
	int r;

	switch (msg->type) {
	case LM_MSG_MISSING:
		r = lm_wire_get_missing(msg->payload, msg->len, &stats, err);
		if (r)
			return r;
		account(s, &stats);
		/* With pages missing still it was not the destination that closed them. */
		if (stats.missing_pages)
			lm_postcopy_tell_lanes(s, atomic_load(&s->pull.failed), lane_error);
		return 0;
	case LM_MSG_LANE_OPEN:
		return lm_postcopy_lane_open(s, msg, err);
	case LM_MSG_WHOLE:
		return 1;
	case LM_MSG_RESUMED: /* of a COMMIT whose answer was waited for no longer */
		return 0;
	default:
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination sent %s in post-copy",
			      lm_msg_name(msg->type));
	}
}

static int tick(struct lm_session *s, struct lm_error *err)
{
	int64_t now = lm_now_ns(), every = s->opt.peer_timeout_ns / PINGS_PER_TIMEOUT;

	if (now - s->control.last_heard_ns > s->opt.peer_timeout_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the destination has not answered for %.1f s",
			      (double)s->opt.peer_timeout_ns / 1e9);
	if (now - s->pull.last_ping_ns < (every < PING_NS ? every : PING_NS))
		return 0;
	s->pull.last_ping_ns = now;
	return lm_control_ping(&s->control, lm_session_peer_deadline(s), err);
}

/* 1: the destination has everything; an error: it is lost. */
static int answer(struct lm_session *s, struct lm_error *err)
{
	int64_t closing = 0;

	for (;;) {
		struct pollfd p[2] = { { .fd = lm_control_fd(&s->control), .events = POLLIN },
				       { .fd = lm_comeback_fd(&s->pull.comeback), .events = POLLIN } };
		struct lm_msg msg;
		int r;

		poll(p, 2, 100);
		lm_postcopy_lanes_look(s);
		r = lm_control_try_recv(&s->control, &msg, err);
		if (r > 0)
			r = handle(s, &msg, err);
		if (!r)
			r = tick(s, err);
		if (r)
			return r;
		/* While one is left the destination goes on; it knows better than we which work. */
		if (atomic_load(&s->pull.ended) <= s->pull.nlanes) {
			closing = 0;
			continue;
		}
		if (!closing)
			closing = lm_now_ns();
		if (lm_now_ns() - closing > LAST_WORD_NS)
			return lm_err(err, -ECONNRESET, LM_SCOPE_SESSION, "no lane is left");
	}
}

static int recover_once(struct lm_session *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_wire_recover recover;
	struct lm_msg msg;
	int r = lm_source_connect(s, deadline_ns, err);

	memcpy(recover.secret, s->pull.secret, sizeof(recover.secret));
	if (!r)
		r = lm_control_send(&s->control, LM_MSG_RECOVER, &recover, sizeof(recover),
				    lm_session_peer_deadline(s), err);
	if (!r)
		r = lm_control_recv(&s->control, &msg, lm_session_peer_deadline(s), err);
	if (!r && msg.type == LM_MSG_WHOLE) {
		s->pull.whole = true;
		return 0;
	}
	if (!r && msg.type != LM_MSG_POSTCOPY_OPENED)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent %s where POSTCOPY_OPENED was due",
			   lm_msg_name(msg.type));
	return r ? r : open_lanes(s, &msg, err);
}

static void disconnect(struct lm_session *s)
{
	close_lanes(s);
	lm_control_close(&s->control);
}

/* Look for the destination until --recover-timeout. */
static int recover(struct lm_session *s, struct lm_error *err)
{
	int64_t deadline = lm_deadline_after(s->opt.recover_timeout_ns);
	struct timespec nap = { 0, TRY_AGAIN_NS };
	struct lm_error e = *err;

	lm_session_log(s, LM_LOG_WARN, "post-copy: the destination is lost (%s); looking for it", e.msg);
	if (s->opt.recover_timeout_ns <= 0)
		deadline = lm_now_ns();
	do {
		disconnect(s);
		if (lm_session_check_cancel(s, &e))
			break;
		if (!recover_once(s, lm_deadline_min(deadline, lm_deadline_after(LM_CONNECT_TIMEOUT_NS)), &e)) {
			s->summary.postcopy.recoveries++;
			s->pull.state.head->committed = LM_PC_ANSWERED;
			s->pull.last_ping_ns = lm_now_ns();
			s->control.cancel_fd = -1; /* there is no way back */
			lm_session_log(s, LM_LOG_INFO, "post-copy: the destination is back");
			return lm_session_stage(s, "recovered", err);
		}
		nanosleep(&nap, NULL);
	} while (lm_now_ns() < deadline);
	disconnect(s);
	s->summary.outcome = LM_OUTCOME_INTERRUPTED;
	return lm_err(err, -ENOTCONN, LM_SCOPE_SESSION,
		      "post-copy is interrupted: the destination is not to be found (%.200s). The guest runs there and "
		      "waits for pages of this host: do not end the QEMU here; go on with `migrate-rdma recover` on both "
		      "hosts", e.msg);
}

int lm_postcopy_find(struct lm_session *s, struct lm_error *err)
{
	int r;

	s->pull.began_ns = lm_now_ns();
	lm_session_forget_cancel(s);
	r = recover(s, err);
	if (r)
		s->summary.outcome = LM_OUTCOME_NONE; /* the caller knows what it means */
	return r;
}

int lm_postcopy_serve(struct lm_session *s, struct lm_error *err)
{
	struct lm_error e = { 0 };
	int r = lm_session_stage(s, "postcopy", &e);

	s->summary.postcopy.used = true;
	/* Where we recover, COMMIT may not have been answered: the destination coming back is the answer. */
	if (!s->recovering)
		s->pull.state.head->committed = LM_PC_ANSWERED;
	s->pull.last_ping_ns = lm_now_ns();
	if (s->recovering)
		r = lm_err(&e, -ENOTCONN, LM_SCOPE_SESSION, "its engine or ours ended");
	for (;;) {
		if (!r) {
			s->control.cancel_fd = -1; /* there is no way back */
			r = s->pull.whole ? 1 : answer(s, &e);
			lm_session_forget_cancel(s);
		}
		if (r > 0)
			break;
		r = recover(s, &e);
		if (r) {
			*err = e;
			return r;
		}
	}
	lm_control_send(&s->control, LM_MSG_WHOLE, NULL, 0, lm_deadline_after(LM_ABORT_TIMEOUT_NS), NULL);
	close_lanes(s);
	s->summary.postcopy.missing_pages = 0;
	lm_pcstate_remove(&s->pull.state);
	return lm_session_stage(s, "whole", err);
}

/* What a session that ended before COMMIT, or after the last page, leaves of it: nothing. */
void lm_postcopy_source_end(struct lm_session *s)
{
	if (s->side != LM_SOURCE)
		return;
	close_lanes(s);
	lm_pool_free(s->pull.pool);
	s->pull.pool = NULL;
	free(s->pull.lane_errors);
	s->pull.lane_errors = NULL;
	lm_pageset_fini(&s->pull.told);
	if (s->src.commit_sent || s->recovering)
		lm_pcstate_close(&s->pull.state);
	else
		lm_pcstate_remove(&s->pull.state);
}
