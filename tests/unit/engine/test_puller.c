/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads that bring missing pages, against a pager that is a table: it checks each page when it
 * is shown, then writes to it as a guest would, so that whatever lands later is found.
 */
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include "unit.h"
#include "puller.h"
#include "stream.h"

#define LANES 2 /* of the background */
#define NREGIONS 2
#define PAGES_MAX 4096
#define TOUCHERS 8
#define QUEUE 8192

static const uint64_t region_pages[NREGIONS] = { PAGES_MAX, 700 };

struct rig {
	struct lm_ram src, dst;
	struct lm_bitmap whole[NREGIONS];
	struct lm_puller p;
	bool tcp;
	/* the connection */
	struct lm_transport *source, *dest; /* dest: the decorator */
	struct lm_pool *answerers;
	_Atomic bool stop_answering;
	_Atomic unsigned fetches, die_at; /* the die_at-th fetch of a connection fails, and those after it; 0: none */
	_Atomic unsigned die_lanes;       /* a bit for each lane that this is true of */
	bool die_first;                   /* the other lanes wait for that */
	_Atomic unsigned died, fenced;    /* bits of lanes of this connection */
	_Atomic uint8_t owner[NREGIONS][PAGES_MAX]; /* the lane that has fetched the page, and one */
	_Atomic uint64_t fetched_pages;
	/* the pager */
	struct lm_pager pager;
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	struct lm_page_fault queue[QUEUE];
	unsigned put, taken;
	bool shown[NREGIONS][PAGES_MAX];
	_Atomic int fail_place;
	_Atomic unsigned wrong_content, not_whole, fetched_again, too_early;
	/* who touches */
	_Atomic bool give_up;
	struct toucher {
		struct rig *g;
		uint64_t x;
		pthread_t thread;
	} touchers[TOUCHERS];
	unsigned ntouchers;
};

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

static uint8_t *page_of(const struct lm_ram *ram, unsigned region, uint64_t page)
{
	return ram->regions[region].host + page * LM_PAGE_SIZE;
}

static void show_one(struct rig *g, unsigned region, uint64_t page)
{
	uint8_t *is = page_of(&g->dst, region, page);

	if (!is_whole(g, region, page))
		atomic_fetch_add(&g->not_whole, 1);
	pthread_mutex_lock(&g->mutex);
	if (!g->shown[region][page]) {
		if (memcmp(is, page_of(&g->src, region, page), LM_PAGE_SIZE))
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

/* Touch a page as a thread of the guest: true when it is there, false when the test is over. */
static bool touch(struct rig *g, unsigned region, uint64_t page)
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
	} while (touch(t->g, region, unit_random(&t->x) % region_pages[region]) && !atomic_load(&t->g->give_up));
	return NULL;
}

static void touchers_start(struct rig *g, unsigned n)
{
	for (; g->ntouchers < n; g->ntouchers++) {
		struct toucher *t = &g->touchers[g->ntouchers];

		t->g = g;
		t->x = 88172645463325252u + g->ntouchers * 999;
		pthread_create(&t->thread, NULL, toucher_main, t);
	}
}

static void touchers_end(struct rig *g)
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

static void watch_close(struct lm_transport *t)
{
	lm_transport_free(watch_of(t)->inner);
	free(t);
}

