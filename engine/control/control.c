/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "control.h"

/* A message that has begun must come in whole within this time. */
#define MESSAGE_TIMEOUT_NS (5 * LM_NS_PER_S)
/* A round trip that took longer is none. */
#define RTT_MAX_NS (UINT64_C(60) * LM_NS_PER_S)
/* Messages that lm_control_try_recv() deals with in one call: more is left for the next. */
#define TRY_MAX 64

int lm_control_open(struct lm_control *c, struct lm_stream *stream, int cancel_fd, struct lm_error *err)
{
	memset(c, 0, sizeof(*c));
	c->buf = malloc(LM_WIRE_PAYLOAD_MAX);
	if (!c->buf)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	pthread_mutex_init(&c->send_mutex, NULL);
	c->stream = stream;
	c->cancel_fd = cancel_fd;
	c->last_heard_ns = lm_now_ns();
	return 0;
}

void lm_control_close(struct lm_control *c)
{
	if (!c->stream)
		return;
	lm_stream_close(c->stream);
	pthread_mutex_destroy(&c->send_mutex);
	free(c->buf);
	memset(c, 0, sizeof(*c));
}

int lm_control_fd(const struct lm_control *c)
{
	return lm_stream_fd(c->stream);
}

int lm_control_send(struct lm_control *c, enum lm_msg_type type, const void *payload, size_t len,
		    int64_t deadline_ns, struct lm_error *err)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&c->send_mutex);
	struct lm_wire_header h = {
		.magic = lm_le32(LM_WIRE_MAGIC),
		.type = lm_le16((uint16_t)type),
		.len = lm_le32((uint32_t)len),
		.seq = lm_le64(c->send_seq),
	};
	struct iovec iov[2] = { { &h, sizeof(h) }, { (void *)payload, len } };
	int r;

	if (len > LM_WIRE_PAYLOAD_MAX)
		return lm_err(err, -EMSGSIZE, LM_SCOPE_SESSION, "sending %s: too long", lm_msg_name(type));
	if (c->send_broken)
		return lm_err(err, -EPIPE, LM_SCOPE_SESSION, "the control channel is closed");
	r = lm_stream_send_all(c->stream, iov, len ? 2 : 1, deadline_ns, -1, err);
	if (r) {
		c->send_broken = true;
		return lm_err_prefix(err, "sending %s", lm_msg_name(type));
	}
	c->send_seq++;
	return 0;
}

int lm_control_send_abort(struct lm_control *c, const struct lm_error *why, int64_t deadline_ns)
{
	uint8_t buf[sizeof(struct lm_wire_abort) + LM_ERROR_MSG_MAX];
	size_t len = lm_wire_put_abort(buf, why->code, why->msg);

	return lm_control_send(c, LM_MSG_ABORT, buf, len, deadline_ns, NULL);
}

int lm_control_ping(struct lm_control *c, int64_t deadline_ns, struct lm_error *err)
{
	struct le64 cookie = lm_le64((uint64_t)lm_now_ns());

	return lm_control_send(c, LM_MSG_PING, &cookie, sizeof(cookie), deadline_ns, err);
}

/* 1: something can be read (or the stream ended), 0: deadline. */
static int wait_readable(struct lm_control *c, int64_t deadline_ns, struct lm_error *err)
{
	struct pollfd p[2] = { { .fd = lm_control_fd(c), .events = POLLIN },
			       { .fd = c->cancel_fd, .events = POLLIN } };
	int n;

	do {
		n = poll(p, 2, c->is_held ? 0 : lm_deadline_poll_ms(deadline_ns));
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "poll");
	if (p[1].revents)
		return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "cancelled");
	return c->is_held || p[0].revents;
}

void lm_control_put_back(struct lm_control *c, const struct lm_msg *msg)
{
	c->held = *msg;
	c->is_held = true;
}

static int recv_frame(struct lm_control *c, struct lm_msg *msg, struct lm_error *err)
{
	int64_t deadline = lm_deadline_after(MESSAGE_TIMEOUT_NS);
	struct lm_wire_header h;
	unsigned type;
	int r;

	if (c->is_held) {
		*msg = c->held;
		c->is_held = false;
		return 0;
	}
	r = lm_stream_recv_all(c->stream, &h, sizeof(h), deadline, -1, err);
	if (!r)
		r = lm_wire_get_header(&h, c->recv_seq, &type, &msg->len, err);
	if (!r && msg->len)
		r = lm_stream_recv_all(c->stream, c->buf, msg->len, deadline, -1, err);
	if (r == -ETIMEDOUT)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent only a part of a message, then nothing");
	if (r)
		return r;
	c->recv_seq++;
	c->last_heard_ns = lm_now_ns();
	msg->type = type;
	msg->payload = c->buf;
	return 0;
}

