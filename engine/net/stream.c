/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "stream.h"

/* Keepalive: first probe after a third of the time in which the peer must be heard. */
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44 /* Linux 6.15 */
#endif
#define RTO_MAX_MS 2000
#define KEEPALIVE_PROBES 3

static ssize_t plain_result(struct lm_stream *s, ssize_t n, short want)
{
	if (n >= 0)
		return n;
	if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
		return -errno;
	s->want = want;
	return -EAGAIN;
}

static ssize_t plain_send(struct lm_stream *s, const struct iovec *iov, unsigned niov)
{
	struct msghdr m = { .msg_iov = (struct iovec *)iov, .msg_iovlen = niov };

	return plain_result(s, sendmsg(s->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT), POLLOUT);
}

static ssize_t plain_recv(struct lm_stream *s, const struct iovec *iov, unsigned niov)
{
	struct msghdr m = { .msg_iov = (struct iovec *)iov, .msg_iovlen = niov };

	return plain_result(s, recvmsg(s->fd, &m, MSG_DONTWAIT), POLLIN);
}

static void plain_close(struct lm_stream *s)
{
	(void)s;
}

static const struct lm_stream_ops plain_ops = {
	.name = "plain", .send = plain_send, .recv = plain_recv, .close = plain_close,
};

/* 0, -ETIMEDOUT, -ECANCELED, or poll's error. */
static int wait_fd(int fd, short events, int64_t deadline_ns, int cancel_fd)
{
	struct pollfd p[2] = { { .fd = fd, .events = events }, { .fd = cancel_fd, .events = POLLIN } };
	int n;

	do {
		n = poll(p, 2, lm_deadline_poll_ms(deadline_ns));
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (p[1].revents)
		return -ECANCELED;
	return n ? 0 : -ETIMEDOUT;
}

int lm_stream_wait(const struct lm_stream *s, short events, int64_t deadline_ns, int cancel_fd)
{
	return wait_fd(s->fd, events, deadline_ns, cancel_fd);
}

static bool is_tcp(int fd)
{
	int domain = 0;
	socklen_t len = sizeof(domain);

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) && (domain == AF_INET || domain == AF_INET6);
}

static int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value)) ? -errno : 0;
}

int lm_stream_set_peer_timeout(struct lm_stream *s, int64_t timeout_ns, struct lm_error *err)
{
	int64_t step_s = timeout_ns / LM_NS_PER_S / (KEEPALIVE_PROBES + 1);
	int step, r;

	if (timeout_ns < LM_NS_PER_MS || timeout_ns / LM_NS_PER_MS > INT32_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "peer timeout out of range");
	if (!is_tcp(s->fd))
		return 0;
	step = step_s < 1 ? 1 : step_s > 32767 ? 32767 : (int)step_s;
	r = set_int(s->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)(timeout_ns / LM_NS_PER_MS));
	if (!r)
		r = set_int(s->fd, IPPROTO_TCP, TCP_KEEPIDLE, step);
	if (!r)
		r = set_int(s->fd, IPPROTO_TCP, TCP_KEEPINTVL, step);
	if (!r)
		r = set_int(s->fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
	if (!r)
		r = set_int(s->fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	/*
	 * A network that is back is noticed soon, however long it was down.  Older kernels double the
	 * time between two attempts.
	 */
	set_int(s->fd, IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS);
	return r ? lm_err_errno(err, r, LM_SCOPE_OPERATION, "cannot set the peer timeout") : 0;
}

int lm_stream_adopt(int fd, bool insecure, struct lm_stream **ret, struct lm_error *err)
{
	LM_AUTO_FD int owned = fd;
	LM_AUTO_FREE struct lm_stream *s = NULL;
	struct sockaddr_storage addr = { 0 };
	socklen_t len = sizeof(addr);
	int r;

	if (getpeername(fd, (struct sockaddr *)&addr, &len))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "no peer");
	r = lm_address_allowed((struct sockaddr *)&addr, insecure, "talk to", err);
	if (r)
		return r;
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) || fcntl(fd, F_SETFD, FD_CLOEXEC))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "fcntl");
	s = calloc(1, sizeof(*s));
	if (!s)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	s->ops = &plain_ops;
	s->fd = fd;
	s->raw = true;
	lm_address_format((struct sockaddr *)&addr, s->peer);
	r = lm_stream_set_peer_timeout(s, LM_STREAM_PEER_TIMEOUT_NS, err);
	if (!r && is_tcp(fd) && (r = set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1)))
		lm_err_errno(err, r, LM_SCOPE_OPERATION, "TCP_NODELAY");
	if (r)
		return r;
	lm_steal_fd(&owned);
	*ret = s;
	s = NULL;
	return 0;
}

