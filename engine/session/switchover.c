/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The switchover as the source of a live migration drives it: PREPARE, pause, last copy, device state,
 * COMMIT.  engine/PROTOCOL.md draws it.
 */
#include "engine/base/clock.h"
#include "engine/base/ramhash.h"
#include "engine/base/testhook.h"
#include "source.h"

/*
 * Let the destination's VM wait for the device state.  A change of the memory's layout is looked for here, while
 * the guest still runs, and again while the destination loads the device state and this side has nothing else to
 * do: that finds a change in the last moment.
 */
static int prepare(struct lm_source *src, struct lm_error *err)
{
	struct lm_precopy *p = &src->precopy;
	struct lm_ctx *c = src->c;
	struct lm_msg msg;
	int r = lm_outgoing_check_layout(&src->out, err);

	if (!r && p->postcopy)
		r = lm_postcopy_prepare(&src->postcopy, &p->dirty, &p->holes, err);
	if (!r)
		r = lm_control_send(&c->control, LM_MSG_PREPARE, NULL, 0, lm_ctx_peer_deadline(c), err);
	return r ? r : lm_control_expect_patient(&c->control, LM_MSG_PREPARED, &msg,
						 c->opt.peer_timeout_ns + c->opt.qmp_timeout_ns, c->deadline_ns, err);
}

static int pause_start(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	int vm_fd, r;

	c->deadline_ns = lm_deadline_after(c->opt.max_pause_ns);
	r = lm_relay_start(&src->out.relay, &c->control, c->opt.peer_timeout_ns, c->deadline_ns, &vm_fd, err);
	return r ? r : lm_outgoing_pause(&src->out, vm_fd, err);
}

/* Until the guest has stopped.  QEMU sends its private blocks (ROMs, video memory) before that. */
static int pause_wait(struct lm_source *src, struct lm_error *err)
{
	int r;

	while ((r = lm_outgoing_pause_wait(&src->out, 20, err)) == -EAGAIN) {
		r = lm_precopy_tick(&src->precopy, err);
		if (r)
			return r;
	}
	return r;
}

/* What was written last goes out now, or is named as left behind. */
static int last_pages(struct lm_source *src, struct lm_error *err)
{
	struct lm_blackout *b = &src->c->summary.blackout;
	struct lm_precopy *p = &src->precopy;
	struct lm_round round;
	int64_t begin;
	int r = lm_precopy_last_scan(p, &round, err);

	b->last_scan_ns = round.scan_ns;
	b->last_pages = round.dirty_pages;
	if (!r)
		r = lm_ctx_stage(src->c, "last-copy", err);
	if (r)
		return r;
	if (!src->postcopy.both.armed) {
		r = lm_precopy_last_copy(p, &round, err);
		b->last_copy_ns = round.copy_ns;
		return r;
	}
	begin = lm_now_ns();
	r = lm_postcopy_leave(&src->postcopy, &p->dirty, &p->holes, true, &src->c->summary.postcopy.left_pages, err);
	b->last_copy_ns = lm_now_ns() - begin;
	b->last_pages = 0;
	return r;
}

/* ---- device state ---- */

static int send_saved(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	uint64_t bytes = atomic_load(&src->out.relay.bytes);
	struct lm_wire_saved saved = {
		.state_bytes = lm_le64(bytes),
		.lane_bytes = lm_le64(c->summary.bytes),
		.left_pages = lm_le64(c->summary.postcopy.left_pages),
	};
	int r = 0;

	if (c->opt.verify)
		r = lm_ram_hash(&c->ram, saved.ram_hash, err);
	c->summary.blackout.device_state_bytes = bytes;
	return r ? r : lm_control_send(&c->control, LM_MSG_SAVED, &saved, sizeof(saved), lm_ctx_peer_deadline(c), err);
}

/* The destination has the whole guest, so a source QEMU that dies now does no harm. */
static int offer_locks(struct lm_source *src, struct lm_error *err)
{
	int r = 0;

	/* QEMU gave its disks up when it had saved the state: nothing is in flight, nothing will follow. */
	src->out.handover->disks_idle = true;
	if (!lm_broken("lock-early"))
		r = lm_handover_offer(src->out.handover, err);
	if (!r)
		r = lm_outgoing_check_layout(&src->out, err);
	return r && err->scope == LM_SCOPE_VM && lm_ctx_vm_gone(src->c) ? 0 : r;
}

static int await_loaded(struct lm_ctx *c, int64_t saved_ns, struct lm_error *err)
{
	int64_t load_ns = 0, unused;
	struct lm_msg msg;
	int r = lm_control_expect(&c->control, LM_MSG_LOADED, &msg, c->deadline_ns, err);

	if (!r)
		r = lm_wire_get_times(msg.payload, msg.len, &load_ns, &unused, err);
	lm_ctx_log(c, LM_LOG_DEBUG, "device state: the destination had it loaded %.2f ms later (%.2f ms of it there)",
		   (double)(lm_now_ns() - saved_ns) / 1e6, (double)load_ns / 1e6);
	return r;
}

static int device_state(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	int64_t begin = lm_now_ns(), saved_ns;
	int r = lm_outgoing_save_state(&src->out, err);

	saved_ns = lm_now_ns();
	if (!r)
		r = send_saved(src, err);
	if (!r)
		r = lm_ctx_stage(c, "saved", err);
	if (!r)
		r = offer_locks(src, err);
	if (!r)
		r = await_loaded(c, saved_ns, err);
	c->summary.blackout.device_state_ns = lm_now_ns() - begin - src->out.handover->offer_ns;
	return r ? r : lm_ctx_stage(c, "loaded", err);
}

/* ---- all of it ---- */

/* The guest stands still from here to COMMIT's answer. */
static int stop_and_go(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	int r = pause_start(src, err);

	if (!r)
		r = pause_wait(src, err);
	if (!r)
		r = lm_ctx_stage(c, "paused", err);
	if (!r)
		r = last_pages(src, err);
	if (!r)
		r = lm_ctx_stage(c, "copied", err);
	if (!r)
		r = device_state(src, err);
	return r ? r : lm_outgoing_commit(&src->out, err);
}

int lm_source_switchover(struct lm_source *src, struct lm_error *err)
{
	struct lm_ctx *c = src->c;
	int r = prepare(src, err);

	if (!r)
		r = lm_ctx_stage(c, "pausing", err);
	if (!r && lm_broken("lock-early"))
		r = lm_handover_offer(src->out.handover, err);
	lm_ctx_urgent(c, true);
	if (!r)
		r = stop_and_go(src, err);
	if (r)
		return r;
	c->summary.guest_runs_here = false;
	lm_guardian_idle(src->out.guardian);
	lm_ctx_urgent(c, false);
	if (src->postcopy.both.armed)
		r = lm_postcopy_serve(&src->postcopy, err);
	return r ? r : lm_ctx_stage(c, "done", err);
}
