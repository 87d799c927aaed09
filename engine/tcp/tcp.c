/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "tcp.h"
#include "tcp_transport.h"

/* ---- shared by both sides ---- */

bool tcp_place_begin(struct tcp_lane *l)
{
	/* Pairs with tcp_shut(): one of the two sees the other's store. */
	atomic_store(&l->placing, true);
	if (!atomic_load(&l->shut))
		return true;
	atomic_store(&l->placing, false);
	return false;
}

void tcp_place_end(struct tcp_lane *l)
{
	atomic_store_explicit(&l->placing, false, memory_order_release);
}

struct lm_run tcp_desc_get(const struct tcp_desc *d)
{
	return (struct lm_run){
		.region = lm_le32_get(d->region),
		.kind = (enum lm_run_kind)lm_le32_get(d->kind),
		.offset = lm_le64_get(d->offset),
		.len = lm_le64_get(d->len),
	};
}

int tcp_head_send(struct tcp_lane *l)
{
	struct tcp_head *h = &l->out;

	while (h->done < h->len) {
		struct iovec iov = { h->u.bytes + h->done, h->len - h->done };
		ssize_t n = lm_stream_send(l->stream, &iov, 1);

		if (n < 0)
			return (int)n;
		h->done += (unsigned)n;
	}
	return 0;
}

int tcp_head_recv(struct tcp_lane *l, unsigned len)
{
	struct tcp_head *h = &l->in;

	while (h->done < len) {
		struct iovec iov = { h->u.bytes + h->done, len - h->done };
		ssize_t n = lm_stream_recv(l->stream, &iov, 1);

		if (n <= 0)
			return (int)n;
		h->done += (unsigned)n;
	}
	return 1;
}

int tcp_frame_recv(struct tcp_lane *l)
{
	int r = tcp_head_recv(l, sizeof(struct tcp_frame) + sizeof(struct tcp_desc));

	return l->in.done >= sizeof(struct tcp_frame) ? 1 : r;
}

int tcp_lane_wait(struct tcp_lane *l, short events, int timeout_ms, int wake_fd)
{
	struct pollfd p[2] = { { .fd = lm_stream_fd(l->stream), .events = events },
			       { .fd = wake_fd, .events = POLLIN } };
	int n = poll(p, wake_fd >= 0 ? 2 : 1, timeout_ms);

	l->waits++;
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	return n ? p[0].revents : 0;
}

int tcp_lane_error(struct tcp_lane *l, int code, struct lm_error *err, const char *doing)
{
	if (atomic_load(&l->shut))
		return lm_err(err, -ESHUTDOWN, LM_SCOPE_LANE, "the lane was shut");
	if (!code)
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "%s: the peer hung up in the middle", doing);
	return lm_err_errno(err, code, LM_SCOPE_LANE, "%s", doing);
}

int tcp_pipe_open(struct tcp_lane *l)
{
	int size;

	if (pipe2(l->pipe, O_CLOEXEC | O_NONBLOCK)) {
		l->pipe[0] = l->pipe[1] = -1;
		return -errno;
	}
	/* A user over fs.pipe-user-pages-soft keeps a smaller one: slower, not wrong. */
	fcntl(l->pipe[1], F_SETPIPE_SZ, TCP_PIPE_SIZE);
	size = fcntl(l->pipe[1], F_GETPIPE_SZ);
	l->pipe_size = size > 0 ? (size_t)size : LM_PAGE_SIZE;
	return 0;
}

void tcp_lane_free(struct tcp_lane *l)
{
	lm_stream_close(l->stream);
	l->stream = NULL;
	lm_close_fd(&l->pipe[0]);
	lm_close_fd(&l->pipe[1]);
	free(l->scratch);
	l->scratch = NULL;
	free(l->fetch);
	l->fetch = NULL;
}

/* ---- the table ---- */

static struct tcp *tcp_of(struct lm_transport *t)
{
	return (struct tcp *)t;
}

