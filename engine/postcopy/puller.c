/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "puller.h"
#include "engine/base/testhook.h"
#include "engine/base/thread.h"
#include "engine/base/urgent.h"

#define POLL_MS 100
#define FAULTS_AT_ONCE 64
/* The background: runs of this size, and so many bytes on the way per lane ... */
#define RUN_PAGES 64
#define WINDOW_BYTES (UINT64_C(512) << 10)
/* (and so many runs of zeros cleared between two looks at the lane) */
#define CLEAR_RUNS 16
/* ... unless a thread of the guest waits: then it must not wait behind more than one small run. */
#define RUN_PAGES_WAITING 16
#define WINDOW_BYTES_WAITING (UINT64_C(64) << 10)
/* Around a fault */
#define AROUND_MIN 8
#define AROUND_MAX 64
#define SHOW_AROUND 16 /* whole pages that are shown together when one of them is touched */

static void signal_session(struct lm_puller *p)
{
	uint64_t one = 1;

	if (write(p->event_fd, &one, sizeof(one)) < 0)
		return; /* at its limit, so readable */
}

static void vm_failed(struct lm_puller *p, const struct lm_error *e)
{
	if (!atomic_exchange(&p->vm_error_taken, true)) {
		p->vm_error = *e;
		atomic_store(&p->vm_lost, true);
	}
	signal_session(p);
}

static void show(struct lm_puller *p, unsigned region, uint64_t first, uint64_t n)
{
	struct lm_error e = { 0 };

	if (lm_pager_place(p->pager, region, first, n, &e))
		vm_failed(p, &e);
}

/* ---- what every lane does ---- */

static struct lm_run *run_at(struct lm_pull_lane *l, uint64_t i)
{
	return &l->runs[i % LM_PULL_QUEUE];
}

static bool lane_has_room(const struct lm_pull_lane *l)
{
	return l->put - l->done < LM_PULL_QUEUE;
}

static void finish_run(struct lm_puller *p, const struct lm_run *run)
{
	bool late = lm_broken("whole-first");

	if (!late)
		lm_arrival_whole(&p->arrival, run);
	/*
	 * Zeros are shown only to threads that wait for them, because showing fills the hole.  A
	 * thread that comes after lm_arrival_whole() sees by itself that the page is whole.
	 */
	if (run->kind == LM_RUN_DATA || atomic_load(&p->arrival.waiting))
		show(p, run->region, run->offset >> LM_PAGE_SHIFT, run->len >> LM_PAGE_SHIFT);
	if (late)
		lm_arrival_whole(&p->arrival, run);
	lm_arrival_shown(&p->arrival, run, lm_now_ns());
	if (!lm_puller_missing(p))
		signal_session(p);
}

/* The content is known to be zero: nothing to fetch. */
static void clear_run(struct lm_puller *p, const struct lm_run *run)
{
	lm_region_clear(&p->ram->regions[run->region], run->offset >> LM_PAGE_SHIFT, run->len >> LM_PAGE_SHIFT);
	finish_run(p, run);
}

static void lane_put(struct lm_puller *p, unsigned lane, const struct lm_run *run)
{
	struct lm_pull_lane *l = &p->lanes[lane];

	if (l->put == l->done)
		l->moved_ns = lm_now_ns();
	*run_at(l, l->put++) = *run;
	l->bytes += run->len;
	l->owed += run->len;
}

/* Hand over what waits, as far as the lane takes it. */
static int lane_send(struct lm_puller *p, unsigned lane, struct lm_error *err)
{
	struct lm_pull_lane *l = &p->lanes[lane];

	while (l->sent < l->put) {
		uint64_t n = l->put - l->sent, edge = LM_PULL_QUEUE - l->sent % LM_PULL_QUEUE;
		int r = lm_transport_fetch(p->transport, lane, run_at(l, l->sent), (unsigned)(n < edge ? n : edge), err);

		if (r == -EAGAIN)
			return 0;
		if (r < 0)
			return r;
		l->sent += (unsigned)r;
	}
	return 0;
}

