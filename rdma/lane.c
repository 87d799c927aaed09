/* SPDX-License-Identifier: Apache-2.0 */
/* A lane: one RC queue pair with its own completion queue, and what waits for it. */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "rdma.h"

#define BUFFERS_SIZE (2 * RDMA_NRECV * RDMA_MSG_SIZE)
#define RECV_BIT (UINT64_C(1) << 63)
#define REAP 32
#define REAP_MAX 512
#define CLOSE_NS (200 * LM_NS_PER_MS)

struct meaning {
	enum ibv_wc_status status;
	int code;
	const char *text;
};

static const struct meaning meanings[] = {
	{ IBV_WC_RETRY_EXC_ERR, -ETIMEDOUT, "no answer from the peer: is the link up, does the peer run, are packets lost (PFC, MTU)?" },
	{ IBV_WC_RNR_RETRY_EXC_ERR, -ETIMEDOUT, "the peer takes no messages: it hangs" },
	{ IBV_WC_REM_ACCESS_ERR, -EACCES, "the peer's device refused the access: its memory is no longer registered" },
	{ IBV_WC_REM_INV_REQ_ERR, -EPROTO, "the peer's device refused the request" },
	{ IBV_WC_REM_OP_ERR, -EREMOTEIO, "the peer's device could not carry it out (out of memory there?)" },
	{ IBV_WC_LOC_PROT_ERR, -EFAULT, "our device could not read or write guest memory" },
	{ IBV_WC_LOC_LEN_ERR, -EMSGSIZE, "a message that is longer than its buffer" },
	{ IBV_WC_FATAL_ERR, -EIO, "the device has failed: see the kernel's log" },
};

static int wc_error(struct rd_lane *l, const struct ibv_wc *wc, struct lm_error *err)
{
	for (unsigned i = 0; i < sizeof(meanings) / sizeof(meanings[0]); i++)
		if (meanings[i].status == wc->status)
			return rd_lane_error(l, meanings[i].code, err, "RDMA device %s: %s: %s", l->use->dev->name,
					       ibv_wc_status_str(wc->status), meanings[i].text);
	return rd_lane_error(l, -EIO, err, "RDMA device %s: %s (vendor code %#x)", l->use->dev->name,
			       ibv_wc_status_str(wc->status), wc->vendor_err);
}

/* ---- life ---- */

int rd_lane_init(struct rd_lane *l, struct rdma *t, unsigned index)
{
	l->t = t;
	l->index = index;
	l->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return l->event_fd < 0 ? -errno : 0;
}

static int make_buffers(struct rd_lane *l)
{
	void *p = mmap(NULL, BUFFERS_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	l->buffers = p;
	l->notes = calloc(l->depth, sizeof(*l->notes));
	if (!l->notes)
		return -ENOMEM;
	l->buffers_mr = ibv_reg_mr(l->use->dev->pd, p, BUFFERS_SIZE, IBV_ACCESS_LOCAL_WRITE);
	return l->buffers_mr ? 0 : rd_errno();
}

static int make_cq(struct rd_lane *l)
{
	struct ibv_context *verbs = l->use->dev->verbs;

	l->completions = ibv_create_comp_channel(verbs);
	if (!l->completions)
		return rd_errno();
	if (fcntl(l->completions->fd, F_SETFL, fcntl(l->completions->fd, F_GETFL) | O_NONBLOCK))
		return -errno;
	l->cq = ibv_create_cq(verbs, (int)(l->depth + 2 * RDMA_NRECV), NULL, l->completions,
			      (int)l->index % verbs->num_comp_vectors);
	return l->cq ? 0 : rd_errno();
}

static int make_qp(struct rd_lane *l)
{
	struct ibv_qp_init_attr a = {
		.send_cq = l->cq, .recv_cq = l->cq, .qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = l->depth, .max_recv_wr = RDMA_NRECV, .max_send_sge = 1, .max_recv_sge = 1,
			 .max_inline_data = RDMA_INLINE },
	};

	if (rdma_create_qp(l->id, l->use->dev->pd, &a)) {
		a.cap.max_inline_data = 0;
		if (rdma_create_qp(l->id, l->use->dev->pd, &a))
			return rd_errno();
	}
	l->max_inline = a.cap.max_inline_data;
	return 0;
}

