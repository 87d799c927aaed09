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
#include "session.h"
#include "engine/base/testhook.h"

/* ---- source ---- */

static int introduce(struct lm_session *s, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_source_connect(s, lm_deadline_min(lm_deadline_after(LM_CONNECT_TIMEOUT_NS), s->src.deadline_ns), err);

	if (!r)
		r = lm_session_stage(s, "hello", err);
	if (!r)
		r = lm_source_send_open(s, LM_MSG_QUICK, "image", err);
	if (!r)
		r = lm_control_expect(&s->control, LM_MSG_QUICK_READY, &msg, lm_session_peer_deadline(s), err);
	if (!r)
		r = lm_handover_announce(s, err);
	return r;
}

static int save(struct lm_session *s, struct lm_error *err)
{
	struct lm_keepalive keepalive;
	int r = lm_keepalive_start(&keepalive, &s->control, err);

	if (r)
		return r;
	r = lm_save_pause(s, err);
	if (!r)
		r = lm_save_write(s, err);
	if (!r)
		r = lm_image_rename(&s->img->writer, err);
	if (!r)
		r = lm_session_stage(s, "renamed", err);
	if (!r)
		r = lm_image_sync_dir(&s->img->writer, err);
	if (!r)
		r = lm_session_stage(s, "durable", err);
	lm_keepalive_stop(&keepalive);
	return r;
}

/* QEMU gave its disks up when it had saved the state: nothing is in flight, nothing will follow. */
static int hand_over(struct lm_session *s, struct lm_error *err)
{
	struct lm_wire_quick_image image = { .file_size = lm_le64(s->img->head.file_size) };
	int64_t begin = lm_now_ns();
	struct lm_msg msg;
	int r;

	memcpy(image.id, s->img->writer.id, sizeof(image.id));
	s->handover.quiet = true;
	r = lm_handover_offer(s, err);
	if (!r)
		r = lm_control_send(&s->control, LM_MSG_QUICK_IMAGE, &image, sizeof(image), lm_session_peer_deadline(s), err);
	if (!r) /* as long as it gives signs of life: it reads all of the memory */
		r = lm_session_expect(s, LM_MSG_LOADED, &msg, s->opt.peer_timeout_ns + s->opt.qmp_timeout_ns,
				      s->src.deadline_ns, err);
	s->summary.blackout.device_state_ns += lm_now_ns() - begin;
	return r ? r : lm_session_stage(s, "loaded", err);
}

int lm_quick_run(struct lm_session *s, struct lm_error *err)
{
	int r;

	s->src.deadline_ns = lm_deadline_after(s->opt.timeout_ns);
	r = introduce(s, err);
	if (r)
		return r;
	lm_image_opened_event(s);
	r = save(s, err);
	if (!r)
		r = hand_over(s, err);
	if (!r)
		r = lm_switchover_commit(s, err);
	if (r)
		return r;
	s->img->saved = true;
	s->summary.guest_runs_here = false;
	lm_guardian_idle(&s->guardian);
	return lm_session_stage(s, "done", err);
}

/* ---- destination ---- */

static int hear_quick(struct lm_session *s, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_control_expect(&s->control, LM_MSG_QUICK, &msg, lm_session_peer_deadline(s), err);

	if (!r)
		r = lm_wire_get_open(msg.payload, msg.len, &s->dst.open, err);
	if (!r)
		r = lm_dest_check_open(s, &s->dst.open, err);
	if (!r)
		r = lm_ram_map(&s->ram, true, err);
	return r ? r : lm_control_send(&s->control, LM_MSG_QUICK_READY, NULL, 0, lm_session_peer_deadline(s), err);
}

/* The next message, which must be of this type.  The source pings while it writes, however long. */
static int expect(struct lm_session *s, enum lm_msg_type type, struct lm_msg *msg, struct lm_error *err)
{
	int r = lm_dest_next_message(s, msg, err);

	if (!r && msg->type != (unsigned)type)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s where %s was due", lm_msg_name(msg->type),
			   lm_msg_name(type));
	return r;
}

