/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "engine/tcp/tcp_transport.h"
#include "unit.h"
#include "copyrig.h"
#include "engine/net/stream.h"

static const uint64_t region_pages[RIG_REGIONS] = { 1, 1025, 4096 };

/* ---- the decorator ---- */

struct flaky {
	struct lm_transport base;
	struct lm_transport *inner;
	struct rig *rig;
};

static struct flaky *flaky_of(struct lm_transport *t)
{
	return (struct flaky *)t;
}

static int flaky_open(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err)
{
	return lm_transport_open(flaky_of(t)->inner, p, err);
}

static int flaky_region_add(struct lm_transport *t, unsigned index, const struct lm_region *region,
			    struct lm_key *ret_key, struct lm_error *err)
{
	(void)index;
	return lm_transport_region_add(flaky_of(t)->inner, region, ret_key, err);
}

static int flaky_region_bind(struct lm_transport *t, unsigned index, const struct lm_key *key, struct lm_error *err)
{
	return lm_transport_region_bind(flaky_of(t)->inner, index, key, err);
}

static enum rig_fault fault_now(struct flaky *f, unsigned lane)
{
	return f->rig->writes[lane] >= f->rig->fault_write[lane] ? f->rig->fault[lane] : RIG_OK;
}

/* Or else a quick lane may do all the work.  Not for ever: the others may have taken the last of it. */
static void wait_for_faults(struct rig *g, unsigned lane)
{
	int64_t until = lm_now_ns() + 2 * LM_NS_PER_S;

	for (unsigned i = 0; i < RIG_LANES; i++)
		while (i != lane && atomic_load(&g->fault[i]) && !atomic_load(&g->faulted[i]) && lm_now_ns() < until)
			unit_sleep_ms(1);
}

static int flaky_write(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err)
{
	struct flaky *f = flaky_of(t);
	enum rig_fault fault = fault_now(f, lane);
	int r;

	if (fault)
		atomic_store(&f->rig->faulted[lane], true);
	else if (f->rig->all_faults)
		wait_for_faults(f->rig, lane);
	switch (fault) {
	case RIG_FAIL:
		return lm_err(err, -EIO, LM_SCOPE_LANE, "the test ended this lane");
	case RIG_FAIL_MUTE:
		return -EIO;
	case RIG_LOSE:
		return (int)n;
	case RIG_FULL:
	case RIG_HANG_UP:
		return -EAGAIN;
	case RIG_OK:
		break;
	}
	r = lm_transport_write(f->inner, lane, runs, n, err);
	f->rig->writes[lane] += r > 0;
	for (int i = 0; i < r; i++)
		f->rig->written_pages[lane] += runs[i].len / LM_PAGE_SIZE;
	return r;
}

static int flaky_flush(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err)
{
	if (fault_now(flaky_of(t), lane) == RIG_LOSE)
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the test lost what was sent");
	return lm_transport_flush(flaky_of(t)->inner, lane, seq, err);
}

static int flaky_poll(struct lm_transport *t, unsigned lane, int timeout_ms, int wake_fd,
		      struct lm_poll_result *res, struct lm_error *err)
{
	int r = lm_transport_poll_or(flaky_of(t)->inner, lane, timeout_ms, wake_fd, res, err);

	res->closed |= fault_now(flaky_of(t), lane) == RIG_HANG_UP;
	return r;
}

static void flaky_shut(struct lm_transport *t, unsigned lane)
{
	if (!flaky_of(t)->rig->reopens)
		lm_transport_shut(flaky_of(t)->inner, lane);
}

static void flaky_close(struct lm_transport *t)
{
	lm_transport_free(flaky_of(t)->inner);
	free(t);
}

static const struct lm_transport_ops flaky_ops = {
	.name = "flaky", .open = flaky_open, .region_add = flaky_region_add, .region_bind = flaky_region_bind,
	.write = flaky_write, .flush = flaky_flush, .poll = flaky_poll, .shut = flaky_shut, .close = flaky_close,
};

