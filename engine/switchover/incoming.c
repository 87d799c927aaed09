/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "incoming.h"

/* ---- device state ---- */

int lm_incoming_begin_load(struct lm_incoming *in, struct lm_error *err)
{
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "socket for the device state");
	in->state_fd = pair[0];
	in->load_begun = true;
	lm_guardian_pause(in->guardian, LM_NO_DEADLINE);
	r = lm_vm_state_load(in->c->vm, pair[1], err);
	lm_close_fd(&pair[1]);
	return r;
}

int lm_incoming_write_state(struct lm_incoming *in, const uint8_t *p, size_t len, struct lm_error *err)
{
	int64_t deadline = lm_ctx_vm_deadline(in->c);

	while (len) {
		ssize_t n = send(in->state_fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			struct pollfd pfd = { .fd = in->state_fd, .events = POLLOUT };

			if (poll(&pfd, 1, lm_deadline_poll_ms(deadline)) || lm_now_ns() < deadline)
				continue;
			return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the VM does not take its device state");
		}
		if (n < 0)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
					    "the VM refused the device state (its own messages say why)");
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

void lm_incoming_end_state(struct lm_incoming *in)
{
	shutdown(in->state_fd, SHUT_WR);
}

/* ---- the guest runs ---- */

int lm_incoming_parse_commit(const struct lm_msg *msg, bool *ret_run, struct lm_error *err)
{
	uint32_t flags;
	int r = lm_wire_get_u32(msg->payload, msg->len, "COMMIT", &flags, err);

	if (!r && flags & ~LM_COMMIT_RUN)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: COMMIT flags");
	if (!r)
		*ret_run = flags & LM_COMMIT_RUN;
	return r;
}

void lm_incoming_commit(struct lm_incoming *in, bool run)
{
	lm_guardian_run(in->guardian, run);
	lm_guardian_notes(in->guardian, &in->handover->offer);
	lm_guardian_commit(in->guardian);
	in->committed = true;
}

/* A VM that has ended before it was told to run has never run: the source may go on. */
static int check_vm_lives(const struct lm_ctx *c, struct lm_error *err)
{
	struct pollfd p = { .fd = c->vm->pidfd, .events = POLLIN };

	return poll(&p, 1, 0) > 0 ? lm_err(err, -ESRCH, LM_SCOPE_VM, "the destination's QEMU has exited") : 0;
}

int lm_incoming_run_guest(struct lm_incoming *in, bool run, struct lm_error *err)
{
	struct lm_ctx *c = in->c;
	struct lm_vm_times unused = { 0 };
	int r = lm_ctx_stage(c, "fenced", err);

	if (r || !run)
		return r;
	r = check_vm_lives(c, err);
	if (r)
		return r;
	r = lm_vm_resume(c->vm, lm_deadline_after(LM_RESUME_TIMEOUT_NS), &unused, err);
	in->may_have_run = r && (err->scope == LM_SCOPE_VM || r == -ETIMEDOUT);
	return r;
}

int lm_incoming_send_resumed(struct lm_incoming *in, int64_t resume_ns, struct lm_error *err)
{
	struct lm_ctx *c = in->c;
	const struct lm_wire_times answer = { .load_ns = lm_le64((uint64_t)in->handover->take_ns),
					      .resume_ns = lm_le64((uint64_t)resume_ns) };

	return lm_control_send(&c->control, LM_MSG_RESUMED, &answer, sizeof(answer), lm_ctx_peer_deadline(c), err);
}

void lm_incoming_warn_untold(struct lm_incoming *in, bool comes_back, const struct lm_error *why)
{
	if (comes_back)
		lm_ctx_log(in->c, LM_LOG_WARN, "the guest runs here, but the source could not be told yet (%s)", why->msg);
	else
		lm_ctx_log(in->c, LM_LOG_WARN, "the guest runs here, but the source could not be told (%s): it "
			   "reports `in doubt`; resolve it there with --end-here", why->msg);
}

/* ---- it will not ---- */

static bool end_vm(struct lm_ctx *c)
{
	struct lm_error e = { 0 };
	bool ended = !lm_vm_end(c->vm, lm_deadline_after(LM_RESUME_TIMEOUT_NS), &e);

	lm_ctx_log(c, ended ? LM_LOG_INFO : LM_LOG_ERROR, "%s%s",
		   ended ? "the destination's QEMU was ended, because it had received only a part of the guest" :
		   "the destination's QEMU could not be ended: ", e.msg);
	return ended;
}

bool lm_incoming_undo(struct lm_incoming *in, const struct lm_error *why)
{
	struct lm_ctx *c = in->c;
	bool ended;

	lm_close_fd(&in->state_fd);
	if (in->may_have_run)
		return false; /* it may have written to disks: the source must not go on from an older state */
	ended = !in->load_begun || end_vm(c);
	if (ended) {
		lm_guardian_idle(in->guardian);
		lm_handover_give_back(in->handover);
	}
	/* After COMMIT only when the VM is known to be gone: ABORT tells the source that it may resume. */
	if (c->control.stream && (ended || !in->committed))
		lm_control_send_abort(&c->control, why, lm_deadline_after(LM_ABORT_TIMEOUT_NS));
	return ended;
}

void lm_incoming_fini(struct lm_incoming *in)
{
	lm_close_fd(&in->state_fd);
}
