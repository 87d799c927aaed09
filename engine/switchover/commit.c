/* SPDX-License-Identifier: Apache-2.0 */
/* COMMIT as the source sees it: the one message after which the guest may run elsewhere. */
#include "engine/base/clock.h"
#include "outgoing.h"

/* The destination's own times, which RESUMED brings. */
struct answer {
	int64_t take_ns, resume_ns;
};

static bool armed(const struct lm_outgoing *o)
{
	return o->postcopy && o->postcopy->both.armed;
}

/* For an engine that goes on after our death: whether the guest may be at the destination. */
static void note(struct lm_outgoing *o, enum lm_pccommit committed)
{
	if (o->postcopy)
		lm_postcopy_note_commit(o->postcopy, committed);
}

static void blackout_account(struct lm_outgoing *o, int64_t commit_ns, struct answer a)
{
	struct lm_blackout *b = &o->c->summary.blackout;
	int64_t now = lm_now_ns(), back = (now - commit_ns - a.resume_ns) / 2;

	/* The guest ran when the destination said so; the answer then took half the rest of the round trip. */
	if (back < 0)
		back = 0;
	if (a.take_ns > a.resume_ns)
		a.take_ns = a.resume_ns; /* the peer's word */
	b->lock_offer_ns = o->handover->offer_ns;
	b->lock_take_ns = a.take_ns;
	b->lock_ns = b->lock_offer_ns + b->lock_take_ns;
	b->resume_ns = now - commit_ns - back - a.take_ns;
	b->total_ns = b->stop_ns + (now - o->stopped_seen_ns) - back;
}

/* ---- no answer ---- */

/* Nobody knows whether the guest runs there.  lock_r, lock: why the storage locks do not tell; 0: there are none. */
static int in_doubt(struct lm_outgoing *o, const struct lm_error *why, int lock_r, const struct lm_error *lock,
		    struct lm_error *err)
{
	o->c->summary.outcome = LM_OUTCOME_IN_DOUBT;
	o->c->summary.guest_runs_here = false;
	if (lock_r == -ESTALE)
		return lm_err(err, why->code, LM_SCOPE_SESSION,
			      "in doubt: no answer to COMMIT came (%.120s), and nobody holds the storage lock now (%.160s). The "
			      "guest is paused here. If it is certain that the guest never ran on the destination: `migrate-rdma "
			      "resolve --run-here`", why->msg, lock->msg);
	if (lm_locks_final(lock_r))
		return lm_err(err, why->code, LM_SCOPE_SESSION,
			      "no answer to COMMIT came (%.120s), but the destination has the storage lock (%.120s): the "
			      "guest is there, and paused here. Once it runs there, end this QEMU: `migrate-rdma resolve "
			      "--end-here`", why->msg, lock->msg);
	if (lock_r)
		return lm_err(err, why->code, LM_SCOPE_SESSION,
			      "in doubt: no answer to COMMIT came (%.120s), and the storage locks do not answer (%.120s). The guest "
			      "is paused here. When they answer again: `migrate-rdma resolve --auto`", why->msg, lock->msg);
	return lm_err(err, why->code, LM_SCOPE_SESSION,
		      "in doubt: COMMIT was sent and no answer came (%.200s). The guest is paused here; it runs on the destination, "
		      "or nowhere. Find out whether it runs there, then use `migrate-rdma resolve`", why->msg);
}

/* The destination never runs the guest: as if COMMIT had not been sent.  Returns the code of why. */
static int uncommitted(struct lm_outgoing *o, const struct lm_error *why, struct lm_error *err)
{
	lm_guardian_extend(o->guardian, lm_deadline_after(o->c->opt.max_pause_ns));
	lm_guardian_uncommit(o->guardian);
	o->c->commit_sent = false;
	note(o, LM_PC_NONE);
	if (err)
		*err = *why;
	return why->code;
}

