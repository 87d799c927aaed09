/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "relay.h"
#include "engine/base/thread.h"

static int pass_on(struct lm_relay *r, const uint8_t *buf, size_t n)
{
	if (r->sink)
		return r->sink(r->opaque, buf, n, &r->error);
	return lm_control_send(r->control, LM_MSG_STATE, buf, n,
			       lm_deadline_min(lm_deadline_after(r->send_timeout_ns), r->deadline_ns), &r->error);
}

static void relay_loop(struct lm_relay *r, uint8_t *buf)
{
	for (;;) {
		ssize_t n = read(r->fd, buf, LM_WIRE_STATE_MAX);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			lm_err_errno(&r->error, -errno, LM_SCOPE_SESSION, "reading the device state");
		if (n <= 0)
			return;
		if (pass_on(r, buf, (size_t)n))
			return;
		atomic_fetch_add(&r->bytes, (uint64_t)n);
	}
}

static void *relay_main(void *arg)
{
	struct lm_relay *r = arg;
	uint8_t *buf = malloc(LM_WIRE_STATE_MAX);

	if (buf)
		relay_loop(r, buf);
	else
		lm_err(&r->error, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	free(buf);
	/* On an error the VM must not hang on a full socket. */
	shutdown(r->fd, SHUT_RDWR);
	return NULL;
}

/* What the thread needs to know is in *r already. */
static int start(struct lm_relay *r, int *ret_vm_fd, struct lm_error *err)
{
	int pair[2], e;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "socket for the device state");
	r->fd = pair[0];
	e = lm_thread_start(&r->thread, relay_main, r);
	if (e) {
		lm_close_fd(&pair[0]);
		lm_close_fd(&pair[1]);
		r->fd = -1;
		return lm_err_errno(err, e, LM_SCOPE_SESSION, "cannot start the relay");
	}
	r->running = true;
	*ret_vm_fd = pair[1];
	return 0;
}

int lm_relay_start(struct lm_relay *r, struct lm_control *control, int64_t send_timeout_ns,
		   int64_t deadline_ns, int *ret_vm_fd, struct lm_error *err)
{
	*r = (struct lm_relay){ .control = control, .fd = -1, .send_timeout_ns = send_timeout_ns,
				.deadline_ns = deadline_ns };
	return start(r, ret_vm_fd, err);
}

int lm_relay_start_sink(struct lm_relay *r, int (*sink)(void *opaque, const uint8_t *p, size_t len, struct lm_error *err),
			void *opaque, int *ret_vm_fd, struct lm_error *err)
{
	*r = (struct lm_relay){ .sink = sink, .opaque = opaque, .fd = -1 };
	return start(r, ret_vm_fd, err);
}

int lm_relay_finish(struct lm_relay *r, int64_t deadline_ns, struct lm_error *err)
{
	int64_t deadline = deadline_ns == LM_NO_DEADLINE ? deadline_ns :
							   lm_clock_ns(CLOCK_REALTIME) + deadline_ns - lm_now_ns();
	struct timespec t = { deadline / LM_NS_PER_S, deadline % LM_NS_PER_S };
	int e = pthread_timedjoin_np(r->thread, NULL, &t);

	if (e)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the VM did not end its device state");
	r->running = false;
	lm_close_fd(&r->fd);
	if (r->error.code) {
		if (err)
			*err = r->error;
		return r->error.code;
	}
	return 0;
}

void lm_relay_break(struct lm_relay *r)
{
	if (r->running)
		shutdown(r->fd, SHUT_RDWR);
}

void lm_relay_stop(struct lm_relay *r)
{
	if (!r->running)
		return;
	lm_relay_break(r);
	pthread_join(r->thread, NULL);
	r->running = false;
	lm_close_fd(&r->fd);
}
