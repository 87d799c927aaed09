/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/base/testhook.h"
#include "engine/base/urgent.h"
#include "context.h"

void lm_ctx_event(struct lm_ctx *c, struct lm_event *event)
{
	if (!c->opt.event)
		return;
	event->time_ns = lm_clock_ns(CLOCK_REALTIME);
	c->opt.event(c->opt.event_opaque, event);
}

void lm_ctx_log(struct lm_ctx *c, enum lm_log_level level, const char *fmt, ...)
{
	struct lm_event e = { .type = LM_EVENT_LOG };
	char text[LM_ERROR_MSG_MAX + 128];
	va_list ap;

	if (level > c->opt.log_level)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	e.u.log.level = level;
	e.u.log.text = text;
	lm_ctx_event(c, &e);
}

int lm_ctx_stage(struct lm_ctx *c, const char *name, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_STAGE };

	e.u.stage.name = name;
	lm_ctx_event(c, &e);
	return lm_fault_point(name, err);
}

void lm_ctx_opened(struct lm_ctx *c, const char *peer)
{
	struct lm_event e = { .type = LM_EVENT_OPENED };

	c->opened = true;
	e.u.opened.transport = c->summary.transport;
	e.u.opened.lanes = c->summary.lanes;
	e.u.opened.ram_bytes = c->summary.ram_bytes;
	e.u.opened.peer = peer;
	lm_ctx_event(c, &e);
}

/* ---- cancelling ---- */

void lm_ctx_cancel(struct lm_ctx *c)
{
	uint64_t one = 1;

	if (write(c->cancel_fd, &one, sizeof(one)) < 0)
		return; /* the counter is at its limit: it is readable, which is all we want */
}

int lm_ctx_check_cancel(struct lm_ctx *c, struct lm_error *err)
{
	uint64_t n;

	/* Others poll it too, so put the value back. */
	if (read(c->cancel_fd, &n, sizeof(n)) != sizeof(n))
		return 0;
	lm_ctx_cancel(c);
	return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "cancelled");
}

void lm_ctx_forget_cancel(struct lm_ctx *c)
{
	uint64_t n;

	if (read(c->cancel_fd, &n, sizeof(n)) < 0)
		return; /* nobody asked */
}

/* ---- time ---- */

int64_t lm_ctx_peer_deadline(const struct lm_ctx *c)
{
	int64_t deadline = lm_deadline_after(c->opt.peer_timeout_ns);

	/* A paused guest waits for an answer no longer than --max-pause; COMMIT is never sent later than that. */
	if (c->pause_begun && !c->commit_sent)
		deadline = lm_deadline_min(deadline, c->deadline_ns);
	return deadline;
}

int64_t lm_ctx_vm_deadline(const struct lm_ctx *c)
{
	return lm_deadline_after(c->opt.qmp_timeout_ns);
}

int lm_ctx_bear_outage(struct lm_ctx *c, bool bear, struct lm_error *err)
{
	int64_t max_ns = INT32_MAX * LM_NS_PER_MS - c->opt.peer_timeout_ns; /* what TCP takes */
	int64_t more_ns = bear ? lm_deadline_min(c->outage_ns, max_ns) : 0;

	return lm_stream_set_peer_timeout(c->control.stream, c->opt.peer_timeout_ns + (more_ns > 0 ? more_ns : 0), err);
}

void lm_ctx_urgent(struct lm_ctx *c, bool urgent)
{
	if (urgent == c->urgent || (urgent && lm_broken("urgent")))
		return;
	if (urgent)
		c->nice = lm_urgent_begin(0);
	else
		lm_urgent_end(0, c->nice);
	if (c->pool)
		lm_pool_set_urgent(c->pool, urgent);
	c->urgent = urgent;
}

/* ---- the VM, the end ---- */

bool lm_ctx_vm_gone(const struct lm_ctx *c)
{
	struct pollfd p = { .fd = c->vm->pidfd, .events = POLLIN };

	return poll(&p, 1, 1000) > 0;
}

void lm_ctx_fini(struct lm_ctx *c)
{
	lm_control_close(&c->control);
	lm_pool_free(c->pool);
	lm_transport_free(c->transport);
	lm_close_fd(&c->listen_fd);
	lm_vm_detach(c->vm);
	lm_ram_fini(&c->ram);
	lm_close_fd(&c->cancel_fd);
	free(c->owned);
}
