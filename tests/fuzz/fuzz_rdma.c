/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a hostile peer can say to the RDMA transport: byte 0 chooses an endpoint (0),
 * or messages to the active (1) or passive (2) side of a lane, each behind its
 * length (16 bits).  The pages around the region must be as they were.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "fuzz.h"
#include "rdma/rdma.h"

#define PAGES 8
#define GUARD 0x5a

static struct lm_error err;

struct target {
	struct rdma t;
	struct rd_lane lane;
	uint8_t *map;
	int fd;
	uint64_t asked;
};

static void endpoint(const uint8_t *p, size_t len)
{
	uint8_t blob[LM_ENDPOINT_SIZE] = { 0 };
	struct rd_rail rails[RDMA_RAILS_MAX];
	unsigned n = 0;

	memcpy(blob, p, len < sizeof(blob) ? len : sizeof(blob));
	if (!rd_endpoint_get(blob, rails, &n, &err)) {
		assert(n && n <= RDMA_RAILS_MAX);
		for (unsigned i = 0; i < n; i++)
			assert(rd_addr_port(&rails[i].addr));
	}
}

/* Registered on demand: no device is asked for anything. */
static struct rd_mem *mem_make(struct target *t)
{
	struct rd_mem *m = calloc(1, sizeof(*m) + sizeof(m->chunks[0]));

	assert(m);
	m->nchunks = 1;
	m->shift = 23;
	m->size = PAGES * LM_PAGE_SIZE;
	m->host = t->map + LM_PAGE_SIZE;
	m->whole = (struct ibv_mr *)t->map; /* anything but NULL */
	atomic_store(&m->chunks[0].state, RDMA_CHUNK_READY);
	return m;
}

static void target_make(struct target *t, enum lm_side side)
{
	struct rd_lane *l = &t->lane;

	t->fd = memfd_create("fuzz", MFD_CLOEXEC);
	assert(t->fd >= 0 && !ftruncate(t->fd, (PAGES + 2) * LM_PAGE_SIZE));
	t->map = mmap(NULL, (PAGES + 2) * LM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);
	assert(t->map != MAP_FAILED);
	memset(t->map, GUARD, (PAGES + 2) * LM_PAGE_SIZE);
	t->t.base.side = side;
	t->t.base.nregions = 1;
	t->t.base.region_size[0] = PAGES * LM_PAGE_SIZE;
	t->t.regions[0] = (struct rd_region){ .host = t->map + LM_PAGE_SIZE, .size = PAGES * LM_PAGE_SIZE,
					      .page_size = LM_PAGE_SIZE, .file_offset = LM_PAGE_SIZE, .fd = t->fd, .shift = 23 };
	t->t.uses[0].mem[0] = mem_make(t);
	t->t.nuses = 1;
	l->t = &t->t;
	l->use = &t->t.uses[0];
	l->credits = RDMA_NRECV / 2; /* some are under way */
	l->asked[0] = &t->asked;
	l->zeros_sent = l->flush_seq = 5;
	if (side == LM_SOURCE) {
		assert(!rd_active_bind(l, 0, 23, PAGES * LM_PAGE_SIZE));
		l->peer[0].chunks[0].state = RDMA_PEER_ASKED;
	}
}

static void target_free(struct target *t)
{
	free(t->lane.peer[0].chunks);
	free(t->t.uses[0].mem[0]);
	munmap(t->map, (PAGES + 2) * LM_PAGE_SIZE);
	close(t->fd);
	free(t);
}

static void messages(enum lm_side side, const uint8_t *p, size_t len)
{
	struct target *t = calloc(1, sizeof(*t));
	struct lm_poll_result res = { 0 };
	int r = 0;

	assert(t);
	target_make(t, side);
	while (!r && len >= 2) {
		size_t n = p[0] | (size_t)p[1] << 8;
		uint8_t *exact;

		p += 2;
		len -= 2;
		n = n < len ? n : len;
		exact = malloc(n ? n : 1); /* a byte too far is seen */
		assert(exact);
		memcpy(exact, p, n);
		r = rd_peer_message(&t->lane, exact, n, &res, &err);
		free(exact);
		p += n;
		len -= n;
	}
	assert(t->lane.credits <= RDMA_NRECV && t->lane.flushed <= t->lane.flush_seq);
	for (unsigned i = 0; i < LM_PAGE_SIZE; i++)
		assert(t->map[i] == GUARD && t->map[(PAGES + 1) * LM_PAGE_SIZE + i] == GUARD);
	target_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] == 0)
		endpoint(data + 1, size - 1);
	else
		messages(data[0] == 1 ? LM_SOURCE : LM_DEST, data + 1, size - 1);
	return 0;
}