static const struct lm_transport_ops watch_ops = {
	.name = "watch", .open = watch_open, .region_add = watch_region_add, .region_bind = watch_region_bind,
	.fetch = watch_fetch, .poll = watch_poll, .shut = watch_shut, .fence = watch_fence, .close = watch_close,
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
	struct lm_transport_params p = { .direction = LM_PULL, .nlanes = LANES + 1, .token = "0123456789abcde",
					 .listen_fd = listen_fd, .peer = address, .cancel_fd = -1,
					 .deadline_ns = lm_deadline_after(10 * LM_NS_PER_S) };
	struct opening dst = { .t = g->dest, .p = p }, src = { .t = g->source, .p = p };
	pthread_t t;

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

static void up(struct rig *g)
{
	struct lm_transport *inner;
	char address[LM_ADDRESS_MAX] = "";
	struct lm_error err = { 0 };
	struct lm_key key, mine;
	int listen_fd = -1;

	if (g->tcp) {
		g->source = lm_transport_tcp_new();
		inner = lm_transport_tcp_new();
		assert_ok(lm_stream_listen("127.0.0.1:0", false, &listen_fd, address, &err), err);
	} else {
		assert_int_equal(lm_transport_loop_new(&g->source, &inner), 0);
	}
	g->dest = watch_new(g, inner);
	open_both(g, listen_fd, address);
	if (listen_fd >= 0)
		close(listen_fd);
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

static void down(struct rig *g)
{
	lm_puller_down(&g->p);
	atomic_store(&g->stop_answering, true);
	for (unsigned i = 0; g->source && i <= LANES; i++)
		lm_transport_shut(g->source, i);
	lm_pool_finish(g->answerers);
	lm_transport_free(g->dest);
	lm_transport_free(g->source);
	g->dest = g->source = NULL;
}

/* ---- the rig ---- */

static struct lm_ram ram_new(void)
{
	struct lm_ram ram = { .nregions = NREGIONS, .regions = calloc(NREGIONS, sizeof(*ram.regions)) };
	struct lm_error err = { 0 };

	for (unsigned i = 0; i < NREGIONS; i++) {
		struct lm_region *r = &ram.regions[i];

		snprintf(r->name, sizeof(r->name), "ram%u", i);
		r->size = region_pages[i] * LM_PAGE_SIZE;
		r->page_size = LM_PAGE_SIZE;
		r->fd = memfd_create("puller", MFD_CLOEXEC);
		assert_int_equal(ftruncate(r->fd, (off_t)r->size), 0);
	}
	assert_ok(lm_ram_map(&ram, true, &err), err);
	return ram;
}

/* The source has content in three of four pages; the destination something older everywhere. All is left. */
static struct rig *rig_new(bool tcp)
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
		assert_int_equal(lm_bitmap_init(&g->whole[r], region_pages[r]), 0);
		lm_bitmap_set_range(&g->whole[r], 0, region_pages[r]);
	}
	assert_ok(lm_puller_init(&g->p, &g->dst, &g->pager, g->whole, LANES, &err), err);
	for (unsigned r = 0; r < NREGIONS; r++)
		for (uint64_t i = 0; i < region_pages[r]; i++) {
			bool zero = i % 97 > 72;

			memset(page_of(&g->src, r, i), zero ? 0 : (int)(i % 251 + 1), LM_PAGE_SIZE);
			memset(page_of(&g->dst, r, i), 0xa5, LM_PAGE_SIZE);
			lm_arrival_leave(&g->p.arrival, r, i, 1, zero && i % 2);
		}
	return g;
}

