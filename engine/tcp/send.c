/* SPDX-License-Identifier: Apache-2.0 */
/* The source's end of a TCP lane. */
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/testhook.h"
#include "tcp.h"

/* Whether both ends are on this host: then page references cost more than copies. */
static bool is_local(int fd)
{
	struct sockaddr_storage a = { 0 }, b = { 0 };
	socklen_t alen = sizeof(a), blen = sizeof(b);

	if (getsockname(fd, (struct sockaddr *)&a, &alen) || getpeername(fd, (struct sockaddr *)&b, &blen))
		return false;
	if (lm_address_is_loopback((struct sockaddr *)&b))
		return true;
	if (a.ss_family == AF_INET)
		return ((struct sockaddr_in *)&a)->sin_addr.s_addr == ((struct sockaddr_in *)&b)->sin_addr.s_addr;
	if (a.ss_family == AF_INET6)
		return IN6_ARE_ADDR_EQUAL(&((struct sockaddr_in6 *)&a)->sin6_addr,
					  &((struct sockaddr_in6 *)&b)->sin6_addr);
	return false;
}

static enum tcp_method choose(int fd)
{
	const char *forced = lm_test_setting("LM_TCP_SEND");

	if (forced && fd >= 0)
		return !strcmp(forced, "splice") ? TCP_SPLICE : TCP_COPY;
	return fd < 0 || is_local(fd) ? TCP_COPY : TCP_SPLICE;
}

int tcp_send_init(struct tcp_lane *l)
{
	l->next = l->iov;
	l->method = choose(lm_stream_raw_fd(l->stream));
	if (l->method == TCP_SPLICE && tcp_pipe_open(l))
		l->method = TCP_COPY;
	return 0;
}

bool tcp_send_pending(const struct tcp_lane *l)
{
	return l->out.done < l->out.len || l->niov || l->in_pipe;
}

static void sent(struct tcp_lane *l, size_t n, struct lm_poll_result *res)
{
	l->bytes += n;
	res->bytes += n;
}

/* Header and data in one call. */
static int push_copy(struct tcp_lane *l, struct lm_poll_result *res)
{
	while (tcp_send_pending(l)) {
		struct iovec iov[LM_WRITE_MAX + 1];
		unsigned head = l->out.len - l->out.done;
		ssize_t n;

		iov[0] = (struct iovec){ l->out.u.bytes + l->out.done, head };
		memcpy(iov + 1, l->next, l->niov * sizeof(*iov));
		n = lm_stream_send(l->stream, head ? iov : iov + 1, l->niov + (head != 0));
		if (n < 0)
			return (int)n;
		head = (size_t)n < head ? (unsigned)n : head;
		l->out.done += head;
		sent(l, (size_t)n - head, res);
		l->niov = lm_iov_advance(&l->next, l->niov, (size_t)n - head);
	}
	return 0;
}

/* Fill the pipe with references to the next pages; what was refused for good goes by copy. */
static int fill_pipe(struct tcp_lane *l)
{
	ssize_t n = vmsplice(l->pipe[1], l->next, l->niov, SPLICE_F_NONBLOCK);

	if (n >= 0) {
		l->in_pipe += (size_t)n;
		l->niov = lm_iov_advance(&l->next, l->niov, (size_t)n);
		return 0;
	}
	if (errno == EAGAIN || errno == EINTR)
		return 0;
	if (!l->in_pipe)
		l->method = TCP_COPY;
	return l->in_pipe ? 0 : -ENOSYS;
}

static int push_head_before_data(struct tcp_lane *l)
{
	while (l->out.done < l->out.len) {
		ssize_t n = send(lm_stream_fd(l->stream), l->out.u.bytes + l->out.done, l->out.len - l->out.done,
				 MSG_NOSIGNAL | MSG_DONTWAIT | (l->niov ? MSG_MORE : 0));

		if (n < 0)
			return errno == EINTR ? -EAGAIN : -errno;
		l->out.done += (unsigned)n;
	}
	return 0;
}

/*
 * splice(2) into a socket that was reset raises SIGPIPE and has no flag against
 * it.  The thread that drives a lane keeps the signal blocked from here on.
 */
