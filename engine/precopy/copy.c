/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include "engine/base/clock.h"
#include "copy.h"
#include "engine/base/zero.h"

#define POLL_MS 100
/* Runs are handed over when so many bytes have been collected: keeps the link busy and the cap smooth. */
#define SUBMIT_BYTES (UINT64_C(1) << 20)

/* A chunk: a range of pages of one region. */
struct chunk {
	uint32_t index;
	unsigned region;
	uint64_t first, n;
};

static struct chunk chunk_at(const struct lm_copier *c, uint32_t index)
{
	struct chunk k = { .index = index };
	uint64_t npages;

	while (index >= c->region_chunk0[k.region + 1])
		k.region++;
	npages = lm_region_npages(&c->ram->regions[k.region]);
	k.first = (uint64_t)(index - c->region_chunk0[k.region]) * LM_CHUNK_PAGES;
	k.n = npages - k.first < LM_CHUNK_PAGES ? npages - k.first : LM_CHUNK_PAGES;
	return k;
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	/* One writer: no read-modify-write needed. */
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

/* Poll the lane once; *since is when it last moved. */
static int lane_poll(struct lm_copier *c, unsigned lane, int64_t *since, uint64_t *flushed,
		     struct lm_error *err)
{
	struct lm_poll_result res;
	int r = lm_transport_poll(c->transport, lane, POLL_MS, &res, err);

	if (r)
		return r;
	if (res.closed)
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the destination closed the lane");
	if (atomic_load(&c->stop))
		return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "stopped");
	if (res.bytes || res.flushed != *flushed)
		*since = lm_now_ns();
	*flushed = res.flushed;
	if (lm_now_ns() - *since > c->stall_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_LANE, "nothing moved for %.1f s",
			      (double)c->stall_ns / 1e9);
	return 0;
}

/* Hand the collected runs to the transport. */
static int lane_submit(struct lm_copier *c, unsigned lane, struct lm_error *err)
{
	struct lm_lane *l = &c->lanes[lane];
	uint64_t flushed = 0;
	unsigned done = 0;
	int64_t since;

	lm_throttle(&c->throttle, l->bytes, &c->stop);
	since = lm_now_ns();
	while (done < l->nruns) {
		int r = lm_transport_write(c->transport, lane, l->runs + done, l->nruns - done, err);

		if (r > 0)
			done += (unsigned)r;
		else if (r == -EAGAIN)
			r = lane_poll(c, lane, &since, &flushed, err);
		if (r < 0)
			return r;
	}
	count(&l->stats.bytes, l->bytes);
	l->nruns = 0;
	l->bytes = 0;
	return 0;
}

static int lane_add(struct lm_copier *c, unsigned lane, unsigned region, enum lm_run_kind kind,
		    uint64_t first, uint64_t n, struct lm_error *err)
{
	struct lm_lane *l = &c->lanes[lane];
	uint64_t len = n << LM_PAGE_SHIFT;

	l->runs[l->nruns++] = (struct lm_run){ .region = region, .kind = kind,
					       .offset = first << LM_PAGE_SHIFT, .len = len };
	if (kind == LM_RUN_DATA)
		l->bytes += len;
	count(kind == LM_RUN_DATA ? &l->stats.sent_pages : &l->stats.zero_pages, n);
	return l->nruns == LM_WRITE_MAX || l->bytes >= SUBMIT_BYTES ? lane_submit(c, lane, err) : 0;
}

enum page_class { PAGE_DATA = LM_RUN_DATA, PAGE_ZERO = LM_RUN_ZERO, PAGE_SKIP };

static enum page_class classify(const struct lm_copier *c, unsigned region, uint64_t page)
{
	const struct lm_region *r = &c->ram->regions[region];
	bool zero = (c->holes && lm_bitmap_test(&c->holes->maps[region], page)) ||
		    lm_page_is_zero(r->host + (page << LM_PAGE_SHIFT));

