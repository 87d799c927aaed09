/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy as the source sees it, before COMMIT: the lanes, and the pages that stay behind. */
#include <string.h>
#include "engine/base/cleanup.h"
#include "engine/base/urgent.h"
#include "engine/context/extents.h"
#include "engine/context/lanes.h"
#include "both.h"

/* ---- lanes ---- */

static void answer_worker(void *ctx, unsigned lane)
{
	struct lm_postcopy_source *p = ctx;
	struct lm_error *err = &p->lane_errors[lane];

	if (lane == p->both.nlanes)
		lm_urgent_begin(0);
	while (!atomic_load_explicit(&p->stop, memory_order_relaxed)) {
		struct lm_poll_result res;
		int r = lm_transport_poll(p->both.transport, lane, 100, &res, err);

		if (r || res.closed)
			break;
	}
	lm_transport_shut(p->both.transport, lane);
	if (err->code)
		atomic_fetch_or(&p->failed, UINT64_C(1) << lane);
	atomic_fetch_add(&p->ended, 1);
}

void lm_postcopy_source_close_lanes(struct lm_postcopy_source *p)
{
	if (!p->both.transport)
		return;
	lm_comeback_fini(&p->both.comeback);
	atomic_store(&p->stop, true);
	for (unsigned i = 0; i <= p->both.nlanes; i++)
		lm_transport_shut(p->both.transport, i);
	if (p->pool)
		lm_pool_finish(p->pool);
	lm_transport_free(p->both.transport);
	p->both.transport = NULL;
}

static int threads_start(struct lm_postcopy_source *p, struct lm_error *err)
{
	unsigned n = p->both.nlanes + 1;

	if (!p->lane_errors)
		p->lane_errors = calloc(n, sizeof(*p->lane_errors));
	if (!p->lane_errors)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	if (!p->pool) {
		int r = lm_pool_new(n, &p->pool, err);

		if (r)
			return r;
	}
	for (unsigned i = 0; i < n; i++)
		lm_err_clear(&p->lane_errors[i]);
	atomic_store(&p->stop, false);
	atomic_store(&p->ended, 0);
	atomic_store(&p->failed, 0);
	p->both.failed_told = 0;
	lm_pool_start(p->pool, answer_worker, p);
	return 0;
}

static int check_opened(struct lm_postcopy_source *p, const struct lm_msg *msg, struct lm_opened *ret,
			struct lm_error *err)
{
	int r = lm_wire_get_postcopy_opened(msg->payload, msg->len, p->both.nlanes + 1, ret, p->both.secret, err);

	if (!r && strcmp(ret->transport, p->both.c->summary.transport))
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: another transport for post-copy");
	return r;
}

int lm_postcopy_source_open_lanes(struct lm_postcopy_source *p, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_transport_params params = lm_ctx_transport_params(c, LM_PULL, p->both.nlanes + 1);
	struct lm_key keys[LM_REGIONS_MAX];
	struct lm_opened opened;
	int r = check_opened(p, msg, &opened, err);

	if (!r)
		r = lm_ctx_new_transport(opened.transport, &p->both.transport, err);
	if (r)
		return r;
	memcpy(params.token, opened.token, sizeof(params.token));
	params.endpoint = opened.endpoint;
	r = lm_transport_open(p->both.transport, &params, err);
	if (!r)
		r = lm_ctx_register(c, p->both.transport, keys, err);
	if (!r)
		r = lm_postcopy_source_lanes_init(p, &params, err);
	if (!r)
		r = threads_start(p, err);
	if (!r)
		r = lm_control_send(&c->control, LM_MSG_POSTCOPY_KEYS, keys, c->ram.nregions * sizeof(keys[0]),
				    lm_ctx_peer_deadline(c), err);
	return r;
}

/* ---- before the switchover ---- */

static int state_create(struct lm_postcopy_source *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_pcstate *st = &p->both.state;
	int r = lm_pcstate_create(st, LM_SOURCE, c->vm->pid, &c->ram, err);

	if (r)
		return r;
	st->head->nlanes = p->both.nlanes;
	memcpy(st->head->transport, c->summary.transport, sizeof(st->head->transport));
	memcpy(st->head->secret, p->both.secret, sizeof(st->head->secret));
	return 0;
}

