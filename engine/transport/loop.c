/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transport inside one process, for tests of everything above it.
 *
 * Each lane is a ring of runs and flush marks between the two ends: the active
 * side's thread (which writes or fetches) puts them in, the other's poll takes them out
 * and copies from the source's mapping to the destination's.  Both ends share one
 * object, which the last to close frees.
 */
#include <poll.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "engine/base/clock.h"
#include "transport.h"

#define RING_SIZE 1024 /* a power of two */
#define POLL_RUNS 256
#define NAP_NS 50000

struct entry {
	uint64_t flush; /* 0: a run */
	struct lm_run run;
};

struct loop_lane {
	_Atomic uint64_t put, taken; /* active and passive side's ends of the ring */
	_Atomic uint64_t flushed;
	uint64_t told;               /* LM_PULL: what the destination's last poll saw of `taken` */
	_Atomic bool shut[2];        /* by enum lm_side */
	_Atomic bool copying;
	struct entry ring[RING_SIZE];
};

struct loop;

struct loop_end {
	struct lm_transport base;
	struct loop *loop;
	struct lm_region regions[LM_REGIONS_MAX];
};

struct loop {
	_Atomic unsigned refs;
	_Atomic bool closed[2]; /* by enum lm_side */
	struct loop_end *ends[2];
	struct loop_lane lanes[LM_LANES_MAX];
};

static struct loop_end *end_of(struct lm_transport *t)
{
	return (struct loop_end *)t;
}

static int loop_open(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err)
{
	if (end_of(t)->loop->ends[p->side] != end_of(t))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "this end of the loop is the other side");
	strcpy(t->info, "loop, inside this process");
	return 0;
}

static int loop_region_add(struct lm_transport *t, unsigned index, const struct lm_region *region,
			   struct lm_key *ret_key, struct lm_error *err)
{
	(void)ret_key;
	(void)err;
	end_of(t)->regions[index] = *region;
	return 0;
}

static int loop_region_bind(struct lm_transport *t, unsigned index, const struct lm_key *key,
			    struct lm_error *err)
{
	(void)t;
	(void)index;
	(void)key;
	(void)err;
	return 0;
}

static int lane_state(struct lm_transport *t, unsigned lane, struct lm_error *err)
{
	struct loop *p = end_of(t)->loop;
	struct loop_lane *l = &p->lanes[lane];

	if (atomic_load(&l->shut[t->side]))
		return lm_err(err, -ESHUTDOWN, LM_SCOPE_LANE, "the lane was shut");
	if (atomic_load(&l->shut[!t->side]))
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the peer shut the lane");
	return 0;
}

/* 0 or -EAGAIN. */
static int ring_put(struct loop_lane *l, const struct entry *e)
{
	uint64_t put = atomic_load_explicit(&l->put, memory_order_relaxed);

	if (put - atomic_load_explicit(&l->taken, memory_order_acquire) == RING_SIZE)
		return -EAGAIN;
	l->ring[put % RING_SIZE] = *e;
	atomic_store_explicit(&l->put, put + 1, memory_order_release);
	return 0;
}

/* Write and fetch: the same ring, from the one side or the other. */
static int loop_put(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		      struct lm_error *err)
{
	struct loop_lane *l = &end_of(t)->loop->lanes[lane];
	int r = lane_state(t, lane, err);
	unsigned i;

	for (i = 0; !r && i < n; i++)
		if (ring_put(l, &(struct entry){ .run = runs[i] }))
			break;
	return r ? r : i ? (int)i : -EAGAIN;
}

static int loop_flush(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err)
{
	struct loop_lane *l = &end_of(t)->loop->lanes[lane];
	int r = lane_state(t, lane, err);

	return r ? r : ring_put(l, &(struct entry){ .flush = seq });
}

static void place_zero(const struct lm_region *r, const struct lm_run *run)
{
	if (r->page_size != LM_PAGE_SIZE ||
	    fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)(r->file_offset + run->offset), (off_t)run->len))
		memset(r->host + run->offset, 0, run->len);
}

