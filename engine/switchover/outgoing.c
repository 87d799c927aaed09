/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/base/testhook.h"
#include "outgoing.h"

int lm_outgoing_check_layout(struct lm_outgoing *o, struct lm_error *err)
{
	bool same;
	int r;

	if (lm_broken("layout"))
		return 0;
	r = lm_vm_ram_is(o->c->vm, &o->c->ram, &same, err);
	if (!r && !same)
		r = lm_err(err, -ESTALE, LM_SCOPE_SESSION,
			   "the guest's memory was plugged, unplugged or resized during the migration: "
			   "give the destination the same memory and start again");
	return r;
}

int lm_outgoing_pause(struct lm_outgoing *o, int vm_fd, struct lm_error *err)
{
	int r;

	lm_guardian_pause(o->guardian, o->c->deadline_ns);
	o->c->pause_begun = true;
	r = lm_vm_pause_start(o->c->vm, vm_fd, err);
	lm_close_fd(&vm_fd);
	lm_guardian_run(o->guardian, o->c->vm->info.running); /* as pause_start found it */
	return r;
}

int lm_outgoing_pause_wait(struct lm_outgoing *o, int timeout_ms, struct lm_error *err)
{
	struct lm_vm_times times = { 0 };
	int r = lm_vm_pause_wait(o->c->vm, timeout_ms, &times, err);

	if (r)
		return r;
	o->stopped_seen_ns = lm_now_ns();
	o->c->summary.blackout.stop_ns = lm_clock_ns(CLOCK_REALTIME) - times.stopped_ns;
	return 0;
}

int lm_outgoing_save_state(struct lm_outgoing *o, struct lm_error *err)
{
	int64_t begin = lm_now_ns(), completed;
	int r = lm_vm_state_save(o->c->vm, o->c->deadline_ns, err);

	completed = lm_now_ns();
	if (!r) {
		r = lm_relay_finish(&o->relay, o->c->deadline_ns, err);
	} else {
		lm_relay_stop(&o->relay); /* its error is ours now */
		if (o->relay.error.code == -EPIPE || o->relay.error.code == -ECONNRESET)
			*err = o->relay.error; /* the cause, not the effect */
	}
	lm_ctx_log(o->c, LM_LOG_DEBUG, "device state: the VM took %.2f ms, closing the stream %.2f ms",
		   (double)(completed - begin) / 1e6, (double)(lm_now_ns() - completed) / 1e6);
	return r;
}

/* The locks that were offered are this host's again, or the guest stays paused. */
static bool may_run_again(struct lm_outgoing *o)
{
	struct lm_ctx *c = o->c;
	struct lm_error e = { 0 };

	lm_guardian_extend(o->guardian, lm_deadline_after(2 * LM_RESUME_TIMEOUT_NS));
	if (!lm_handover_reclaim(o->handover, lm_deadline_after(LM_RESUME_TIMEOUT_NS), &e))
		return true;
	c->summary.outcome = LM_OUTCOME_IN_DOUBT;
	c->summary.guest_runs_here = false;
	lm_guardian_idle(o->guardian);
	lm_ctx_log(c, LM_LOG_ERROR, "the guest is paused here: its storage locks could not be taken back (%s). When the storage "
	           "answers again: `migrate-rdma resolve --auto`", e.msg);
	return false;
}

void lm_outgoing_undo(struct lm_outgoing *o)
{
	struct lm_ctx *c = o->c;
	struct lm_error e = { 0 };

	if (!c->pause_begun || c->commit_sent)
		return;
	/* The guest first: the relay may be stuck in sending to a peer that is gone. */
	lm_relay_break(&o->relay);
	if (!may_run_again(o))
		return;
	if (lm_vm_resume(c->vm, lm_deadline_after(LM_RESUME_TIMEOUT_NS), NULL, &e)) {
		c->summary.guest_runs_here = false;
		lm_ctx_log(c, LM_LOG_ERROR, "the guest could not be brought back: %s; try `migrate-rdma resolve`", e.msg);
		return;
	}
	lm_guardian_idle(o->guardian);
}

void lm_outgoing_fini(struct lm_outgoing *o)
{
	lm_relay_stop(&o->relay);
}
