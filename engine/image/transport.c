/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transport whose source is an image: what the puller of post-copy fetches is read from
 * the file.  A lane reads whole chunks into a buffer of its own, checks them there, and
 * copies the pages that were asked for into their place: the guest never sees one that was
 * not checked, and the neighbours that follow a fault cost no second read.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include "engine/base/cleanup.h"
#include "transport.h"

#define QUEUE 512 /* runs that a lane takes; a power of two */

/* Lane's thread only, but shut_fd and shut. */
struct image_lane {
	struct lm_run runs[QUEUE];
	uint64_t put, done;
	uint8_t *buf;              /* a chunk */
	bool filled;
	unsigned region;           /* of the chunk in buf */
	uint64_t chunk;
	int shut_fd;               /* eventfd: readable when the lane is shut */
	_Atomic bool shut;
};

struct image_transport {
	struct lm_transport base;
	const struct lm_image *img;
	const struct lm_ram *ram;
	struct image_lane *lanes;
	unsigned nlanes;
};

static struct image_transport *image_of(struct lm_transport *t)
{
	return (struct image_transport *)t;
}

static void lanes_free(struct image_transport *t)
{
	for (unsigned i = 0; i < t->nlanes; i++) {
		free(t->lanes[i].buf);
		lm_close_fd(&t->lanes[i].shut_fd);
	}
	free(t->lanes);
	t->lanes = NULL;
	t->nlanes = 0;
}

static int image_open(struct lm_transport *base, const struct lm_transport_params *p, struct lm_error *err)
{
	struct image_transport *t = image_of(base);

	t->ram = p->ram;
	t->lanes = calloc(p->nlanes, sizeof(*t->lanes));
	if (!t->lanes)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (t->nlanes = 0; t->nlanes < p->nlanes; t->nlanes++) {
		struct image_lane *l = &t->lanes[t->nlanes];

		l->buf = aligned_alloc(LM_IMAGE_BLOCK, LM_IMAGE_CHUNK_BYTES);
		l->shut_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (!l->buf || l->shut_fd < 0) {
			t->nlanes++;
			lanes_free(t);
			return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory or descriptors");
		}
	}
	snprintf(base->info, sizeof(base->info), "image, %s", t->img->direct_fd >= 0 ? "O_DIRECT" : "through the page cache");
	return 0;
}

static int image_region_add(struct lm_transport *base, unsigned index, const struct lm_region *region,
			    struct lm_key *ret_key, struct lm_error *err)
{
	(void)ret_key;
	if (index >= image_of(base)->img->head.nregions || region->size != image_of(base)->img->regions[index].size)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "the image has no such memory");
	return 0;
}

static int image_fetch(struct lm_transport *base, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err)
{
	struct image_lane *l = &image_of(base)->lanes[lane];
	unsigned i;

	if (atomic_load(&l->shut))
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the lane was shut");
	for (i = 0; i < n && l->put - l->done < QUEUE; i++)
		l->runs[l->put++ % QUEUE] = runs[i];
	return i ? (int)i : -EAGAIN;
}

static int fill(struct image_transport *t, struct image_lane *l, unsigned region, uint64_t chunk, struct lm_error *err)
{
	int r;

	if (l->filled && l->region == region && l->chunk == chunk)
		return 0;
	l->filled = false;
	r = lm_image_read_chunk(t->img, region, chunk, l->buf, err);
	if (r)
		return r;
	l->region = region;
	l->chunk = chunk;
	l->filled = true;
	return 0;
}

static int place(struct image_transport *t, struct image_lane *l, const struct lm_run *run, struct lm_error *err)
{
	uint64_t at = run->offset, end = run->offset + run->len;
	int r = 0;

	while (!r && at < end) {
		uint64_t chunk = at / LM_IMAGE_CHUNK_BYTES, inside = at % LM_IMAGE_CHUNK_BYTES;
		uint64_t n = LM_IMAGE_CHUNK_BYTES - inside < end - at ? LM_IMAGE_CHUNK_BYTES - inside : end - at;

		r = fill(t, l, run->region, chunk, err);
		if (!r)
			memcpy(t->ram->regions[run->region].host + at, l->buf + inside, n);
		at += n;
	}
	return r;
}

static void idle(const struct image_lane *l, int timeout_ms, int wake_fd)
{
	struct pollfd p[2] = { { .fd = l->shut_fd, .events = POLLIN }, { .fd = wake_fd, .events = POLLIN } };

	poll(p, 2, timeout_ms);
}

/* One run at a time: between two runs the thread that drives the lane serves faults. */
static int image_poll(struct lm_transport *base, unsigned lane, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		      struct lm_error *err)
{
	struct image_transport *t = image_of(base);
	struct image_lane *l = &t->lanes[lane];
	int r = 0;

	if (l->put == l->done)
		idle(l, timeout_ms, wake_fd);
	if (atomic_load(&l->shut)) {
		res->fetched = l->done;
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the lane was shut");
	}
	if (l->put != l->done) {
		const struct lm_run *run = &l->runs[l->done % QUEUE];

		r = place(t, l, run, err);
		if (!r) {
			res->bytes = run->len;
			l->done++;
		}
	}
	res->fetched = l->done;
	return r;
}

static void image_shut(struct lm_transport *base, unsigned lane)
{
	struct image_lane *l = &image_of(base)->lanes[lane];
	uint64_t one = 1;

	atomic_store(&l->shut, true);
	if (write(l->shut_fd, &one, sizeof(one)) < 0)
		return; /* at its limit, so readable */
}

static void image_close(struct lm_transport *base)
{
	lanes_free(image_of(base));
	free(base);
}

static const struct lm_transport_ops image_ops = {
	.name = "image", .open = image_open, .region_add = image_region_add, .fetch = image_fetch, .poll = image_poll,
	.shut = image_shut, .close = image_close,
};

struct lm_transport *lm_transport_image_new(const struct lm_image *img)
{
	struct image_transport *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->base.ops = &image_ops;
	t->img = img;
	return &t->base;
}