static void rig_free(struct rig *g)
{
	touchers_end(g);
	lm_puller_fini(&g->p);
	down(g);
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

static void serve(struct rig *g)
{
	struct lm_error err = { 0 };

	assert_ok(lm_puller_serve(&g->p, &err), err);
}

static bool await_all(struct rig *g, unsigned seconds)
{
	for (unsigned i = 0; i < seconds * 1000 && lm_puller_missing(&g->p); i++)
		unit_sleep_ms(1);
	return !lm_puller_missing(&g->p);
}

/* Every page is as it was at the source, or as the guest has changed it since it saw it. */
static void assert_all_right(struct rig *g)
{
	assert_int_equal(lm_puller_missing(&g->p), 0);
	touchers_end(g);
	lm_puller_stop(&g->p); /* the last page is whole before it is shown */
	assert_int_equal(atomic_load(&g->wrong_content), 0);
	assert_int_equal(atomic_load(&g->not_whole), 0);
	assert_int_equal(atomic_load(&g->fetched_again), 0);
	assert_int_equal(atomic_load(&g->too_early), 0);
	for (unsigned r = 0; r < NREGIONS; r++)
		for (uint64_t i = 0; i < region_pages[r]; i++) {
			uint8_t *is = page_of(&g->dst, r, i);

			assert_true(lm_bitmap_test(&g->whole[r], i));
			if (g->shown[r][i])
				is[100] ^= 0xff;
			if (memcmp(is, page_of(&g->src, r, i), LM_PAGE_SIZE))
				fail_msg("page %u/%u differs", r, (unsigned)i);
		}
}

/* ---- tests ---- */

static void storm(bool tcp)
{
	struct lm_postcopy_stats stats = { 0 };
	struct rig *g = rig_new(tcp);

	touchers_start(g, TOUCHERS);
	serve(g);
	up(g);
	lm_puller_background(&g->p);
	assert_true(await_all(g, 20));
	touchers_end(g);
	down(g);
	assert_null(lm_puller_error(&g->p));
	lm_arrival_stats(&g->p.arrival, &stats);
	assert_int_equal(stats.left_pages, region_pages[0] + region_pages[1]);
	assert_int_equal(atomic_load(&g->p.bytes), atomic_load(&g->fetched_pages) * LM_PAGE_SIZE);
	assert_all_right(g);
	rig_free(g);
}

static void eight_threads_that_touch_everything_see_right_pages_in_process(void **state)
{
	(void)state;
	storm(false);
}

static void eight_threads_that_touch_everything_see_right_pages_over_tcp(void **state)
{
	(void)state;
	storm(true);
}

static void without_the_background_pages_come_when_they_are_touched(void **state)
{
	struct rig *g = rig_new(true);
	uint64_t missing;

	(void)state;
	serve(g);
	up(g);
	assert_true(touch(g, 0, 1000));
	assert_true(touch(g, 1, 699)); /* the last: nothing is around it */
	unit_sleep_ms(100);
	missing = lm_puller_missing(&g->p);
	assert_true(missing < region_pages[0] + region_pages[1]);
	assert_true(missing >= region_pages[0] + region_pages[1] - 2 * 65);
	/* Of a page whose neighbours came with it, a touch is free. */
	assert_true(touch(g, 0, 1001));
	rig_free(g);
}

static void pages_that_are_whole_are_shown_without_a_connection(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	lm_bitmap_set_range(&g->whole[0], 500, 10);
	for (uint64_t i = 500; i < 510; i++)
		memcpy(page_of(&g->dst, 0, i), page_of(&g->src, 0, i), LM_PAGE_SIZE);
	serve(g);
	assert_true(touch(g, 0, 505));
	assert_false(g->shown[0][499] || g->shown[0][510]);
	rig_free(g);
}

static void who_waits_from_before_is_served_when_the_connection_is_there(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	touchers_start(g, TOUCHERS);
	serve(g);
	unit_sleep_ms(50);
	assert_int_equal(lm_puller_missing(&g->p), region_pages[0] + region_pages[1]);
	up(g);
	lm_puller_background(&g->p);
	assert_true(await_all(g, 20));
	touchers_end(g);
	assert_all_right(g);
	rig_free(g);
}

/* Lanes that fail one after the other, and connections that go and come. */
static void lanes_that_die(bool tcp)
{
	struct rig *g = rig_new(tcp);
	uint64_t x = 5;
	unsigned rounds = 0;

	touchers_start(g, TOUCHERS);
	serve(g);
	while (lm_puller_missing(&g->p) && rounds < 200) {
		atomic_store(&g->die_lanes, 1u << unit_random(&x) % (LANES + 1));
		atomic_store(&g->die_at, rounds < 30 ? 1 + (unsigned)(unit_random(&x) % 12) : 0);
		up(g);
		if (unit_random(&x) % 4)
			lm_puller_background(&g->p);
		/* Those in which nothing dies bring the rest, however slow this machine is. */
		unit_sleep_ms(rounds < 30 ? (unsigned)(unit_random(&x) % 4) : 20);
		down(g);
		rounds++;
	}
	touchers_end(g);
	assert_true(rounds > 3);
	assert_all_right(g);
	rig_free(g);
}

static void lanes_that_die_cost_no_page_in_process(void **state)
{
	(void)state;
	lanes_that_die(false);
}

static void lanes_that_die_cost_no_page_over_tcp(void **state)
{
	(void)state;
	lanes_that_die(true);
}

static void a_lane_that_dies_is_told_of_and_the_rest_goes_on(void **state)
{
	(void)state;
	for (unsigned lane = 0; lane <= LANES; lane++) {
		struct rig *g = rig_new(true);

		atomic_store(&g->die_at, 1);
		atomic_store(&g->die_lanes, 1u << lane);
		g->die_first = true;
		serve(g);
		up(g);
		lm_puller_background(&g->p);
		if (lane == LANES)
			touchers_start(g, 1); /* the lane for faults notices when there is one */
		assert_true(await_all(g, 10)); /* by the others */
		assert_int_equal(atomic_load(&g->p.failed), 1u << lane);
		assert_false(atomic_load(&g->p.lost));
		touchers_end(g);
		down(g);
		assert_non_null(lm_puller_error(&g->p));
		assert_non_null(strstr(lm_puller_error(&g->p)->msg, "the test ended"));
		assert_all_right(g);
		rig_free(g);
	}
}

/* Lane 0 has runs under way when it dies: who fetches them meanwhile? */
static unsigned fetched_too_early(void)
{
	struct rig *g = rig_new(true);
	unsigned n;

	atomic_store(&g->die_at, 8);
	atomic_store(&g->die_lanes, 1);
	serve(g);
	up(g);
	lm_puller_background(&g->p);
	assert_true(await_all(g, 10));
	down(g);
	n = atomic_load(&g->too_early);
	rig_free(g);
	return n;
}

static void without_the_fence_pages_are_fetched_that_a_dead_lane_may_still_place(void **state)
{
	unsigned n = 0;

	(void)state;
	setenv("LM_BREAK", "fence", 1);
	for (unsigned i = 0; i < 50 && !n; i++)
		n = fetched_too_early();
	unsetenv("LM_BREAK");
	assert_true(n > 0);
	assert_int_equal(fetched_too_early(), 0);
}

static void when_no_lane_of_the_background_is_left_the_connection_is_lost(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	atomic_store(&g->die_at, 1);
	atomic_store(&g->die_lanes, (1u << LANES) - 1);
	serve(g);
	up(g);
	lm_puller_background(&g->p);
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.lost); i++)
		unit_sleep_ms(1);
	assert_true(atomic_load(&g->p.lost));
	assert_true(touch(g, 0, 4000)); /* until somebody does something about it, faults are served */
	down(g);
	atomic_store(&g->die_at, 0);
	up(g);
	assert_int_equal(atomic_load(&g->p.failed), 0);
	lm_puller_background(&g->p);
	assert_true(await_all(g, 10));
	assert_all_right(g);
	rig_free(g);
}

