/* SPDX-License-Identifier: Apache-2.0 */
/* The destination's end of a TCP lane: frames, checks, answers.  Placing is next door. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/testhook.h"
#include "tcp.h"

/* Data bytes that one poll places at most, so that its caller can look around. */
#define POLL_BYTES (UINT64_C(4) << 20)

static bool map_forced(void)
{
	const char *forced = lm_test_setting("LM_TCP_PLACE");

	return forced && !strcmp(forced, "map");
}

int tcp_recv_init(struct tcp_lane *l)
{
	l->scratch = malloc(TCP_SCRATCH_SIZE);
	if (!l->scratch)
		return -ENOMEM;
	if (lm_stream_raw_fd(l->stream) >= 0 && !map_forced())
		tcp_pipe_open(l); /* without one, data is received into the mapping */
	return 0;
}

static int bad_frame(struct lm_error *err, const char *what)
{
	return lm_err(err, -EPROTO, LM_SCOPE_LANE, "the source sent a bad frame: %s", what);
}

static unsigned batch_head_len(unsigned count)
{
	return (unsigned)(sizeof(struct tcp_frame) + count * sizeof(struct tcp_desc));
}

/* All runs of a batch, before a byte of it is placed. */
static int check_runs(const struct tcp *t, const struct tcp_lane *l, unsigned count, struct lm_error *err)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < count; i++) {
		struct lm_run run = tcp_desc_get(&l->in.u.h.desc[i]);

		if (!lm_transport_run_valid(&t->base, &run))
			return bad_frame(err, "a run outside of the regions");
		if (run.kind == LM_RUN_DATA)
			sum += run.len; /* at most LM_WRITE_MAX * LM_RUN_MAX */
	}
	return sum == lm_le64_get(l->in.u.h.frame.bytes) ? 0 : bad_frame(err, "the sum of the runs is wrong");
}

static int handle_batch(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	const struct tcp_frame *f = &l->in.u.h.frame;
	unsigned count = lm_le32_get(f->count);
	int r;

	if (!count || count > LM_WRITE_MAX)
		return bad_frame(err, "number of runs");
	if (lm_le64_get(f->seq) != l->seq + 1)
		return bad_frame(err, "batch out of order");
	r = tcp_head_recv(l, batch_head_len(count));
	if (r == -EAGAIN)
		return r;
	if (r <= 0)
		return tcp_lane_error(l, r, err, "receiving");
	r = check_runs(t, l, count, err);
	if (r)
		return r;
	if (l->fetch && !tcp_fetch_expects(l, count))
		return bad_frame(err, "an answer without a request");
	l->seq++;
	l->batches++;
	l->in_batch = true;
	l->count = count;
	l->run = 0;
	l->run_done = 0;
	l->left = lm_le64_get(f->bytes);
	return 0;
}

/* Everything before has been placed by this thread already: the answer can go out. */
static int handle_flush(struct tcp_lane *l, struct lm_error *err)
{
	const struct tcp_frame *f = &l->in.u.h.frame;
	uint64_t seq = lm_le64_get(f->seq);

	if (seq <= l->flush_seq || lm_le32_get(f->count) || lm_le64_get(f->bytes))
		return bad_frame(err, "flush");
	/* A source that does not read its answers gets no room for more. */
	if (l->out.done < l->out.len)
		return bad_frame(err, "a flush before the last one was answered");
	l->flush_seq = seq;
	l->out.u.h.frame = tcp_frame_make(TCP_FLUSHED, seq);
	l->out.done = 0;
	l->out.len = sizeof(struct tcp_frame);
	l->in.done = 0;
	return 0;
}

static int handle_close(struct tcp_lane *l, struct lm_error *err)
{
	if (l->fetch && l->fetch->whole < l->fetch->sent)
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the source closed the lane and owes us data");
	l->closed = true;
	l->in.done = 0;
	return 0;
}

static int handle_frame(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	const struct tcp_frame *f = &l->in.u.h.frame;

	if (lm_le32_get(f->magic) != TCP_FRAME_MAGIC || lm_le32_get(f->reserved))
		return bad_frame(err, "magic");
	switch (lm_le32_get(f->type)) {
	case TCP_BATCH:
		return handle_batch(t, l, err);
	case TCP_FLUSH:
		return l->fetch ? bad_frame(err, "type") : handle_flush(l, err);
	case TCP_CLOSE:
		return handle_close(l, err);
	default:
		return bad_frame(err, "type");
	}
}

