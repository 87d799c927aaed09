/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quick migration: save, hand-over of the locks, and restore in one go, over the control
 * channel of a live migration.  Only the image travels by the storage.
 *
 *   source                                    destination
 *   QUICK {guest, layout} ------------------> the same guest?
 *             <------------------ QUICK_READY
 *   LOCK_ANNOUNCE / LOCK_ANSWER               with storage locks
 *   stop the guest, write the image           waits
 *   LOCK_OFFER ----------------------------->
 *   QUICK_IMAGE {id} -----------------------> open and check it, bring it into the QEMU that waits
 *             <----------------------- LOADED
 *   COMMIT ---------------------------------> take the locks, mark the image as used, run
 *             <---------------------- RESUMED
 *
 * The rules are those of a live migration (PROTOCOL.md): until COMMIT the source can resume,
 * and then the image, which it has marked as pending, is void.
 */
#include <string.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "quick.h"
#include "engine/context/connect.h"
#include "engine/context/negotiate.h"
#include "engine/control/keepalive.h"

/* ---- source ---- */

static int introduce(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	struct lm_msg msg;
	int r = lm_ctx_connect(c, lm_deadline_min(lm_deadline_after(LM_CONNECT_TIMEOUT_NS), c->deadline_ns), err);

	if (!r)
		r = lm_ctx_stage(c, "hello", err);
	if (!r)
		r = lm_ctx_send_open(c, LM_MSG_QUICK, "image", err);
	if (!r)
		r = lm_control_expect(&c->control, LM_MSG_QUICK_READY, &msg, lm_ctx_peer_deadline(c), err);
	if (!r)
		r = lm_handover_announce(sv->out->handover, err);
	return r;
}

static int save(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	struct lm_keepalive keepalive;
	int r = lm_keepalive_start(&keepalive, &c->control, err);

	if (r)
		return r;
	r = lm_save_pause(sv, err);
	if (!r)
		r = lm_save_write(sv, err);
	if (!r)
		r = lm_save_name(sv, err);
	lm_keepalive_stop(&keepalive);
	return r;
}

/* QEMU gave its disks up when it had saved the state: nothing is in flight, nothing will follow. */
static int hand_over(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	struct lm_wire_quick_image image = { .file_size = lm_le64(sv->head.file_size) };
	int64_t begin = lm_now_ns();
	struct lm_msg msg;
	int r;

	memcpy(image.id, sv->writer.id, sizeof(image.id));
	sv->out->handover->disks_idle = true;
	r = lm_handover_offer(sv->out->handover, err);
	if (!r)
		r = lm_control_send(&c->control, LM_MSG_QUICK_IMAGE, &image, sizeof(image), lm_ctx_peer_deadline(c), err);
	if (!r) /* as long as it gives signs of life: it reads all of the memory */
		r = lm_control_expect_patient(&c->control, LM_MSG_LOADED, &msg, c->opt.peer_timeout_ns + c->opt.qmp_timeout_ns,
					      c->deadline_ns, err);
	c->summary.blackout.device_state_ns += lm_now_ns() - begin;
	return r ? r : lm_ctx_stage(c, "loaded", err);
}

static int send_guest(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int r;

	c->deadline_ns = lm_deadline_after(c->opt.timeout_ns);
	r = introduce(sv, err);
	if (r)
		return r;
	lm_image_opened(c);
	r = save(sv, err);
	if (!r)
		r = hand_over(sv, err);
	if (!r)
		r = lm_outgoing_commit(sv->out, err);
	if (r)
		return r;
	sv->saved = true;
	c->summary.guest_runs_here = false;
	lm_guardian_idle(sv->out->guardian);
	return lm_ctx_stage(c, "done", err);
}

int lm_quick_send(struct lm_save *sv, struct lm_error *err)
{
	int r = lm_save_begin(sv, err);

	if (!r)
		r = send_guest(sv, err);
	return lm_save_end(sv, r, err);
}

/* ---- destination ---- */

static int hear_quick(struct lm_restore *rs, struct lm_error *err)
{
	LM_AUTO_FREE struct lm_open *open = malloc(sizeof(*open));
	struct lm_ctx *c = rs->c;
	struct lm_msg msg;
	int r = lm_control_expect(&c->control, LM_MSG_QUICK, &msg, lm_ctx_peer_deadline(c), err);

	if (!r && !open)
		r = lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	if (!r)
		r = lm_wire_get_open(msg.payload, msg.len, open, err);
	if (!r)
		r = lm_ctx_check_open(c, open, err);
	if (!r)
		r = lm_ram_map(&c->ram, true, err);
	return r ? r : lm_control_send(&c->control, LM_MSG_QUICK_READY, NULL, 0, lm_ctx_peer_deadline(c), err);
}

