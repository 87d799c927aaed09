/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy as the destination sees it, before the guest runs: it arms the pager, learns what stays behind, and
 * answers faults from the moment at which that is known.  pull.c goes on from there.
 */
#include <string.h>
#include "engine/base/testhook.h"
#include "engine/context/lanes.h"
#include "both.h"

/* ---- opening the lanes ---- */

void lm_postcopy_dest_close_lanes(struct lm_postcopy_dest *p)
{
	lm_comeback_fini(&p->both.comeback);
	lm_puller_down(&p->puller);
	lm_transport_free(p->both.transport);
	p->both.transport = NULL;
	p->bound = false;
	p->both.failed_told = 0;
}

static int send_opened(struct lm_postcopy_dest *p, struct lm_transport_params *params, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_opened opened = { .nlanes = params->nlanes };
	uint8_t buf[sizeof(struct lm_wire_postcopy_opened)];
	int r = lm_ctx_token(params->token, err);

	if (!r)
		r = lm_transport_listen(p->both.transport, params, opened.endpoint, err);
	if (r)
		return r;
	memcpy(opened.token, params->token, LM_TOKEN_SIZE);
	memcpy(opened.transport, c->summary.transport, sizeof(opened.transport));
	return lm_control_send(&c->control, LM_MSG_POSTCOPY_OPENED, buf,
			       lm_wire_put_postcopy_opened(buf, &opened, p->both.secret), lm_ctx_peer_deadline(c), err);
}

int lm_postcopy_dest_open_lanes(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_transport_params params = lm_ctx_transport_params(c, LM_PULL, p->both.nlanes + 1);
	struct lm_key unused[LM_REGIONS_MAX];
	int r = lm_ctx_new_transport(c->summary.transport, &p->both.transport, err);

	if (!r)
		r = send_opened(p, &params, err);
	params.deadline_ns = lm_ctx_peer_deadline(c);
	if (!r)
		r = lm_transport_open(p->both.transport, &params, err);
	if (!r)
		r = lm_ctx_register(c, p->both.transport, unused, err);
	return r ? r : lm_postcopy_dest_lanes_init(p, &params, err);
}

int lm_postcopy_bind_keys(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err)
{
	int r = lm_ctx_bind(p->both.c, p->both.transport, msg, err);

	p->bound = !r;
	return r;
}

/* ---- before the guest runs ---- */

static int state_create(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_pcstate *st = &p->both.state;
	int r = lm_pcstate_create(st, LM_DEST, c->vm->pid, &c->ram, err);

	if (r)
		return r;
	st->head->nlanes = p->both.nlanes;
	st->head->max_bytes_per_s = p->both.max_bytes_per_s;
	st->head->vm_fd = p->pager->vm_fd;
	memcpy(st->head->transport, c->summary.transport, sizeof(st->head->transport));
	memcpy(st->head->secret, p->both.secret, sizeof(st->head->secret));
	return 0;
}

static int puller_init(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int r = lm_puller_init(&p->puller, &c->ram, p->pager, p->both.state.whole, p->both.nlanes, err);

	if (r)
		return r;
	p->puller.stall_ns = c->opt.peer_timeout_ns;
	p->puller.throttle.max_bytes_per_s = p->both.max_bytes_per_s;
	return 0;
}

static uint64_t tighter(uint64_t a, uint64_t b)
{
	return !a ? b : !b ? a : a < b ? a : b;
}

int lm_postcopy_arm_here(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int r;

	p->both.armed = true;
	p->both.nlanes = c->summary.lanes < LM_LANES_MAX ? c->summary.lanes : LM_LANES_MAX - 1;
	r = lm_vm_pager(c->vm, &c->ram, &p->pager, err);
	if (!r)
		r = lm_pager_arm(p->pager, err);
	if (!r)
		r = state_create(p, err);
	return r ? r : puller_init(p, err);
}

int lm_postcopy_arm(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_wire_postcopy postcopy;
	int r = lm_wire_get_fixed(msg->payload, msg->len, "POSTCOPY: length", &postcopy, sizeof(postcopy), err);

	if (!r && (!p->allowed || p->both.armed))
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent POSTCOPY, which is not allowed here");
	if (!r)
		r = lm_ctx_stage(c, "postcopy-arm", err);
	if (r)
		return r;
	p->both.max_bytes_per_s = tighter(lm_le64_get(postcopy.max_bytes_per_s), c->opt.max_bandwidth_bytes_per_s);
	r = lm_ctx_token(p->both.secret, err);
	if (!r)
		r = lm_postcopy_arm_here(p, err);
	return r ? r : lm_postcopy_dest_open_lanes(p, err);
}

int lm_postcopy_keys(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err)
{
	if (!p->both.transport || p->bound)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent POSTCOPY_KEYS out of place");
	return lm_postcopy_bind_keys(p, msg, err);
}

static void leave(void *opaque, unsigned region, uint64_t first, uint64_t n, bool zero)
{
	struct lm_postcopy_dest *p = opaque;

	lm_arrival_leave(&p->puller.arrival, region, first, n, zero);
}

/* No fault is answered before all pages that stay behind are named: until then nobody knows which pages are old. */
int lm_postcopy_left(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err)
{
	bool end;
	int r;

	if (!p->bound || p->known)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent LEFT out of place");
	r = lm_wire_get_left(msg->payload, msg->len, &p->both.c->ram, leave, p, &end, err);
	if (r || (!end && !lm_broken("left-end")))
		return r;
	p->known = end;
	if (p->puller.serving)
		return 0;
	r = lm_puller_serve(&p->puller, err);
	if (!r)
		lm_puller_up(&p->puller, p->both.transport);
	return r;
}

/* ---- after an engine's death, and the end ---- */

int lm_postcopy_dest_take_over(struct lm_postcopy_dest *p, struct lm_error *err)
{
	int r;

	lm_postcopy_read_state(&p->both);
	p->known = true;
	if (p->both.state.head->whole)
		return 0;
	r = puller_init(p, err);
	if (r)
		return r;
	lm_arrival_resume(&p->puller.arrival);
	r = lm_puller_serve(&p->puller, err);
	/* Faults that the engine before us had taken come anew. */
	return r ? r : lm_pager_wake(p->pager, err);
}

void lm_postcopy_dest_end(struct lm_postcopy_dest *p, bool keep, bool load_begun)
{
	struct lm_error e = { 0 };

	lm_postcopy_dest_close_lanes(p);
	lm_postcopy_show_end(p);
	lm_puller_fini(&p->puller);
	if (p->pager && !keep) {
		if (!load_begun && lm_pager_finish(p->pager, &e))
			lm_ctx_log(p->both.c, LM_LOG_WARN, "the pager stays in the VM: %s", e.msg);
		lm_pcstate_remove(&p->both.state);
	}
	lm_pager_close(p->pager);
	p->pager = NULL;
	lm_pcstate_close(&p->both.state);
}