static void lanes_free(struct tcp *t)
{
	for (unsigned i = 0; t->lanes && i < t->base.nlanes; i++)
		tcp_lane_free(&t->lanes[i]);
	free(t->lanes);
	t->lanes = NULL;
}

static int lanes_alloc(struct tcp *t)
{
	t->lanes = calloc(t->base.nlanes, sizeof(*t->lanes));
	if (!t->lanes)
		return -ENOMEM;
	for (unsigned i = 0; i < t->base.nlanes; i++) {
		t->lanes[i].index = i;
		t->lanes[i].pipe[0] = t->lanes[i].pipe[1] = -1;
	}
	return 0;
}

static int lane_init(struct tcp *t, struct tcp_lane *l)
{
	int r = t->base.side == LM_SOURCE ? tcp_send_init(l) : tcp_recv_init(l);

	if (!r && t->base.side == LM_DEST && t->base.direction == LM_PULL)
		r = tcp_fetch_init(l);
	return r;
}

static int lanes_init(struct tcp *t)
{
	int r = 0;

	for (unsigned i = 0; !r && i < t->base.nlanes; i++)
		r = lane_init(t, &t->lanes[i]);
	return r;
}

static void describe(struct tcp *t)
{
	const struct tcp_lane *l = &t->lanes[0];
	const char *how;

	if (t->base.side == LM_SOURCE)
		how = l->method == TCP_SPLICE ? "pages go out by reference (vmsplice)" : "pages are copied into the socket";
	else
		how = l->pipe[0] >= 0 ? "new pages are spliced into the file" : "pages are received into the mapping";
	snprintf(t->base.info, sizeof(t->base.info), "tcp, %u lanes%s, %s", t->base.nlanes,
		 t->base.direction == LM_PULL ? " that fetch" : "", how);
}

static int tcp_open(struct lm_transport *base, const struct lm_transport_params *p, struct lm_error *err)
{
	struct tcp *t = tcp_of(base);
	int r = lanes_alloc(t);

	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "out of memory");
	r = p->side == LM_SOURCE ? tcp_connect_lanes(t, p, err) : tcp_accept_lanes(t, p, err);
	if (!r) {
		r = lanes_init(t);
		if (r)
			lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot set up the lanes");
	}
	if (r)
		lanes_free(t);
	else
		describe(t);
	return r;
}

static int tcp_region_add(struct lm_transport *base, unsigned index, const struct lm_region *region,
			  struct lm_key *ret_key, struct lm_error *err)
{
	struct tcp_region *r = &tcp_of(base)->regions[index];

	(void)ret_key; /* a region's number says all */
	r->local = *region;
	r->host = region->host;
	r->size = region->size;
	r->page_size = region->page_size;
	r->file_offset = region->file_offset;
	r->fd = region->fd;
	if (base->side == LM_SOURCE)
		return 0;
	r->seen_words = lm_bitmap_nwords(lm_region_npages(region));
	r->seen = calloc(r->seen_words, sizeof(*r->seen));
	if (!r->seen)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	atomic_store(&r->splice, region->page_size == LM_PAGE_SIZE && region->fd >= 0);
	return 0;
}

static int tcp_region_bind(struct lm_transport *base, unsigned index, const struct lm_key *key,
			   struct lm_error *err)
{
	(void)base;
	(void)index;
	(void)key;
	(void)err;
	return 0;
}

static int tcp_write(struct lm_transport *base, unsigned lane, const struct lm_run *runs, unsigned n,
		     struct lm_error *err)
{
	struct tcp_lane *l = &tcp_of(base)->lanes[lane];

	return l->stream ? tcp_send_batch(tcp_of(base), l, runs, n, err) : tcp_lane_error(l, 0, err, "write");
}

static int tcp_flush(struct lm_transport *base, unsigned lane, uint64_t seq, struct lm_error *err)
{
	struct tcp_lane *l = &tcp_of(base)->lanes[lane];

	return l->stream ? tcp_send_flush(l, seq, err) : tcp_lane_error(l, 0, err, "flush");
}