/* Connect to one numeric address; *ret_fd is non-blocking and connected. */
static int connect_one(const struct addrinfo *a, int64_t deadline_ns, int cancel_fd, int *ret_fd)
{
	LM_AUTO_FD int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
	int soerr = 0, r;
	socklen_t len = sizeof(soerr);

	if (fd < 0)
		return -errno;
	if (connect(fd, a->ai_addr, a->ai_addrlen)) {
		if (errno != EINPROGRESS && errno != EINTR)
			return -errno;
		r = wait_fd(fd, POLLOUT, deadline_ns, cancel_fd);
		if (r)
			return r;
		if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &soerr, &len))
			return -errno;
		if (soerr)
			return -soerr;
	}
	*ret_fd = lm_steal_fd(&fd);
	return 0;
}

/* An address that does not answer must leave time for those after it. */
static int64_t fair_deadline(const struct addrinfo *a, int64_t deadline_ns)
{
	int64_t n = 0, now = lm_now_ns();

	for (; a; a = a->ai_next)
		n++;
	return n < 2 || deadline_ns == LM_NO_DEADLINE ? deadline_ns : now + (deadline_ns - now) / n;
}

static int connect_any(const struct addrinfo *list, bool insecure, int64_t deadline_ns, int cancel_fd,
		       int *ret_fd, struct lm_error *err)
{
	int r = -EADDRNOTAVAIL;

	for (const struct addrinfo *a = list; a; a = a->ai_next) {
		char text[LM_ADDRESS_MAX];

		r = lm_address_allowed(a->ai_addr, insecure, "connect to", err);
		if (r)
			continue;
		r = connect_one(a, fair_deadline(a, deadline_ns), cancel_fd, ret_fd);
		if (!r)
			return 0;
		if (r == -ECANCELED)
			return lm_err(err, r, LM_SCOPE_OPERATION, "cancelled");
		lm_address_format(a->ai_addr, text);
		lm_err_errno(err, r, LM_SCOPE_OPERATION, "cannot connect to %s", text);
	}
	return r;
}

int lm_stream_connect(const char *address, bool insecure, int64_t deadline_ns, int cancel_fd,
		      struct lm_stream **ret, struct lm_error *err)
{
	struct addrinfo *list;
	int fd = -1, r = lm_address_resolve(address, false, &list, err);

	if (r)
		return r;
	r = connect_any(list, insecure, deadline_ns, cancel_fd, &fd, err);
	freeaddrinfo(list);
	return r ? r : lm_stream_adopt(fd, insecure, ret, err);
}

static int listen_one(const struct addrinfo *a, int *ret_fd, struct lm_error *err)
{
	LM_AUTO_FD int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
	char text[LM_ADDRESS_MAX];

	lm_address_format(a->ai_addr, text);
	if (fd < 0 || set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1) || bind(fd, a->ai_addr, a->ai_addrlen) ||
	    listen(fd, SOMAXCONN))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "cannot listen on %s", text);
	*ret_fd = lm_steal_fd(&fd);
	return 0;
}

static int listen_any(const struct addrinfo *list, bool insecure, int *ret_fd, struct lm_error *err)
{
	int r = -EADDRNOTAVAIL;

	for (const struct addrinfo *a = list; a; a = a->ai_next) {
		r = lm_address_allowed(a->ai_addr, insecure, "listen on", err);
		if (!r)
			r = listen_one(a, ret_fd, err);
		if (!r)
			break;
	}
	return r;
}