	if (!zero)
		return PAGE_DATA;
	return lm_bitmap_test(&c->filled.maps[region], page) ? PAGE_ZERO : PAGE_SKIP;
}

/* One run of one class; what is sent now is what the destination holds afterwards. */
static int copy_run(struct lm_copier *c, unsigned lane, unsigned region, enum page_class class,
		    uint64_t first, uint64_t n, struct lm_error *err)
{
	struct lm_bitmap *filled = &c->filled.maps[region];

	if (class == PAGE_SKIP) {
		count(&c->lanes[lane].stats.skipped_pages, n);
		return 0;
	}
	if (class == PAGE_DATA)
		lm_bitmap_set_range(filled, first, n);
	else
		lm_bitmap_clear_range(filled, first, n);
	return lane_add(c, lane, region, (enum lm_run_kind)class, first, n, err);
}

/* Pages [from, end) are all to do: cut them into runs of one class. */
static int copy_span(struct lm_copier *c, unsigned lane, unsigned region, uint64_t from, uint64_t end,
		     struct lm_error *err)
{
	enum page_class class = classify(c, region, from);
	uint64_t first = from;

	while (++from <= end) {
		enum page_class next = from < end ? classify(c, region, from) : PAGE_SKIP;
		int r = 0;

		if (from < end && next == class && (from - first) << LM_PAGE_SHIFT < SUBMIT_BYTES)
			continue;
		r = copy_run(c, lane, region, class, first, from - first, err);
		if (r)
			return r;
		class = next;
		first = from;
	}
	return 0;
}

static int copy_chunk(struct lm_copier *c, unsigned lane, const struct chunk *k, struct lm_error *err)
{
	const struct lm_bitmap *todo = &c->todo->maps[k->region];
	uint64_t pos = k->first, end = k->first + k->n, first, n;

	while ((n = lm_bitmap_next_run(todo, pos, end, &first))) {
		int r = copy_span(c, lane, k->region, first, first + n, err);

		if (r)
			return r;
		count(&c->lanes[lane].stats.done_pages, n);
		pos = first + n;
	}
	return 0;
}

static int lane_flush(struct lm_copier *c, unsigned lane, struct lm_error *err)
{
	struct lm_lane *l = &c->lanes[lane];
	uint64_t flushed = 0, seq = ++l->flush_seq;
	int64_t since = lm_now_ns();
	int r;

	while ((r = lm_transport_flush(c->transport, lane, seq, err)) == -EAGAIN) {
		r = lane_poll(c, lane, &since, &flushed, err);
		if (r)
			break;
	}
	while (!r && flushed < seq)
		r = lane_poll(c, lane, &since, &flushed, err);
	return r;
}

/* A lane without a single page in this job owes no flush. */
static int lane_work(struct lm_copier *c, unsigned lane, struct lm_error *err)
{
	uint64_t before = atomic_load(&c->lanes[lane].stats.done_pages);
	uint32_t i;
	int r = 0;

	while (!r && !atomic_load_explicit(&c->interrupted, memory_order_relaxed) &&
	       (i = atomic_fetch_add(&c->cursor, 1)) < c->nchunks) {
		struct chunk k = chunk_at(c, i);

		atomic_store_explicit(&c->owner[i], (uint8_t)(lane + 1), memory_order_relaxed);
		if (atomic_load_explicit(&c->stop, memory_order_relaxed))
			return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "stopped");
		r = copy_chunk(c, lane, &k, err);
	}
	if (!r && c->lanes[lane].nruns)
		r = lane_submit(c, lane, err);
	if (!r && atomic_load(&c->lanes[lane].stats.done_pages) != before)
		r = lane_flush(c, lane, err);
	return r;
}

static void copy_worker(void *ctx, unsigned lane)
{
	struct lm_copier *c = ctx;
	struct lm_lane *l = &c->lanes[lane];
	int r;

	if (atomic_load(&l->dead))
		return;
	l->nruns = 0;
	l->bytes = 0;
	r = lane_work(c, lane, &l->error);
	if (!r)
		return;
	/* The code tells finish() that this lane's pages are missing: it must not depend on the backend. */
	if (!l->error.code)
		lm_err_errno(&l->error, r, LM_SCOPE_LANE, "transport");
	atomic_store(&l->dead, true);
}