static int limits(struct rd_lane *l)
{
	const struct ibv_device_attr *a = &l->use->dev->attr.orig_attr;
	struct ibv_port_attr port;

	l->depth = a->max_qp_wr > 0 && a->max_qp_wr < RDMA_SQ_DEPTH ? (unsigned)a->max_qp_wr : RDMA_SQ_DEPTH;
	if (a->max_cqe > 0 && (unsigned)a->max_cqe < l->depth + 2 * RDMA_NRECV)
		l->depth = (unsigned)a->max_cqe - 2 * RDMA_NRECV;
	if (l->depth < RDMA_SQ_MESSAGES + RDMA_SIGNAL_EVERY || l->depth > RDMA_SQ_DEPTH)
		return -ENOSPC;
	l->max_msg = RDMA_PIECE_MAX;
	if (!ibv_query_port(l->use->dev->verbs, l->id->port_num, &port) && port.max_msg_sz >= LM_PAGE_SIZE &&
	    port.max_msg_sz < l->max_msg)
		l->max_msg = port.max_msg_sz & ~(LM_PAGE_SIZE - 1);
	return 0;
}

int rd_lane_setup(struct rd_lane *l, struct lm_error *err)
{
	const char *what = "use its queues";
	int r = limits(l);

	if (!r) {
		what = "create a completion queue";
		r = make_cq(l);
	}
	if (!r) {
		what = "register a buffer (memlock limit? `ulimit -l unlimited`)";
		r = make_buffers(l);
	}
	if (!r) {
		what = "create a queue pair";
		r = make_qp(l);
	}
	what = r ? what : "take receive buffers";
	for (unsigned i = 0; !r && i < RDMA_NRECV; i++)
		r = rd_post_recv(l, i);
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "RDMA device %s cannot %s", l->use->dev->name, what);
	l->credits = RDMA_NRECV;
	return 0;
}

/* Only what the peer needs for its part: rdma_cm would allow it more. */
int rd_lane_restrict(struct rd_lane *l)
{
	const struct lm_transport *t = &l->t->base;
	bool passive = !lm_transport_is_active(t);
	struct ibv_qp_attr a = {
		.qp_access_flags = !passive ? 0 : t->direction == LM_PUSH ? IBV_ACCESS_REMOTE_WRITE : IBV_ACCESS_REMOTE_READ,
	};

	/* iWARP fetches by having the peer write. */
	return l->use->dev->iwarp ? 0 : rd_result(ibv_modify_qp(l->id->qp, &a, IBV_QP_ACCESS_FLAGS));
}

void rd_lane_fence(struct rd_lane *l)
{
	if (!l->use || !l->id)
		return;
	rd_device_remove_lane(l->use->dev, l); /* whose events look at the queue pair */
	while (!atomic_load(&l->parted))       /* another thread has shut the lane, or is about to end that */
		sched_yield();
	if (l->id->qp)
		rdma_destroy_qp(l->id);
}

static void free_verbs(struct rd_lane *l)
{
	if (l->id && l->id->qp)
		rdma_destroy_qp(l->id);
	if (l->cq)
		ibv_destroy_cq(l->cq);
	if (l->completions)
		ibv_destroy_comp_channel(l->completions);
	if (l->buffers_mr)
		ibv_dereg_mr(l->buffers_mr);
	if (l->stage_mr)
		ibv_dereg_mr(l->stage_mr);
	if (l->id)
		rdma_destroy_id(l->id);
	if (l->channel)
		rdma_destroy_event_channel(l->channel);
}