struct one_touch {
	struct rig *g;
	uint64_t page;
	pthread_t thread;
	bool shown;
};

static void *one_touch_main(void *arg)
{
	struct one_touch *t = arg;

	t->shown = touch(t->g, 0, t->page);
	return NULL;
}

/* Pages far from each other, and a cap that lets the background have a run a second. */
static void without_the_lane_for_faults_the_others_serve_them_first(void **state)
{
	struct rig *g = rig_new(true);
	struct one_touch touches[TOUCHERS];
	unsigned shown = 0;

	(void)state;
	g->p.throttle.max_bytes_per_s = 256u << 10;
	atomic_store(&g->die_at, 1);
	atomic_store(&g->die_lanes, 1u << LANES);
	serve(g);
	up(g);
	for (unsigned i = 0; i < TOUCHERS; i++) {
		touches[i] = (struct one_touch){ .g = g, .page = 500 + 400 * i };
		pthread_create(&touches[i].thread, NULL, one_touch_main, &touches[i]);
	}
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.failed); i++)
		unit_sleep_ms(1);
	lm_puller_background(&g->p);
	unit_sleep_ms(2500);
	atomic_store(&g->give_up, true);
	pthread_mutex_lock(&g->mutex);
	pthread_cond_broadcast(&g->cond);
	pthread_mutex_unlock(&g->mutex);
	for (unsigned i = 0; i < TOUCHERS; i++) {
		pthread_join(touches[i].thread, NULL);
		shown += touches[i].shown;
	}
	assert_int_equal(shown, TOUCHERS);
	assert_true(lm_puller_missing(&g->p) > region_pages[0] / 2); /* not because all came */
	down(g);
	rig_free(g);
}

static void a_lane_on_which_nothing_comes_is_given_up(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	g->p.stall_ns = 200 * LM_NS_PER_MS;
	serve(g);
	up(g);
	/* Nobody answers any more, but the connection stands. */
	atomic_store(&g->stop_answering, true);
	unit_sleep_ms(30);
	lm_puller_background(&g->p);
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.lost); i++)
		unit_sleep_ms(1);
	assert_true(atomic_load(&g->p.lost));
	down(g);
	assert_non_null(lm_puller_error(&g->p));
	up(g);
	lm_puller_background(&g->p);
	assert_true(await_all(g, 10));
	assert_all_right(g);
	rig_free(g);
}

