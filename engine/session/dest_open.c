/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination answers OPEN: the guest and the layout of its memory are as at the source,
 * a transport is chosen, lanes are accepted and memory is made known to them.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include "engine/base/cleanup.h"
#include "engine/context/extents.h"
#include "engine/context/lanes.h"
#include "engine/context/negotiate.h"
#include "dest.h"

/* The transport listens before OPENED says where. */
static int send_opened(struct lm_dest *d, struct lm_transport_params *p, struct lm_error *err)
{
	struct lm_opened opened = { .nlanes = p->nlanes };
	uint8_t buf[sizeof(struct lm_wire_opened)];
	int r;

	d->pull.allowed = d->c->opt.postcopy != LM_POSTCOPY_NEVER && !d->open.verify && d->c->transport->ops->fetch &&
			  d->c->vm->ops->pager;
	opened.postcopy = d->pull.allowed;
	opened.reopen = d->c->transport->ops->reopen;
	r = lm_ctx_token(p->token, err);
	if (!r)
		r = lm_transport_listen(d->c->transport, p, opened.endpoint, err);
	if (r)
		return r;
	memcpy(opened.token, p->token, LM_TOKEN_SIZE);
	memcpy(opened.transport, d->c->summary.transport, sizeof(opened.transport));
	return lm_control_send(&d->c->control, LM_MSG_OPENED, buf, lm_wire_put_opened(buf, &opened),
			       lm_ctx_peer_deadline(d->c), err);
}

/* What this side's files hold already, as RESIDENT messages. */
static int send_resident_region(struct lm_ctx *c, unsigned region, uint8_t *buf, struct lm_error *err)
{
	struct lm_bitmap existing;
	int r = lm_bitmap_init(&existing, lm_region_npages(&c->ram.regions[region]));

	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "out of memory");
	r = lm_region_existing(&c->ram.regions[region], 0, existing.nbits, &existing, err);
	if (!r)
		r = lm_ctx_send_resident(c, region, &existing, buf, err);
	lm_bitmap_fini(&existing);
	return r;
}

static int send_resident(struct lm_ctx *c, struct lm_error *err)
{
	LM_AUTO_FREE uint8_t *buf = malloc(LM_WIRE_PAYLOAD_MAX);
	int r = 0;

	if (!buf)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (unsigned i = 0; !r && i < c->ram.nregions; i++)
		r = send_resident_region(c, i, buf, err);
	return r;
}

/* What a lane that comes back needs, and what the lanes' threads write to. */
static int make_room(struct lm_dest *d, const struct lm_transport_params *p, struct lm_error *err)
{
	unsigned n = p->nlanes;

	d->placed = calloc(n, sizeof(*d->placed));
	d->lane_errors = calloc(n, sizeof(*d->lane_errors));
	if (!d->placed || !d->lane_errors)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	d->reopen = (struct lm_dest_reopen){ .params = *p, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	d->reopen.params.cancel_fd = d->reopen.stop_fd;
	if (d->reopen.stop_fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
	return 0;
}

static int open_lanes(struct lm_dest *d, struct lm_transport_params *p, struct lm_error *err)
{
	struct lm_ctx *c = d->c;
	struct lm_key keys[LM_REGIONS_MAX];
	int r;

	p->deadline_ns = lm_ctx_peer_deadline(c);
	r = lm_ctx_open_lanes(c, p, err);
	if (!r)
		r = send_resident(c, err);
	if (!r)
		r = lm_ctx_register(c, c->transport, keys, err);
	if (!r)
		r = lm_pool_new(p->nlanes, &c->pool, err);
	if (!r)
		r = make_room(d, p, err);
	if (r)
		return r;
	c->outage_ns = c->transport->ops->reopen ? c->opt.recover_timeout_ns : 0;
	r = lm_ctx_bear_outage(c, true, err);
	if (r)
		return r;
	lm_pool_start(c->pool, lm_dest_place_worker, d);
	return lm_control_send(&c->control, LM_MSG_READY, keys, c->ram.nregions * sizeof(keys[0]),
			       lm_ctx_peer_deadline(c), err);
}

/* The transport that both sides may use, not open. */
static int choose(struct lm_ctx *c, const struct lm_open *o, struct lm_error *err)
{
	char name[LM_TRANSPORT_NAME_MAX];
	int r = lm_ctx_choose(c, o->transports, c->peer, name, err);

	return r ? r : lm_ctx_make_transport(c, name, err);
}

int lm_dest_handle_open(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_ctx *c = d->c;
	struct lm_open *o = &d->open;
	struct lm_transport_params p;
	int r = lm_wire_get_open(msg->payload, msg->len, o, err);

	if (!r)
		r = lm_ctx_check_open(c, o, err);
	if (!r)
		r = lm_ram_map(&c->ram, true, err);
	if (!r)
		r = choose(c, o, err);
	if (r)
		return r;
	c->summary.lanes = c->opt.lanes && c->opt.lanes < o->nlanes ? c->opt.lanes : o->nlanes;
	p = lm_ctx_transport_params(c, LM_PUSH, c->summary.lanes);
	r = send_opened(d, &p, err);
	if (!r)
		r = open_lanes(d, &p, err);
	if (r)
		return r;
	lm_ctx_log(c, LM_LOG_DEBUG, "transport: %s", c->transport->info);
	lm_ctx_opened(c, c->peer);
	return lm_ctx_stage(c, "copy", err);
}
