/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include "engine/base/clock.h"
#include "walk.h"

#define LOOK_MS 200

static void fail(struct lm_image_walk *w, const struct lm_error *e)
{
	if (!atomic_exchange(&w->failed, true))
		w->error = *e;
	atomic_store(&w->stop, true);
}

static uint64_t number_groups(struct lm_image_walk *w)
{
	const struct lm_ram *ram = &w->c->ram;
	uint64_t n = 0;

	for (unsigned i = 0; i < ram->nregions; i++) {
		w->region_group0[i] = n;
		n += (lm_image_chunks_of(ram->regions[i].size) + LM_IMAGE_GROUP - 1) / LM_IMAGE_GROUP;
	}
	w->region_group0[ram->nregions] = n;
	return n;
}

static void do_group(struct lm_image_walk *w, uint64_t g)
{
	struct lm_error e = { 0 };
	uint64_t first, left, bytes = 0;
	unsigned region = 0;

	while (g >= w->region_group0[region + 1])
		region++;
	first = (g - w->region_group0[region]) * LM_IMAGE_GROUP;
	left = lm_image_chunks_of(w->c->ram.regions[region].size) - first;
	if (w->group(w, region, first, left < LM_IMAGE_GROUP ? (unsigned)left : LM_IMAGE_GROUP, &bytes, &e))
		fail(w, &e);
	atomic_fetch_add(&w->bytes, bytes);
	atomic_fetch_add(&w->groups_done, 1);
}

static void worker(void *ctx, unsigned index)
{
	struct lm_image_walk *w = ctx;
	uint64_t end = w->region_group0[w->c->ram.nregions], g;

	(void)index;
	while (!atomic_load(&w->stop) && (g = atomic_fetch_add(&w->cursor, 1)) < end)
		do_group(w, g);
}

static void progress(struct lm_image_walk *w, int64_t since_ns)
{
	struct lm_event e = { .type = LM_EVENT_PROGRESS };
	struct lm_progress *p = &e.u.progress;

	p->total_pages = p->round_pages = w->c->summary.ram_bytes >> LM_PAGE_SHIFT;
	p->done_pages = atomic_load(&w->groups_done) * LM_IMAGE_GROUP * LM_IMAGE_CHUNK_PAGES;
	if (p->done_pages > p->round_pages)
		p->done_pages = p->round_pages;
	p->bytes = atomic_load(&w->bytes);
	if (since_ns > 0)
		p->bytes_per_s = (uint64_t)((double)(p->bytes - w->c->summary.bytes) * 1e9 / (double)since_ns);
	w->c->summary.bytes = p->bytes;
	lm_ctx_event(w->c, &e);
}

/* Whether the peer that waits for us is still there.  Another thread pings it. */
static int check_peer(struct lm_ctx *c, struct lm_error *err)
{
	struct lm_msg msg;
	int r;

	if (!c->control.stream)
		return 0;
	r = lm_control_try_recv(&c->control, &msg, err);
	if (r > 0)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent %s out of place", lm_msg_name(msg.type));
	if (!r && lm_now_ns() - c->control.last_heard_ns > c->opt.peer_timeout_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the other host is silent");
	return r;
}

static int wait_for_end(struct lm_image_walk *w, struct lm_error *err)
{
	struct lm_ctx *c = w->c;
	int64_t last = lm_now_ns();
	int r = 0;

	for (;;) {
		struct pollfd p[] = { { .fd = lm_pool_done_fd(c->pool), .events = POLLIN },
				      { .fd = c->cancel_fd, .events = POLLIN }, { .fd = c->vm->pidfd, .events = POLLIN } };
		int64_t now;

		poll(p, 3, LOOK_MS);
		if (p[0].revents)
			return 0;
		r = lm_ctx_check_cancel(c, err);
		if (!r && p[2].revents)
			r = lm_err(err, -ESRCH, LM_SCOPE_VM, "the guest's QEMU has exited");
		if (!r)
			r = check_peer(c, err);
		now = lm_now_ns();
		if (!r && c->side == LM_SOURCE && now > c->deadline_ns)
			r = lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the guest was not saved within --timeout");
		if (r)
			return r;
		progress(w, now - last);
		last = now;
	}
}

int lm_image_walk(struct lm_image_walk *w, struct lm_ctx *c, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	int r;

	w->c = c;
	number_groups(w);
	lm_pool_start(c->pool, worker, w);
	r = wait_for_end(w, err);
	atomic_store(&w->stop, true);
	lm_pool_finish(c->pool); /* memory of the guest is not touched any more */
	c->summary.bytes = atomic_load(&w->bytes);
	c->summary.copying_ns += lm_now_ns() - begin;
	if (!r && atomic_load(&w->failed)) {
		*err = w->error;
		r = err->code;
	}
	return r;
}