void rd_lane_reset(struct rd_lane *l)
{
	struct rdma *t = l->t;
	unsigned index = l->index, attempt = l->attempt, home = l->home, returns = l->returns;
	int event_fd = l->event_fd;

	if (l->use)
		rd_device_remove_lane(l->use->dev, l);
	if (!atomic_load(&l->shut))
		rd_lane_disconnect(l);
	free_verbs(l);
	if (l->buffers)
		munmap(l->buffers, BUFFERS_SIZE);
	if (l->stage)
		munmap(l->stage, RDMA_STAGE_SIZE);
	free(l->notes);
	for (unsigned i = 0; i < LM_REGIONS_MAX; i++) {
		free(l->peer[i].chunks);
		free(l->asked[i]);
	}
	memset(l, 0, sizeof(*l));
	l->t = t;
	l->index = index;
	l->attempt = attempt;
	l->home = home;
	l->returns = returns;
	l->event_fd = event_fd;
}

/* ---- completions ---- */

void rd_lane_hear(struct rd_lane *l)
{
	struct rd_event e;
	int r;

	while (!(r = rd_event_next(l->channel, &e))) {
		if (e.type == RDMA_CM_EVENT_DISCONNECTED)
			l->hung_up = true;
		if (e.type == RDMA_CM_EVENT_DEVICE_REMOVAL)
			rd_lane_fail(l, "the RDMA device was removed");
	}
	/* Its channel would stay readable, and nobody could wait on it any more. */
	if (r != -EAGAIN)
		rd_lane_fail(l, "rdma_cm no longer reports on the connection");
}

static int received(struct rd_lane *l, const struct ibv_wc *wc, struct lm_poll_result *res, struct lm_error *err)
{
	unsigned buffer = (unsigned)(wc->wr_id & ~RECV_BIT);
	int r = rd_peer_message(l, l->buffers + buffer * RDMA_MSG_SIZE, wc->byte_len, res, err);

	if (r)
		return r;
	r = rd_post_recv(l, buffer);
	if (r)
		return rd_lane_error(l, r, err, "the device does not take receive buffers");
	l->owed++;
	return 0;
}

static int completed(struct rd_lane *l, const struct ibv_wc *wc, struct lm_poll_result *res, struct lm_error *err)
{
	if (wc->status == IBV_WC_SUCCESS) {
		if (wc->wr_id & RECV_BIT)
			return received(l, wc, res, err);
		rd_sent(l, wc->wr_id, res);
		return 0;
	}
	rd_lane_hear(l);
	/* An end in good order, unless something was still to be fetched. */
	if (l->closed && (l->t->base.direction == LM_PUSH || wc->wr_id & RECV_BIT))
		return 0;
	if (wc->status == IBV_WC_WR_FLUSH_ERR || l->hung_up)
		return rd_lane_error(l, 0, err, "in the middle");
	return wc_error(l, wc, err);
}

/* How many completions there were, or an error. */
static int reap(struct rd_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	int sum = 0, n;

	do {
		struct ibv_wc wc[REAP];

		n = ibv_poll_cq(l->cq, REAP, wc);
		if (n < 0)
			return rd_lane_error(l, -EIO, err, "the completion queue cannot be read");
		for (int i = 0; i < n; i++) {
			int r = completed(l, &wc[i], res, err);

			if (r)
				return r;
		}
		sum += n;
	} while (n == REAP && sum < REAP_MAX);
	return sum;
}

/* 1: the lane moved, 0: it did not, or an error. */
static int step(struct rd_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	int n, r = 0;

	if (atomic_load(&l->shut))
		return rd_lane_error(l, 0, err, " ");
	n = reap(l, res, err);
	if (n < 0)
		return n;
	if (l->closed)
		return 1;
	if (l->hung_up)
		return rd_lane_error(l, 0, err, "waiting for the %s", rd_peer_name(l));
	if (lm_transport_is_active(&l->t->base))
		r = rd_active_advance(l, err);
	if (!r)
		r = rd_peer_answer(l, err);
	return r ? r : n > 0;
}

