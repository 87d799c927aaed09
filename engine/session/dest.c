/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination: a const table of what may come in which state.  A message that
 * is not listed fails the session.  It runs the guest only when it has every page,
 * has loaded the device state, has made the source's access to its memory
 * impossible, and has received COMMIT.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include "engine/base/clock.h"
#include "engine/base/cleanup.h"
#include "session.h"
#include "engine/base/testhook.h"

/* Device state that --verify holds back, bytes. */
#define HELD_START (1u << 20)
#define HELD_MAX   (1u << 30)

int lm_dest_listen(struct lm_session *s, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_LISTENING };
	int r = lm_stream_listen(s->opt.address, s->opt.insecure, &s->dst.listen_fd, s->address, err);

	if (r)
		return r;
	e.u.listening.address = s->address;
	lm_session_event(s, &e);
	return 0;
}

/* ---- switchover ---- */

int lm_dest_begin_load(struct lm_session *s, struct lm_error *err)
{
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "socket for the device state");
	s->dst.state_fd = pair[0];
	s->dst.load_begun = true;
	lm_guardian_pause(&s->guardian, LM_NO_DEADLINE);
	r = lm_vm_state_load(s->vm, pair[1], err);
	lm_close_fd(&pair[1]);
	return r;
}

static int handle_prepare(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	int r;

	if (msg->len)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: PREPARE length");
	s->patience_ns = 0;
	r = lm_session_be_patient(s, false, err);
	if (!r)
		r = lm_session_stage(s, "prepare", err);
	if (r)
		return r;
	lm_session_urgent(s, true);
	r = lm_dest_begin_load(s, err);
	if (!r)
		r = lm_session_stage(s, "prepared", err);
	if (r)
		return r;
	return lm_control_send(&s->control, LM_MSG_PREPARED, NULL, 0, lm_session_peer_deadline(s), err);
}

int lm_dest_write_state(struct lm_session *s, const uint8_t *p, size_t len, struct lm_error *err)
{
	int64_t deadline = lm_session_vm_deadline(s);

	while (len) {
		ssize_t n = send(s->dst.state_fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			struct pollfd pfd = { .fd = s->dst.state_fd, .events = POLLOUT };

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

/*
 * Loading writes to guest memory here and there (KVM renews the guest's clock page), so with
 * --verify the VM gets its state when the memory was compared.
 */
static bool holds_state(const struct lm_session *s)
{
	return s->dst.open.verify && !lm_broken("verify-hold");
}

static int hold_state(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	size_t need = s->dst.state_bytes + msg->len, room = s->dst.held_room ? s->dst.held_room : HELD_START;
	uint8_t *p;

	if (need > HELD_MAX)
		return lm_err(err, -E2BIG, LM_SCOPE_SESSION, "the device state is larger than %u MiB: migrate without --verify",
			      HELD_MAX >> 20);
	while (room < need)
		room *= 2;
	p = room > s->dst.held_room ? realloc(s->dst.held, room) : s->dst.held;
	if (!p)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	s->dst.held = p;
	s->dst.held_room = room;
	memcpy(p + s->dst.state_bytes, msg->payload, msg->len);
	return 0;
}

static int handle_state(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	int r;

	if (msg->len > LM_WIRE_STATE_MAX)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: STATE length");
	if (!s->dst.state_bytes && lm_session_stage(s, "loading", err))
		return err->code;
	if (holds_state(s))
		r = hold_state(s, msg, err);
	else
		r = lm_dest_write_state(s, msg->payload, msg->len, err);
	s->dst.state_bytes += msg->len;
	return r;
}

static int check_saved(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_wire_saved saved;
	uint8_t hash[16];
	int r = lm_wire_get_saved(msg->payload, msg->len, &saved, err);

	if (r)
		return r;
	if (lm_le64_get(saved.state_bytes) != s->dst.state_bytes)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "device state is incomplete: %llu of %llu bytes",
			      (unsigned long long)s->dst.state_bytes,
			      (unsigned long long)lm_le64_get(saved.state_bytes));
	/* A dropped lane has placed an unknown part of what then went out again. */
	if (!s->dst.lane_dropped && lm_le64_get(saved.lane_bytes) != s->summary.bytes)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "pages are missing: %llu of %llu bytes came in",
			      (unsigned long long)s->summary.bytes,
			      (unsigned long long)lm_le64_get(saved.lane_bytes));
	if (s->pull.armed != s->pull.known ||
	    (s->pull.known && s->pull.puller.arrival.left < lm_le64_get(saved.left_pages)))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "not all pages that stay behind were named");
	if (!s->dst.open.verify)
		return 0;
	r = lm_fault_point("comparing", err);
	if (!r)
		r = lm_ram_hash(&s->ram, hash, err);
	if (!r && memcmp(hash, saved.ram_hash, sizeof(hash)))
		r = lm_err(err, -EBADMSG, LM_SCOPE_SESSION,
			   "--verify: the guest's memory differs from the source's: please report this");
	return r;
}

