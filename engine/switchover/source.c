/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The switchover as the source drives it: PREPARE, pause, last copy, device state,
 * COMMIT.  engine/PROTOCOL.md draws it.  Until COMMIT is in the hands of the kernel
 * in full, every failure brings the guest back here; from then on only the
 * destination's word (RESUMED, or ABORT: "it never ran and never will") ends the
 * doubt.
 */
#include <string.h>
#include "engine/base/clock.h"
#include "engine/base/cleanup.h"
#include "engine/session/session.h"
#include "engine/base/testhook.h"

/*
 * RAM that was plugged or unplugged since the start: the map is old, so give up.
 * Asking takes a millisecond or two.  So it is done twice: while the guest still
 * runs, which finds all but a change in the last moment, and, for that one, while
 * the destination loads the device state and this side has nothing else to do.
 */
int lm_switchover_check_layout(struct lm_session *s, struct lm_error *err)
{
	bool same;
	int r;

	if (lm_broken("layout"))
		return 0;
	r = lm_vm_ram_is(s->vm, &s->ram, &same, err);
	if (!r && !same)
		r = lm_err(err, -ESTALE, LM_SCOPE_SESSION,
			   "the guest's memory was plugged, unplugged or resized during the migration: "
			   "give the destination the same memory and start again");
	return r;
}

/* Let the destination's VM wait for the device state. */
static int prepare(struct lm_session *s, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_switchover_check_layout(s, err);

	if (!r && s->src.postcopy)
		r = lm_postcopy_prepare(s, err);
	if (!r)
		r = lm_control_send(&s->control, LM_MSG_PREPARE, NULL, 0, lm_session_peer_deadline(s), err);
	return r ? r : lm_session_expect(s, LM_MSG_PREPARED, &msg, s->opt.peer_timeout_ns + s->opt.qmp_timeout_ns,
					 s->src.deadline_ns, err);
}

int lm_switchover_pause_vm(struct lm_session *s, int vm_fd, struct lm_error *err)
{
	int r;

	lm_guardian_pause(&s->guardian, s->src.deadline_ns);
	s->src.pause_begun = true;
	r = lm_vm_pause_start(s->vm, vm_fd, err);
	lm_close_fd(&vm_fd);
	lm_guardian_run(&s->guardian, s->vm->info.running); /* as pause_start found it */
	return r;
}

static int pause_start(struct lm_session *s, struct lm_error *err)
{
	int vm_fd, r;

	s->src.deadline_ns = lm_deadline_after(s->opt.max_pause_ns);
	r = lm_relay_start(&s->src.relay, &s->control, s->opt.peer_timeout_ns, s->src.deadline_ns, &vm_fd, err);
	return r ? r : lm_switchover_pause_vm(s, vm_fd, err);
}

/*
 * Wait until the guest has stopped.  QEMU first sends its private blocks (ROMs,
 * video memory); while that lasts, go on with rounds, so that the last one stays
 * small.
 */
static int pause_wait(struct lm_session *s, struct lm_error *err)
{
	struct lm_vm_times times = { 0 };
	int r;

	while ((r = lm_vm_pause_wait(s->vm, 20, &times, err)) == -EAGAIN) {
		r = lm_precopy_tick(s, err);
		if (r)
			return r;
	}
	s->src.stopped_seen_ns = lm_now_ns();
	s->src.stopped_realtime_ns = times.stopped_ns;
	s->summary.blackout.stop_ns = lm_clock_ns(CLOCK_REALTIME) - times.stopped_ns;
	return r;
}

static int last_copy(struct lm_session *s, struct lm_error *err)
{
	int r = lm_session_stage(s, "paused", err);

	return r ? r : lm_precopy_last(s, err);
}

static int send_saved(struct lm_session *s, struct lm_error *err)
{
	struct lm_wire_saved saved = {
		.state_bytes = lm_le64(atomic_load(&s->src.relay.bytes)),
		.lane_bytes = lm_le64(s->summary.bytes),
		.left_pages = lm_le64(s->summary.postcopy.left_pages),
	};
	int r = 0;

	if (s->opt.verify)
		r = lm_ram_hash(&s->ram, saved.ram_hash, err);
	s->summary.blackout.device_state_bytes = atomic_load(&s->src.relay.bytes);
	if (!r)
		r = lm_control_send(&s->control, LM_MSG_SAVED, &saved, sizeof(saved),
				    lm_session_peer_deadline(s), err);
	return r;
}