static void block_sigpipe(void)
{
	static _Thread_local bool blocked;
	sigset_t set;

	if (blocked)
		return;
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	blocked = !pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static int push_splice(struct tcp_lane *l, struct lm_poll_result *res)
{
	int r = push_head_before_data(l);

	block_sigpipe();
	while (!r && (l->niov || l->in_pipe)) {
		ssize_t n;

		if (l->niov && l->in_pipe < l->pipe_size / 2 && fill_pipe(l))
			return push_copy(l, res);
		n = splice(l->pipe[0], NULL, lm_stream_fd(l->stream), NULL, l->in_pipe,
			   SPLICE_F_NONBLOCK | (l->niov ? SPLICE_F_MORE : 0));
		if (n <= 0)
			return !n ? -EPIPE : errno == EINTR ? -EAGAIN : -errno;
		l->in_pipe -= (size_t)n;
		sent(l, (size_t)n, res);
	}
	return r;
}

int tcp_send_push(struct tcp_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	int r;

	if (atomic_load_explicit(&l->shut, memory_order_relaxed))
		return tcp_lane_error(l, 0, err, "");
	r = l->method == TCP_SPLICE && !l->small ? push_splice(l, res) : push_copy(l, res);
	return r && r != -EAGAIN ? tcp_lane_error(l, r, err, "sending") : r;
}

/* How many of the runs make one batch; *ret_bytes is their data. */
static unsigned batch_size(const struct lm_run *runs, unsigned n, uint64_t *ret_bytes)
{
	uint64_t bytes = 0;
	unsigned i;

	for (i = 0; i < n; i++) {
		uint64_t len = runs[i].kind == LM_RUN_DATA ? runs[i].len : 0;

		if (i && bytes + len > TCP_BATCH_BYTES)
			break;
		bytes += len;
	}
	*ret_bytes = bytes;
	return i;
}

static void queue_run(struct tcp *t, struct tcp_lane *l, const struct lm_run *run, struct tcp_desc *ret)
{
	*ret = tcp_desc_make(run);
	if (run->kind == LM_RUN_DATA && run->region < t->base.nregions)
		l->iov[l->niov++] = (struct iovec){ t->regions[run->region].host + run->offset, run->len };
}

int tcp_send_batch(struct tcp *t, struct tcp_lane *l, const struct lm_run *runs, unsigned n,
		   struct lm_error *err)
{
	struct lm_poll_result unused = { 0 };
	uint64_t bytes;
	int r = tcp_send_push(l, &unused, err);

	if (r)
		return r;
	n = batch_size(runs, n, &bytes);
	l->next = l->iov;
	for (unsigned i = 0; i < n; i++)
		queue_run(t, l, &runs[i], &l->out.u.h.desc[i]);
	l->out.u.h.frame = tcp_frame_make(TCP_BATCH, ++l->seq);
	l->out.u.h.frame.count = lm_le32(n);
	l->out.u.h.frame.bytes = lm_le64(bytes);
	l->out.done = 0;
	l->out.len = (unsigned)(sizeof(struct tcp_frame) + n * sizeof(struct tcp_desc));
	l->batches++;
	r = tcp_send_push(l, &unused, err);
	return r && r != -EAGAIN ? r : (int)n;
}

int tcp_send_flush(struct tcp_lane *l, uint64_t seq, struct lm_error *err)
{
	struct lm_poll_result unused = { 0 };
	int r = tcp_send_push(l, &unused, err);

	if (r)
		return r;
	l->out.u.h.frame = tcp_frame_make(TCP_FLUSH, seq);
	l->out.done = 0;
	l->out.len = sizeof(struct tcp_frame);
	l->flush_seq = seq;
	r = tcp_send_push(l, &unused, err);
	return r == -EAGAIN ? 0 : r;
}

static int handle_answer(struct tcp_lane *l, struct lm_error *err)
{
	const struct tcp_frame *f = &l->in.u.h.frame;
	uint64_t seq = lm_le64_get(f->seq);

	l->in.done = 0;
	if (lm_le32_get(f->magic) != TCP_FRAME_MAGIC)
		return lm_err(err, -EPROTO, LM_SCOPE_LANE, "an answer that is none");
	switch (lm_le32_get(f->type)) {
	case TCP_FLUSHED:
		if (seq <= l->flushed || seq > l->flush_seq)
			return lm_err(err, -EPROTO, LM_SCOPE_LANE, "an answer to a flush that was not asked for");
		l->flushed = seq;
		return 0;
	case TCP_CLOSE:
		l->closed = true;
		return 0;
	default:
		return lm_err(err, -EPROTO, LM_SCOPE_LANE, "an answer of an unknown type");
	}
}

/* 1: something came, 0: nothing is there, or an error. */
static int read_answers(struct tcp_lane *l, struct lm_error *err)
{
	int got = 0;

	while (!l->closed) {
		int r = tcp_head_recv(l, sizeof(struct tcp_frame));

		if (r == -EAGAIN)
			return got;
		r = r <= 0 ? tcp_lane_error(l, r, err, "waiting for the destination") : handle_answer(l, err);
		if (r)
			return r;
		got = 1;
	}
	return 1;
}

/* 1: the lane moved, 0: it did not, or an error. */
static int send_step(struct tcp_lane *l, struct lm_poll_result *res, struct lm_error *err)
{
	bool had = tcp_send_pending(l);
	uint64_t before = res->bytes;
	int r = tcp_send_push(l, res, err), got = 0;

	if (r && r != -EAGAIN)
		return r;
	if (l->flushed < l->flush_seq)
		got = read_answers(l, err);
	return got ? got : (had && !r) || res->bytes > before;
}

int tcp_send_poll(struct tcp_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		  struct lm_error *err)
{
	int r = send_step(l, res, err), events = 0;

	if (!r && timeout_ms)
		events = tcp_lane_wait(l, (short)(POLLIN | (tcp_send_pending(l) ? POLLOUT : 0)), timeout_ms, wake_fd);
	if (events < 0)
		return tcp_lane_error(l, events, err, "poll");
	if (events & (POLLIN | POLLERR | POLLHUP))
		r = read_answers(l, err);
	if (r >= 0 && events & POLLOUT)
		r = send_step(l, res, err);
	res->flushed = l->flushed;
	res->closed = l->closed;
	return r < 0 ? r : 0;
}