/*
 * SAVED follows the confirmed flush of all lanes: nothing more is due on them.  They
 * are closed here, before LOADED, so that nothing has to be fenced after COMMIT.
 */
static int handle_saved(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_wire_times times = { 0 };
	int64_t begin = lm_now_ns(), fenced;
	int r;

	if (!holds_state(s))
		shutdown(s->dst.state_fd, SHUT_WR); /* the VM loads meanwhile */
	lm_dest_fence(s);
	fenced = lm_now_ns();
	/* After the lanes' threads have ended: the flush is confirmed before its bytes are counted. */
	s->summary.bytes = lm_dest_placed_bytes(s);
	r = check_saved(s, msg, err);
	if (!r && holds_state(s)) {
		r = lm_dest_write_state(s, s->dst.held, s->dst.state_bytes, err);
		shutdown(s->dst.state_fd, SHUT_WR);
	}
	if (!r)
		r = lm_vm_state_wait(s->vm, lm_session_vm_deadline(s), err);
	if (r)
		return r;
	s->dst.load_ns = lm_now_ns() - begin;
	lm_session_log(s, LM_LOG_DEBUG, "device state: the lanes were fenced after %.2f ms, the VM had loaded it after %.2f ms",
		       (double)(fenced - begin) / 1e6, (double)s->dst.load_ns / 1e6);
	times.load_ns = lm_le64((uint64_t)s->dst.load_ns);
	r = lm_session_stage(s, "loaded", err);
	return r ? r : lm_control_send(&s->control, LM_MSG_LOADED, &times, sizeof(times),
				       lm_session_peer_deadline(s), err);
}

/* A VM that has ended before it was told to run has never run: the source may go on. */
static int check_vm_lives(const struct lm_session *s, struct lm_error *err)
{
	struct pollfd p = { .fd = s->vm->pidfd, .events = POLLIN };

	return poll(&p, 1, 0) > 0 ? lm_err(err, -ESRCH, LM_SCOPE_VM, "the destination's QEMU has exited") : 0;
}

int lm_dest_run_guest(struct lm_session *s, bool run, struct lm_vm_times *times, struct lm_error *err)
{
	int r = lm_session_stage(s, "fenced", err);

	if (r || !run)
		return r;
	r = check_vm_lives(s, err);
	if (r)
		return r;
	r = lm_vm_resume(s->vm, lm_deadline_after(LM_RESUME_TIMEOUT_NS), times, err);
	s->dst.may_have_run = r && (err->scope == LM_SCOPE_VM || r == -ETIMEDOUT);
	return r;
}

static int handle_commit(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_wire_times answer = { 0 };
	struct lm_vm_times times = { 0 };
	struct lm_error e = { 0 };
	int64_t begin = lm_now_ns();
	uint32_t flags;
	bool run;
	int r = lm_wire_get_u32(msg->payload, msg->len, "COMMIT", &flags, err);

	if (!r && flags & ~LM_COMMIT_RUN)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: COMMIT flags");
	if (!r && s->handover.offer.n != s->handover.locks.n)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent COMMIT, but did not offer the storage locks");
	if (!r)
		r = lm_session_stage(s, "commit", err);
	if (r)
		return r;
	run = (flags & LM_COMMIT_RUN) && !s->opt.start_paused;
	lm_guardian_run(&s->guardian, run);
	lm_guardian_notes(&s->guardian, &s->handover.offer);
	lm_guardian_commit(&s->guardian);
	s->dst.committed = true;
	if (!lm_broken("lock-take"))
		r = lm_handover_take(s, err);
	if (!r)
		r = lm_dest_run_guest(s, run, &times, err);
	if (!r && lm_broken("lock-take"))
		r = lm_handover_take(s, err);
	if (r)
		return r;
	lm_guardian_idle(&s->guardian);
	s->pull.began_ns = lm_now_ns();
	s->summary.guest_runs_here = run;
	answer.load_ns = lm_le64((uint64_t)s->handover.take_ns);
	answer.resume_ns = lm_le64((uint64_t)(lm_now_ns() - begin));
	s->summary.blackout.lock_ns = s->summary.blackout.lock_take_ns = s->handover.take_ns;
	s->summary.blackout.resume_ns = lm_now_ns() - begin - s->handover.take_ns;
	r = lm_session_stage(s, "resumed", &e);
	if (!r)
		r = lm_control_send(&s->control, LM_MSG_RESUMED, &answer, sizeof(answer),
				    lm_session_peer_deadline(s), &e);
	if (r && s->pull.armed)
		lm_session_log(s, LM_LOG_WARN, "the guest runs here, but the source could not be told yet (%s)", e.msg);
	else if (r) /* The guest runs here all the same: the source is in doubt, we are not. */
		lm_session_log(s, LM_LOG_WARN, "the guest runs here, but the source could not be told (%s): it "
			       "reports `in doubt`; resolve it there with --end-here", e.msg);
	lm_session_urgent(s, false);
	if (!s->pull.armed)
		lm_handover_keep(s);
	return 0;
}