static void the_bandwidth_cap_is_kept_by_the_background(void **state)
{
	struct rig *g = rig_new(true);
	int64_t begin;
	uint64_t bytes;

	(void)state;
	g->p.throttle.max_bytes_per_s = 8u << 20;
	serve(g);
	up(g);
	begin = lm_now_ns();
	lm_puller_background(&g->p);
	unit_sleep_ms(700);
	bytes = atomic_load(&g->p.bytes);
	/* Each lane has at most one run that is not paid for. */
	assert_true((double)bytes <= 8e6 * 1.05 * (double)(lm_now_ns() - begin) / 1e9 + (LANES + 1) * 64 * LM_PAGE_SIZE);
	assert_true(bytes > 2u << 20);
	/* A fault does not wait for it. */
	begin = lm_now_ns();
	assert_true(touch(g, 1, 350));
	assert_true(lm_now_ns() - begin < 300 * LM_NS_PER_MS);
	begin = lm_now_ns();
	down(g); /* nor does the end */
	assert_true(lm_now_ns() - begin < LM_NS_PER_S);
	rig_free(g);
}

static void a_pager_that_fails_is_told_of_and_stops_the_faults(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	serve(g);
	up(g);
	atomic_store(&g->fail_place, ENOMEM);
	lm_puller_background(&g->p);
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.vm_lost); i++)
		unit_sleep_ms(1);
	assert_true(atomic_load(&g->p.vm_lost));
	assert_int_equal(g->p.vm_error.code, -ENOMEM);
	down(g);
	rig_free(g);
}

static void it_can_be_stopped_at_any_time(void **state)
{
	uint64_t x = 99;

	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		struct rig *g = rig_new(i & 1);
		int64_t begin;

		touchers_start(g, 2);
		if (i % 5)
			serve(g);
		if (i % 3)
			up(g);
		if (i % 3 && i % 4)
			lm_puller_background(&g->p);
		unit_sleep_ms((unsigned)(unit_random(&x) % 3));
		begin = lm_now_ns();
		lm_puller_fini(&g->p);
		assert_true(lm_now_ns() - begin < LM_NS_PER_S);
		assert_int_equal(atomic_load(&g->wrong_content), 0);
		rig_free(g);
	}
}

/* Zeros that nobody waits for leave no page behind. */
static void zeros_are_not_made_real(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	serve(g);
	up(g);
	lm_puller_background(&g->p);
	assert_true(await_all(g, 20));
	down(g);
	for (uint64_t i = 0; i < region_pages[0]; i++)
		if (i % 97 > 72 && i % 2)
			assert_false(g->shown[0][i]);
	assert_all_right(g);
	rig_free(g);
}

static void without_marking_first_the_checks_bite(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	setenv("LM_BREAK", "whole-first", 1);
	serve(g);
	up(g);
	lm_puller_background(&g->p);
	assert_true(await_all(g, 20));
	down(g);
	unsetenv("LM_BREAK");
	assert_true(atomic_load(&g->not_whole) > 0);
	rig_free(g);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(eight_threads_that_touch_everything_see_right_pages_in_process),
		cmocka_unit_test(eight_threads_that_touch_everything_see_right_pages_over_tcp),
		cmocka_unit_test(without_the_background_pages_come_when_they_are_touched),
		cmocka_unit_test(pages_that_are_whole_are_shown_without_a_connection),
		cmocka_unit_test(who_waits_from_before_is_served_when_the_connection_is_there),
		cmocka_unit_test(lanes_that_die_cost_no_page_in_process),
		cmocka_unit_test(lanes_that_die_cost_no_page_over_tcp),
		cmocka_unit_test(a_lane_that_dies_is_told_of_and_the_rest_goes_on),
		cmocka_unit_test(without_the_fence_pages_are_fetched_that_a_dead_lane_may_still_place),
		cmocka_unit_test(when_no_lane_of_the_background_is_left_the_connection_is_lost),
		cmocka_unit_test(without_the_lane_for_faults_the_others_serve_them_first),
		cmocka_unit_test(a_lane_on_which_nothing_comes_is_given_up),
		cmocka_unit_test(the_bandwidth_cap_is_kept_by_the_background),
		cmocka_unit_test(a_pager_that_fails_is_told_of_and_stops_the_faults),
		cmocka_unit_test(it_can_be_stopped_at_any_time),
		cmocka_unit_test(zeros_are_not_made_real),
		cmocka_unit_test(without_marking_first_the_checks_bite),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("puller", tests, NULL, NULL);
}