static int handle_pong(struct lm_control *c, const struct lm_msg *msg, struct lm_error *err)
{
	struct le64 cookie;
	uint64_t rtt;

	if (msg->len != sizeof(cookie))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: PONG length");
	memcpy(&cookie, msg->payload, sizeof(cookie));
	/* The cookie is the peer's word: one that was never sent gives a nonsensical time, which is ignored. */
	rtt = (uint64_t)lm_now_ns() - lm_le64_get(cookie);
	if (rtt && rtt < RTT_MAX_NS && (!c->rtt_ns || rtt < (uint64_t)c->rtt_ns))
		c->rtt_ns = (int64_t)rtt;
	return 0;
}

static int handle_abort(struct lm_control *c, const struct lm_msg *msg, struct lm_error *err)
{
	char text[LM_ERROR_MSG_MAX - 32];
	int code, r = lm_wire_get_abort(msg->payload, msg->len, &code, text, sizeof(text), err);

	c->peer_aborted = !r;
	/* The peer's errno says nothing about calls on this side; only a cancel is passed on. */
	return r ? r : lm_err(err, code == -ECANCELED ? code : -ECONNABORTED, LM_SCOPE_SESSION,
			      "the peer gave up: %s", text);
}

/* 1: of interest to the caller, 0: dealt with, or an error. */
static int handle_common(struct lm_control *c, const struct lm_msg *msg, struct lm_error *err)
{
	switch (msg->type) {
	case LM_MSG_PING:
		if (msg->len != sizeof(struct le64))
			return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: PING length");
		return lm_control_send(c, LM_MSG_PONG, msg->payload, msg->len,
				       lm_deadline_after(MESSAGE_TIMEOUT_NS), err);
	case LM_MSG_PONG:
		return handle_pong(c, msg, err);
	case LM_MSG_ABORT:
		return handle_abort(c, msg, err);
	default:
		return 1;
	}
}

int lm_control_recv(struct lm_control *c, struct lm_msg *msg, int64_t deadline_ns, struct lm_error *err)
{
	for (;;) {
		int r = wait_readable(c, deadline_ns, err);

		if (!r)
			return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the peer does not answer");
		if (r > 0)
			r = recv_frame(c, msg, err);
		if (!r)
			r = handle_common(c, msg, err);
		if (r)
			return r > 0 ? 0 : r;
		/* A peer that does nothing but ping is not answering. */
		if (lm_now_ns() >= deadline_ns)
			return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the peer does not answer");
	}
}

int lm_control_try_recv(struct lm_control *c, struct lm_msg *msg, struct lm_error *err)
{
	for (unsigned i = 0; i < TRY_MAX; i++) {
		int r = wait_readable(c, lm_now_ns(), err);

		if (r > 0)
			r = recv_frame(c, msg, err);
		else
			return r;
		if (!r)
			r = handle_common(c, msg, err);
		if (r)
			return r;
	}
	return 0;
}

int lm_control_recv_patient(struct lm_control *c, struct lm_msg *msg, int64_t silence_ns, int64_t limit_ns,
			    struct lm_error *err)
{
	int64_t begin = lm_now_ns(), heard;
	int r;

	do {
		heard = c->last_heard_ns > begin ? c->last_heard_ns : begin;
		r = lm_control_recv(c, msg, lm_deadline_min(heard + silence_ns, limit_ns), err);
	} while (r == -ETIMEDOUT && c->last_heard_ns > heard && lm_now_ns() < limit_ns);
	return r;
}

static int must_be(enum lm_msg_type type, int r, const struct lm_msg *msg, struct lm_error *err)
{
	if (r)
		return r == -ETIMEDOUT ? lm_err_prefix(err, "waiting for %s", lm_msg_name(type)) : r;
	if (msg->type != type)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent %s where %s was due",
			      lm_msg_name(msg->type), lm_msg_name(type));
	return 0;
}

int lm_control_expect(struct lm_control *c, enum lm_msg_type type, struct lm_msg *msg,
		      int64_t deadline_ns, struct lm_error *err)
{
	return must_be(type, lm_control_recv(c, msg, deadline_ns, err), msg, err);
}

int lm_control_expect_patient(struct lm_control *c, enum lm_msg_type type, struct lm_msg *msg, int64_t silence_ns,
			      int64_t limit_ns, struct lm_error *err)
{
	return must_be(type, lm_control_recv_patient(c, msg, silence_ns, limit_ns, err), msg, err);
}

int lm_control_hello(struct lm_control *c, int64_t deadline_ns, char software[static 32], struct lm_error *err)
{
	uint8_t out[64];
	struct lm_msg msg;
	int r;

	r = lm_control_send(c, LM_MSG_HELLO, out, lm_wire_put_hello(out), deadline_ns, err);
	if (!r)
		r = lm_control_expect(c, LM_MSG_HELLO, &msg, deadline_ns, err);
	if (!r)
		r = lm_wire_get_hello(msg.payload, msg.len, software, err);
	if (!r)
		c->features = lm_wire_hello_features(msg.payload);
	return r;
}