/* Until the last byte of the device state is on the control channel. */
int lm_switchover_save_state(struct lm_session *s, struct lm_error *err)
{
	int64_t begin = lm_now_ns(), completed;
	int r = lm_vm_state_save(s->vm, s->src.deadline_ns, err);

	completed = lm_now_ns();
	if (!r) {
		r = lm_relay_finish(&s->src.relay, s->src.deadline_ns, err);
	} else {
		lm_relay_stop(&s->src.relay); /* its error is ours now */
		if (s->src.relay.error.code == -EPIPE || s->src.relay.error.code == -ECONNRESET)
			*err = s->src.relay.error; /* the cause, not the effect */
	}
	lm_session_log(s, LM_LOG_DEBUG, "device state: the VM took %.2f ms, closing the stream %.2f ms",
		       (double)(completed - begin) / 1e6, (double)(lm_now_ns() - completed) / 1e6);
	return r;
}

static int device_state(struct lm_session *s, struct lm_error *err)
{
	int64_t begin = lm_now_ns(), saved, load_ns = 0, ignored;
	struct lm_msg msg;
	int r = lm_switchover_save_state(s, err);

	saved = lm_now_ns();
	if (!r)
		r = send_saved(s, err);
	if (!r)
		r = lm_session_stage(s, "saved", err);
	/* QEMU gave its disks up when it had saved the state: nothing is in flight, nothing will follow. */
	s->handover.quiet = true;
	if (!r && !lm_broken("lock-early"))
		r = lm_handover_offer(s, err);
	if (!r)
		r = lm_switchover_check_layout(s, err);
	/* A source QEMU that dies now is not missed: the whole guest is at the destination. */
	if (r && err->scope == LM_SCOPE_VM && lm_session_vm_gone(s))
		r = 0;
	if (!r)
		r = lm_control_expect(&s->control, LM_MSG_LOADED, &msg, s->src.deadline_ns, err);
	if (!r)
		r = lm_wire_get_times(msg.payload, msg.len, &load_ns, &ignored, err);
	s->summary.blackout.device_state_ns = lm_now_ns() - begin - s->handover.offer_ns;
	lm_session_log(s, LM_LOG_DEBUG, "device state: the destination had it loaded %.2f ms later (%.2f ms of it there)",
		       (double)(lm_now_ns() - saved) / 1e6, (double)load_ns / 1e6);
	return r ? r : lm_session_stage(s, "loaded", err);
}

static void blackout_account(struct lm_session *s, int64_t commit_ns, int64_t take_ns, int64_t resume_ns)
{
	struct lm_blackout *b = &s->summary.blackout;
	int64_t now = lm_now_ns(), back = (now - commit_ns - resume_ns) / 2;

	/* The guest ran when the destination said so; the answer then took half the rest of the round trip. */
	if (back < 0)
		back = 0;
	if (take_ns > resume_ns)
		take_ns = resume_ns; /* the peer's word */
	b->lock_offer_ns = s->handover.offer_ns;
	b->lock_take_ns = take_ns;
	b->lock_ns = b->lock_offer_ns + b->lock_take_ns;
	b->resume_ns = now - commit_ns - back - take_ns;
	b->total_ns = b->stop_ns + (now - s->src.stopped_seen_ns) - back;
}

/* For whoever goes on after our death: whether the guest may be at the destination. */
static void state_committed(struct lm_session *s, enum lm_pccommit committed)
{
	if (s->pull.armed)
		s->pull.state.head->committed = committed;
}