static int recv_frame(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	int r = l->fetch ? tcp_frame_recv(l) : tcp_head_recv(l, sizeof(struct tcp_frame));

	if (r == -EAGAIN)
		return r;
	return r <= 0 ? tcp_lane_error(l, r, err, "receiving") : handle_frame(t, l, err);
}

static int place_run(struct tcp *t, struct tcp_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	struct lm_run run = tcp_desc_get(&l->in.u.h.desc[l->run]);
	ssize_t n;

	if (run.kind == LM_RUN_ZERO)
		return tcp_place_zero(t, l, err);
	n = tcp_place_data(t, l, err);
	if (n < 0)
		return (int)n;
	l->bytes += (uint64_t)n;
	res->bytes += (uint64_t)n;
	return 0;
}

/* One step: a frame, or a piece of a batch.  0, -EAGAIN, or an error. */
static int recv_step(struct tcp *t, struct tcp_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	unsigned first = l->run;
	int r;

	if (!l->in_batch)
		return recv_frame(t, l, err);
	if (!tcp_place_begin(l))
		return tcp_lane_error(l, 0, err, "");
	r = place_run(t, l, res, err);
	tcp_place_end(l);
	if (l->fetch)
		tcp_fetch_placed(l, first);
	if (l->run == l->count) {
		l->in_batch = false;
		l->in.done = 0;
	}
	return r;
}

/* Answers, or requests. */
static int say(struct tcp_lane *l)
{
	if (l->fetch)
		return tcp_fetch_send(l);
	return l->out.done < l->out.len ? tcp_head_send(l) : 0;
}

/* The thread that fetches needs to know at once which runs are whole. */
static bool enough(const struct tcp_lane *l, const struct lm_poll_result *res)
{
	return l->closed || res->bytes >= POLL_BYTES || (l->fetch && l->fetch->whole != res->fetched);
}

/* Handle all that has come in, and send what is due.  1: something moved, 0: nothing, or an error. */
static int recv_some(struct tcp *t, struct tcp_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	int moved = 0, r = 0;

	res->fetched = l->fetch ? l->fetch->whole : 0;
	while (!r && !enough(l, res)) {
		int w;


		if (atomic_load_explicit(&l->shut, memory_order_relaxed))
			return tcp_lane_error(l, 0, err, "");
		r = recv_step(t, l, res, err);
		if (!r)
			moved = 1;
		w = say(l);
		if (w && w != -EAGAIN)
			return tcp_lane_error(l, w, err, l->fetch ? "asking" : "answering");
	}
	return r && r != -EAGAIN ? r : moved;
}

/*
 * How much has to come before we want to be woken up; see tcp.h.  Well
 * below the window (half of the buffer): a low-water mark that is close to the
 * window lets the two sides wait for each other until a timer of TCP's fires.
 */
static int lowat_wanted(const struct tcp_lane *l, int fd)
{
	uint64_t due = l->in_batch ? l->left : 1;
	int rcvbuf = 0;
	socklen_t len = sizeof(rcvbuf);

	if (due > TCP_LOWAT)
		due = TCP_LOWAT;
	if (l->fetch && due < TCP_SMALL_BYTES)
		due = 1;
	if (due > 1 && !getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, &len) && due > (uint64_t)rcvbuf / 4)
		due = (uint64_t)rcvbuf / 4;
	return due ? (int)due : 1;
}

static void set_lowat(struct tcp_lane *l)
{
	int fd = lm_stream_raw_fd(l->stream), lowat;

	if (fd < 0)
		return;
	lowat = lowat_wanted(l, fd);
	if (lowat != l->lowat && !setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat)))
		l->lowat = lowat;
}

int tcp_recv_poll(struct tcp *t, struct tcp_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		  struct lm_error *err)
{
	int r = recv_some(t, l, res, err), events;

	if (!r && timeout_ms && !l->closed) {
		set_lowat(l);
		events = tcp_lane_wait(l, (short)(POLLIN | (l->out.done < l->out.len ? POLLOUT : 0)), timeout_ms,
				       wake_fd);
		if (events < 0)
			return tcp_lane_error(l, events, err, "poll");
		r = recv_some(t, l, res, err);
	}
	res->closed = l->closed;
	if (l->fetch)
		res->fetched = l->fetch->whole;
	return r < 0 ? r : 0;
}
