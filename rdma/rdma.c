/* SPDX-License-Identifier: Apache-2.0 */
/* The table of the RDMA transport. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "rdma.h"
#include "rdma_transport.h"

static struct rdma *rd_of(struct lm_transport *t)
{
	return (struct rdma *)t;
}

/* ---- open and close ---- */

static void uses_free(struct rdma *t)
{
	unsigned n = atomic_load(&t->nuses);

	atomic_store(&t->nuses, 0);
	while (n) {
		struct rd_use *u = &t->uses[--n];

		for (unsigned i = 0; i < LM_REGIONS_MAX; i++)
			rd_mem_put(u->mem[i]);
		rd_device_put(u->dev);
		memset(u, 0, sizeof(*u));
	}
}

/* Queue pairs first: then nothing can land any more, and the memory may go. */
static void lanes_free(struct rdma *t)
{
	for (unsigned i = 0; t->lanes && i < t->base.nlanes; i++) {
		rd_lane_reset(&t->lanes[i]);
		lm_close_fd(&t->lanes[i].event_fd);
	}
	free(t->lanes);
	t->lanes = NULL;
	uses_free(t);
}

static int lanes_alloc(struct rdma *t)
{
	int r = 0;

	t->lanes = calloc(t->base.nlanes, sizeof(*t->lanes));
	if (!t->lanes)
		return -ENOMEM;
	for (unsigned i = 0; i < t->base.nlanes; i++)
		t->lanes[i].event_fd = -1;
	for (unsigned i = 0; !r && i < t->base.nlanes; i++)
		r = rd_lane_init(&t->lanes[i], t, i);
	return r;
}

static void describe_memory(const struct rdma *t, const struct rd_mem *m, char *at, size_t left)
{
	bool on_demand = m && m->mode == RDMA_MODE_ODP;
	int error = on_demand ? atomic_load(&m->prefetch_error) : 0;
	char why[64] = "";

	if (error)
		snprintf(why, sizeof(why), ", no prefetch: %.40s", strerrordesc_np(error));
	snprintf(at, left, "; memory %s%s%s", !t->base.nregions && !m ? "not registered yet" :
		 rd_mode_name(m ? m->mode : RDMA_MODE_COPY),
		 m && !on_demand && t->regions[0].sparse ? " but where it has holes" : "", why);
}

/* Which devices and ports, with how many lanes each; how memory is registered. */
static void describe(struct rdma *t)
{
	const struct rd_mem *m = t->base.nregions ? t->uses[0].mem[0] : NULL;
	char *at = t->base.info;
	size_t left = sizeof(t->base.info);

	for (unsigned i = 0; i < t->base.nlanes; i++) {
		const struct rd_lane *l = &t->lanes[i];
		unsigned n = 0, k;
		int len;

		for (k = 0; k < t->base.nlanes; k++) {
			const struct rd_lane *o = &t->lanes[k];
			bool same = o->use == l->use && o->id->port_num == l->id->port_num;

			if (same && k < i)
				break;
			n += same;
		}
		if (k < t->base.nlanes)
			continue;
		len = snprintf(at, left, "%s%s:%u x%u", i ? ", " : "rdma, lanes ", l->use->dev->name, l->id->port_num, n);
		at += (size_t)len < left ? (size_t)len : left;
		left -= (size_t)len < left ? (size_t)len : left;
	}
	describe_memory(t, m, at, left);
}

static int check_insecure(const struct lm_transport_params *p, struct lm_error *err)
{
	if (p->insecure)
		return 0;
	return lm_err(err, -EACCES, LM_SCOPE_SESSION,
		      "RDMA carries the guest's memory in the clear: say --insecure, on a network that carries nothing else");
}

static int rd_listen_op(struct lm_transport *base, const struct lm_transport_params *p,
			  uint8_t ret_endpoint[LM_ENDPOINT_SIZE], struct lm_error *err)
{
	int r = check_insecure(p, err);

	return r ? r : rd_cm_listen(rd_of(base), p, ret_endpoint, err);
}

static int rd_open(struct lm_transport *base, const struct lm_transport_params *p, struct lm_error *err)
{
	struct rdma *t = rd_of(base);
	int r = check_insecure(p, err);

	t->pin = p->pin;
	t->may_pull = p->may_pull;
	t->may_discard = p->ram && p->ram->may_discard;
	t->ram_bytes = p->ram ? lm_ram_size(p->ram) : 0;
	if (!r) {
		r = lanes_alloc(t);
		if (r)
			lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot make %u lanes", p->nlanes);
	}
	if (!r)
		r = p->side == LM_SOURCE ? rd_cm_connect(t, p, err) : rd_cm_accept(t, p, err);
	if (!r) {
		describe(t);
		return 0;
	}
	rd_cm_unlisten(t);
	lanes_free(t);
	return r;
}

/*
 * Without a queue pair there is nobody whose packets could use an rkey of this transport's
 * memory: that may stay registered, which takes long to undo, until close.
 */
static void rd_fence(struct lm_transport *base, unsigned lane)
{
	rd_lane_fence(&rd_of(base)->lanes[lane]);
}

static void rd_close(struct lm_transport *base)
{
	struct rdma *t = rd_of(base);

	rd_cm_unlisten(t);
	if (t->lanes)
		rd_lanes_say_close(t);
	lanes_free(t);
	free(t);
}

/* ---- memory ---- */