static int lane_poll(struct lm_puller *p, unsigned lane, int timeout_ms, int wake_fd, struct lm_error *err)
{
	struct lm_pull_lane *l = &p->lanes[lane];
	struct lm_poll_result res;
	int r = lm_transport_poll_or(p->transport, lane, timeout_ms, wake_fd, &res, err);
	int64_t now;

	if (res.fetched > l->sent)
		return lm_err(err, -EPROTO, LM_SCOPE_LANE, "more was fetched than asked for");
	now = lm_now_ns();
	if (res.bytes || l->put == l->done || res.fetched > l->done)
		l->moved_ns = now;
	while (l->done < res.fetched) {
		const struct lm_run *run = run_at(l, l->done++);

		l->bytes -= run->len;
		atomic_fetch_add_explicit(&p->bytes, run->len, memory_order_relaxed);
		finish_run(p, run);
	}
	if (!r && res.closed)
		r = lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the source closed the lane");
	if (!r && l->put != l->done && now - l->moved_ns > p->stall_ns)
		r = lm_err(err, -ETIMEDOUT, LM_SCOPE_LANE, "nothing came for %.1f s", (double)p->stall_ns / 1e9);
	return r;
}

static bool fault_lane_failed(struct lm_puller *p)
{
	return atomic_load(&p->failed) >> p->nlanes & 1;
}

static void lane_failed(struct lm_puller *p, unsigned lane)
{
	uint64_t background = (UINT64_C(1) << p->nlanes) - 1;
	uint64_t bit = UINT64_C(1) << lane, failed = atomic_fetch_or(&p->failed, bit) | bit;

	if ((failed & background) == background)
		atomic_store(&p->lost, true);
	signal_session(p);
}

/* Called by the lane's own thread, after its last call for this lane: afterwards nothing of the lane can land. */
static void lane_end(struct lm_puller *p, unsigned lane)
{
	struct lm_pull_lane *l = &p->lanes[lane];

	lm_transport_fence_lane(p->transport, lane);
	while (l->done < l->put)
		lm_arrival_give_back(&p->arrival, run_at(l, l->done++));
	l->bytes = 0;
	if (atomic_load(&p->stop_background))
		lm_err_clear(&l->error); /* lm_puller_down() has shut it, so this error is no failure of the lane */
	if (l->error.code)
		lane_failed(p, lane);
}

/* ---- the background ---- */

/* Threads of the guest wait, and there is no lane for them. */
static bool must_serve(struct lm_puller *p)
{
	return atomic_load(&p->arrival.waiting) && fault_lane_failed(p);
}

/* Threads that wait are served whatever the cap says; for the rest the lane has to pay first. */
static bool claim(struct lm_puller *p, const struct lm_pull_lane *l, uint64_t max_pages, struct lm_run *ret)
{
	if (must_serve(p)) {
		if (lm_arrival_next_waiter(&p->arrival, ret))
			return true;
		if (p->throttle.max_bytes_per_s && l->owed)
			return false;
	}
	return lm_arrival_claim_next(&p->arrival, max_pages, ret);
}

static bool refill(struct lm_puller *p, unsigned lane)
{
	struct lm_pull_lane *l = &p->lanes[lane];
	unsigned cleared = 0;
	struct lm_run run;

	for (;;) {
		bool waiting = atomic_load(&p->arrival.waiting) > 0;

		if (l->bytes && p->throttle.max_bytes_per_s)
			return true;
		if (l->bytes >= (waiting ? WINDOW_BYTES_WAITING : WINDOW_BYTES) || !lane_has_room(l))
			return true;
		if (!claim(p, l, waiting ? RUN_PAGES_WAITING : RUN_PAGES, &run))
			return l->put != l->done;
		if (run.kind == LM_RUN_DATA) {
			lane_put(p, lane, &run);
			continue;
		}
		clear_run(p, &run);
		/* Runs that are on their way, and a request to stop, must not wait until all zeros are cleared. */
		if (++cleared >= CLEAR_RUNS && (l->put != l->done || atomic_load(&p->stop_background)))
			return true;
	}
}

