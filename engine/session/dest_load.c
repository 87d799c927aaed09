/* SPDX-License-Identifier: Apache-2.0 */
/* The destination in the switchover: PREPARE, the device state, SAVED, COMMIT. */
#include <stdlib.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/base/ramhash.h"
#include "engine/base/testhook.h"
#include "dest.h"

/* Device state that --verify holds back, bytes. */
#define HELD_START (1u << 20)
#define HELD_MAX   (1u << 30)

int lm_dest_handle_prepare(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	int r;

	if (msg->len)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: PREPARE length");
	d->c->outage_ns = 0;
	r = lm_ctx_bear_outage(d->c, false, err);
	if (!r)
		r = lm_ctx_stage(d->c, "prepare", err);
	if (r)
		return r;
	lm_ctx_urgent(d->c, true);
	r = lm_incoming_begin_load(&d->in, err);
	if (!r)
		r = lm_ctx_stage(d->c, "prepared", err);
	if (r)
		return r;
	return lm_control_send(&d->c->control, LM_MSG_PREPARED, NULL, 0, lm_ctx_peer_deadline(d->c), err);
}

/*
 * Loading writes to guest memory here and there (KVM renews the guest's clock page), so with
 * --verify the VM gets its state when the memory was compared.
 */
static bool holds_state(const struct lm_dest *d)
{
	return d->open.verify && !lm_broken("verify-hold");
}

static int hold_state(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	size_t need = d->state_bytes + msg->len, room = d->held_room ? d->held_room : HELD_START;
	uint8_t *p;

	if (need > HELD_MAX)
		return lm_err(err, -E2BIG, LM_SCOPE_SESSION, "the device state is larger than %u MiB: migrate without --verify",
			      HELD_MAX >> 20);
	while (room < need)
		room *= 2;
	p = room > d->held_room ? realloc(d->held, room) : d->held;
	if (!p)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	d->held = p;
	d->held_room = room;
	memcpy(p + d->state_bytes, msg->payload, msg->len);
	return 0;
}

int lm_dest_handle_state(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	int r;

	if (msg->len > LM_WIRE_STATE_MAX)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: STATE length");
	if (!d->state_bytes && lm_ctx_stage(d->c, "loading", err))
		return err->code;
	if (holds_state(d))
		r = hold_state(d, msg, err);
	else
		r = lm_incoming_write_state(&d->in, msg->payload, msg->len, err);
	d->state_bytes += msg->len;
	return r;
}

static int check_saved(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_wire_saved saved;
	uint8_t hash[16];
	int r = lm_wire_get_saved(msg->payload, msg->len, &saved, err);

	if (r)
		return r;
	if (lm_le64_get(saved.state_bytes) != d->state_bytes)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "device state is incomplete: %llu of %llu bytes",
			      (unsigned long long)d->state_bytes,
			      (unsigned long long)lm_le64_get(saved.state_bytes));
	/* A dropped lane has placed an unknown part of what then went out again. */
	if (!d->lane_dropped && lm_le64_get(saved.lane_bytes) != d->c->summary.bytes)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "pages are missing: %llu of %llu bytes came in",
			      (unsigned long long)d->c->summary.bytes,
			      (unsigned long long)lm_le64_get(saved.lane_bytes));
	if (d->pull.both.armed != d->pull.known ||
	    (d->pull.known && d->pull.puller.arrival.left_behind < lm_le64_get(saved.left_pages)))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "not all pages that stay behind were named");
	if (!d->open.verify)
		return 0;
	r = lm_fault_point("comparing", err);
	if (!r)
		r = lm_ram_hash(&d->c->ram, hash, err);
	if (!r && memcmp(hash, saved.ram_hash, sizeof(hash)))
		r = lm_err(err, -EBADMSG, LM_SCOPE_SESSION,
			   "--verify: the guest's memory differs from the source's: please report this");
	return r;
}

/*
 * SAVED follows the confirmed flush of all lanes: nothing more is due on them.  They
 * are closed here, before LOADED, so that nothing has to be fenced after COMMIT.
 */
int lm_dest_handle_saved(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_wire_times times = { 0 };
	int64_t begin = lm_now_ns(), fenced;
	int r;

	if (!holds_state(d))
		lm_incoming_end_state(&d->in); /* the VM loads meanwhile */
	lm_dest_fence(d);
	fenced = lm_now_ns();
	/* After the lanes' threads have ended: the flush is confirmed before its bytes are counted. */
	d->c->summary.bytes = lm_dest_placed_bytes(d);
	r = check_saved(d, msg, err);
	if (!r && holds_state(d)) {
		r = lm_incoming_write_state(&d->in, d->held, d->state_bytes, err);
		lm_incoming_end_state(&d->in);
	}
	if (!r)
		r = lm_vm_state_wait(d->c->vm, lm_ctx_vm_deadline(d->c), err);
	if (r)
		return r;
	d->in.load_ns = lm_now_ns() - begin;
	lm_ctx_log(d->c, LM_LOG_DEBUG, "device state: the lanes were fenced after %.2f ms, the VM had loaded it after %.2f ms",
		   (double)(fenced - begin) / 1e6, (double)d->in.load_ns / 1e6);
	times.load_ns = lm_le64((uint64_t)d->in.load_ns);
	r = lm_ctx_stage(d->c, "loaded", err);
	return r ? r : lm_control_send(&d->c->control, LM_MSG_LOADED, &times, sizeof(times),
				       lm_ctx_peer_deadline(d->c), err);
}

/* ---- COMMIT ---- */

static int take_and_run(struct lm_dest *d, bool run, struct lm_error *err)
{
	bool late = lm_broken("lock-take");
	int r = late ? 0 : lm_handover_take(d->in.handover, err);

	if (!r)
		r = lm_incoming_run_guest(&d->in, run, err);
	if (!r && late)
		r = lm_handover_take(d->in.handover, err);
	return r;
}

static void tell_source(struct lm_dest *d, int64_t resume_ns)
{
	struct lm_error e = { 0 };
	int r = lm_ctx_stage(d->c, "resumed", &e);

	if (!r)
		r = lm_incoming_send_resumed(&d->in, resume_ns, &e);
	if (r)
		lm_incoming_warn_untold(&d->in, d->pull.both.armed, &e);
}

int lm_dest_handle_commit(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_ctx *c = d->c;
	struct lm_handover *h = d->in.handover;
	int64_t begin = lm_now_ns(), resume_ns;
	bool run;
	int r = lm_incoming_parse_commit(msg, &run, err);

	if (!r && h->offer.n != h->locks.n)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent COMMIT, but did not offer the storage locks");
	if (!r)
		r = lm_ctx_stage(c, "commit", err);
	if (r)
		return r;
	run = run && !c->opt.start_paused;
	lm_incoming_commit(&d->in, run);
	r = take_and_run(d, run, err);
	if (r)
		return r;
	lm_guardian_idle(d->in.guardian);
	d->pull.both.began_ns = lm_now_ns();
	resume_ns = d->pull.both.began_ns - begin;
	c->summary.guest_runs_here = run;
	c->summary.blackout.lock_ns = c->summary.blackout.lock_take_ns = h->take_ns;
	c->summary.blackout.resume_ns = resume_ns - h->take_ns;
	tell_source(d, resume_ns);
	lm_ctx_urgent(c, false);
	if (!d->pull.both.armed)
		lm_handover_keep(h);
	return 0;
}