static void place_data(struct loop *p, const struct lm_run *run, struct lm_poll_result *res)
{
	memcpy(p->ends[LM_DEST]->regions[run->region].host + run->offset,
	       p->ends[LM_SOURCE]->regions[run->region].host + run->offset, run->len);
	res->bytes += run->len;
}

/* A fetched run, 64 pages at a time: what is zero at the source leaves no page behind. */
static void answer_run(struct loop *p, const struct lm_run *run, struct lm_poll_result *res)
{
	uint64_t end = run->offset + run->len;

	for (uint64_t at = run->offset, n; at < end; at += n << LM_PAGE_SHIFT) {
		uint64_t zeros;

		n = end - at < 64 * LM_PAGE_SIZE ? (end - at) >> LM_PAGE_SHIFT : 64;
		zeros = lm_region_zeros(&p->ends[LM_SOURCE]->regions[run->region], at, (unsigned)n);
		for (uint64_t i = 0; i < n; i++) {
			struct lm_run page = { .region = run->region, .offset = at + (i << LM_PAGE_SHIFT),
					       .len = LM_PAGE_SIZE };

			if (zeros >> i & 1)
				place_zero(&p->ends[LM_DEST]->regions[run->region], &page);
			else
				place_data(p, &page, res);
		}
	}
}

static int place_run(struct loop *p, const struct lm_run *run, struct lm_poll_result *res,
		     struct lm_error *err)
{
	struct loop_end *to = p->ends[LM_DEST], *from = p->ends[LM_SOURCE];

	if (!lm_transport_run_valid(&to->base, run) || !lm_transport_run_valid(&from->base, run))
		return lm_err(err, -EPROTO, LM_SCOPE_LANE, "the peer sent a run outside of the regions");
	if (run->kind == LM_RUN_ZERO)
		place_zero(&to->regions[run->region], run);
	else if (to->base.direction == LM_PULL)
		answer_run(p, run, res);
	else
		place_data(p, run, res);
	return 0;
}

static int place_entry(struct loop *p, struct loop_lane *l, const struct entry *e,
		       struct lm_poll_result *res, struct lm_error *err)
{
	int r = 0;

	if (atomic_load(&l->shut[LM_DEST]) || atomic_load(&l->shut[LM_SOURCE]) ||
	    atomic_load(&p->closed[LM_DEST]) || atomic_load(&p->closed[LM_SOURCE]))
		r = lm_err(err, -ESHUTDOWN, LM_SCOPE_LANE, "the lane was shut");
	else if (e->flush)
		atomic_store_explicit(&l->flushed, e->flush, memory_order_release);
	else
		r = place_run(p, &e->run, res, err);
	return r;
}

/* 1: something moved, 0: nothing, or an error. */
static int passive_step(struct loop *p, struct loop_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	uint64_t taken = atomic_load_explicit(&l->taken, memory_order_relaxed), from = taken;
	uint64_t put = atomic_load_explicit(&l->put, memory_order_acquire);
	int r = 0;

	while (!r && taken < put && taken - from < POLL_RUNS) {
		/* Count what has landed before any waiting thread goes on. */
		atomic_store(&l->copying, true);
		r = place_entry(p, l, &l->ring[taken % RING_SIZE], res, err);
		if (!r)
			atomic_store_explicit(&l->taken, ++taken, memory_order_release);
		atomic_store(&l->copying, false);
	}
	return r ? r : taken > from;
}

/* The source has something to do when there is room, or news of a flush (its caller knows). */
static int active_step(struct lm_transport *t, struct loop_lane *l, uint64_t put, uint64_t taken)
{
	bool news = taken != l->told;

	if (t->direction == LM_PUSH)
		return put - taken < RING_SIZE / 2;
	l->told = taken;
	return news;
}

static void wait_copying(struct loop_lane *l)
{
	while (atomic_load(&l->copying))
		sched_yield();
}