static int asked_alloc(struct rdma *t, struct rd_lane *l, unsigned index)
{
	const struct rd_region *r = &t->regions[index];

	l->asked[index] = calloc(rd_plan_nchunks(r->size, r->shift) / 64 + 1, sizeof(uint64_t));
	return l->asked[index] ? 0 : -ENOMEM;
}

static int rd_region_add(struct lm_transport *base, unsigned index, const struct lm_region *region,
			   struct lm_key *ret_key, struct lm_error *err)
{
	struct rdma *t = rd_of(base);
	const struct rd_region *reg = &t->regions[index];
	int r;

	r = rd_memory_add(t, index, region, err);
	if (r)
		return r;
	for (unsigned i = 0; !lm_transport_is_active(base) && i < base->nlanes; i++)
		if (asked_alloc(t, &t->lanes[i], index))
			return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	/* Finds out at once whether the devices take advice, because the session logs what describe() says. */
	for (unsigned i = 0; i < t->nuses; i++)
		if (t->uses[i].mem[index])
			rd_mem_prefetch(t->uses[i].mem[index], 0);
	*ret_key = rd_memory_key(reg);
	base->nregions = index + 1; /* for describe(); the wrapper says the same */
	describe(t);
	base->nregions = index;
	return 0;
}

static int rd_region_bind(struct lm_transport *base, unsigned index, const struct lm_key *key,
			    struct lm_error *err)
{
	struct rdma *t = rd_of(base);
	struct rd_wire_key k;
	unsigned shift;

	memcpy(&k, key->bytes, sizeof(k));
	shift = lm_le32_get(k.shift);
	if (lm_le32_get(k.version) != RDMA_VERSION || shift < LM_PAGE_SHIFT || shift > 46 ||
	    lm_le64_get(k.size) != base->region_size[index] || base->region_size[index] >> shift > 1 << 20)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the key of region %u is not one of ours", index);
	t->peer_shift[index] = shift;
	for (unsigned i = 0; i < base->nlanes; i++)
		if (rd_active_bind(&t->lanes[i], index, shift, base->region_size[index]))
			return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	return 0;
}

/* ---- lanes ---- */

static int rd_queue(struct lm_transport *base, unsigned lane, const struct lm_run *runs, unsigned n,
		      struct lm_error *err)
{
	struct rd_lane *l = &rd_of(base)->lanes[lane];

	if (atomic_load_explicit(&l->shut, memory_order_relaxed))
		return rd_lane_error(l, 0, err, " ");
	return rd_active_queue(l, runs, n, err);
}

static int rd_flush(struct lm_transport *base, unsigned lane, uint64_t seq, struct lm_error *err)
{
	struct rd_lane *l = &rd_of(base)->lanes[lane];

	if (atomic_load_explicit(&l->shut, memory_order_relaxed))
		return rd_lane_error(l, 0, err, " ");
	return rd_active_flush(l, seq, err);
}

static int rd_poll(struct lm_transport *base, unsigned lane, int timeout_ms, int wake_fd,
		     struct lm_poll_result *res, struct lm_error *err)
{
	return rd_lane_poll(&rd_of(base)->lanes[lane], timeout_ms, wake_fd, res, err);
}

static void rd_shut(struct lm_transport *base, unsigned lane)
{
	rd_lane_shut(&rd_of(base)->lanes[lane]);
}

/* What a lane knows of the regions. */
static int lane_regions(struct rdma *t, struct rd_lane *l)
{
	bool active = lm_transport_is_active(&t->base);
	int r = 0;

	for (unsigned i = 0; !r && i < t->base.nregions; i++) {
		if (!active)
			r = asked_alloc(t, l, i);
		else if (t->peer_shift[i])
			r = rd_active_bind(l, i, t->peer_shift[i], t->base.region_size[i]);
	}
	return r;
}

static int rd_reopen(struct lm_transport *base, unsigned lane, const struct lm_transport_params *p,
		       struct lm_error *err)
{
	struct rdma *t = rd_of(base);
	struct rd_lane *l = &t->lanes[lane];
	int r;

	rd_lane_reset(l); /* this destroys its queue pair, which was in the error state since shut */
	r = p->side == LM_SOURCE ? rd_cm_connect_again(t, l, p, err) : rd_cm_accept_again(t, l, p, err);
	if (!r && lane_regions(t, l))
		r = lm_err(err, -ENOMEM, LM_SCOPE_LANE, "out of memory");
	if (r) {
		rd_lane_reset(l);
		atomic_store(&l->shut, true);
		if (err)
			err->scope = LM_SCOPE_LANE; /* what ends an open ends only this attempt */
	}
	return r;
}

static const struct lm_transport_ops rd_ops = {
	.name = "rdma",
	.listen = rd_listen_op,
	.open = rd_open,
	.region_add = rd_region_add,
	.region_bind = rd_region_bind,
	.write = rd_queue,
	.fetch = rd_queue,
	.flush = rd_flush,
	.poll = rd_poll,
	.shut = rd_shut,
	.fence = rd_fence,
	.reopen = rd_reopen,
	.close = rd_close,
};

struct lm_transport *lm_transport_rdma_new(void)
{
	struct rdma *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->base.ops = &rd_ops;
	return &t->base;
}

const struct lm_transport_info lm_transport_rdma = {
	"rdma", "RDMA WRITE from guest memory to guest memory; InfiniBand, RoCE, iWARP", lm_transport_rdma_new,
	lm_rdma_usable, lm_rdma_check,
};
