/* SPDX-License-Identifier: Apache-2.0 */
/* The source: pause with QEMU's own migration, let the state out, or take it all back. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "qemu_priv.h"

/*
 * A transaction without actions drains all block devices first: it is answered
 * when every request that was in flight has landed.
 */
int qemu_drain(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	struct json_object *args = json_object_new_object();
	int r;

	json_object_object_add(args, "actions", json_object_new_array());
	r = lm_qmp_execute(qemu_of(vm)->qmp, "transaction", args, deadline_ns, NULL, err);
	if (r == -ETIMEDOUT)
		return lm_err(err, r, LM_SCOPE_SESSION,
			      "the guest's disk requests do not end: a disk hangs (or QEMU does not answer)");
	return r;
}

int qemu_give_state_fd(struct qemu *q, int state_fd, struct lm_error *err)
{
	lm_close_fd(&q->state_fd);
	q->state_fd = fcntl(state_fd, F_DUPFD_CLOEXEC, 3);
	if (q->state_fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot keep the socket of the device state");
	return lm_qmp_getfd(q->qmp, QEMU_FD_NAME, state_fd, qemu_deadline(q), err);
}

static int running_read(struct qemu *q, struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);

	if (r)
		return r;
	if (qemu_migration_active(st.migration))
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION, "somebody else has started a migration of this "
				"guest (%s)",
			      st.migration);
	q->was_running = q->base.info.running = st.running;
	return 0;
}

int qemu_pause_start(struct lm_vm *vm, int state_fd, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	int r = qemu_caps_set(q, err);

	if (!r)
		r = running_read(q, err);
	if (r)
		return r;
	qemu_seen_reset(q);
	r = qemu_give_state_fd(q, state_fd, err);
	if (r)
		return r;
	r = qemu_ask(q, "migrate", lm_js_strings("uri", "fd:" QEMU_FD_NAME, NULL), NULL, err);
	if (r == -EREMOTEIO) /* QEMU keeps the descriptor: take it back */
		qemu_ask(q, "closefd", lm_js_strings("fdname", QEMU_FD_NAME, NULL), NULL, NULL);
	return r;
}

static bool migration_is(const struct qemu *q, const char *status)
{
	return !strcmp(q->seen.migration, status);
}

static bool migration_ended(const struct qemu *q)
{
	return migration_is(q, "completed") || migration_is(q, "failed") || migration_is(q, "cancelled") ||
	       migration_is(q, "cancelling");
}

static bool paused_or_ended(void *opaque)
{
	const struct qemu *q = opaque;

	return migration_is(q, "pre-switchover") || migration_ended(q) || q->seen.shutdown;
}

static bool migration_has_ended(void *opaque)
{
	return migration_ended(opaque);
}

/* The session is lost but the guest is not: QEMU runs it again, or resume does. */
static int migration_error(struct qemu *q, struct lm_error *err)
{
	struct qemu_status st;
	int r;

	if (q->seen.shutdown)
		return lm_err(err, -ESHUTDOWN, LM_SCOPE_SESSION, "the guest was shut down during the migration");
	r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);
	if (r)
		return r;
	if (migration_is(q, "cancelled") || migration_is(q, "cancelling"))
		return lm_err(err, -ECONNABORTED, LM_SCOPE_SESSION,
			      "somebody else has cancelled QEMU's migration (another QMP client?)");
	return lm_err(err, -EREMOTEIO, LM_SCOPE_SESSION, "QEMU could not save the device state: %s (%s)",
		      st.error[0] ? st.error : "see its log", q->seen.migration);
}

int qemu_pause_wait(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	int r = lm_qmp_wait(q->qmp, paused_or_ended, q, lm_now_ns() + timeout_ms * LM_NS_PER_MS, err);

	if (r == -ETIMEDOUT)
		return -EAGAIN;
	if (r)
		return r;
	if (!migration_is(q, "pre-switchover") || q->seen.shutdown)
		return migration_error(q, err);
	/* a guest that was paused before does not stop again */
	ret->stopped_ns = q->seen.stopped ? q->seen.stopped_ns : q->seen.migration_ns;
	return 0;
}

int qemu_state_save(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	int r = qemu_ask(q, "migrate-continue", lm_js_strings("state", "pre-switchover", NULL), NULL, err);

	if (!r)
		r = lm_qmp_wait(q->qmp, migration_has_ended, q, deadline_ns, err);
	if (r == -ETIMEDOUT)
		return lm_err(err, r, LM_SCOPE_SESSION, "QEMU did not save the device state in time");
	if (!r && !migration_is(q, "completed"))
		r = migration_error(q, err);
	if (!r)
		lm_close_fd(&q->state_fd);
	return r;
}

/*
 * While QEMU saves the device state its main loop waits for the socket: a reader
 * that has stopped reading would keep it from hearing us.  Shutting the socket
 * makes the write fail, and QEMU goes back by itself.
 */
int qemu_undo(struct qemu *q, int64_t deadline_ns, struct lm_error *err)
{
	struct qemu_status st;
	int r;

	if (q->state_fd >= 0)
		shutdown(q->state_fd, SHUT_RDWR);
	lm_close_fd(&q->state_fd);
	r = qemu_settle(q->qmp, deadline_ns, &st, err);
	if (r || st.running || !q->was_running)
		return r;
	return qemu_cont(q->qmp, deadline_ns, err);
}
