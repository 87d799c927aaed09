/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include "engine/tcp/tcp_transport.h"
#include "unit.h"
#include "pullrig.h"
#include "engine/net/stream.h"

const uint64_t rig_pages[NREGIONS] = { PAGES_MAX, 700 };

/* ---- the pager ---- */

static struct rig *rig_of(struct lm_pager *p)
{
	return (struct rig *)((char *)p - offsetof(struct rig, pager));
}

static int fake_faults(struct lm_pager *p, struct lm_page_fault *ret, unsigned n, struct lm_error *err)
{
	struct rig *g = rig_of(p);
	uint64_t count;
	unsigned got = 0;

	(void)err;
	pthread_mutex_lock(&g->mutex);
	while (got < n && g->taken < g->put)
		ret[got++] = g->queue[g->taken++ % QUEUE];
	if (g->taken == g->put && read(p->fd, &count, sizeof(count)) < 0)
		assert_int_equal(errno, EAGAIN);
	pthread_mutex_unlock(&g->mutex);
	return (int)got;
}

static bool is_whole(struct rig *g, unsigned region, uint64_t page)
{
	bool whole;

	pthread_mutex_lock(&g->p.arrival.mutex);
	whole = lm_bitmap_test(&g->whole[region], page);
	pthread_mutex_unlock(&g->p.arrival.mutex);
	return whole;
}

uint8_t *rig_page(const struct lm_ram *ram, unsigned region, uint64_t page)
{
	return ram->regions[region].host + page * LM_PAGE_SIZE;
}

static void show_one(struct rig *g, unsigned region, uint64_t page)
{
	uint8_t *is = rig_page(&g->dst, region, page);

	if (!is_whole(g, region, page))
		atomic_fetch_add(&g->not_whole, 1);
	pthread_mutex_lock(&g->mutex);
	if (!g->shown[region][page]) {
		if (memcmp(is, rig_page(&g->src, region, page), LM_PAGE_SIZE))
			atomic_fetch_add(&g->wrong_content, 1);
		is[100] ^= 0xff; /* the guest goes on */
		g->shown[region][page] = true;
	}
	pthread_mutex_unlock(&g->mutex);
}

static int fake_place(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	struct rig *g = rig_of(p);
	int e = atomic_load(&g->fail_place);

	if (e)
		return lm_err(err, -e, LM_SCOPE_VM, "the test's pager fails");
	for (uint64_t i = first; i < first + n; i++)
		show_one(g, region, i);
	pthread_mutex_lock(&g->mutex);
	pthread_cond_broadcast(&g->cond);
	pthread_mutex_unlock(&g->mutex);
	return 0;
}

static const struct lm_pager_ops fake_pager_ops = { .name = "fake", .faults = fake_faults, .place = fake_place };

bool rig_touch(struct rig *g, unsigned region, uint64_t page)
{
	uint64_t one = 1;
	bool shown;

	pthread_mutex_lock(&g->mutex);
	if (!g->shown[region][page]) {
		g->queue[g->put++ % QUEUE] = (struct lm_page_fault){ .region = region, .page = page };
		assert_int_equal(write(g->pager.fd, &one, sizeof(one)), sizeof(one));
	}
	while (!g->shown[region][page] && !atomic_load(&g->give_up))
		pthread_cond_wait(&g->cond, &g->mutex);
	shown = g->shown[region][page];
	pthread_mutex_unlock(&g->mutex);
	return shown;
}

static void *toucher_main(void *arg)
{
	struct toucher *t = arg;
	unsigned region;

	do {
		region = (unsigned)(unit_random(&t->x) % NREGIONS);
	} while (rig_touch(t->g, region, unit_random(&t->x) % rig_pages[region]) && !atomic_load(&t->g->give_up));
	return NULL;
}

void rig_touchers_start(struct rig *g, unsigned n)
{
	for (; g->ntouchers < n; g->ntouchers++) {
		struct toucher *t = &g->touchers[g->ntouchers];

		t->g = g;
		t->x = 88172645463325252u + g->ntouchers * 999;
		pthread_create(&t->thread, NULL, toucher_main, t);
	}
}

void rig_touchers_end(struct rig *g)
{
	pthread_mutex_lock(&g->mutex);
	atomic_store(&g->give_up, true);
	pthread_cond_broadcast(&g->cond);
	pthread_mutex_unlock(&g->mutex);
	for (; g->ntouchers; g->ntouchers--)
		pthread_join(g->touchers[g->ntouchers - 1].thread, NULL);
}

