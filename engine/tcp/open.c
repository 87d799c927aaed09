/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening TCP lanes: the source connects and shows who it is, the destination
 * sorts its lanes from everybody else who can reach the port.
 *
 * A stranger costs one of PENDING_MAX places until it has shown a preamble, and
 * no time: all are polled together.  When the places are used up, the one that has
 * been silent for longest is dropped, so that strangers who connect and say nothing
 * cannot keep our lanes out; ours speak as soon as they are connected.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "tcp.h"

#define PENDING_MAX 64
#define PENDING_TIMEOUT_NS (2 * LM_NS_PER_S)

static struct tcp_preamble preamble_make(const struct lm_transport_params *p, unsigned lane)
{
	struct tcp_preamble ret = {
		.magic = lm_le64(TCP_PREAMBLE_MAGIC), .version = lm_le32(TCP_VERSION),
		.lane = lm_le32(lane), .nlanes = lm_le32(p->nlanes), .direction = lm_le32(p->direction),
	};

	memcpy(ret.token, p->token, sizeof(ret.token));
	return ret;
}

/* ---- source ---- */

static int connect_one(struct tcp_lane *l, const struct lm_transport_params *p, struct lm_error *err)
{
	struct tcp_preamble pre = preamble_make(p, l->index);
	struct iovec iov = { &pre, sizeof(pre) };
	int r = lm_stream_connect(p->peer, p->insecure, p->deadline_ns, p->cancel_fd, &l->stream, err);

	return r ? r : lm_stream_send_all(l->stream, &iov, 1, p->deadline_ns, p->cancel_fd, err);
}

/*
 * Wait until something can be read, or an error is pending that reading will show, or the peer says
 * that nothing will come.
 */
static int await_answer(const struct tcp_lane *l, const struct lm_transport_params *p, struct lm_error *err)
{
	int r = 0;

	while (!r) {
		struct pollfd fds[3] = {
			{ .fd = lm_stream_fd(l->stream), .events = POLLIN }, { .fd = p->cancel_fd, .events = POLLIN },
			{ .fd = lm_transport_peer_fd(p), .events = POLLIN },
		};
		int n = poll(fds, 3, lm_deadline_poll_ms(p->deadline_ns));

		if (!n || (n < 0 && errno != EINTR) || fds[0].revents || fds[1].revents)
			break;
		if (n > 0)
			r = p->peer_said(p->peer_opaque, err);
	}
	return r;
}

static int await_welcome(struct tcp_lane *l, const struct lm_transport_params *p, struct lm_error *err)
{
	struct tcp_frame f;
	int r = await_answer(l, p, err);

	if (!r)
		r = lm_stream_recv_all(l->stream, &f, sizeof(f), p->deadline_ns, p->cancel_fd, err);
	if (r == -ECONNRESET)
		return lm_err(err, -EACCES, LM_SCOPE_SESSION, "the destination does not know this lane");
	if (!r && (lm_le32_get(f.magic) != TCP_FRAME_MAGIC || lm_le32_get(f.type) != TCP_WELCOME))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination's answer is not one of this protocol");
	return r;
}

int tcp_connect_lanes(struct tcp *t, const struct lm_transport_params *p, struct lm_error *err)
{
	unsigned i;
	int r = 0;

	for (i = 0; !r && i < p->nlanes; i++)
		r = connect_one(&t->lanes[i], p, err);
	if (!r)
		for (i = 0; !r && i < p->nlanes; i++)
			r = await_welcome(&t->lanes[i], p, err);
	return r ? lm_err_prefix(err, "lane %u", i - 1) : 0;
}

int tcp_connect_lane(struct tcp_lane *l, const struct lm_transport_params *p, struct lm_error *err)
{
	int r = connect_one(l, p, err);

	return r ? r : await_welcome(l, p, err);
}

/* ---- destination ---- */

struct pending {
	struct lm_stream *stream; /* NULL: free place */
	int64_t since_ns;
	unsigned have;
	struct tcp_preamble pre;
};

struct admission {
	struct tcp *t;
	const struct lm_transport_params *p;
	struct pending pending[PENDING_MAX];
	const struct tcp_lane *only; /* NULL: all */
	unsigned missing; /* lanes */
};

static void drop(struct pending *c)
{
	lm_stream_close(c->stream);
	memset(c, 0, sizeof(*c));
}

/* The time it takes does not depend on where they differ. */
static bool same_bytes(const uint8_t *a, const uint8_t *b, size_t n)
{
	volatile uint8_t diff = 0;

	while (n--)
		diff |= *a++ ^ *b++;
	return !diff;
}

/* The lane that the preamble asks for, or NULL: not ours, or there already. */
static struct tcp_lane *preamble_lane(const struct admission *a, const struct tcp_preamble *pre)
{
	struct tcp_preamble want = preamble_make(a->p, lm_le32_get(pre->lane));
	struct tcp_lane *l;