/* The next message, which must be of this type.  The source pings while it writes, however long. */
static int expect(struct lm_restore *rs, enum lm_msg_type type, struct lm_msg *msg, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	int r = lm_control_recv_patient(&c->control, msg, c->opt.peer_timeout_ns + c->opt.qmp_timeout_ns,
					LM_NO_DEADLINE, err);

	if (!r && msg->type != (unsigned)type)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s where %s was due", lm_msg_name(msg->type),
			   lm_msg_name(type));
	return r;
}

static int hear_locks(struct lm_restore *rs, enum lm_msg_type type,
		      int (*handle)(struct lm_handover *h, const struct lm_msg *msg, struct lm_error *err), struct lm_error *err)
{
	struct lm_msg msg;
	int r;

	if (!rs->in->handover->locks.n)
		return 0;
	r = expect(rs, type, &msg, err);
	return r ? r : handle(rs->in->handover, &msg, err);
}

static int hear_image(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	struct lm_wire_quick_image image;
	struct lm_msg msg;
	int r = expect(rs, LM_MSG_QUICK_IMAGE, &msg, err);

	if (!r)
		r = lm_wire_get_fixed(msg.payload, msg.len, "QUICK_IMAGE: length", &image, sizeof(image), err);
	if (!r)
		r = lm_restore_read_image(rs, err);
	if (!r && memcmp(image.id, rs->image.head.id, sizeof(image.id)))
		r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s is not the image that the source has just written: give both "
			   "sides the same file on shared storage", c->opt.image);
	if (!r && rs->image.mark != LM_IMAGE_PENDING)
		r = lm_err(err, -EALREADY, LM_SCOPE_SESSION, "%s is not pending any more", c->opt.image);
	return r;
}

static int bring_in(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	struct lm_wire_times times = { 0 };
	struct lm_keepalive keepalive;
	int r = lm_keepalive_start(&keepalive, &c->control, err);

	if (r)
		return r;
	r = hear_image(rs, err);
	if (!r)
		r = lm_restore_fill(rs, err);
	if (!r)
		r = lm_restore_load(rs, err);
	lm_keepalive_stop(&keepalive);
	times.load_ns = lm_le64((uint64_t)rs->in->load_ns);
	return r ? r : lm_control_send(&c->control, LM_MSG_LOADED, &times, sizeof(times), lm_ctx_peer_deadline(c), err);
}

static int hear_commit(struct lm_restore *rs, bool *ret_run, struct lm_error *err)
{
	struct lm_msg msg;
	int r = expect(rs, LM_MSG_COMMIT, &msg, err);

	return r ? r : lm_incoming_parse_commit(&msg, ret_run, err);
}

static void tell_resumed(struct lm_restore *rs)
{
	struct lm_ctx *c = rs->c;
	struct lm_error e = { 0 };

	if (lm_incoming_send_resumed(rs->in, c->summary.blackout.resume_ns + rs->in->handover->take_ns, &e))
		lm_incoming_warn_untold(rs->in, false, &e);
	lm_control_close(&c->control);
}

static int receive(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	bool runs = false;
	int r = lm_ctx_accept(c, lm_deadline_after(c->opt.timeout_ns), err);

	if (!r)
		r = lm_ctx_stage(c, "opened", err);
	if (!r)
		r = hear_quick(rs, err);
	if (!r)
		r = hear_locks(rs, LM_MSG_LOCK_ANNOUNCE, lm_handover_prepare, err);
	if (r)
		return r;
	lm_image_opened(c);
	r = hear_locks(rs, LM_MSG_LOCK_OFFER, lm_handover_offered, err);
	if (!r)
		r = bring_in(rs, err);
	if (!r)
		r = hear_commit(rs, &runs, err);
	if (!r)
		r = lm_restore_run_guest(rs, runs, err);
	if (!r)
		tell_resumed(rs);
	return r;
}

int lm_quick_receive(struct lm_restore *rs, struct lm_error *err)
{
	int r = lm_ctx_stage(rs->c, "open", err);

	return r ? r : lm_restore_end(rs, receive(rs, err), err);
}
