/* SPDX-License-Identifier: Apache-2.0 */
/* A lane of either side: heads of frames, waiting, errors, and who may place. */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "tcp.h"

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