/* ---- the decorator: looks at what is fetched, and fails when told to ---- */

struct watch {
	struct lm_transport base;
	struct lm_transport *inner;
	struct rig *g;
};

static struct watch *watch_of(struct lm_transport *t)
{
	return (struct watch *)t;
}

static int watch_open(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err)
{
	return lm_transport_open(watch_of(t)->inner, p, err);
}

static int watch_region_add(struct lm_transport *t, unsigned index, const struct lm_region *region,
			    struct lm_key *ret_key, struct lm_error *err)
{
	(void)index;
	return lm_transport_region_add(watch_of(t)->inner, region, ret_key, err);
}

static int watch_region_bind(struct lm_transport *t, unsigned index, const struct lm_key *key, struct lm_error *err)
{
	return lm_transport_region_bind(watch_of(t)->inner, index, key, err);
}

/* A lane that has to die, dies; the others may have to wait for that, but not for ever. */
static bool dies(struct rig *g, unsigned lane)
{
	unsigned die_at = atomic_load(&g->die_at), die_lanes = atomic_load(&g->die_lanes);
	int64_t until = lm_now_ns() + 5 * LM_NS_PER_S;

	if (atomic_fetch_add(&g->fetches, 1) + 1 >= die_at && die_at && die_lanes >> lane & 1) {
		atomic_fetch_or(&g->died, 1u << lane);
		return true;
	}
	while (g->die_first && die_at && (atomic_load(&g->died) & die_lanes) != die_lanes && lm_now_ns() < until)
		unit_sleep_ms(1);
	return false;
}

static void watch_page(struct rig *g, unsigned lane, unsigned region, uint64_t page)
{
	unsigned before = atomic_exchange(&g->owner[region][page], (uint8_t)(lane + 1));

	atomic_fetch_add(&g->fetched_pages, 1);
	if (is_whole(g, region, page))
		atomic_fetch_add(&g->fetched_again, 1);
	if (before && !(atomic_load(&g->fenced) >> (before - 1) & 1))
		atomic_fetch_add(&g->too_early, 1);
}

static int watch_fetch(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err)
{
	struct watch *w = watch_of(t);
	int r;

	if (dies(w->g, lane))
		return lm_err(err, -EIO, LM_SCOPE_LANE, "the test ended this lane");
	r = lm_transport_fetch(w->inner, lane, runs, n, err);
	for (int i = 0; i < r; i++)
		for (uint64_t j = 0; j < runs[i].len >> LM_PAGE_SHIFT; j++)
			watch_page(w->g, lane, runs[i].region, (runs[i].offset >> LM_PAGE_SHIFT) + j);
	return r;
}

static int watch_poll(struct lm_transport *t, unsigned lane, int timeout_ms, int wake_fd,
		      struct lm_poll_result *res, struct lm_error *err)
{
	return lm_transport_poll_or(watch_of(t)->inner, lane, timeout_ms, wake_fd, res, err);
}

static void watch_shut(struct lm_transport *t, unsigned lane)
{
	lm_transport_shut(watch_of(t)->inner, lane);
}

static void watch_fence(struct lm_transport *t, unsigned lane)
{
	atomic_fetch_or(&watch_of(t)->g->fenced, 1u << lane);
	lm_transport_fence_lane(watch_of(t)->inner, lane);
}

static int watch_reopen(struct lm_transport *t, unsigned lane, const struct lm_transport_params *p,
			struct lm_error *err)
{
	return lm_transport_reopen(watch_of(t)->inner, lane, p, err);
}

static void watch_close(struct lm_transport *t)
{
	lm_transport_free(watch_of(t)->inner);
	free(t);
}

static const struct lm_transport_ops watch_ops = {
	.name = "watch", .open = watch_open, .region_add = watch_region_add, .region_bind = watch_region_bind,
	.fetch = watch_fetch, .poll = watch_poll, .shut = watch_shut, .fence = watch_fence,
	.reopen = watch_reopen, .close = watch_close,
};

static struct lm_transport *watch_new(struct rig *g, struct lm_transport *inner)
{
	struct watch *w = calloc(1, sizeof(*w));

	w->base.ops = &watch_ops;
	w->inner = inner;
	w->g = g;
	return &w->base;
}

