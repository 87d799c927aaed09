/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte streams: what lies under the control channel and under the TCP lanes.
 *
 * A stream is a connected TCP socket, never blocking, behind a table of three
 * functions.  TLS takes its place behind the same table; callers that move
 * pages without a copy must ask lm_stream_raw_fd() whether the bytes of the socket
 * are the bytes of the stream.
 *
 * Threads: one thread sends and one (or the same) receives.  lm_stream_shut()
 * may be called from any thread until lm_stream_close().
 *
 * Loopback or insecure: without TLS a stream carries the guest's memory readable and writable for
 * everyone on the path.  Therefore connect, listen and accept look at the *numeric* address and
 * refuse every one that is not of this host itself (127.0.0.0/8, ::1, and 127.0.0.0/8 mapped into
 * IPv6), unless the caller says insecure.  A name is resolved first, so a hosts file that gives
 * "localhost" another address does not help to get round this.
 */
#ifndef LM_STREAM_H
#define LM_STREAM_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include "address.h"

struct lm_stream;

struct lm_stream_ops {
	const char *name;
	/* Bytes taken (>= 1), -EAGAIN (s->want says what to poll for), or an error. */
	ssize_t (*send)(struct lm_stream *s, const struct iovec *iov, unsigned niov);
	/* Bytes read (>= 1), 0 at the orderly end, -EAGAIN (see s->want), or an error. */
	ssize_t (*recv)(struct lm_stream *s, const struct iovec *iov, unsigned niov);
	/* Free what the backend has; the socket is closed after it. */
	void (*close)(struct lm_stream *s);
};

/* A backend embeds this first. */
struct lm_stream {
	const struct lm_stream_ops *ops;
	int fd;      /* for poll(2); owned */
	bool raw;    /* bytes of the socket are the bytes of the stream */
	short want;  /* after -EAGAIN: POLLIN or POLLOUT */
	char peer[LM_ADDRESS_MAX]; /* numeric */
};

/*
 * Connect; every address that the name has is tried in turn.  Blocks until the
 * deadline (-ETIMEDOUT) or until cancel_fd (-1: none) is readable (-ECANCELED).
 * Name look-up (getaddrinfo) is not cut short by either.
 */
int lm_stream_connect(const char *address, bool insecure, int64_t deadline_ns, int cancel_fd,
		      struct lm_stream **ret, struct lm_error *err);
/*
 * Listen; port 0 takes any.  The descriptor is the caller's (close(2)), never
 * blocks, and ret_address is its numeric address.
 */
int lm_stream_listen(const char *address, bool insecure, int *ret_fd,
		     char ret_address[static LM_ADDRESS_MAX], struct lm_error *err);
/*
 * The next connection.  A peer that is refused (not loopback) is disconnected and waiting goes on,
 * so a stranger cannot end it.
 */
int lm_stream_accept(int listen_fd, bool insecure, int64_t deadline_ns, int cancel_fd,
		     struct lm_stream **ret, struct lm_error *err);
/*
 * Take over a connected stream socket, which is closed on error too.  A peer that
 * is not loopback is refused (-EACCES) as above; socket pairs count as loopback.
 */
int lm_stream_adopt(int fd, bool insecure, struct lm_stream **ret, struct lm_error *err);

/* One step; see the table.  The error is the bare errno, without a text. */
ssize_t lm_stream_send(struct lm_stream *s, const struct iovec *iov, unsigned niov);
ssize_t lm_stream_recv(struct lm_stream *s, const struct iovec *iov, unsigned niov);

/*
 * All bytes, or an error: -ETIMEDOUT, -ECANCELED, -ECONNRESET (also for an orderly end
 * before the last byte), ...  After an error the stream is good for close only.
 * iov is used up on the way.
 */
int lm_stream_send_all(struct lm_stream *s, struct iovec *iov, unsigned niov, int64_t deadline_ns,
		       int cancel_fd, struct lm_error *err);
int lm_stream_recv_all(struct lm_stream *s, void *buf, size_t len, int64_t deadline_ns,
		       int cancel_fd, struct lm_error *err);
/* Wait for POLLIN/POLLOUT: 0, -ETIMEDOUT, -ECANCELED. */
int lm_stream_wait(const struct lm_stream *s, short events, int64_t deadline_ns, int cancel_fd);

/* For poll(2). */
static inline int lm_stream_fd(const struct lm_stream *s)
{
	return s->fd;
}

/*
 * Unanswered data or keepalive probes for so long end the connection with
 * -ETIMEDOUT (the default is LM_STREAM_PEER_TIMEOUT_NS).
 */
#define LM_STREAM_PEER_TIMEOUT_NS INT64_C(30000000000)
int lm_stream_set_peer_timeout(struct lm_stream *s, int64_t timeout_ns, struct lm_error *err);

/* Drop the first n bytes of an iovec; returns how many entries are left. */
unsigned lm_iov_advance(struct iovec **iov, unsigned niov, size_t n);

/* The descriptor, if calls that bypass the stream (splice, recv) may be made on it; else -1. */
int lm_stream_raw_fd(const struct lm_stream *s);
/* Both directions end at once; a thread that waits wakes up.  Any thread. */
void lm_stream_shut(struct lm_stream *s);
void lm_stream_close(struct lm_stream *s); /* takes NULL */

#endif