/* POSTCOPY, and the lanes in the other direction. */
static int open_pull(struct lm_postcopy_source *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_wire_postcopy postcopy = { lm_le64(c->opt.max_bandwidth_bytes_per_s) };
	struct lm_msg msg;
	int r = lm_control_send(&c->control, LM_MSG_POSTCOPY, &postcopy, sizeof(postcopy), lm_ctx_peer_deadline(c), err);

	if (!r)
		r = lm_control_expect_patient(&c->control, LM_MSG_POSTCOPY_OPENED, &msg,
					      c->opt.peer_timeout_ns + c->opt.qmp_timeout_ns, c->deadline_ns, err);
	return r ? r : lm_postcopy_source_open_lanes(p, &msg, err);
}

int lm_postcopy_prepare(struct lm_postcopy_source *p, struct lm_pageset *dirty, struct lm_pageset *holes,
			struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	uint64_t pages;
	int r = lm_ctx_stage(c, "postcopy-prepare", err);

	p->both.nlanes = c->summary.lanes < LM_LANES_MAX ? c->summary.lanes : LM_LANES_MAX - 1;
	if (!r && (lm_pageset_init(&p->told, &c->ram) || lm_pageset_init(&p->scratch, &c->ram)))
		r = lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	if (!r)
		r = open_pull(p, err);
	if (!r)
		r = state_create(p, err);
	if (!r)
		r = lm_postcopy_leave(p, dirty, holes, false, &pages, err);
	p->both.armed = !r;
	return r;
}

/* ---- what stays behind ---- */

/* dirty without holes is data, with holes zero. */
static int send_left_region(struct lm_postcopy_source *p, unsigned region, const struct lm_bitmap *dirty,
			    const struct lm_bitmap *holes, uint8_t *buf, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_bitmap *scratch = &p->scratch.maps[region];
	int r;

	lm_bitmap_and_not(scratch, dirty, holes);
	r = lm_ctx_send_left(c, region, scratch, LM_LEFT_DATA, buf, err);
	if (r)
		return r;
	lm_bitmap_and(scratch, dirty, holes);
	return lm_ctx_send_left(c, region, scratch, LM_LEFT_ZERO, buf, err);
}

int lm_postcopy_leave(struct lm_postcopy_source *p, struct lm_pageset *dirty, struct lm_pageset *holes, bool last,
		      uint64_t *ret_pages, struct lm_error *err)
{
	LM_AUTO_FREE uint8_t *buf = malloc(LM_WIRE_PAYLOAD_MAX);
	struct lm_wire_left end = { .kind = lm_le32(LM_LEFT_END) };
	struct lm_ctx *c = p->both.c;
	int r = buf ? 0 : lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");

	for (unsigned i = 0; !r && i < c->ram.nregions; i++)
		r = send_left_region(p, i, &dirty->maps[i], &holes->maps[i], buf, err);
	if (!r && last)
		r = lm_control_send(&c->control, LM_MSG_LEFT, &end, sizeof(end), lm_ctx_peer_deadline(c), err);
	if (r)
		return r;
	lm_pageset_or(&p->told, dirty);
	lm_pageset_clear_all(dirty);
	lm_pageset_clear_all(holes); /* of this scan */
	*ret_pages = lm_pageset_count(&p->told);
	return 0;
}

/* ---- the end ---- */

void lm_postcopy_note_commit(struct lm_postcopy_source *p, enum lm_pccommit committed)
{
	if (p->both.armed)
		p->both.state.head->committed = committed;
}

void lm_postcopy_source_take_over(struct lm_postcopy_source *p)
{
	lm_postcopy_read_state(&p->both);
}

void lm_postcopy_source_end(struct lm_postcopy_source *p, bool keep)
{
	lm_postcopy_source_close_lanes(p);
	lm_pool_free(p->pool);
	p->pool = NULL;
	free(p->lane_errors);
	p->lane_errors = NULL;
	lm_pageset_fini(&p->told);
	lm_pageset_fini(&p->scratch);
	if (keep)
		lm_pcstate_close(&p->both.state);
	else
		lm_pcstate_remove(&p->both.state);
}
