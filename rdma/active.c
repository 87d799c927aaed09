/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The active side: runs become RDMA WRITEs (or READs) from our memory straight to
 * the peer's, or ZERO messages.
 *
 * Order within a lane (rule 2).  The device places WRITEs in order, and a message
 * arrives after the WRITEs before it.  Only a WRITE after a ZERO of the same page could
 * overtake: the peer's CPU clears, its device writes.  So the lane remembers one
 * interval that encloses all zeros that are not known to be placed, and a write that
 * touches it waits until they are.  Pages come in ascending order, so it hardly ever does.
 *
 * A piece needs the peer's key of its chunk and our memory registered; whatever is
 * missing is asked for, with some chunks ahead, and the piece waits.
 *
 * Registering a hole of a file allocates it, and the guest that runs there would have
 * more memory than it ever used.  So a chunk of the source with a hole is not registered: its pages are copied
 * through a buffer, until it has none.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "rdma.h"

#define STAGE_PIECE (UINT64_C(256) << 10)

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

int rd_active_bind(struct rd_lane *l, unsigned region, unsigned shift, uint64_t size)
{
	struct rd_peer_region *p = &l->peer[region];

	p->shift = shift;
	p->nchunks = rd_plan_nchunks(size, shift);
	free(p->chunks);
	p->chunks = calloc(p->nchunks, sizeof(*p->chunks));
	return p->chunks ? 0 : -ENOMEM;
}

/* ---- what is needed next ---- */

/* Whether it is worth having ready: at the source, whether the file has data there. */
static bool range_exists(const struct rd_lane *l, unsigned region, uint64_t from, uint64_t len)
{
	const struct rd_region *r = &l->t->regions[region];
	off_t data;

	if (l->t->base.side != LM_SOURCE)
		return false;
	if (r->page_size > LM_PAGE_SIZE)
		return true; /* hugetlbfs does not say */
	data = lseek(r->fd, (off_t)(r->file_offset + from), SEEK_DATA);
	return data >= 0 && (uint64_t)data < r->file_offset + from + len;
}

/* The last chunk to ask for when this one is needed. */
static uint32_t ahead_of(uint32_t chunk, unsigned shift)
{
	uint64_t n = RDMA_AHEAD_BYTES >> shift;

	return chunk + (n > RDMA_AHEAD ? (uint32_t)n : RDMA_AHEAD);
}

static void ask(struct rd_lane *l, unsigned region, uint32_t chunk)
{
	struct rd_peer_region *p = &l->peer[region];
	uint32_t last = ahead_of(chunk, p->shift);

	for (uint32_t i = chunk; i < p->nchunks && i <= last; i++) {
		if (p->chunks[i].state != RDMA_PEER_UNKNOWN || l->nwants == RDMA_ENTRIES(struct rd_want))
			continue;
		if (i != chunk && !range_exists(l, region, (uint64_t)i << p->shift, UINT64_C(1) << p->shift))
			continue;
		l->wants[l->nwants++] = (struct rd_want){ lm_le32(region), lm_le32(i) };
		p->chunks[i].state = RDMA_PEER_ASKED;
	}
}

static int find_remote(struct rd_lane *l, const struct lm_run *run, struct rd_piece *p, struct lm_error *err)
{
	const struct rd_peer_region *pr = &l->peer[run->region];
	uint64_t in;
	const struct rd_peer_chunk *c;

	if (!pr->chunks)
		return rd_lane_error(l, -EINVAL, err, "region %u has no key", run->region);
	in = run->offset & ((UINT64_C(1) << pr->shift) - 1);
	c = &pr->chunks[run->offset >> pr->shift];
	ask(l, run->region, (uint32_t)(run->offset >> pr->shift));
	if (c->state != RDMA_PEER_READY)
		return -EAGAIN;
	if (c->error)
		return rd_lane_error(l, -c->error, err, "the %s cannot register its guest memory (memlock limit there? "
				       "`migrate-rdma check` says more)", rd_peer_name(l));
	p->remote = c->address + in;
	p->rkey = c->rkey;
	p->len = least(p->len, (UINT64_C(1) << pr->shift) - in);
	return 0;
}

/* ---- our memory ---- */