/* With locks: lock_r says why the guest may not run here. */
static int in_doubt(struct lm_session *s, const struct lm_error *why, int lock_r, const struct lm_error *lock,
		    struct lm_error *err)
{
	s->summary.outcome = LM_OUTCOME_IN_DOUBT;
	s->summary.guest_runs_here = false;
	if (lock_r == -ESTALE)
		return lm_err(err, why->code, LM_SCOPE_SESSION,
			      "in doubt: no answer to COMMIT came (%.120s), and the storage lock is nobody's now (%.160s). The "
			      "guest is paused here. When it is certain that it never ran there: `migrate-rdma resolve "
			      "--run-here`", why->msg, lock->msg);
	if (lm_locks_final(lock_r))
		return lm_err(err, why->code, LM_SCOPE_SESSION,
			      "no answer to COMMIT came (%.120s), but the destination has the storage lock (%.120s): the "
			      "guest is there, and paused here. When it is seen to run there, end this QEMU: "
			      "`migrate-rdma resolve --end-here`", why->msg, lock->msg);
	if (lock_r)
		return lm_err(err, why->code, LM_SCOPE_SESSION,
			      "in doubt: no answer to COMMIT came (%.120s), and the storage locks cannot be asked (%.120s). "
			      "The guest is paused here; when they can: `migrate-rdma resolve --auto`", why->msg, lock->msg);
	return lm_err(err, why->code, LM_SCOPE_SESSION,
		      "in doubt: COMMIT was sent and no answer came (%.200s). The guest is paused here; it runs on "
		      "the destination, or nowhere. Look there first, then `migrate-rdma resolve`", why->msg);
}

/* The destination never runs the guest: as if COMMIT had not been sent. */
static int uncommitted(struct lm_session *s, int r, const struct lm_error *why, struct lm_error *err)
{
	lm_guardian_extend(&s->guardian, lm_deadline_after(s->opt.max_pause_ns));
	lm_guardian_uncommit(&s->guardian);
	s->src.commit_sent = false;
	state_committed(s, LM_PC_NONE);
	if (err)
		*err = *why;
	return r;
}

/* No answer came: 0 when the locks are this host's again, so that the destination can never run the guest. */
static int ask_locks(struct lm_session *s, int *r, struct lm_msg *msg, struct lm_error *e, struct lm_error *lock)
{
	/* In post-copy it may be waiting for us with a guest that needs pages: no long questions. */
	int64_t patience_ns = s->pull.armed ? LM_NS_PER_S : LM_RESUME_TIMEOUT_NS;
	bool silent = *r == -ETIMEDOUT && !s->pull.armed;
	int lock_r;

	if (!s->handover.locks.n)
		return -ENOENT;
	lock_r = lm_handover_reclaim(s, lm_deadline_after(patience_ns), lock);
	/* It has them, and the connection stands: it is about to run the guest, or to give up. */
	if (lm_locks_final(lock_r) && silent) {
		lm_err_clear(e);
		*r = lm_control_recv(&s->control, msg, lm_session_peer_deadline(s), e);
	}
	return lock_r;
}

/* After COMMIT: RESUMED, ABORT (the destination gave up for certain), what the locks say, or doubt. */
static int await_resumed(struct lm_session *s, int64_t commit_ns, struct lm_error *err)
{
	struct lm_error e = { 0 }, lock = { 0 };
	int64_t take_ns = 0, resume_ns = 0;
	struct lm_msg msg;
	int r = lm_session_stage(s, "committed", &e), lock_r = 0;

	if (!r)
		r = lm_control_recv(&s->control, &msg, lm_session_peer_deadline(s), &e);
	if (r && !s->control.peer_aborted) {
		lock_r = ask_locks(s, &r, &msg, &e, &lock);
		if (!lock_r) {
			lm_err_prefix(&e, "no answer to COMMIT came, and the destination had not taken the storage lock: it "
				      "never runs the guest");
			return uncommitted(s, r, &e, err);
		}
	}
	if (r && s->control.peer_aborted)
		return uncommitted(s, r, &e, err);
	if (!r && msg.type != LM_MSG_RESUMED)
		r = lm_err(&e, -EPROTO, LM_SCOPE_SESSION, "the destination sent %s", lm_msg_name(msg.type));
	if (!r)
		r = lm_wire_get_times(msg.payload, msg.len, &take_ns, &resume_ns, &e);
	/* In post-copy a destination that runs the guest comes back for its pages: that ends the doubt. */
	if (r && s->pull.armed && !lm_postcopy_find(s, &e))
		return 0;
	if (r)
		return in_doubt(s, &e, lock_r == -ENOENT ? 0 : lock_r, &lock, err);
	blackout_account(s, commit_ns, take_ns, resume_ns);
	return 0;
}