int lm_stream_listen(const char *address, bool insecure, int *ret_fd,
		     char ret_address[static LM_ADDRESS_MAX], struct lm_error *err)
{
	struct sockaddr_storage bound = { 0 };
	socklen_t len = sizeof(bound);
	struct addrinfo *list;
	int r = lm_address_resolve(address, true, &list, err);

	if (r)
		return r;
	r = listen_any(list, insecure, ret_fd, err);
	freeaddrinfo(list);
	if (r)
		return r;
	getsockname(*ret_fd, (struct sockaddr *)&bound, &len);
	lm_address_format((struct sockaddr *)&bound, ret_address);
	return 0;
}

/* Errors that belong to one connection which died before it was accepted. */
static bool accept_may_retry(int code)
{
	switch (code) {
	case -EAGAIN: case -EINTR: case -ECONNABORTED: case -EPROTO: case -ENETDOWN: case -ENOPROTOOPT:
	case -EHOSTDOWN: case -ENONET: case -EHOSTUNREACH: case -ENETUNREACH: case -EACCES:
		return true;
	default:
		return false;
	}
}

static int accept_wait_error(int r, struct lm_error *err)
{
	if (r == -ECANCELED)
		return lm_err(err, r, LM_SCOPE_OPERATION, "cancelled");
	return lm_err_errno(err, r, LM_SCOPE_OPERATION, "waiting for a connection");
}

int lm_stream_accept(int listen_fd, bool insecure, int64_t deadline_ns, int cancel_fd,
		     struct lm_stream **ret, struct lm_error *err)
{
	for (;;) {
		int fd, r = wait_fd(listen_fd, POLLIN, deadline_ns, cancel_fd);

		if (r)
			return accept_wait_error(r, err);
		fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		r = fd < 0 ? -errno : lm_stream_adopt(fd, insecure, ret, err);
		if (!r)
			return 0;
		if (fd < 0 && !accept_may_retry(r))
			return lm_err_errno(err, r, LM_SCOPE_OPERATION, "cannot accept a connection");
	}
}

ssize_t lm_stream_send(struct lm_stream *s, const struct iovec *iov, unsigned niov)
{
	return s->ops->send(s, iov, niov);
}

ssize_t lm_stream_recv(struct lm_stream *s, const struct iovec *iov, unsigned niov)
{
	return s->ops->recv(s, iov, niov);
}

unsigned lm_iov_advance(struct iovec **iov, unsigned niov, size_t n)
{
	while (niov && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		niov--;
	}
	if (niov) {
		(*iov)->iov_base = (char *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
	return niov;
}

static int transfer_error(int r, struct lm_error *err)
{
	return r == -ECANCELED ? lm_err(err, r, LM_SCOPE_OPERATION, "cancelled") :
				 lm_err_errno(err, r, LM_SCOPE_OPERATION, "connection to the peer");
}

int lm_stream_send_all(struct lm_stream *s, struct iovec *iov, unsigned niov, int64_t deadline_ns,
		       int cancel_fd, struct lm_error *err)
{
	niov = lm_iov_advance(&iov, niov, 0);
	while (niov) {
		ssize_t n = lm_stream_send(s, iov, niov);

		if (n == -EAGAIN)
			n = lm_stream_wait(s, s->want, deadline_ns, cancel_fd);
		if (n < 0)
			return transfer_error((int)n, err);
		niov = lm_iov_advance(&iov, niov, (size_t)n);
	}
	return 0;
}

int lm_stream_recv_all(struct lm_stream *s, void *buf, size_t len, int64_t deadline_ns, int cancel_fd,
		       struct lm_error *err)
{
	struct iovec iov = { buf, len };

	while (iov.iov_len) {
		ssize_t n = lm_stream_recv(s, &iov, 1);

		if (!n)
			return lm_err(err, -ECONNRESET, LM_SCOPE_OPERATION, "the peer closed the connection");
		if (n == -EAGAIN)
			n = lm_stream_wait(s, s->want, deadline_ns, cancel_fd);
		if (n < 0)
			return transfer_error((int)n, err);
		iov.iov_base = (char *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
	}
	return 0;
}

int lm_stream_raw_fd(const struct lm_stream *s)
{
	return s->raw ? s->fd : -1;
}

void lm_stream_shut(struct lm_stream *s)
{
	shutdown(s->fd, SHUT_RDWR);
}

void lm_stream_close(struct lm_stream *s)
{
	if (!s)
		return;
	s->ops->close(s);
	close(s->fd);
	free(s);
}