static int stage_make(struct rd_lane *l, struct lm_error *err)
{
	void *p = mmap(NULL, RDMA_STAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return rd_lane_error(l, -errno, err, "a buffer to copy through");
	l->stage_mr = ibv_reg_mr(l->use->dev->pd, p, RDMA_STAGE_SIZE, IBV_ACCESS_LOCAL_WRITE);
	if (!l->stage_mr) {
		int r = rd_lane_error(l, rd_errno(), err, "cannot register a buffer to copy through");

		munmap(p, RDMA_STAGE_SIZE);
		return r;
	}
	l->stage = p;
	return 0;
}

/* A copy that the device may read as long as it likes. */
static int find_staged(struct rd_lane *l, const struct lm_run *run, struct rd_piece *p, struct lm_error *err)
{
	uint64_t at = l->stage_head % RDMA_STAGE_SIZE;
	int r = l->stage ? 0 : stage_make(l, err);

	if (r)
		return r;
	p->len = least(least(p->len, STAGE_PIECE), least(RDMA_STAGE_SIZE - at, RDMA_STAGE_SIZE - (l->stage_head - l->stage_tail)));
	if (!p->len)
		return -EAGAIN;
	memcpy(l->stage + at, l->t->regions[run->region].host + run->offset, p->len);
	p->local = (uintptr_t)(l->stage + at);
	p->lkey = l->stage_mr->lkey;
	p->staged = (uint32_t)p->len;
	l->stage_head += p->len;
	return 0;
}

/* In post-copy the guest stands still and is given up afterwards: then holes may be filled. */
static bool keeps_holes(const struct rd_lane *l, unsigned region)
{
	return l->t->regions[region].sparse && l->t->base.direction == LM_PUSH;
}

/*
 * Whether to register a chunk of memory with holes: when it has none.  That is looked at when it
 * is asked for the first, second, fourth, ... time: a guest fills memory seldom and writes often.
 */
static bool chunk_is_full(struct rd_lane *l, unsigned region, struct rd_mem *m, uint32_t chunk)
{
	const struct rd_region *r = &l->t->regions[region];
	uint32_t n = atomic_fetch_add_explicit(&m->chunks[chunk].asked, 1, memory_order_relaxed) + 1;

	return !(n & (n - 1)) && !rd_region_has_hole(r, (uint64_t)chunk << m->shift, UINT64_C(1) << m->shift);
}

static void want_ahead(struct rd_lane *l, unsigned region, struct rd_mem *m, uint32_t chunk)
{
	uint32_t last = ahead_of(chunk, m->shift);

	for (uint32_t i = chunk + 1; i < m->nchunks && i <= last; i++)
		if (rd_mem_state(m, i) == RDMA_CHUNK_NONE &&
		    (keeps_holes(l, region) ? chunk_is_full(l, region, m, i) :
		     range_exists(l, region, (uint64_t)i << m->shift, UINT64_C(1) << m->shift)))
			rd_mem_want(m, i);
}

static int find_local(struct rd_lane *l, const struct lm_run *run, struct rd_piece *p, struct lm_error *err)
{
	struct rd_mem *m = l->use->mem[run->region];
	bool may_copy = l->t->base.direction == LM_PUSH;
	uint32_t chunk;
	int state;

	if (!m)
		return find_staged(l, run, p, err);
	chunk = (uint32_t)(run->offset >> m->shift);
	if (keeps_holes(l, run->region) && rd_mem_state(m, chunk) == RDMA_CHUNK_NONE &&
	    !chunk_is_full(l, run->region, m, chunk))
		return find_staged(l, run, p, err);
	state = rd_mem_want(m, chunk);
	if (m->whole) {
		rd_mem_prefetch(m, chunk);
		rd_mem_prefetch(m, chunk + 1);
	} else {
		want_ahead(l, run->region, m, chunk);
	}
	if (state == RDMA_CHUNK_FAILED && may_copy)
		return find_staged(l, run, p, err);
	if (state == RDMA_CHUNK_FAILED)
		return rd_lane_error(l, -m->chunks[chunk].error, err, "cannot register guest memory with %s (memlock limit?)",
				       m->dev->name);
	if (state != RDMA_CHUNK_READY)
		return -EAGAIN;
	p->local = (uintptr_t)(m->host + run->offset);
	p->lkey = rd_mem_mr(m, chunk)->lkey;
	if (!m->whole)
		p->len = least(p->len, (UINT64_C(1) << m->shift) - (run->offset & ((UINT64_C(1) << m->shift) - 1)));
	return 0;
}

/* ---- zeros ---- */

/* Regions one after the other: a place in the guest's memory as one number. */
static uint64_t linear(const struct lm_run *run)
{
	return (uint64_t)run->region * LM_REGION_SIZE_MAX + run->offset;
}

static bool zeros_pending(const struct rd_lane *l)
{
	return l->nzeros || l->zeros_sent != l->zeros_placed;
}

static int send_zeros(struct rd_lane *l, struct lm_error *err)
{
	int r;

	if (!l->nzeros)
		return 0;
	if (!rd_can_send(l, false))
		return -EAGAIN;
	r = rd_send(l, RDMA_ZERO, l->zeros, l->nzeros, sizeof(l->zeros[0]), 0, 0, err);
	if (r)
		return r;
	l->zeros_sent++;
	l->nzeros = 0;
	return 0;
}

static int queue_zero(struct rd_lane *l, const struct lm_run *run, struct lm_error *err)
{
	int r = l->nzeros == RDMA_ENTRIES(struct rd_zero) ? send_zeros(l, err) : 0;
	uint64_t at = linear(run);

	if (r)
		return r;
	if (!zeros_pending(l)) {
		l->zero_lo = at;
		l->zero_hi = at;
	}
	l->zero_lo = least(l->zero_lo, at);
	l->zero_hi = at + run->len > l->zero_hi ? at + run->len : l->zero_hi;
	l->zeros[l->nzeros++] = (struct rd_zero){
		.region = lm_le32(run->region), .kind = lm_le32(run->kind),
		.offset = lm_le64(run->offset), .len = lm_le64(run->len),
	};
	return 0;
}

/* ---- runs ---- */

/* Post what is left of the run that is under way. */
static int push_rest(struct rd_lane *l, struct lm_error *err)
{
	struct lm_run *run = &l->rest;

	if (run->len && zeros_pending(l) && linear(run) < l->zero_hi && linear(run) + run->len > l->zero_lo) {
		int r = send_zeros(l, err);

		return r ? r : -EAGAIN;
	}
	while (run->len) {
		struct rd_piece p = { .len = least(least(run->len, RDMA_PIECE_MAX), l->max_msg) };
		int r = rd_data_room(l) ? find_remote(l, run, &p, err) : -EAGAIN;

		if (!r)
			r = find_local(l, run, &p, err);
		p.ends_run = p.len == run->len;
		if (!r)
			r = rd_post_data(l, &p, err);
		if (r)
			return r;
		run->offset += p.len;
		run->len -= p.len;
		l->written += p.len;
	}
	return 0;
}

/* The lane holds one run that waits; the next is refused until it has gone out. */
static int queue_data(struct rd_lane *l, const struct lm_run *run, struct lm_error *err)
{
	int r;

	l->rest = *run;
	r = push_rest(l, err);
	return r == -EAGAIN ? 0 : r;
}

/* The flush that waits goes out behind everything else. */
static int send_flush(struct rd_lane *l, struct lm_error *err)
{
	int r;

	if (l->flush_queued == l->flush_seq)
		return 0;
	r = push_rest(l, err);
	if (!r)
		r = send_zeros(l, err);
	if (!r && !rd_can_send(l, false))
		r = -EAGAIN;
	if (!r)
		r = rd_send(l, RDMA_FLUSH, NULL, 0, 0, l->flush_queued, l->written, err);
	if (!r)
		l->flush_seq = l->flush_queued;
	return r;
}

static int send_wants(struct rd_lane *l, struct lm_error *err)
{
	int r;

	if (!l->nwants)
		return 0;
	if (!rd_can_send(l, false))
		return -EAGAIN;
	r = rd_send(l, RDMA_WANT, l->wants, l->nwants, sizeof(l->wants[0]), 0, 0, err);
	if (!r)
		l->nwants = 0;
	return r;
}

/* Everything that can go out now: 0 or an error. */
static int send_pending(struct rd_lane *l, struct lm_error *err)
{
	int r = push_rest(l, err);

	if (!r || r == -EAGAIN)
		r = send_wants(l, err);
	if (!r || r == -EAGAIN)
		r = send_zeros(l, err);
	if (!r || r == -EAGAIN)
		r = send_flush(l, err);
	if (!r || r == -EAGAIN)
		r = rd_post_batch(l, err);
	return r;
}

int rd_active_queue(struct rd_lane *l, const struct lm_run *runs, unsigned n, struct lm_error *err)
{
	unsigned taken = 0;
	int r = send_flush(l, err);

	while (!r && taken < n) {
		r = push_rest(l, err);
		if (!r)
			r = runs[taken].kind == LM_RUN_DATA ? queue_data(l, &runs[taken], err) :
							      queue_zero(l, &runs[taken], err);
		taken += !r;
	}
	if (!r || r == -EAGAIN)
		r = send_pending(l, err);
	if (r)
		return r;
	l->full = !taken;
	return taken ? (int)taken : -EAGAIN;
}

int rd_active_flush(struct rd_lane *l, uint64_t seq, struct lm_error *err)
{
	/* Full for a run, full for a flush. */
	if (l->full || l->flush_queued != l->flush_seq)
		return -EAGAIN;
	l->flush_queued = seq;
	return send_pending(l, err);
}

int rd_active_advance(struct rd_lane *l, struct lm_error *err)
{
	l->full = false;
	return send_pending(l, err);
}