static int hear_locks(struct lm_session *s, enum lm_msg_type type,
		      int (*handle)(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err), struct lm_error *err)
{
	struct lm_msg msg;
	int r;

	if (!s->handover.locks.n)
		return 0;
	r = expect(s, type, &msg, err);
	return r ? r : handle(s, &msg, err);
}

static int hear_image(struct lm_session *s, struct lm_error *err)
{
	struct lm_wire_quick_image image;
	struct lm_msg msg;
	int r = expect(s, LM_MSG_QUICK_IMAGE, &msg, err);

	if (!r)
		r = lm_wire_get_fixed(msg.payload, msg.len, "QUICK_IMAGE: length", &image, sizeof(image), err);
	if (!r)
		r = lm_restore_read_image(s, err);
	if (!r && memcmp(image.id, s->img->image.head.id, sizeof(image.id)))
		r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s is not the image that the source has just written: give both "
			   "sides the same file on shared storage", s->opt.image);
	if (!r && s->img->image.mark != LM_IMAGE_PENDING)
		r = lm_err(err, -EALREADY, LM_SCOPE_SESSION, "%s is not pending any more", s->opt.image);
	return r;
}

static int bring_in(struct lm_session *s, struct lm_error *err)
{
	struct lm_wire_times times = { 0 };
	struct lm_keepalive keepalive;
	int r = lm_keepalive_start(&keepalive, &s->control, err);

	if (r)
		return r;
	r = hear_image(s, err);
	if (!r)
		r = lm_restore_fill(s, err);
	if (!r)
		r = lm_restore_load(s, err);
	lm_keepalive_stop(&keepalive);
	times.load_ns = lm_le64((uint64_t)s->dst.load_ns);
	return r ? r : lm_control_send(&s->control, LM_MSG_LOADED, &times, sizeof(times), lm_session_peer_deadline(s), err);
}

static int hear_commit(struct lm_session *s, bool *ret_run, struct lm_error *err)
{
	struct lm_msg msg;
	uint32_t flags;
	int r = expect(s, LM_MSG_COMMIT, &msg, err);

	if (!r)
		r = lm_wire_get_u32(msg.payload, msg.len, "COMMIT", &flags, err);
	if (!r && flags & ~LM_COMMIT_RUN)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: COMMIT flags");
	*ret_run = !r && (flags & LM_COMMIT_RUN);
	return r;
}

static void tell_resumed(struct lm_session *s)
{
	struct lm_wire_times answer = { .load_ns = lm_le64((uint64_t)s->handover.take_ns) };
	struct lm_error e = { 0 };
	int r;

	answer.resume_ns = lm_le64((uint64_t)(s->summary.blackout.resume_ns + s->handover.take_ns));
	r = lm_control_send(&s->control, LM_MSG_RESUMED, &answer, sizeof(answer), lm_session_peer_deadline(s), &e);
	if (r)
		lm_session_log(s, LM_LOG_WARN, "the guest runs here, but the source could not be told (%s): it "
			       "reports `in doubt`; resolve it there with --end-here", e.msg);
	lm_control_close(&s->control);
}

int lm_quick_receive(struct lm_session *s, struct lm_error *err)
{
	bool runs = false;
	int r = lm_dest_accept(s, lm_deadline_after(s->opt.timeout_ns), err);

	if (!r)
		r = lm_session_stage(s, "opened", err);
	if (!r)
		r = hear_quick(s, err);
	if (!r)
		r = hear_locks(s, LM_MSG_LOCK_ANNOUNCE, lm_handover_prepare, err);
	if (r)
		return r;
	lm_image_opened_event(s);
	r = hear_locks(s, LM_MSG_LOCK_OFFER, lm_handover_offered, err);
	if (!r)
		r = bring_in(s, err);
	if (!r)
		r = hear_commit(s, &runs, err);
	if (!r)
		r = lm_restore_run_guest(s, runs, err);
	if (!r)
		tell_resumed(s);
	return r;
}
