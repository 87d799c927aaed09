/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "tcp.h"
#include "tcp_transport.h"

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

/* The lane's earlier state is gone with its stream; it counts as shut until it is complete again. */
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

/* Send CLOSE, if that is possible at a frame's boundary and without waiting. */
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
