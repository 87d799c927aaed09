/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LM_PULL: the source's end of a TCP lane.  Requests come in, batches go out.
 *
 * One request at a time: the next is read when the last byte of the answer to the
 * one before is in the socket.  A peer that does not read its answers, or sends
 * requests without end, therefore waits in its own buffers.
 */
#include <poll.h>
#include "tcp.h"

/*
 * A batch is closed when it has so many bytes of data, or when so many pages were looked
 * at.  Small enough that a system call which sends or places one is short: on a kernel
 * that does not preempt those, whoever serves a fault on the same CPU waits for its
 * end (measured: P99 of a fault beside a busy lane 0.3 ms, with 1 MiB 2 ms).
 */
#define ANSWER_BYTES (UINT64_C(256) << 10)
#define ANSWER_PAGES 4096
/* Batches and requests that one poll handles at most, so that its caller can look around. */
#define POLL_STEPS 16

struct answer {
	unsigned n;
	uint64_t bytes, pages; /* of data; looked at */
	struct lm_run runs[LM_WRITE_MAX];
};

static int bad_frame(struct lm_error *err, const char *what)
{
	return lm_err(err, -EPROTO, LM_SCOPE_LANE, "the destination sent a bad frame: %s", what);
}

/* ---- requests ---- */

static int check_request(const struct tcp *t, const struct tcp_lane *l, unsigned count, struct lm_error *err)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < count; i++) {
		struct lm_run run = tcp_desc_get(&l->in.u.h.desc[i]);

		if (run.kind != LM_RUN_DATA || !lm_transport_run_valid(&t->base, &run))
			return bad_frame(err, "a run outside of the regions");
		sum += run.len; /* at most LM_WRITE_MAX * LM_RUN_MAX */
	}
	return sum == lm_le64_get(l->in.u.h.frame.bytes) ? 0 : bad_frame(err, "the sum of the runs is wrong");
}

static int handle_request(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	unsigned count = lm_le32_get(l->in.u.h.frame.count);
	int r;

	if (!count || count > LM_WRITE_MAX)
		return bad_frame(err, "number of runs");
	if (lm_le64_get(l->in.u.h.frame.seq) != l->request_seq + 1)
		return bad_frame(err, "request out of order");
	r = tcp_head_recv(l, (unsigned)(sizeof(struct tcp_frame) + count * sizeof(struct tcp_desc)));
	if (r == -EAGAIN)
		return r;
	if (r <= 0)
		return tcp_lane_error(l, r, err, "receiving");
	r = check_request(t, l, count, err);
	if (r)
		return r;
	l->request_seq++;
	l->in_batch = true;
	l->count = count;
	l->run = 0;
	l->run_done = 0;
	return 0;
}

static int recv_request(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	const struct tcp_frame *f = &l->in.u.h.frame;
	int r = tcp_frame_recv(l);

	if (r == -EAGAIN)
		return r;
	if (r <= 0)
		return tcp_lane_error(l, r, err, "waiting for the destination");
	if (lm_le32_get(f->magic) != TCP_FRAME_MAGIC || lm_le32_get(f->reserved))
		return bad_frame(err, "magic");
	switch (lm_le32_get(f->type)) {
	case TCP_REQUEST:
		return handle_request(t, l, err);
	case TCP_CLOSE:
		l->closed = true;
		return 0;
	default:
		return bad_frame(err, "type");
	}
}

/* ---- answers ---- */

/* Pieces that go on where the last one of the same run ended become one. */
static bool add_piece(struct answer *a, struct lm_run piece, bool first_of_run)
{
	struct lm_run *last = a->n ? &a->runs[a->n - 1] : NULL;

	if (last && !first_of_run && last->kind == piece.kind)
		last->len += piece.len;
	else if (a->n < LM_WRITE_MAX)
		a->runs[a->n++] = piece;
	else
		return false;
	if (piece.kind == LM_RUN_DATA)
		a->bytes += piece.len;
	return true;
}

/* How many of the n pages from page i on are like it. */
static unsigned like_pages(uint64_t zeros, unsigned i, unsigned n)
{
	uint64_t other = zeros >> i & 1 ? ~zeros >> i : zeros >> i;
	unsigned same = other ? (unsigned)__builtin_ctzll(other) : n;

	return same < n - i ? same : n - i;
}

/* At most 64 pages of the current run, and on to the next one behind its end.  False: the answer is full. */
static bool add_pages(struct tcp *t, struct tcp_lane *l, struct answer *a)
{
	struct lm_run run = tcp_desc_get(&l->in.u.h.desc[l->run]);
	uint64_t npages = (run.len - l->run_done) >> LM_PAGE_SHIFT, zeros;
	unsigned n = npages < 64 ? (unsigned)npages : 64, same;

	zeros = lm_region_zeros(&t->regions[run.region].local, run.offset + l->run_done, n);
	a->pages += n;
	for (unsigned i = 0; i < n; i += same) {
		struct lm_run piece = { .region = run.region, .offset = run.offset + l->run_done };

		same = like_pages(zeros, i, n);
		piece.kind = zeros >> i & 1 ? LM_RUN_ZERO : LM_RUN_DATA;
		piece.len = (uint64_t)same << LM_PAGE_SHIFT;
		if (!add_piece(a, piece, !l->run_done))
			return false;
		l->run_done += piece.len;
	}
	if (l->run_done == run.len) {
		l->run++;
		l->run_done = 0;
	}
	return true;
}

/* The next batch of the answer; nothing is pending. */
static int send_answer(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	struct answer a;
	int r;

	a.n = 0;
	a.bytes = a.pages = 0;
	while (l->run < l->count && a.bytes < ANSWER_BYTES && a.pages < ANSWER_PAGES)
		if (!add_pages(t, l, &a))
			break;
	if (l->run == l->count) {
		l->in_batch = false;
		l->in.done = 0;
	}
	l->small = a.bytes <= TCP_SMALL_BYTES;
	r = tcp_send_batch(t, l, a.runs, a.n, err);
	return r < 0 ? r : 0;
}

/* ---- polling ---- */

/* 1: something moved, 0: nothing, or an error. */
static int answer_some(struct tcp *t, struct tcp_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	int moved = 0;

	for (unsigned i = 0; i < POLL_STEPS && !l->closed; i++) {
		int r = tcp_send_push(l, res, err);

		if (!r)
			r = l->in_batch ? send_answer(t, l, err) : recv_request(t, l, err);
		if (r)
			return r == -EAGAIN ? moved : r;
		moved = 1;
	}
	return moved;
}

int tcp_answer_poll(struct tcp *t, struct tcp_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		    struct lm_error *err)
{
	uint64_t before = l->bytes;
	int r = answer_some(t, l, res, err), events;

	if (!r && timeout_ms && !l->closed) {
		/* A request that waits while an answer is pending is nothing new. */
		events = tcp_lane_wait(l, tcp_send_pending(l) ? POLLOUT : POLLIN, timeout_ms, wake_fd);
		if (events < 0)
			return tcp_lane_error(l, events, err, "poll");
		if (events)
			r = answer_some(t, l, res, err);
	}
	res->bytes = l->bytes - before;
	res->closed = l->closed;
	return r < 0 ? r : 0;
}