/* ---- the table ---- */

struct dest_rule {
	enum lm_dest_state state;
	enum lm_msg_type type;
	int (*handle)(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
	enum lm_dest_state next;
};

static const struct dest_rule rules[] = {
	{ LM_DEST_OPENING, LM_MSG_OPEN, lm_dest_handle_open, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LANE_DROP, lm_dest_lane_drop, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LANE_OPEN, lm_dest_lane_open, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_POSTCOPY, lm_postcopy_arm, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_POSTCOPY_KEYS, lm_postcopy_keys, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LEFT, lm_postcopy_left, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LOCK_ANNOUNCE, lm_handover_prepare, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_PREPARE, handle_prepare, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_LEFT, lm_postcopy_left, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_LANE_DROP, lm_dest_lane_drop, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_LANE_OPEN, lm_dest_lane_open, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_STATE, handle_state, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_SAVED, handle_saved, LM_DEST_LOADED },
	{ LM_DEST_LOADED, LM_MSG_LOCK_OFFER, lm_handover_offered, LM_DEST_LOADED },
	{ LM_DEST_LOADED, LM_MSG_COMMIT, handle_commit, LM_DEST_DONE },
};

static int dispatch(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		int r;

		if (rules[i].state != s->dst.state || rules[i].type != msg->type)
			continue;
		/* Whatever follows may need what an attempt uses, such as the listener; LANE_DROP ends it. */
		if (msg->type != LM_MSG_LANE_DROP)
			lm_dest_reopen_wait(s);
		r = rules[i].handle(s, msg, err);
		if (!r)
			s->dst.state = rules[i].next;
		return r;
	}
	return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s, which is not legal at this stage",
		      lm_msg_name(msg->type));
}

/*
 * The source pings every second while it copies, may be busy with its VM for
 * qmp_timeout, and until PREPARE the network may be away for recover_timeout.  A PING is a
 * sign of life, though not a message: a copy takes as long as it takes.
 */
int lm_dest_next_message(struct lm_session *s, struct lm_msg *msg, struct lm_error *err)
{
	int64_t silence_ns = s->opt.peer_timeout_ns + s->opt.qmp_timeout_ns + s->patience_ns, begin = lm_now_ns(), heard;
	int r;

	do {
		heard = s->control.last_heard_ns > begin ? s->control.last_heard_ns : begin;
		r = lm_control_recv(&s->control, msg, heard + silence_ns, err);
	} while (r == -ETIMEDOUT && !s->control.peer_aborted && s->control.last_heard_ns > heard);
	return r;
}

static int serve(struct lm_session *s, struct lm_error *err)
{
	while (s->dst.state != LM_DEST_DONE) {
		struct lm_msg msg;
		int r = lm_dest_next_message(s, &msg, err);

		if (!r)
			r = dispatch(s, &msg, err);
		if (r)
			return r;
		/* Teeth: without the rule "run only after COMMIT". */
		if (s->dst.state == LM_DEST_LOADED && lm_broken("commit"))
			lm_vm_resume(s->vm, lm_session_vm_deadline(s), NULL, NULL);
	}
	return 0;
}