static void job_start(struct lm_copier *c, const struct lm_pageset *todo, const struct lm_pageset *holes)
{
	c->todo = todo;
	c->holes = holes;
	atomic_store(&c->cursor, 0);
	atomic_store(&c->interrupted, false);
	for (uint32_t i = 0; i < c->nchunks; i++)
		atomic_store_explicit(&c->owner[i], 0, memory_order_relaxed);
	c->has_lost = false;
	lm_pool_start(c->pool, copy_worker, c);
}

void lm_copier_start(struct lm_copier *c, const struct lm_pageset *todo, const struct lm_pageset *holes)
{
	job_start(c, todo, holes);
}

void lm_copier_stop(struct lm_copier *c)
{
	atomic_store(&c->stop, true);
	for (unsigned i = 0; i < c->nlanes; i++)
		lm_transport_shut(c->transport, i);
}

void lm_copier_interrupt(struct lm_copier *c)
{
	atomic_store(&c->interrupted, true);
}

void lm_copier_rest(const struct lm_copier *c, struct lm_pageset *rest)
{
	for (uint32_t i = 0; i < c->nchunks; i++) {
		struct chunk k = chunk_at(c, i);
		const struct lm_bitmap *todo = &c->todo->maps[k.region];
		uint64_t pos = k.first, end = k.first + k.n, first, n;

		while (!atomic_load(&c->owner[i]) && (n = lm_bitmap_next_run(todo, pos, end, &first))) {
			lm_bitmap_set_range(&rest->maps[k.region], first, n);
			pos = first + n;
		}
	}
}

unsigned lm_copier_live_lanes(const struct lm_copier *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < c->nlanes; i++)
		n += !atomic_load(&c->lanes[i].dead);
	return n;
}

int lm_copier_finish(struct lm_copier *c, uint64_t *ret_dropped, struct lm_error *err)
{
	const struct lm_lane *last = NULL;

	*ret_dropped = 0;
	lm_pool_finish(c->pool);
	if (atomic_load(&c->stop))
		return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "copying was stopped");
	for (unsigned i = 0; i < c->nlanes; i++) {
		if (!c->lanes[i].dead || !c->lanes[i].error.code)
			continue;
		last = &c->lanes[i];
		*ret_dropped |= UINT64_C(1) << i;
	}
	if (!last)
		return c->has_lost;
	if (!lm_copier_live_lanes(c))
		return lm_err(err, last->error.code, LM_SCOPE_SESSION, "no lane is left: lane %u: %.400s",
			      (unsigned)(last - c->lanes), last->error.msg);
	return 1;
}

/*
 * What a dead lane has put where is unknown: its chunks go out whole, zeros
 * included.  A chunk without an owner was reached by no lane at all.
 */
static void sort_chunk(struct lm_copier *c, const struct chunk *k, bool again, struct lm_pageset *lost)
{
	const struct lm_bitmap *todo = &c->todo->maps[k->region];
	uint64_t pos = k->first, end = k->first + k->n, first, n;

	while ((n = lm_bitmap_next_run(todo, pos, end, &first))) {
		if (again) {
			lm_bitmap_set_range(&lost->maps[k->region], first, n);
			lm_bitmap_set_range(&c->filled.maps[k->region], first, n);
		} else if (c->todo == lost) {
			lm_bitmap_clear_range(&lost->maps[k->region], first, n);
		}
		pos = first + n;
	}
}

static bool is_lost(const struct lm_copier *c, uint32_t chunk, uint64_t dropped)
{
	uint8_t owner = atomic_load_explicit(&c->owner[chunk], memory_order_relaxed);

	return !owner || owner == LM_CHUNK_LOST || dropped >> (owner - 1) & 1;
}

