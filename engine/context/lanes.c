/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdio.h>
#include <sys/random.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/control/keepalive.h"
#include "engine/transport/registry.h"
#include "lanes.h"

/* The peer's reason is on its way at the same time as the news that its lanes are gone. */
#define PEER_REASON_MS 200

int lm_ctx_new_transport(const char *name, struct lm_transport **ret, struct lm_error *err)
{
	const struct lm_transport_info *info = lm_transport_find(name);

	if (!info)
		return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION,
			      "no transport \"%s\" here: `migrate-rdma transports` lists what there is", name);
	*ret = lm_transport_make(info);
	return *ret ? 0 : lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
}

int lm_ctx_make_transport(struct lm_ctx *c, const char *name, struct lm_error *err)
{
	int r = lm_ctx_new_transport(name, &c->transport, err);

	if (!r)
		snprintf(c->summary.transport, sizeof(c->summary.transport), "%s", name);
	return r;
}

struct lm_transport_params lm_ctx_transport_params(const struct lm_ctx *c, enum lm_direction direction,
						   unsigned nlanes)
{
	return (struct lm_transport_params){
		.side = c->side, .direction = direction,
		.nlanes = nlanes,
		.ram = &c->ram, .may_pull = c->opt.postcopy != LM_POSTCOPY_NEVER,
		.rails = c->opt.rails, .nrails = c->opt.nrails, .pin = c->opt.pin,
		.listen_fd = c->listen_fd,
		.peer = c->side == LM_SOURCE ? c->opt.address : c->peer,
		.insecure = c->opt.insecure, .deadline_ns = lm_ctx_peer_deadline(c), .cancel_fd = c->cancel_fd,
	};
}

struct listener {
	struct lm_ctx *c;
	struct lm_transport_params *p;
};

/* lm_transport_params.peer_said */
static int peer_said(void *opaque, struct lm_error *err)
{
	struct listener *l = opaque;
	struct lm_msg msg;
	int r = lm_control_try_recv(&l->c->control, &msg, err);

	if (r <= 0)
		return r;
	if (l->c->side == LM_DEST)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s while this side waited for its lanes",
			      lm_msg_name(msg.type));
	/*
	 * The destination may have all lanes, and send its next message, before this side knows that
	 * the last lane is connected.
	 */
	lm_control_put_back(&l->c->control, &msg);
	l->p->peer_said = NULL;
	return 0;
}

/* Both sides notice when a lane breaks.  The side that gave up says why at the same time. */
static int reason_of_peer(struct listener *l, int r, struct lm_error *err)
{
	struct pollfd p = { .fd = lm_transport_peer_fd(l->p), .events = POLLIN };
	struct lm_error said = { 0 };

	if (l->c->control.peer_aborted || r == -ECANCELED || poll(&p, 1, PEER_REASON_MS) != 1 ||
	    !peer_said(l, &said) || !l->c->control.peer_aborted)
		return r;
	*err = said;
	return said.code;
}

int lm_ctx_open_lanes(struct lm_ctx *c, struct lm_transport_params *p, struct lm_error *err)
{
	struct listener l = { c, p };
	int r;

	p->peer_fd = lm_control_fd(&c->control);
	p->peer_said = peer_said;
	p->peer_opaque = &l;
	r = lm_transport_open(c->transport, p, err);
	if (r)
		r = reason_of_peer(&l, r, err);
	p->peer_said = NULL; /* what is opened later is opened by another thread */
	return r;
}

int lm_ctx_register(struct lm_ctx *c, struct lm_transport *t, struct lm_key keys[static LM_REGIONS_MAX],
		    struct lm_error *err)
{
	struct lm_keepalive keepalive;
	int r = lm_keepalive_start(&keepalive, &c->control, err);

	if (r)
		return r;
	for (unsigned i = 0; !r && i < c->ram.nregions; i++)
		r = lm_transport_region_add(t, &c->ram.regions[i], &keys[i], err);
	lm_keepalive_stop(&keepalive);
	return r;
}

int lm_ctx_bind(struct lm_ctx *c, struct lm_transport *t, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_key keys[LM_REGIONS_MAX];
	int r = lm_wire_get_ready(msg->payload, msg->len, c->ram.nregions, keys, err);

	for (unsigned i = 0; !r && i < c->ram.nregions; i++)
		r = lm_transport_region_bind(t, i, &keys[i], err);
	return r;
}

int lm_ctx_token(uint8_t ret[static LM_TOKEN_SIZE], struct lm_error *err)
{
	if (getrandom(ret, LM_TOKEN_SIZE, 0) != LM_TOKEN_SIZE)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "no random numbers for a token");
	return 0;
}

int lm_ctx_send_lane_open(struct lm_ctx *c, unsigned lane, uint8_t ret_token[static LM_TOKEN_SIZE],
			  struct lm_error *err)
{
	struct lm_wire_lane_open open = { .lane = lm_le32(lane) };
	int r = lm_ctx_token(ret_token, err);

	if (r)
		return r;
	memcpy(open.token, ret_token, LM_TOKEN_SIZE);
	return lm_control_send(&c->control, LM_MSG_LANE_OPEN, &open, sizeof(open), lm_ctx_peer_deadline(c), err);
}