	if (!same_bytes((const uint8_t *)&want, (const uint8_t *)pre, sizeof(want)))
		return NULL;
	if (lm_le32_get(pre->lane) >= a->p->nlanes)
		return NULL;
	l = &a->t->lanes[lm_le32_get(pre->lane)];
	/* The other lanes have threads, which use their streams. */
	if (a->only)
		return l == a->only && !l->stream ? l : NULL;
	return l->stream ? NULL : l;
}

static void admit(struct admission *a, struct pending *c)
{
	struct tcp_lane *l = preamble_lane(a, &c->pre);
	struct tcp_frame f = tcp_frame_make(TCP_WELCOME, 0);
	struct iovec iov = { &f, sizeof(f) };

	/* The first bytes on a connection always find room in its buffer. */
	if (!l || lm_stream_send(c->stream, &iov, 1) != (ssize_t)sizeof(f)) {
		drop(c);
		return;
	}
	l->stream = c->stream;
	c->stream = NULL;
	drop(c);
	a->missing--;
}

static void hear(struct admission *a, struct pending *c)
{
	struct iovec iov = { (uint8_t *)&c->pre + c->have, sizeof(c->pre) - c->have };
	ssize_t n = lm_stream_recv(c->stream, &iov, 1);

	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		drop(c);
		return;
	}
	c->have += (unsigned)n;
	if (c->have == sizeof(c->pre))
		admit(a, c);
}

/* A free place; the longest-waiting stranger makes room for a newcomer. */
static struct pending *place(struct admission *a)
{
	struct pending *oldest = &a->pending[0];

	for (unsigned i = 0; i < PENDING_MAX; i++) {
		struct pending *c = &a->pending[i];

		if (!c->stream)
			return c;
		if (c->since_ns < oldest->since_ns)
			oldest = c;
	}
	drop(oldest);
	return oldest;
}

/* One newcomer; those that may not talk to us, or died meanwhile, are no error. */
static int receive_newcomer(struct admission *a, struct lm_error *err)
{
	int fd = accept4(a->p->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct pending *c;

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS || errno == EBADF ||
		    errno == EINVAL || errno == ENOTSOCK)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot accept lanes");
		return 0;
	}
	c = place(a);
	if (lm_stream_adopt(fd, a->p->insecure, &c->stream, NULL))
		return 0;
	c->since_ns = lm_now_ns();
	hear(a, c);
	return 0;
}

static int64_t expire(struct admission *a, int64_t deadline_ns)
{
	int64_t now = lm_now_ns();

	for (unsigned i = 0; i < PENDING_MAX; i++) {
		struct pending *c = &a->pending[i];

		if (!c->stream)
			continue;
		if (c->since_ns + PENDING_TIMEOUT_NS <= now)
			drop(c);
		else
			deadline_ns = lm_deadline_min(deadline_ns, c->since_ns + PENDING_TIMEOUT_NS);
	}
	return deadline_ns;
}

static int admission_step(struct admission *a, struct lm_error *err)
{
	struct pollfd fds[PENDING_MAX + 3];
	int64_t until = expire(a, a->p->deadline_ns);
	int r = 0;

	fds[0] = (struct pollfd){ .fd = a->p->listen_fd, .events = POLLIN };
	fds[1] = (struct pollfd){ .fd = a->p->cancel_fd, .events = POLLIN };
	for (unsigned i = 0; i < PENDING_MAX; i++)
		fds[i + 2] = (struct pollfd){
			.fd = a->pending[i].stream ? lm_stream_fd(a->pending[i].stream) : -1, .events = POLLIN };
	fds[PENDING_MAX + 2] = (struct pollfd){ .fd = lm_transport_peer_fd(a->p), .events = POLLIN };
	if (poll(fds, PENDING_MAX + 3, lm_deadline_poll_ms(until)) < 0 && errno != EINTR)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "poll");
	if (fds[1].revents)
		return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "cancelled");
	for (unsigned i = 0; i < PENDING_MAX; i++)
		if (fds[i + 2].revents)
			hear(a, &a->pending[i]);
	if (fds[PENDING_MAX + 2].revents)
		r = a->p->peer_said(a->p->peer_opaque, err);
	if (!r && fds[0].revents)
		r = receive_newcomer(a, err);
	if (!r && a->missing && lm_now_ns() >= a->p->deadline_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "%u of %u lanes have not come", a->missing,
			      a->only ? 1 : a->p->nlanes);
	return r;
}

static int admission_run(struct tcp *t, const struct tcp_lane *only, const struct lm_transport_params *p,
			 struct lm_error *err)
{
	LM_AUTO_FREE struct admission *a = calloc(1, sizeof(*a));
	int r = 0;

	if (!a)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	a->t = t;
	a->p = p;
	a->only = only;
	a->missing = only ? 1 : p->nlanes;
	while (!r && a->missing)
		r = admission_step(a, err);
	for (unsigned i = 0; i < PENDING_MAX; i++)
		drop(&a->pending[i]);
	return r;
}

int tcp_accept_lanes(struct tcp *t, const struct lm_transport_params *p, struct lm_error *err)
{
	return admission_run(t, NULL, p, err);
}

int tcp_accept_lane(struct tcp *t, struct tcp_lane *l, const struct lm_transport_params *p, struct lm_error *err)
{
	return admission_run(t, l, p, err);
}