static int loop_step(struct lm_transport *t, unsigned lane, struct lm_poll_result *res, struct lm_error *err)
{
	struct loop *p = end_of(t)->loop;
	struct loop_lane *l = &p->lanes[lane];
	bool gone = atomic_load(&p->closed[!t->side]);
	uint64_t put = atomic_load(&l->put), taken = atomic_load(&l->taken);
	int r = lane_state(t, lane, err);

	if (!r && gone && put != taken)
		r = lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the peer hung up in the middle");
	if (r)
		wait_copying(l); /* the last word on what has landed */
	if (t->direction == LM_PULL && t->side == LM_DEST)
		res->fetched = r ? atomic_load(&l->taken) : taken;
	if (r)
		return r;
	res->closed = gone;
	res->flushed = atomic_load_explicit(&l->flushed, memory_order_acquire);
	if (gone)
		return 1;
	return lm_transport_is_active(t) ? active_step(t, l, put, taken) : passive_step(p, l, res, err);
}

static bool readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return fd >= 0 && poll(&p, 1, 0) > 0;
}

static int loop_poll(struct lm_transport *t, unsigned lane, int timeout_ms, int wake_fd,
		     struct lm_poll_result *res, struct lm_error *err)
{
	int64_t deadline = lm_now_ns() + timeout_ms * LM_NS_PER_MS;
	struct timespec nap = { 0, NAP_NS };
	int r;

	while (!(r = loop_step(t, lane, res, err)) && lm_now_ns() < deadline && !readable(wake_fd))
		nanosleep(&nap, NULL);
	if (r > 0 && t->side == LM_SOURCE && t->direction == LM_PUSH && timeout_ms)
		nanosleep(&nap, NULL);
	return r < 0 ? r : 0;
}

static void loop_shut(struct lm_transport *t, unsigned lane)
{
	struct loop_lane *l = &end_of(t)->loop->lanes[lane];

	atomic_store(&l->shut[t->side], true);
	wait_copying(l);
}

static void loop_close(struct lm_transport *t)
{
	struct loop_end *e = end_of(t);
	struct loop *p = e->loop;

	atomic_store(&p->closed[p->ends[LM_DEST] == e ? LM_DEST : LM_SOURCE], true);
	for (unsigned i = 0; i < LM_LANES_MAX; i++)
		wait_copying(&p->lanes[i]);
	if (atomic_fetch_sub(&p->refs, 1) > 1)
		return;
	free(p->ends[LM_SOURCE]);
	free(p->ends[LM_DEST]);
	free(p);
}

static const struct lm_transport_ops loop_ops = {
	.name = "loop",
	.open = loop_open,
	.region_add = loop_region_add,
	.region_bind = loop_region_bind,
	.write = loop_put,
	.fetch = loop_put,
	.flush = loop_flush,
	.poll = loop_poll,
	.shut = loop_shut,
	.close = loop_close,
};

int lm_transport_loop_new(struct lm_transport **ret_source, struct lm_transport **ret_dest)
{
	struct loop *p = calloc(1, sizeof(*p));

	if (p) {
		p->ends[LM_SOURCE] = calloc(1, sizeof(*p->ends[0]));
		p->ends[LM_DEST] = calloc(1, sizeof(*p->ends[0]));
	}
	if (!p || !p->ends[LM_SOURCE] || !p->ends[LM_DEST]) {
		if (p) {
			free(p->ends[LM_SOURCE]);
			free(p->ends[LM_DEST]);
		}
		free(p);
		return -ENOMEM;
	}
	p->refs = 2;
	for (int side = LM_SOURCE; side <= LM_DEST; side++) {
		p->ends[side]->base.ops = &loop_ops;
		p->ends[side]->loop = p;
	}
	*ret_source = &p->ends[LM_SOURCE]->base;
	*ret_dest = &p->ends[LM_DEST]->base;
	return 0;
}