static struct lm_transport *flaky_new(struct rig *g, struct lm_transport *inner)
{
	struct flaky *f = calloc(1, sizeof(*f));

	f->base.ops = &flaky_ops;
	f->inner = inner;
	f->rig = g;
	return &f->base;
}

/* ---- memory ---- */

static struct lm_ram ram_new(bool writable)
{
	struct lm_ram ram = { .nregions = RIG_REGIONS, .regions = calloc(RIG_REGIONS, sizeof(*ram.regions)) };
	struct lm_error err = { 0 };

	for (unsigned i = 0; i < RIG_REGIONS; i++) {
		struct lm_region *r = &ram.regions[i];

		snprintf(r->name, sizeof(r->name), "ram%u", i);
		r->size = region_pages[i] * LM_PAGE_SIZE;
		r->page_size = LM_PAGE_SIZE;
		r->fd = memfd_create("copyrig", MFD_CLOEXEC);
		assert_int_equal(ftruncate(r->fd, (off_t)r->size), 0);
	}
	assert_ok(lm_ram_map(&ram, writable, &err), err);
	return ram;
}

uint8_t *rig_page(const struct lm_ram *ram, unsigned region, uint64_t page)
{
	return ram->regions[region].host + page * LM_PAGE_SIZE;
}

void rig_fill(struct rig *g, unsigned seed)
{
	uint64_t x = seed * 2654435761u + 88172645463325252u;

	for (unsigned r = 0; r < RIG_REGIONS; r++)
		for (uint64_t p = 0; p < region_pages[r]; p++) {
			uint8_t *page = rig_page(&g->src, r, p);
			uint64_t v = unit_random(&x);

			memset(page, v % 3 ? (int)(v % 251 + 1) : 0, LM_PAGE_SIZE);
			if (v % 3 == 1) /* a single byte, at any place, makes a page of data */
				memset(page, 0, LM_PAGE_SIZE), page[v / 7 % LM_PAGE_SIZE] = 1;
		}
}

void rig_reuse_dest(struct rig *g, unsigned seed)
{
	uint64_t x = seed + 362436069u;

	for (unsigned r = 0; r < RIG_REGIONS; r++)
		for (uint64_t p = 0; p < region_pages[r]; p++)
			if (unit_random(&x) & 1) {
				memset(rig_page(&g->dst, r, p), 0xa5, LM_PAGE_SIZE);
				lm_bitmap_set(&g->copier.filled.maps[r], p);
			}
}

void rig_all(struct rig *g)
{
	for (unsigned r = 0; r < RIG_REGIONS; r++)
		lm_bitmap_set_range(&g->todo.maps[r], 0, region_pages[r]);
}

bool rig_equal(const struct rig *g)
{
	for (unsigned r = 0; r < RIG_REGIONS; r++)
		if (memcmp(g->src.regions[r].host, g->dst.regions[r].host, g->src.regions[r].size))
			return false;
	return true;
}

uint64_t rig_blocks(const struct lm_ram *ram)
{
	uint64_t sum = 0;

	for (unsigned r = 0; r < ram->nregions; r++) {
		struct stat st;

		assert_int_equal(fstat(ram->regions[r].fd, &st), 0);
		sum += (uint64_t)st.st_blocks;
	}
	return sum;
}

/* ---- transports ---- */

struct opening {
	struct lm_transport *t;
	struct lm_transport_params p;
	int r;
	struct lm_error err;
};

static void *open_main(void *arg)
{
	struct opening *o = arg;

	o->r = lm_transport_open(o->t, &o->p, &o->err);
	return NULL;
}

static void open_both(struct rig *g, int listen_fd, const char *address)
{
	struct lm_transport_params p = { .nlanes = RIG_LANES, .token = "0123456789abcde", .listen_fd = listen_fd,
					 .peer = address, .deadline_ns = lm_deadline_after(10 * LM_NS_PER_S),
					 .cancel_fd = -1 };
	struct opening dst = { .t = g->dest, .p = p }, src = { .t = g->source, .p = p };
	pthread_t t;

	dst.p.side = LM_DEST;
	src.p.side = LM_SOURCE;
	pthread_create(&t, NULL, open_main, &dst);
	open_main(&src);
	pthread_join(t, NULL);
	assert_ok(src.r, src.err);
	assert_ok(dst.r, dst.err);
}

