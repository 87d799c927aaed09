/* SPDX-License-Identifier: Apache-2.0 */
/* The public way in: a session of the engine over a QEMU. */
#include <sys/eventfd.h>
#include "cleanup.h"
#include "clock.h"
#include "qemu.h"
#include "session.h"


static void attach_log(void *opaque, enum lm_log_level level, const char *text)
{
	const struct lm_options *o = opaque;
	struct lm_event e = { .type = LM_EVENT_LOG, .time_ns = lm_clock_ns(CLOCK_REALTIME) };

	if (!o->event || level > o->log_level)
		return;
	e.u.log.level = level;
	e.u.log.text = text;
	o->event(o->event_opaque, &e);
}

static int session_open(const struct lm_options *options, enum lm_side side, struct lm_session **ret,
			struct lm_error *err)
{
	int cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), r;
	struct lm_options *copy;
	struct lm_vm *vm;

	*ret = NULL;
	if (cancel_fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "eventfd");
	/* The VM logs through it for as long as it lives: it goes with the session. */
	copy = malloc(sizeof(*copy));
	if (copy)
		*copy = *options;
	r = copy ? 0 : lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	if (!r) {
		struct lm_qemu_options q = {
			.qmp = options->qmp, .pid = options->pid, .side = side,
			.timeout_ns = options->qmp_timeout_ns, .cancel_fd = cancel_fd,
			.log = attach_log, .log_opaque = copy,
		};

		r = lm_qemu_attach(&q, &vm, err);
	}
	if (r) {
		free(copy);
		lm_close_fd(&cancel_fd);
		return r;
	}
	return lm_session_new(copy, side, vm, cancel_fd, ret, err);
}

int lm_source_open(const struct lm_options *options, struct lm_session **ret_session, struct lm_error *err)
{
	return session_open(options, LM_SOURCE, ret_session, err);
}

int lm_dest_open(const struct lm_options *options, struct lm_session **ret_session, struct lm_error *err)
{
	return session_open(options, LM_DEST, ret_session, err);
}