/* ---- waiting ---- */

static void hear_completions(struct rd_lane *l)
{
	struct ibv_cq *cq;
	void *context;

	while (!ibv_get_cq_event(l->completions, &cq, &context)) {
		ibv_ack_cq_events(cq, 1);
		l->armed = false;
	}
}

/* Sleep until something happens; step() finds out what it was. */
static int doze(struct rd_lane *l, int timeout_ms, int wake_fd, struct lm_error *err)
{
	struct pollfd p[4] = { { .fd = l->completions->fd, .events = POLLIN }, { .fd = l->channel->fd, .events = POLLIN },
			       { .fd = l->event_fd, .events = POLLIN }, { .fd = wake_fd, .events = POLLIN } };
	uint64_t n;

	l->waits += timeout_ms != 0;
	if (poll(p, 4, timeout_ms) < 0)
		return errno == EINTR ? 0 : rd_lane_error(l, -errno, err, "poll");
	if (p[0].revents)
		hear_completions(l);
	if (p[1].revents)
		rd_lane_hear(l);
	if (p[2].revents && read(l->event_fd, &n, sizeof(n)) < 0)
		return 0; /* somebody else was quicker */
	return 0;
}

/* Completions after this wake us; those before are there now: 1, or 0. */
static int arm(struct rd_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	int r;

	if (l->armed)
		return 0;
	r = rd_result(ibv_req_notify_cq(l->cq, 0));
	if (r)
		return rd_lane_error(l, r, err, "the completion queue cannot be armed");
	l->armed = true;
	return step(l, res, err);
}

int rd_lane_poll(struct rd_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		   struct lm_error *err)
{
	int r = step(l, res, err);

	if (!r && timeout_ms)
		r = arm(l, res, err);
	if (!r)
		r = doze(l, timeout_ms, wake_fd, err) ?: step(l, res, err);
	res->flushed = l->flushed;
	res->fetched = l->fetched;
	res->closed = l->closed;
	return r < 0 ? r : 0;
}

/* ---- the end ---- */

static bool say_close(struct rd_lane *l)
{
	return l->state == RDMA_LANE_OPEN && !atomic_load(&l->shut) && !l->closed && !l->hung_up && !l->rest.len &&
	       l->flush_queued == l->flush_seq && rd_can_send(l, false) && !rd_send(l, RDMA_CLOSE, NULL, 0, 0, 0, 0, NULL) && !rd_post_batch(l, NULL);
}

/* Whether all that was posted has arrived, or never will. */
static bool is_out(struct rd_lane *l)
{
	struct lm_poll_result unused = { 0 };
	struct ibv_wc wc[REAP];
	int n = ibv_poll_cq(l->cq, REAP, wc);

	for (int i = 0; i < n; i++) {
		if (wc[i].status)
			return true;
		if (!(wc[i].wr_id & RECV_BIT))
			rd_sent(l, wc[i].wr_id, &unused);
	}
	return n < 0 || l->completed == l->posted;
}

/*
 * When the device has confirmed the message, the peer has it.  Until then the
 * queue pair must live, but not for long: a dead peer is not waited for.
 */
void rd_lanes_say_close(struct rdma *t)
{
	int64_t until = lm_now_ns() + CLOSE_NS;
	bool waiting[LM_LANES_MAX];
	unsigned left = 0;

	for (unsigned i = 0; i < t->base.nlanes; i++)
		left += waiting[i] = say_close(&t->lanes[i]);
	while (left && lm_now_ns() < until) {
		for (unsigned i = 0; i < t->base.nlanes; i++)
			if (waiting[i] && is_out(&t->lanes[i])) {
				waiting[i] = false;
				left--;
			}
		if (left)
			nanosleep(&(struct timespec){ 0, 20000 }, NULL);
	}
}