static void transports_new(struct rig *g, bool tcp)
{
	struct lm_transport *inner;
	char address[LM_ADDRESS_MAX] = "";
	struct lm_error err = { 0 };
	int listen_fd = -1;

	if (tcp) {
		inner = lm_transport_tcp_new();
		g->dest = lm_transport_tcp_new();
		assert_ok(lm_stream_listen("127.0.0.1:0", false, &listen_fd, address, &err), err);
	} else {
		assert_int_equal(lm_transport_loop_new(&inner, &g->dest), 0);
	}
	g->source = flaky_new(g, inner);
	open_both(g, listen_fd, address);
	if (tcp)
		close(listen_fd);
}

static void add_regions(struct rig *g)
{
	struct lm_error err = { 0 };
	struct lm_key key, mine;

	for (unsigned i = 0; i < RIG_REGIONS; i++) {
		assert_ok(lm_transport_region_add(g->dest, &g->dst.regions[i], &key, &err), err);
		assert_ok(lm_transport_region_add(g->source, &g->src.regions[i], &mine, &err), err);
		assert_ok(lm_transport_region_bind(g->source, i, &key, &err), err);
	}
}

static void place_worker(void *ctx, unsigned lane)
{
	struct rig *g = ctx;

	while (!atomic_load(&g->stop_placing)) {
		struct lm_poll_result res;

		if (lm_transport_poll(g->dest, lane, 10, &res, NULL) || res.closed)
			break;
	}
}

struct rig *rig_new(bool tcp)
{
	struct rig *g = calloc(1, sizeof(*g));
	struct lm_error err = { 0 };

	g->src = ram_new(true);
	g->dst = ram_new(true);
	transports_new(g, tcp);
	add_regions(g);
	assert_ok(lm_pool_new(RIG_LANES, &g->pool, &err), err);
	assert_ok(lm_pool_new(RIG_LANES, &g->placers, &err), err);
	assert_ok(lm_copier_init(&g->copier, &g->src, g->source, g->pool, &err), err);
	lm_pageset_init(&g->todo, &g->src);
	lm_pageset_init(&g->holes, &g->src);
	lm_pageset_init(&g->lost, &g->src);
	lm_pool_start(g->placers, place_worker, g);
	return g;
}

void rig_free(struct rig *g)
{
	atomic_store(&g->stop_placing, true);
	lm_pool_free(g->placers);
	lm_pool_free(g->pool);
	lm_copier_fini(&g->copier);
	lm_transport_free(g->source);
	lm_transport_free(g->dest);
	lm_pageset_fini(&g->todo);
	lm_pageset_fini(&g->holes);
	lm_pageset_fini(&g->lost);
	lm_ram_fini(&g->src);
	lm_ram_fini(&g->dst);
	free(g);
}

static void drop(struct rig *g, uint64_t lanes)
{
	for (unsigned i = 0; i < RIG_LANES; i++) {
		if (!(lanes >> i & 1))
			continue;
		lm_transport_shut(g->source, i);
		lm_transport_shut(g->dest, i);
		lm_pool_wait_worker(g->placers, i);
	}
}

int rig_copy(struct rig *g, struct lm_error *err)
{
	uint64_t dropped;
	int r, redos = 0;

	lm_pageset_clear_all(&g->lost);
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	while ((r = lm_copier_finish(&g->copier, &dropped, err)) == 1) {
		assert_true(dropped != 0 && dropped >> RIG_LANES == 0);
		drop(g, dropped);
		lm_copier_redo(&g->copier, dropped, &g->lost);
		redos++;
	}
	return r ? r : redos;
}

void rig_assert_copied(struct rig *g, int redos_wanted)
{
	struct lm_error err = { 0 };
	int r = rig_copy(g, &err);

	if (r < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(r, redos_wanted);
	assert_true(rig_equal(g));
}