/* ---- the connection ---- */

struct opening {
	struct lm_transport *t;
	struct lm_transport_params p;
	int lane; /* -1: all */
	int r;
	struct lm_error err;
};

static void *open_main(void *arg)
{
	struct opening *o = arg;

	o->r = o->lane < 0 ? lm_transport_open(o->t, &o->p, &o->err) :
			     lm_transport_reopen(o->t, (unsigned)o->lane, &o->p, &o->err);
	return NULL;
}

static void open_both(struct rig *g, int lane)
{
	struct opening dst = { .t = g->dest, .p = g->params, .lane = lane };
	struct opening src = { .t = g->source, .p = g->params, .lane = lane };
	pthread_t t;

	dst.p.deadline_ns = src.p.deadline_ns = lm_deadline_after(10 * LM_NS_PER_S);
	dst.p.side = LM_DEST;
	dst.p.ram = &g->dst;
	src.p.side = LM_SOURCE;
	src.p.ram = &g->src;
	pthread_create(&t, NULL, open_main, &dst);
	open_main(&src);
	pthread_join(t, NULL);
	assert_ok(src.r, src.err);
	assert_ok(dst.r, dst.err);
}

static void answer_worker(void *ctx, unsigned lane)
{
	struct rig *g = ctx;

	while (!atomic_load(&g->stop_answering)) {
		struct lm_poll_result res;

		if (lm_transport_poll(g->source, lane, 10, &res, NULL) || res.closed)
			break;
	}
	lm_transport_shut(g->source, lane);
}

void rig_up(struct rig *g)
{
	struct lm_transport *inner;
	struct lm_error err = { 0 };
	struct lm_key key, mine;

	g->params = (struct lm_transport_params){ .direction = LM_PULL, .nlanes = LANES + 1, .token = "0123456789abcde",
						  .listen_fd = -1, .peer = g->address, .cancel_fd = -1 };
	if (g->tcp) {
		g->source = lm_transport_tcp_new();
		inner = lm_transport_tcp_new();
		assert_ok(lm_stream_listen("127.0.0.1:0", false, &g->params.listen_fd, g->address, &err), err);
	} else {
		assert_int_equal(lm_transport_loop_new(&g->source, &inner), 0);
	}
	g->dest = watch_new(g, inner);
	open_both(g, -1);
	for (unsigned i = 0; i < NREGIONS; i++) {
		assert_ok(lm_transport_region_add(g->source, &g->src.regions[i], &key, &err), err);
		assert_ok(lm_transport_region_add(g->dest, &g->dst.regions[i], &mine, &err), err);
		assert_ok(lm_transport_region_bind(g->dest, i, &key, &err), err);
	}
	atomic_store(&g->stop_answering, false);
	atomic_store(&g->fetches, 0);
	atomic_store(&g->died, 0);
	atomic_store(&g->fenced, 0);
	memset(g->owner, 0, sizeof(g->owner));
	lm_pool_start(g->answerers, answer_worker, g);
	lm_puller_up(&g->p, g->dest);
}

void rig_down(struct rig *g)
{
	lm_puller_down(&g->p);
	atomic_store(&g->stop_answering, true);
	for (unsigned i = 0; g->source && i <= LANES; i++)
		lm_transport_shut(g->source, i);
	lm_pool_finish(g->answerers);
	lm_transport_free(g->dest);
	lm_transport_free(g->source);
	g->dest = g->source = NULL;
	if (g->params.listen_fd > 0)
		close(g->params.listen_fd);
	g->params.listen_fd = -1;
}

void rig_lane_back(struct rig *g, unsigned lane)
{
	lm_transport_shut(g->source, lane);
	lm_pool_wait_worker(g->answerers, lane);
	lm_puller_lane_wait(&g->p, lane);
	memcpy(g->params.token, "another token..", LM_TOKEN_SIZE);
	open_both(g, (int)lane);
	/* What it had, others may have, or it; the next ones are behind the next fence. */
	for (unsigned r = 0; r < NREGIONS; r++)
		for (uint64_t i = 0; i < rig_pages[r]; i++)
			if (atomic_load(&g->owner[r][i]) == lane + 1)
				atomic_store(&g->owner[r][i], 0);
	atomic_fetch_and(&g->fenced, ~(1u << lane));
	assert_true(lm_pool_restart_worker(g->answerers, lane));
	lm_puller_lane_back(&g->p, lane);
}