/*
 * Under a bandwidth cap the lane carries one run at a time, and pays for it before it
 * takes the next: what is on its way is never left lying while this thread sleeps.
 */
static void pay(struct lm_puller *p, struct lm_pull_lane *l)
{
	if (!p->throttle.max_bytes_per_s || l->put != l->done || must_serve(p))
		return;
	lm_throttle(&p->throttle, l->owed, &p->stop_background);
	l->owed = 0;
}

static int pull(struct lm_puller *p, unsigned lane, struct lm_error *err)
{
	struct lm_pull_lane *l = &p->lanes[lane];
	int r = 0;

	while (!r && !atomic_load(&p->stop_background) && lm_puller_missing(p)) {
		bool busy;

		pay(p, l);
		busy = refill(p, lane);
		r = lane_send(p, lane, err);
		/* Nothing left to claim: others have the rest on their lanes, and may give it back. */
		if (!r)
			r = lane_poll(p, lane, busy ? POLL_MS : 10, -1, err);
	}
	return r;
}

static void background_worker(void *ctx, unsigned lane)
{
	struct lm_puller *p = ctx;
	struct lm_pull_lane *l = &p->lanes[lane];
	int r = pull(p, lane, &l->error);

	if (r && !l->error.code)
		lm_err_errno(&l->error, r, LM_SCOPE_LANE, "transport");
	/* With nothing missing the lane is idle; it stays open until the session closes it. */
	if (r || atomic_load(&p->stop_background))
		lane_end(p, lane);
	if (!lm_puller_missing(p))
		signal_session(p);
}

/* ---- faults ---- */

struct fault_thread {
	struct lm_puller *p;
	bool up;              /* the lane for faults can be used */
	bool has_last;
	struct lm_run last;   /* the run that was claimed for the last fault: its neighbours may follow */
};

static void show_whole(struct lm_puller *p, const struct lm_page_fault *f)
{
	uint64_t first, n;

	lm_arrival_around(&p->arrival, f->region, f->page, SHOW_AROUND, &first, &n);
	show(p, f->region, first, n);
}

static void take_claimed(struct fault_thread *t, const struct lm_run *run)
{
	struct lm_puller *p = t->p;

	if (run->kind == LM_RUN_ZERO) {
		clear_run(p, run);
		return;
	}
	lane_put(p, p->nlanes, run);
	lm_throttle_charge(&p->throttle, run->len);
	t->last = *run;
	t->has_last = true;
}

static int take_faults(struct fault_thread *t, struct lm_error *err)
{
	struct lm_puller *p = t->p;
	struct lm_page_fault f[FAULTS_AT_ONCE];
	unsigned room = LM_WAITERS_MAX - atomic_load(&p->arrival.waiting);
	int64_t now;
	int n;

	n = room ? lm_pager_faults(p->pager, f, room < FAULTS_AT_ONCE ? room : FAULTS_AT_ONCE, err) : 0;
	now = lm_now_ns();
	for (int i = 0; i < n; i++) {
		struct lm_run run;

		switch (lm_arrival_fault(&p->arrival, &f[i], now, t->up && lane_has_room(&p->lanes[p->nlanes]), &run)) {
		case LM_PAGE_WHOLE:
			show_whole(p, &f[i]);
			break;
		case LM_PAGE_CLAIMED:
			take_claimed(t, &run);
			break;
		case LM_PAGE_COMING:
		case LM_PAGE_MISSING:
			break;
		}
	}
	return n < 0 ? n : 0;
}

