/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdio.h>
#include "engine/base/clock.h"
#include "connect.h"

/* ---- source ---- */

int lm_ctx_connect(struct lm_ctx *c, int64_t deadline, struct lm_error *err)
{
	struct lm_stream *stream;
	char software[32];
	int r;

	r = lm_stream_connect(c->opt.address, c->opt.insecure, deadline, c->cancel_fd, &stream, err);
	if (r)
		return r;
	r = lm_control_open(&c->control, stream, c->cancel_fd, err);
	if (r) {
		lm_stream_close(stream);
		return r;
	}
	r = lm_stream_set_peer_timeout(stream, c->opt.peer_timeout_ns, err);
	if (!r)
		r = lm_control_hello(&c->control, deadline, software, err);
	if (!r)
		lm_ctx_log(c, LM_LOG_DEBUG, "the destination runs %s", software);
	return r;
}

/* ---- destination ---- */

int lm_ctx_listen(struct lm_ctx *c, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_LISTENING };
	int r = lm_stream_listen(c->opt.address, c->opt.insecure, &c->listen_fd, c->address, err);

	if (r)
		return r;
	e.u.listening.address = c->address;
	lm_ctx_event(c, &e);
	return 0;
}

/* Wait for a connection, and notice when the VM of this side has ended. */
static int accept_one(struct lm_ctx *c, int64_t deadline_ns, struct lm_stream **ret, struct lm_error *err)
{
	for (;;) {
		struct pollfd p = { .fd = c->vm->pidfd, .events = POLLIN };
		int64_t step = lm_deadline_min(deadline_ns, lm_deadline_after(LM_NS_PER_S));
		int r = lm_stream_accept(c->listen_fd, c->opt.insecure, step, c->cancel_fd, ret, err);

		if (r != -ETIMEDOUT)
			return r;
		if (poll(&p, 1, 0) > 0)
			return lm_err(err, -ESRCH, LM_SCOPE_VM, "the destination's QEMU has exited");
		if (lm_now_ns() >= deadline_ns)
			return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "no source came within --timeout");
	}
}

/* Strangers (a port scanner, a health check) must not end the wait. */
int lm_ctx_accept(struct lm_ctx *c, int64_t deadline, struct lm_error *err)
{
	for (;;) {
		struct lm_error e = { 0 };
		struct lm_stream *stream;
		char software[32];
		int r = accept_one(c, deadline, &stream, err);

		if (r)
			return r;
		snprintf(c->peer, sizeof(c->peer), "%s", stream->peer);
		r = lm_control_open(&c->control, stream, c->cancel_fd, err);
		if (r) {
			lm_stream_close(stream);
			return r;
		}
		r = lm_control_hello(&c->control, lm_deadline_after(LM_HELLO_TIMEOUT_NS), software, &e);
		if (!r)
			return lm_stream_set_peer_timeout(stream, c->opt.peer_timeout_ns, err);
		if (r == -EPROTONOSUPPORT) {
			*err = e;
			return r;
		}
		lm_ctx_log(c, LM_LOG_WARN, "a connection from %s was dropped: %s", c->peer, e.msg);
		lm_control_close(&c->control);
		r = lm_ctx_check_cancel(c, err);
		if (r)
			return r;
	}
}