/* ---- the rig ---- */

static struct lm_ram ram_new(void)
{
	struct lm_ram ram = { .nregions = NREGIONS, .regions = calloc(NREGIONS, sizeof(*ram.regions)) };
	struct lm_error err = { 0 };

	for (unsigned i = 0; i < NREGIONS; i++) {
		struct lm_region *r = &ram.regions[i];

		snprintf(r->name, sizeof(r->name), "ram%u", i);
		r->size = rig_pages[i] * LM_PAGE_SIZE;
		r->page_size = LM_PAGE_SIZE;
		r->fd = memfd_create("puller", MFD_CLOEXEC);
		assert_int_equal(ftruncate(r->fd, (off_t)r->size), 0);
	}
	assert_ok(lm_ram_map(&ram, true, &err), err);
	return ram;
}

struct rig *rig_new(bool tcp)
{
	struct rig *g = calloc(1, sizeof(*g));
	struct lm_error err = { 0 };

	g->tcp = tcp;
	g->src = ram_new();
	g->dst = ram_new();
	pthread_mutex_init(&g->mutex, NULL);
	pthread_cond_init(&g->cond, NULL);
	g->pager = (struct lm_pager){ .ops = &fake_pager_ops, .ram = &g->dst, .vm_fd = -1,
				      .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) };
	assert_ok(lm_pool_new(LANES + 1, &g->answerers, &err), err);
	for (unsigned r = 0; r < NREGIONS; r++) {
		assert_int_equal(lm_bitmap_init(&g->whole[r], rig_pages[r]), 0);
		lm_bitmap_set_range(&g->whole[r], 0, rig_pages[r]);
	}
	assert_ok(lm_puller_init(&g->p, &g->dst, &g->pager, g->whole, LANES, &err), err);
	for (unsigned r = 0; r < NREGIONS; r++)
		for (uint64_t i = 0; i < rig_pages[r]; i++) {
			bool zero = i % 97 > 72;

			memset(rig_page(&g->src, r, i), zero ? 0 : (int)(i % 251 + 1), LM_PAGE_SIZE);
			memset(rig_page(&g->dst, r, i), 0xa5, LM_PAGE_SIZE);
			lm_arrival_leave(&g->p.arrival, r, i, 1, zero && i % 2);
		}
	return g;
}

void rig_free(struct rig *g)
{
	rig_touchers_end(g);
	lm_puller_fini(&g->p);
	rig_down(g);
	lm_pool_free(g->answerers);
	for (unsigned r = 0; r < NREGIONS; r++)
		lm_bitmap_fini(&g->whole[r]);
	lm_ram_fini(&g->src);
	lm_ram_fini(&g->dst);
	close(g->pager.fd);
	pthread_cond_destroy(&g->cond);
	pthread_mutex_destroy(&g->mutex);
	free(g);
}

void rig_serve(struct rig *g)
{
	struct lm_error err = { 0 };

	assert_ok(lm_puller_serve(&g->p, &err), err);
}

bool rig_await_all(struct rig *g, unsigned seconds)
{
	for (unsigned i = 0; i < seconds * 1000 && lm_puller_missing(&g->p); i++)
		unit_sleep_ms(1);
	return !lm_puller_missing(&g->p);
}

void rig_assert_all_right(struct rig *g)
{
	assert_int_equal(lm_puller_missing(&g->p), 0);
	rig_touchers_end(g);
	lm_puller_stop(&g->p); /* the last page is whole before it is shown */
	assert_int_equal(atomic_load(&g->wrong_content), 0);
	assert_int_equal(atomic_load(&g->not_whole), 0);
	assert_int_equal(atomic_load(&g->fetched_again), 0);
	assert_int_equal(atomic_load(&g->too_early), 0);
	for (unsigned r = 0; r < NREGIONS; r++)
		for (uint64_t i = 0; i < rig_pages[r]; i++) {
			uint8_t *is = rig_page(&g->dst, r, i);

			assert_true(lm_bitmap_test(&g->whole[r], i));
			if (g->shown[r][i])
				is[100] ^= 0xff;
			if (memcmp(is, rig_page(&g->src, r, i), LM_PAGE_SIZE))
				fail_msg("page %u/%u differs", r, (unsigned)i);
		}
}
