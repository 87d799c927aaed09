/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For the guardian: a QEMU whose engine is dead is brought to a certain state.  This code does not
 * know what the engine had done: it asks QEMU.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include "engine/base/cleanup.h"
#include "qemu_priv.h"

#define QEMU_QUIT_NS (3 * LM_NS_PER_S) /* for the way out: disks are flushed */

/* A copy, so that closing the client leaves the caller's descriptor alone. */
static int adopt(int qmp_fd, int64_t deadline_ns, struct lm_qmp **ret, struct lm_error *err)
{
	int fd = fcntl(qmp_fd, F_DUPFD_CLOEXEC, 3), r;

	if (fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot copy the QMP connection");
	r = lm_qmp_adopt(fd, ret, err);
	if (!r)
		r = lm_qmp_resync(*ret, deadline_ns, err);
	return r;
}

/*
 * After a cancelled or failed migration QEMU itself runs a guest that ran before.
 * "postmigrate" is left when the migration had completed.  A guest that is simply
 * "paused" was paused by somebody else: it stays so.
 */
static int undo(struct lm_qmp *qmp, bool run, int64_t deadline_ns, struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_settle(qmp, deadline_ns, &st, err);

	if (r || st.running || !run || strcmp(st.run, "postmigrate"))
		return r;
	return qemu_cont(qmp, deadline_ns, err);
}

static int run_loaded(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_status_read(qmp, deadline_ns, &st, err);

	if (r || st.running)
		return r;
	if (!strcmp(st.run, "inmigrate") || strcmp(st.migration, "completed"))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			      "this QEMU has no whole guest to run (%s, incoming migration: "
			      "%s)", st.run, st.migration);
	return qemu_cont(qmp, deadline_ns, err);
}

static bool never(void *opaque)
{
	(void)opaque;
	return false;
}

/* 0 when QEMU has closed the connection, which it does when it ends. */
int qemu_quit(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err)
{
	int r = lm_qmp_execute(qmp, "quit", NULL, deadline_ns, NULL, err);

	if (!r)
		r = lm_qmp_wait(qmp, never, NULL, deadline_ns, err);
	return r == -ECONNRESET || r == -EPIPE ? 0 : r;
}

static bool process_gone(int pidfd, int64_t deadline_ns)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	while (poll(&p, 1, lm_deadline_poll_ms(deadline_ns)) < 0 && errno == EINTR)
		;
	return p.revents != 0;
}

/*
 * QEMU is asked to end, which closes its disks in order; one that does not is
 * killed: in it is a guest that must never run.
 */
static int end(int guardian_fd, int pidfd, int64_t deadline_ns, struct lm_error *err)
{
	int64_t polite_ns = lm_deadline_min(deadline_ns, lm_now_ns() + QEMU_QUIT_NS);
	struct lm_qmp *qmp = NULL;

	if (!process_gone(pidfd, 0) && !adopt(guardian_fd, polite_ns, &qmp, NULL))
		qemu_quit(qmp, polite_ns, NULL);
	lm_qmp_close(qmp);
	if (process_gone(pidfd, polite_ns))
		return 0;
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
		return lm_err_errno(err, -errno, LM_SCOPE_VM, "QEMU does not end and cannot be killed");
	if (!process_gone(pidfd, lm_now_ns() + QEMU_QUIT_NS))
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_VM, "QEMU was killed, but has not ended");
	return 0;
}

int qemu_force(int guardian_fd, int pidfd, enum lm_force what, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_qmp *qmp = NULL;
	int r;

	if (what == LM_FORCE_END)
		return end(guardian_fd, pidfd, deadline_ns, err);
	r = adopt(guardian_fd, deadline_ns, &qmp, err);
	if (!r)
		r = what == LM_FORCE_RUN ? run_loaded(qmp, deadline_ns, err) :
					    undo(qmp, what == LM_FORCE_UNDO_RUN, deadline_ns, err);
	lm_qmp_close(qmp);
	return r;
}