/* 0: the locks are this host's again, so the destination can never run the guest. */
static int reclaim(struct lm_outgoing *o, struct lm_error *why, struct lm_error *lock)
{
	/*
	 * In post-copy the destination may wait for us with a guest that needs pages, so ask only for
	 * a short time.
	 */
	int64_t limit_ns = armed(o) ? LM_NS_PER_S : LM_RESUME_TIMEOUT_NS;
	int r = lm_handover_reclaim(o->handover, lm_deadline_after(limit_ns), lock);

	if (!r)
		lm_err_prefix(why, "no answer to COMMIT came, and the destination had not taken the storage lock: it "
			      "never runs the guest");
	return r;
}

static int hear_resumed(struct lm_ctx *c, struct answer *ret, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_control_recv(&c->control, &msg, lm_ctx_peer_deadline(c), err);

	if (!r && msg.type != LM_MSG_RESUMED)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination sent %s", lm_msg_name(msg.type));
	return r ? r : lm_wire_get_times(msg.payload, msg.len, &ret->take_ns, &ret->resume_ns, err);
}

/* RESUMED, ABORT (the destination gave up for certain), what the locks say, or doubt. */
static int await_answer(struct lm_outgoing *o, int64_t commit_ns, struct lm_error *err)
{
	struct lm_ctx *c = o->c;
	struct lm_error why = { 0 }, lock = { 0 };
	struct answer answer = { 0 };
	int lock_r = 0, r = lm_ctx_stage(c, "committed", &why);

	if (!r)
		r = hear_resumed(c, &answer, &why);
	if (r && !c->control.peer_aborted && o->handover->locks.n) {
		lock_r = reclaim(o, &why, &lock);
		if (!lock_r)
			return uncommitted(o, &why, err);
		/* The destination has the locks and the connection works: it will soon run the guest or give up. */
		if (lm_locks_final(lock_r) && r == -ETIMEDOUT && !armed(o)) {
			lm_err_clear(&why);
			r = hear_resumed(c, &answer, &why);
		}
	}
	if (r && c->control.peer_aborted)
		return uncommitted(o, &why, err);
	/* In post-copy a destination that runs the guest comes back for its pages: that ends the doubt. */
	if (r && armed(o) && !lm_postcopy_find(o->postcopy, &why))
		return 0;
	if (r)
		return in_doubt(o, &why, lock_r, &lock, err);
	blackout_account(o, commit_ns, answer);
	return 0;
}

/* ---- COMMIT ---- */

/* A peer that is known to be gone, or has given up, leaves no doubt; nor does a user who cancels now. */
static int last_look(struct lm_ctx *c, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_ctx_check_cancel(c, err);

	if (!r)
		r = lm_control_try_recv(&c->control, &msg, err);
	if (r > 0)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination sent %s before COMMIT", lm_msg_name(msg.type));
	return r;
}

int lm_outgoing_commit(struct lm_outgoing *o, struct lm_error *err)
{
	struct lm_ctx *c = o->c;
	/* As it was when it was paused: the guest may have been stopped or continued since OPEN. */
	const struct lm_wire_commit payload = { lm_le32(c->vm->info.running ? LM_COMMIT_RUN : 0) };
	int64_t commit_ns;
	int r = lm_ctx_stage(c, "commit", err);

	if (!r)
		r = last_look(c, err);
	if (r)
		return r;
	if (lm_now_ns() > c->deadline_ns || !lm_guardian_commit(o->guardian))
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the pause has lasted longer than --max-pause");
	c->control.cancel_fd = -1;
	note(o, LM_PC_SENT);
	commit_ns = lm_now_ns();
	r = lm_control_send(&c->control, LM_MSG_COMMIT, &payload, sizeof(payload), lm_ctx_peer_deadline(c), err);
	if (r) {
		lm_guardian_uncommit(o->guardian);
		note(o, LM_PC_NONE);
		return r;
	}
	c->commit_sent = true;
	return await_answer(o, commit_ns, err);
}