static void claim_waiting(struct fault_thread *t)
{
	struct lm_puller *p = t->p;
	struct lm_run run;

	while (lane_has_room(&p->lanes[p->nlanes]) && lm_arrival_next_waiter(&p->arrival, &run))
		take_claimed(t, &run);
}

/*
 * With every page that somebody waits for on its way, its neighbours are next: under a
 * bandwidth cap as far as that allows, but before the background.
 */
static int fetch_around(struct fault_thread *t, struct lm_error *err)
{
	struct lm_puller *p = t->p;
	struct lm_pull_lane *l = &p->lanes[p->nlanes];
	struct lm_run run;

	if (!t->has_last || l->sent != l->put || !lane_has_room(l))
		return 0;
	t->has_last = false;
	if (!lm_throttle_allows(&p->throttle) ||
	    !lm_arrival_claim_after(&p->arrival, &t->last, atomic_load(&p->around_pages), &run))
		return 0;
	if (run.kind == LM_RUN_ZERO) {
		clear_run(p, &run);
		return 0;
	}
	lane_put(p, p->nlanes, &run);
	lm_throttle_charge(&p->throttle, run.len);
	return lane_send(p, p->nlanes, err);
}

static int lane_step(struct fault_thread *t, struct lm_error *err)
{
	struct lm_puller *p = t->p;
	int r;

	claim_waiting(t);
	r = lane_send(p, p->nlanes, err);
	if (!r)
		r = fetch_around(t, err);
	return r ? r : lane_poll(p, p->nlanes, POLL_MS, p->pager->fd, err);
}

static void wait_for_fault(const struct lm_puller *p)
{
	struct pollfd pfd = { .fd = p->pager->fd, .events = POLLIN };

	poll(&pfd, 1, POLL_MS / 2);
}

/* The session's thread has asked for something, or the lane has failed. */
static void follow_phase(struct fault_thread *t)
{
	struct lm_puller *p = t->p;
	int phase = atomic_load(&p->phase);

	if (phase == LM_PULL_UP && !t->up && !fault_lane_failed(p)) {
		t->up = true;
	} else if (phase == LM_PULL_STOPPING) {
		if (t->up)
			lane_end(p, p->nlanes);
		t->up = false;
		t->has_last = false;
		atomic_store(&p->phase, LM_PULL_DOWN);
	}
}

static void *fault_thread(void *arg)
{
	struct fault_thread t = { .p = arg };
	struct lm_puller *p = arg;
	struct lm_error e = { 0 };

	lm_urgent_begin(0); /* it comes before those that copy in the background */
	while (!atomic_load(&p->stop)) {
		struct lm_error *lane_error = &p->lanes[p->nlanes].error;
		int r;

		follow_phase(&t);
		if (take_faults(&t, &e)) {
			vm_failed(p, &e);
			break;
		}
		if (!t.up) {
			wait_for_fault(p);
			continue;
		}
		r = lane_step(&t, lane_error);
		if (!r)
			continue;
		if (!lane_error->code)
			lm_err_errno(lane_error, r, LM_SCOPE_LANE, "transport");
		t.up = false;
		t.has_last = false;
		lane_end(p, p->nlanes);
	}
	/* Release the lane for the thread that waits for it. */
	if (t.up)
		lane_end(p, p->nlanes);
	atomic_store(&p->stop, true);
	return NULL;
}

/* ---- for the session ---- */

int lm_puller_init(struct lm_puller *p, const struct lm_ram *ram, struct lm_pager *pager,
		   struct lm_bitmap *whole, unsigned nlanes, struct lm_error *err)
{
	int r;

	memset(p, 0, sizeof(*p));
	p->event_fd = -1;
	p->ram = ram;
	p->pager = pager;
	p->nlanes = nlanes;
	p->stall_ns = 10 * LM_NS_PER_S;
	atomic_store(&p->around_pages, AROUND_MIN);
	p->lanes = aligned_alloc(64, (nlanes + 1) * sizeof(*p->lanes));
	p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = !p->lanes ? -ENOMEM : p->event_fd < 0 ? -errno : 0;
	if (!r)
		r = lm_arrival_init(&p->arrival, ram, whole);
	if (r)
		lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot prepare post-copy");
	else
		r = lm_pool_new(nlanes, &p->pool, err);
	if (r)
		lm_puller_fini(p);
	return r;
}