void lm_copier_redo(struct lm_copier *c, uint64_t dropped, struct lm_pageset *lost)
{
	for (uint32_t i = 0; i < c->nchunks; i++) {
		struct chunk k = chunk_at(c, i);

		sort_chunk(c, &k, is_lost(c, i, dropped), lost);
	}
	for (unsigned i = 0; i < c->nlanes; i++)
		if (dropped >> i & 1)
			lm_err_clear(&c->lanes[i].error);
	job_start(c, lost, c->holes);
}

/* The chunks of others change under us, those of this lane do not: its thread has ended. */
void lm_copier_revive(struct lm_copier *c, unsigned lane)
{
	struct lm_lane *l = &c->lanes[lane];

	for (uint32_t i = 0; i < c->nchunks; i++) {
		if (atomic_load_explicit(&c->owner[i], memory_order_relaxed) != lane + 1)
			continue;
		atomic_store_explicit(&c->owner[i], LM_CHUNK_LOST, memory_order_relaxed);
		c->has_lost = true;
	}
	lm_err_clear(&l->error);
	l->flush_seq = 0;
	atomic_store(&l->dead, false);
}

void lm_copier_totals(const struct lm_copier *c, struct lm_copy_totals *ret)
{
	memset(ret, 0, sizeof(*ret));
	for (unsigned i = 0; i < c->nlanes; i++) {
		const struct lm_lane_stats *s = &c->lanes[i].stats;

		ret->done_pages += atomic_load_explicit(&s->done_pages, memory_order_relaxed);
		ret->sent_pages += atomic_load_explicit(&s->sent_pages, memory_order_relaxed);
		ret->zero_pages += atomic_load_explicit(&s->zero_pages, memory_order_relaxed);
		ret->skipped_pages += atomic_load_explicit(&s->skipped_pages, memory_order_relaxed);
		ret->bytes += atomic_load_explicit(&s->bytes, memory_order_relaxed);
	}
}

static int chunks_init(struct lm_copier *c)
{
	uint64_t n = 0;

	c->region_chunk0 = calloc(c->ram->nregions + 1, sizeof(*c->region_chunk0));
	if (!c->region_chunk0)
		return -ENOMEM;
	for (unsigned i = 0; i < c->ram->nregions; i++) {
		uint64_t npages = lm_region_npages(&c->ram->regions[i]);

		c->region_chunk0[i] = (uint32_t)n;
		n += (npages + LM_CHUNK_PAGES - 1) / LM_CHUNK_PAGES;
		if (n >= UINT32_MAX - LM_LANES_MAX) /* the cursor runs past the end by one per lane */
			return -EFBIG;
	}
	c->region_chunk0[c->ram->nregions] = (uint32_t)n;
	c->nchunks = (uint32_t)n;
	c->owner = calloc(n ? n : 1, sizeof(*c->owner));
	return c->owner ? 0 : -ENOMEM;
}

int lm_copier_init(struct lm_copier *c, const struct lm_ram *ram, struct lm_transport *transport,
		   struct lm_pool *pool, struct lm_error *err)
{
	int r;

	memset(c, 0, sizeof(*c));
	c->ram = ram;
	c->transport = transport;
	c->pool = pool;
	c->stall_ns = 30 * LM_NS_PER_S;
	c->nlanes = lm_pool_size(pool);
	c->lanes = aligned_alloc(64, c->nlanes * sizeof(*c->lanes));
	if (!c->lanes)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	memset(c->lanes, 0, c->nlanes * sizeof(*c->lanes));
	r = chunks_init(c);
	if (!r)
		r = lm_pageset_init(&c->filled, ram);
	if (r) {
		lm_copier_fini(c);
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot plan the copy");
	}
	return 0;
}

void lm_copier_fini(struct lm_copier *c)
{
	lm_pageset_fini(&c->filled);
	free(c->owner);
	free(c->region_chunk0);
	free(c->lanes);
	memset(c, 0, sizeof(*c));
}
