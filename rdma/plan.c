/* SPDX-License-Identifier: Apache-2.0 */
#include "plan.h"

#define CHUNK_SHIFT_MIN 23 /* 8 MiB */
#define CHUNK_SHIFT_MAX 28 /* 256 MiB */
#define SPARSE_SHIFT_MIN 21 /* 2 MiB */
#define SPARSE_CHUNKS_MAX 16384

/*
 * Pinned pages stay with the device when the guest gives them back and the file
 * gets new ones: the device would read old memory.  At the source such a guest
 * goes on demand or through a buffer; at the destination the guest does not run.
 * For post-copy nothing of it is pinned before it is asked for: then it stands still.
 */
enum rd_mode rd_plan_mode(const struct rd_plan *p)
{
	bool may_pin = p->memlock >= p->ram_bytes;
	enum rd_mode mode;

	if (p->pin == LM_PIN_ODP || (p->pin == LM_PIN_AUTO && p->odp && (!may_pin || p->may_discard)))
		mode = p->odp ? RDMA_MODE_ODP : RDMA_MODE_CHUNK;
	else if (p->pin == LM_PIN_ALL)
		mode = RDMA_MODE_ALL;
	else if (p->pin == LM_PIN_CHUNK)
		mode = RDMA_MODE_CHUNK;
	else if (p->present_bytes >= p->ram_bytes / 4 * 3)
		mode = may_pin ? RDMA_MODE_ALL : RDMA_MODE_CHUNK;
	else
		mode = p->odp ? RDMA_MODE_ODP : RDMA_MODE_CHUNK;
	if (p->side == LM_SOURCE && p->direction == LM_PUSH && mode != RDMA_MODE_ODP &&
	    (p->may_discard || (!may_pin && p->pin == LM_PIN_AUTO)))
		mode = RDMA_MODE_COPY;
	if (p->side == LM_SOURCE && p->direction == LM_PULL && p->may_discard && mode == RDMA_MODE_ALL)
		mode = RDMA_MODE_CHUNK;
	return mode;
}

const char *rd_mode_name(enum rd_mode mode)
{
	static const char *const names[] = { "all registered", "registered by chunk", "on demand (ODP)",
					     "copied, not registered" };

	return names[mode];
}

unsigned rd_plan_shift(uint64_t size, uint64_t page_size, bool whole, uint64_t max_mr_size)
{
	unsigned shift = whole ? 46 : CHUNK_SHIFT_MIN;

	while (!whole && shift < CHUNK_SHIFT_MAX && size >> shift > 64)
		shift++;
	while (whole && shift > CHUNK_SHIFT_MIN && size <= UINT64_C(1) << (shift - 1))
		shift--;
	while (shift > LM_PAGE_SHIFT && UINT64_C(1) << shift > max_mr_size)
		shift--;
	while (UINT64_C(1) << shift < page_size)
		shift++;
	return shift;
}

unsigned rd_plan_shift_sparse(uint64_t size, uint64_t max_mr_size)
{
	unsigned shift = SPARSE_SHIFT_MIN;

	while (size >> shift > SPARSE_CHUNKS_MAX)
		shift++;
	while (shift > LM_PAGE_SHIFT && UINT64_C(1) << shift > max_mr_size)
		shift--;
	return shift;
}

uint32_t rd_plan_nchunks(uint64_t size, unsigned shift)
{
	return (uint32_t)((size >> shift) + ((size & ((UINT64_C(1) << shift) - 1)) != 0));
}
