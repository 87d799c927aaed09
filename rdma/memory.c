/* SPDX-License-Identifier: Apache-2.0 */
/* Which memory is registered how, with which device. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "engine/base/memlock.h"
#include "rdma.h"

static uint64_t present_bytes(const struct lm_region *r)
{
	struct stat st;
	uint64_t n = fstat(r->fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;

	return n < r->size ? n : r->size;
}

static enum rd_mode mode_for(const struct rdma *t, const struct rd_use *u, const struct lm_region *region)
{
	bool too_small = u->small_packets && rd_device_odp_needs_4k(u->dev);
	struct rd_plan p = {
		.pin = t->pin, .side = t->base.side, .direction = t->base.direction,
		.odp = rd_device_odp(u->dev) && !too_small && !(u->late && rd_device_odp_needs_4k(u->dev)),
		.may_discard = t->may_discard, .memlock = lm_memlock_limit(), .ram_bytes = region->size,
		.present_bytes = present_bytes(region),
	};

	/* The limit is for all regions together. */
	if (p.memlock != UINT64_MAX && t->ram_bytes > region->size)
		p.memlock = p.memlock > t->ram_bytes - region->size ? p.memlock - (t->ram_bytes - region->size) : 0;
	return rd_plan_mode(&p);
}

static unsigned access_for(const struct rdma *t, const struct rd_device *d)
{
	bool push = t->base.direction == LM_PUSH;

	if (t->base.side == LM_SOURCE)
		return push && !t->may_pull ? 0 : IBV_ACCESS_REMOTE_READ;
	/* iWARP: what is fetched is written by the peer. */
	return IBV_ACCESS_LOCAL_WRITE | (push || d->iwarp ? IBV_ACCESS_REMOTE_WRITE : 0);
}

/* hugetlbfs does not say where its holes are. */
static bool is_sparse(const struct rdma *t, const struct lm_region *region)
{
	return t->base.side == LM_SOURCE && region->page_size == LM_PAGE_SIZE && present_bytes(region) < region->size;
}

bool rd_region_has_hole(const struct rd_region *r, uint64_t from, uint64_t len)
{
	off_t hole;

	if (len > r->size - from)
		len = r->size - from;
	hole = lseek(r->fd, (off_t)(r->file_offset + from), SEEK_HOLE);
	return hole < 0 || (uint64_t)hole < r->file_offset + from + len;
}

/*
 * One chunk size for all devices: the peer knows only one.  What is registered already keeps its
 * chunks, so that it is shared and not pinned twice.
 */
static unsigned shift_for(const struct rdma *t, const struct lm_region *region, bool sparse)
{
	uint64_t max = UINT64_MAX;
	bool whole = true, pinned = false;

	for (unsigned i = 0; i < t->nuses; i++) {
		uint64_t m = t->uses[i].dev->attr.orig_attr.max_mr_size;
		enum rd_mode mode = mode_for(t, &t->uses[i], region);
		unsigned before = rd_mem_shift(t->uses[i].dev, region);

		if (before)
			return before;
		max = m && m < max ? m : max;
		whole &= mode == RDMA_MODE_ALL;
		pinned |= mode == RDMA_MODE_ALL || mode == RDMA_MODE_CHUNK;
	}
	return sparse && pinned ? rd_plan_shift_sparse(region->size, max) :
				  rd_plan_shift(region->size, region->page_size, whole, max);
}

/* A chunk that registering would fill up. */
static bool chunk_is_sparse(const void *region, uint32_t chunk)
{
	const struct rd_region *r = region;

	return rd_region_has_hole(r, (uint64_t)chunk << r->shift, UINT64_C(1) << r->shift);
}

struct lm_key rd_memory_key(const struct rd_region *r)
{
	struct rd_wire_key k = { .version = lm_le32(RDMA_VERSION), .shift = lm_le32(r->shift),
				   .size = lm_le64(r->size) };
	struct lm_key ret;

	memcpy(ret.bytes, &k, sizeof(k));
	return ret;
}

static int mems_get(struct rdma *t, unsigned index, const struct lm_region *region, struct lm_error *err)
{
	int r = 0;

	for (unsigned i = 0; !r && i < t->nuses; i++) {
		struct rd_use *u = &t->uses[i];
		enum rd_mode mode = mode_for(t, u, region);

		if (mode != RDMA_MODE_COPY)
			r = rd_mem_get(u->dev, region, access_for(t, u->dev), t->regions[index].shift, mode, &u->mem[index], err);
	}
	for (unsigned i = 0; !r && i < t->nuses; i++)
		if (t->uses[i].mem[index] && t->uses[i].mem[index]->mode == RDMA_MODE_ALL)
			r = rd_mem_all(t->uses[i].mem[index], t->regions[index].sparse ? chunk_is_sparse : NULL,
				       &t->regions[index], err);
	return r;
}

int rd_memory_add(struct rdma *t, unsigned index, const struct lm_region *region, struct lm_error *err)
{
	struct rd_region *reg = &t->regions[index];

	*reg = (struct rd_region){ .host = region->host, .size = region->size, .page_size = region->page_size,
				   .file_offset = region->file_offset, .fd = region->fd,
				   .sparse = is_sparse(t, region) };
	reg->shift = shift_for(t, region, reg->sparse);
	return mems_get(t, index, region, err);
}

/* A lane that has just come back does not wait for all of memory: chunk by chunk, as they are asked for. */
int rd_use_add_memory(struct rdma *t, struct rd_use *u, struct lm_error *err)
{
	int r = 0;

	u->late = true;
	for (unsigned i = 0; !r && i < t->base.nregions; i++) {
		const struct rd_region *reg = &t->regions[i];
		struct lm_region region = { .host = reg->host, .size = reg->size, .page_size = reg->page_size,
					    .file_offset = reg->file_offset, .fd = reg->fd };
		enum rd_mode mode = mode_for(t, u, &region);

		if (mode == RDMA_MODE_ALL)
			mode = RDMA_MODE_CHUNK;
		if (mode != RDMA_MODE_COPY)
			r = rd_mem_get(u->dev, &region, access_for(t, u->dev), reg->shift, mode, &u->mem[i], err);
	}
	return r;
}