int lm_puller_serve(struct lm_puller *p, struct lm_error *err)
{
	int r;

	for (unsigned i = 0; i <= p->nlanes; i++)
		memset(&p->lanes[i], 0, sizeof(p->lanes[i]));
	r = lm_thread_start(&p->faults, fault_thread, p);
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot make a thread");
	p->serving = true;
	return 0;
}

void lm_puller_up(struct lm_puller *p, struct lm_transport *t)
{
	for (unsigned i = 0; i <= p->nlanes; i++)
		memset(&p->lanes[i], 0, sizeof(p->lanes[i]));
	p->transport = t;
	atomic_store(&p->failed, 0);
	atomic_store(&p->lost, false);
	atomic_store(&p->stop_background, false);
	atomic_store(&p->phase, LM_PULL_UP);
}

void lm_puller_background(struct lm_puller *p)
{
	p->pulling = true;
	lm_pool_start(p->pool, background_worker, p);
}

void lm_puller_lane_wait(struct lm_puller *p, unsigned lane)
{
	if (lane < p->nlanes)
		lm_pool_wait_worker(p->pool, lane);
}

void lm_puller_lane_back(struct lm_puller *p, unsigned lane)
{
	memset(&p->lanes[lane], 0, sizeof(p->lanes[lane]));
	/* From here on the lane for faults is its thread's. */
	atomic_fetch_and(&p->failed, ~(UINT64_C(1) << lane));
	if (lane < p->nlanes)
		lm_pool_restart_worker(p->pool, lane);
}

void lm_puller_down(struct lm_puller *p)
{
	if (!p->transport)
		return;
	atomic_store(&p->stop_background, true);
	for (unsigned i = 0; i <= p->nlanes; i++)
		lm_transport_shut(p->transport, i);
	if (p->pulling)
		lm_pool_finish(p->pool);
	p->pulling = false;
	atomic_store(&p->phase, LM_PULL_STOPPING);
	while (p->serving && atomic_load(&p->phase) != LM_PULL_DOWN && !atomic_load(&p->stop))
		sched_yield();
	atomic_store(&p->phase, LM_PULL_DOWN);
	p->transport = NULL;
}

void lm_puller_set_link(struct lm_puller *p, int64_t rtt_ns, uint64_t bytes_per_s)
{
	uint64_t pages = (uint64_t)((double)rtt_ns * (double)bytes_per_s / 1e9) >> LM_PAGE_SHIFT;

	atomic_store(&p->around_pages, pages < AROUND_MIN ? AROUND_MIN : pages > AROUND_MAX ? AROUND_MAX : pages);
}

const struct lm_error *lm_puller_error(const struct lm_puller *p)
{
	uint64_t failed = atomic_load(&p->failed);

	return failed ? &p->lanes[__builtin_ctzll(failed)].error : NULL;
}

uint64_t lm_puller_missing(struct lm_puller *p)
{
	return atomic_load(&p->arrival.remaining);
}

void lm_puller_stop(struct lm_puller *p)
{
	lm_puller_down(p);
	atomic_store(&p->stop, true);
	if (p->serving)
		pthread_join(p->faults, NULL);
	p->serving = false;
}

void lm_puller_fini(struct lm_puller *p)
{
	if (!p->ram)
		return;
	lm_puller_stop(p);
	lm_pool_free(p->pool);
	lm_arrival_fini(&p->arrival);
	lm_close_fd(&p->event_fd);
	free(p->lanes);
	memset(p, 0, sizeof(*p));
	p->event_fd = -1;
}
