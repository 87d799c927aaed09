/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zeros at the destination.
 *
 * A page that is pinned for the device must stay the page of the file: a hole
 * punched there would leave the device writing into memory that nobody sees.  Such
 * pages are cleared in place.  What is not pinned, or followed by the device (ODP), is
 * given back to the file system.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include "rdma.h"
#include "engine/base/zero.h"

#define SCRATCH_SIZE (16 * LM_PAGE_SIZE)

struct hole {
	const struct rd_region *r;
	uint64_t offset, len;
};

/* read(2) of a hole allocates nothing: only pages that hold something are touched. */
static int clear_by_hand(const struct rd_region *r, uint64_t offset, uint64_t len)
{
	uint8_t scratch[SCRATCH_SIZE] __attribute__((aligned(64)));

	while (len) {
		size_t n = len < sizeof(scratch) ? len : sizeof(scratch);
		ssize_t got = pread(r->fd, scratch, n, (off_t)(r->file_offset + offset));

		if (got <= 0 || got % (ssize_t)LM_PAGE_SIZE)
			return got < 0 ? -errno : -EIO;
		for (ssize_t i = 0; i < got; i += (ssize_t)LM_PAGE_SIZE)
			if (!lm_page_is_zero(scratch + i))
				memset(r->host + offset + i, 0, LM_PAGE_SIZE);
		offset += (uint64_t)got;
		len -= (uint64_t)got;
	}
	return 0;
}

/* hugetlbfs: with the page would go the reservation that QEMU made for the guest. */
static int punch(void *arg)
{
	const struct hole *h = arg;

	if (h->r->page_size > LM_PAGE_SIZE ||
	    fallocate(h->r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(h->r->file_offset + h->offset),
		      (off_t)h->len))
		return clear_by_hand(h->r, h->offset, h->len);
	return 0;
}

/* With several devices each may pin the page at any moment: then it is never punched. */
static int place_piece(struct rdma *t, unsigned region, struct hole *h)
{
	unsigned n = atomic_load(&t->nuses);
	bool followed = true;
	int r = 0;

	for (unsigned i = 0; i < n; i++)
		followed &= t->uses[i].mem[region]->whole != NULL;
	if (followed)
		return punch(h);
	if (n > 1 || !rd_mem_unless_pinned(t->uses[0].mem[region], (uint32_t)(h->offset >> h->r->shift),
						    punch, h, &r))
		return clear_by_hand(h->r, h->offset, h->len);
	return r;
}

int rd_place_zero(struct rd_lane *l, const struct lm_run *run, struct lm_error *err)
{
	struct rd_region *r = &l->t->regions[run->region];
	struct hole h = { .r = r, .offset = run->offset };
	uint64_t left = run->len;
	int res = 0;

	while (left && !res) {
		uint64_t chunk_left = (UINT64_C(1) << r->shift) - (h.offset & ((UINT64_C(1) << r->shift) - 1));

		h.len = left < chunk_left ? left : chunk_left;
		h.len = h.len < RDMA_ZERO_BYTES ? h.len : RDMA_ZERO_BYTES;
		if (!rd_place_begin(l))
			return rd_lane_error(l, -ESHUTDOWN, err, "clearing pages");
		res = place_piece(l->t, run->region, &h);
		rd_place_end(l);
		h.offset += h.len;
		left -= h.len;
	}
	if (res)
		return lm_err_errno(err, res, LM_SCOPE_SESSION,
				    "the memory file of the guest cannot take more pages (is its file system full?)");
	return 0;
}