static int tcp_fetch(struct lm_transport *base, unsigned lane, const struct lm_run *runs, unsigned n,
		     struct lm_error *err)
{
	struct tcp_lane *l = &tcp_of(base)->lanes[lane];

	return l->stream ? tcp_fetch_queue(l, runs, n, err) : tcp_lane_error(l, 0, err, "fetch");
}

static int tcp_poll(struct lm_transport *base, unsigned lane, int timeout_ms, int wake_fd,
		    struct lm_poll_result *res, struct lm_error *err)
{
	struct tcp *t = tcp_of(base);
	struct tcp_lane *l = &t->lanes[lane];

	if (!l->stream) /* it did not come back */
		return tcp_lane_error(l, 0, err, "poll");
	if (base->side == LM_DEST)
		return tcp_recv_poll(t, l, timeout_ms, wake_fd, res, err);
	return base->direction == LM_PULL ? tcp_answer_poll(t, l, timeout_ms, wake_fd, res, err) :
					    tcp_send_poll(l, timeout_ms, wake_fd, res, err);
}

static void tcp_shut(struct lm_transport *base, unsigned lane)
{
	struct tcp_lane *l = &tcp_of(base)->lanes[lane];

	atomic_store(&l->shut, true);
	if (l->stream)
		lm_stream_shut(l->stream);
	while (atomic_load(&l->placing))
		sched_yield();
}

/* What it was before is gone with its stream; shut until all of it is there. */
static void lane_reset(struct tcp_lane *l, unsigned index)
{
	tcp_lane_free(l);
	memset(l, 0, sizeof(*l));
	l->index = index;
	l->pipe[0] = l->pipe[1] = -1;
	atomic_store(&l->shut, true);
}

static int tcp_reopen(struct lm_transport *base, unsigned lane, const struct lm_transport_params *p,
		      struct lm_error *err)
{
	struct tcp *t = tcp_of(base);
	struct tcp_lane *l = &t->lanes[lane];
	int r;

	lane_reset(l, lane);
	r = p->side == LM_SOURCE ? tcp_connect_lane(l, p, err) : tcp_accept_lane(t, l, p, err);
	if (!r) {
		r = lane_init(t, l);
		if (r)
			lm_err_errno(err, r, LM_SCOPE_LANE, "cannot set up the lane");
	}
	if (r)
		lane_reset(l, lane);
	else
		atomic_store(&l->shut, false);
	return r;
}

/* Say that nothing follows, if that can be said at a frame's boundary and without waiting. */
static void say_close(struct tcp_lane *l)
{
	struct tcp_frame f = tcp_frame_make(TCP_CLOSE, 0);
	struct iovec iov = { &f, sizeof(f) };

	if (l->stream && !atomic_load(&l->shut) && l->out.done == l->out.len && !l->niov && !l->in_pipe)
		lm_stream_send(l->stream, &iov, 1);
}

static void tcp_close(struct lm_transport *base)
{
	struct tcp *t = tcp_of(base);

	for (unsigned i = 0; t->lanes && i < base->nlanes; i++)
		say_close(&t->lanes[i]);
	lanes_free(t);
	for (unsigned i = 0; i < base->nregions; i++)
		free(t->regions[i].seen);
	free(t);
}

static const struct lm_transport_ops tcp_ops = {
	.name = "tcp",
	.open = tcp_open,
	.region_add = tcp_region_add,
	.region_bind = tcp_region_bind,
	.write = tcp_write,
	.fetch = tcp_fetch,
	.flush = tcp_flush,
	.poll = tcp_poll,
	.shut = tcp_shut,
	.reopen = tcp_reopen,
	.close = tcp_close,
};

struct lm_transport *lm_transport_tcp_new(void)
{
	struct tcp *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->base.ops = &tcp_ops;
	return &t->base;
}

const struct lm_transport_info lm_transport_tcp = {
	"tcp", "one TCP connection per lane, over any network", lm_transport_tcp_new, NULL, NULL,
};
