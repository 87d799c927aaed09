/* SPDX-License-Identifier: Apache-2.0 */
/* How guest RAM is registered with a device: pure decisions, no verbs. */
#ifndef LM_RDMA_PLAN_H
#define LM_RDMA_PLAN_H

#include "engine/transport/transport.h"

enum rd_mode {
	RDMA_MODE_ALL,   /* everything, pinned, before the copy */
	RDMA_MODE_CHUNK, /* chunks, pinned, when the copy comes near */
	RDMA_MODE_ODP,   /* the device faults pages in */
	RDMA_MODE_COPY,  /* source: not at all; pages go through a buffer of ours */
};

struct rd_plan {
	enum lm_pin pin;         /* what the user wants */
	enum lm_side side;
	enum lm_direction direction;
	bool odp;                /* the device can */
	bool may_discard;        /* the guest may give memory back while it is registered */
	uint64_t memlock;        /* bytes that may be pinned; UINT64_MAX: no limit */
	uint64_t ram_bytes;      /* of the guest */
	uint64_t present_bytes;  /* of them in memory now */
};

enum rd_mode rd_plan_mode(const struct rd_plan *p);
const char *rd_mode_name(enum rd_mode mode);
/* log2 of the chunk size for a region: at most 64 chunks up to 16 GiB, then chunks of 256 MiB. */
unsigned rd_plan_shift(uint64_t size, uint64_t page_size, bool whole, uint64_t max_mr_size);
/*
 * The same for memory with holes that must stay holes: a chunk with a hole is not registered, so chunks
 * are small.  2 MiB, or as many chunks as a device surely has keys for.
 */
unsigned rd_plan_shift_sparse(uint64_t size, uint64_t max_mr_size);
uint32_t rd_plan_nchunks(uint64_t size, unsigned shift);

#endif