/* Wait for a connection, and notice when the VM that waits with us has gone. */
static int accept_one(struct lm_session *s, int64_t deadline_ns, struct lm_stream **ret, struct lm_error *err)
{
	for (;;) {
		struct pollfd p = { .fd = s->vm->pidfd, .events = POLLIN };
		int64_t step = lm_deadline_min(deadline_ns, lm_deadline_after(LM_NS_PER_S));
		int r = lm_stream_accept(s->dst.listen_fd, s->opt.insecure, step, s->cancel_fd, ret, err);

		if (r != -ETIMEDOUT)
			return r;
		if (poll(&p, 1, 0) > 0)
			return lm_err(err, -ESRCH, LM_SCOPE_VM, "the destination's QEMU has exited");
		if (lm_now_ns() >= deadline_ns)
			return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "no source came within --timeout");
	}
}

/* Strangers (a port scanner, a health check) must not end the wait. */
int lm_dest_accept(struct lm_session *s, int64_t deadline, struct lm_error *err)
{
	for (;;) {
		struct lm_error e = { 0 };
		struct lm_stream *stream;
		char software[32];
		int r = accept_one(s, deadline, &stream, err);

		if (r)
			return r;
		snprintf(s->peer, sizeof(s->peer), "%s", stream->peer);
		r = lm_control_open(&s->control, stream, s->cancel_fd, err);
		if (r) {
			lm_stream_close(stream);
			return r;
		}
		r = lm_control_hello(&s->control, lm_deadline_after(LM_HELLO_TIMEOUT_NS), software, &e);
		if (!r)
			return lm_stream_set_peer_timeout(stream, s->opt.peer_timeout_ns, err);
		if (r == -EPROTONOSUPPORT) {
			*err = e;
			return r;
		}
		lm_session_log(s, LM_LOG_WARN, "a connection from %s was dropped: %s", s->peer, e.msg);
		lm_control_close(&s->control);
		r = lm_session_check_cancel(s, err);
		if (r)
			return r;
	}
}

/*
 * Before the answer to COMMIT everything that fails ends this VM (it has half a
 * guest) once loading has begun.  After COMMIT, too: when it could not run and is
 * known to be gone, ABORT tells the source that it may resume.
 */
bool lm_dest_undo(struct lm_session *s, const struct lm_error *why)
{
	struct lm_error e = { 0 };
	bool ended = !s->dst.load_begun;

	lm_close_fd(&s->dst.state_fd);
	if (s->dst.may_have_run)
		return false; /* what it did is in the world: the source must not go on from before */
	if (s->dst.load_begun) {
		ended = !lm_vm_end(s->vm, lm_deadline_after(LM_RESUME_TIMEOUT_NS), &e);
		lm_session_log(s, ended ? LM_LOG_INFO : LM_LOG_ERROR, "%s%s",
			       ended ? "the destination's QEMU was ended: it held half a guest" :
				       "the destination's QEMU could not be ended: ", e.msg);
	}
	if (ended)
		lm_guardian_idle(&s->guardian);
	if (ended)
		lm_handover_give_back(s);
	if (s->control.stream && (ended || !s->dst.committed))
		lm_control_send_abort(&s->control, why, lm_deadline_after(LM_ABORT_TIMEOUT_NS));
	return ended;
}

int lm_dest_run(struct lm_session *s, struct lm_error *err)
{
	int r = lm_session_stage(s, "open", err);

	if (s->recovering)
		return r ? r : lm_postcopy_pull(s, err);
	if (!r)
		r = lm_dest_accept(s, lm_deadline_after(s->opt.timeout_ns), err);
	if (!r)
		r = lm_session_stage(s, "opened", err);
	if (!r)
		r = serve(s, err);
	if (r) {
		lm_dest_fence(s);
		lm_dest_undo(s, err);
	}
	lm_session_urgent(s, false);
	if (r)
		return r;
	if (s->pull.armed) {
		r = lm_postcopy_pull(s, err);
		if (!r)
			lm_handover_keep(s); /* while pages are missing the VM may not answer */
	}
	return r ? r : lm_session_stage(s, "done", err);
}

void lm_dest_cleanup(struct lm_session *s)
{
	lm_dest_fence(s);
	lm_close_fd(&s->dst.state_fd);
	lm_close_fd(&s->dst.listen_fd);
	if (s->dst.reopen.params.nlanes)
		lm_close_fd(&s->dst.reopen.stop_fd);
	free(s->dst.held);
	s->dst.held = NULL;
	free(s->dst.placed);
	free(s->dst.lane_errors);
	s->dst.placed = NULL;
	s->dst.lane_errors = NULL;
}