int lm_switchover_commit(struct lm_session *s, struct lm_error *err)
{
	struct lm_wire_commit payload;
	int64_t commit_ns;
	int r = lm_session_stage(s, "commit", err);

	/* Last look: a peer that is known to be gone, or has given up, leaves no doubt. */
	if (!r)
		r = lm_precopy_tick(s, err);
	if (r)
		return r;
	if (lm_now_ns() > s->src.deadline_ns || !lm_guardian_commit(&s->guardian))
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the pause has lasted longer than --max-pause");
	s->control.cancel_fd = -1;
	state_committed(s, LM_PC_SENT);
	/* As it was when it was paused: it may have been stopped or continued since OPEN. */
	payload.flags = lm_le32(s->vm->info.running ? LM_COMMIT_RUN : 0);
	commit_ns = lm_now_ns();
	r = lm_control_send(&s->control, LM_MSG_COMMIT, &payload, sizeof(payload), lm_session_peer_deadline(s), err);
	if (r) {
		lm_guardian_uncommit(&s->guardian);
		state_committed(s, LM_PC_NONE);
		return r;
	}
	s->src.commit_sent = true;
	return await_resumed(s, commit_ns, err);
}

int lm_switchover(struct lm_session *s, struct lm_error *err)
{
	int r = prepare(s, err);

	if (!r)
		r = lm_session_stage(s, "pausing", err);
	if (!r && lm_broken("lock-early"))
		r = lm_handover_offer(s, err);
	lm_session_urgent(s, true);
	if (!r)
		r = pause_start(s, err);
	if (!r)
		r = pause_wait(s, err);
	if (!r)
		r = last_copy(s, err);
	if (!r)
		r = lm_session_stage(s, "copied", err);
	if (!r)
		r = device_state(s, err);
	if (!r)
		r = lm_switchover_commit(s, err);
	if (r)
		return r;
	s->summary.guest_runs_here = false;
	lm_guardian_idle(&s->guardian);
	lm_session_urgent(s, false);
	if (s->pull.armed)
		r = lm_postcopy_serve(s, err);
	return r ? r : lm_session_stage(s, "done", err);
}

/* The locks that were offered are this host's again, or the guest stays paused. */
static bool may_run_again(struct lm_session *s)
{
	struct lm_error e = { 0 };

	lm_guardian_extend(&s->guardian, lm_deadline_after(2 * LM_RESUME_TIMEOUT_NS));
	if (!lm_handover_reclaim(s, lm_deadline_after(LM_RESUME_TIMEOUT_NS), &e))
		return true;
	s->summary.outcome = LM_OUTCOME_IN_DOUBT;
	s->summary.guest_runs_here = false;
	lm_guardian_idle(&s->guardian);
	lm_session_log(s, LM_LOG_ERROR, "the guest is paused here: its storage locks could not be taken back (%s); when they "
		       "can: `migrate-rdma resolve --auto`", e.msg);
	return false;
}

void lm_switchover_undo(struct lm_session *s)
{
	struct lm_error e = { 0 };

	if (!s->src.pause_begun || s->src.commit_sent)
		return;
	/* The guest first: the relay may be stuck in sending to a peer that is gone. */
	lm_relay_break(&s->src.relay);
	if (!may_run_again(s))
		return;
	if (lm_vm_resume(s->vm, lm_deadline_after(LM_RESUME_TIMEOUT_NS), NULL, &e)) {
		s->summary.guest_runs_here = false;
		lm_session_log(s, LM_LOG_ERROR, "the guest could not be brought back: %s; try `migrate-rdma resolve`",
			       e.msg);
		return;
	}
	lm_guardian_idle(&s->guardian);
}
