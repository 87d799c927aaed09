/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Save: stop the guest, write its memory and its device state, give the image its name,
 * and only then let the storage locks go.
 *
 *   pausing, paused    QEMU stops the guest, drains and flushes its disks
 *   copied             memory is written
 *   synced             device state and the rest, too, and all of it is on the disk
 *   commit, renamed    the image has its name: from here on it is the guest
 *   durable            the folder is on the disk, too
 *   released, done     the locks are free; QEMU stays, paused for good
 */
#include <stdlib.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "session.h"
#include "walk.h"
#include "engine/base/testhook.h"

int lm_save_open_image(struct lm_session *s, struct lm_error *err)
{
	struct lm_image_session *img;
	int r = lm_image_session_new(s, err);

	if (r)
		return r;
	img = s->img;
	r = lm_vm_identity(s->vm, img->head.guest_name, img->head.guest_uuid, err);
	if (!r)
		r = lm_ram_map(&s->ram, false, err);
	if (!r)
		r = lm_image_create(&img->writer, s->opt.image, &s->ram, err);
	if (!r && !img->writer.direct)
		lm_session_log(s, LM_LOG_WARN, "the file system of %s refuses O_DIRECT: the image is written through the page "
			       "cache, which costs memory and a copy", s->opt.image);
	return r;
}

/* ---- the guest stops ---- */

/* The relay's thread; the session's has it when that has ended. */
static int keep_state(void *opaque, const uint8_t *p, size_t len, struct lm_error *err)
{
	struct lm_image_session *img = opaque;

	if (len > LM_IMAGE_STATE_MAX - img->state_bytes)
		return lm_err(err, -EMSGSIZE, LM_SCOPE_SESSION, "the device state is larger than %llu bytes",
			      (unsigned long long)LM_IMAGE_STATE_MAX);
	if (img->state_bytes + len > img->state_room) {
		uint64_t room = (img->state_bytes + len) * 2;
		uint8_t *state = realloc(img->state, room);

		if (!state)
			return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
		img->state = state;
		img->state_room = room;
	}
	memcpy(img->state + img->state_bytes, p, len);
	img->state_bytes += len;
	return 0;
}

int lm_save_pause(struct lm_session *s, struct lm_error *err)
{
	struct lm_vm_times times = { 0 };
	int vm_fd, r = lm_session_stage(s, "pausing", err);

	if (r)
		return r;
	/* It takes as long as the disk takes: only our death ends the pause early. */
	s->src.deadline_ns = s->opt.timeout_ns ? lm_deadline_after(s->opt.timeout_ns) : LM_NO_DEADLINE;
	r = lm_relay_start_sink(&s->src.relay, keep_state, s->img, &vm_fd, err);
	if (!r)
		r = lm_switchover_pause_vm(s, vm_fd, err);
	while (!r && (r = lm_vm_pause_wait(s->vm, 100, &times, err)) == -EAGAIN) {
		r = lm_session_check_cancel(s, err);
		if (!r && lm_now_ns() > s->src.deadline_ns)
			r = lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the guest did not stop in time");
	}
	if (r)
		return r;
	s->src.stopped_seen_ns = lm_now_ns();
	s->src.stopped_realtime_ns = times.stopped_ns;
	s->summary.blackout.stop_ns = lm_clock_ns(CLOCK_REALTIME) - times.stopped_ns;
	r = lm_session_stage(s, "paused", err);
	return r ? r : lm_switchover_check_layout(s, err);
}

/* ---- writing ---- */

static int write_group(struct lm_image_walk *w, unsigned region, uint64_t first, unsigned n, uint64_t *ret_bytes,
		       struct lm_error *err)
{
	struct lm_image_session *img = w->s->img;
	int r = lm_image_existing_group(w->s, region, first, n, err);

	return r ? r : lm_image_write_chunks(&img->writer, region, first, n, img->existing.maps[region].words + first,
					     ret_bytes, err);
}

static int write_memory(struct lm_session *s, struct lm_error *err)
{
	struct lm_image_walk walk = { .group = write_group };
	int64_t begin = lm_now_ns();
	int r = lm_image_existing(s, err);

	if (!r) {
		lm_image_reserve(&s->img->writer, lm_pageset_count(&s->img->existing));
		r = lm_image_walk(&walk, s, err);
	}
	if (r)
		return r;
	s->summary.blackout.last_copy_ns = lm_now_ns() - begin;
	s->summary.sent_pages = s->summary.bytes >> LM_PAGE_SHIFT;
	s->summary.existing_pages = lm_pageset_count(&s->img->existing);
	s->summary.blackout.last_pages = s->summary.sent_pages;
	return lm_session_stage(s, "copied", err);
}

/* Which storage they are of, and their epoch: it grows when anybody else has them. */
static int note_locks(struct lm_session *s, struct lm_error *err)
{
	struct lm_image_session *img = s->img;
	int r = lm_image_lock_ids(s, img->saved_locks, err);

	img->head.nlocks = s->handover.locks.n;
	for (unsigned i = 0; !r && i < s->handover.locks.n; i++) {
		strcpy(img->saved_locks[i].uri, s->handover.locks.lock[i]->uri);
		img->saved_locks[i].epoch = s->handover.locks.lock[i]->epoch;
	}
	return r;
}

static int finish_image(struct lm_session *s, struct lm_error *err)
{
	struct lm_image_session *img = s->img;
	int r;

	img->head.running = s->vm->info.running;
	img->head.saved_ns = lm_clock_ns(CLOCK_REALTIME);
	img->head.info = s->vm->info;
	lm_lock_host(img->head.host);
	r = lm_image_finish(&img->writer, &img->head, img->saved_locks, img->state, img->state_bytes,
			    s->opt.address ? LM_IMAGE_PENDING : LM_IMAGE_FRESH, err);
	return r ? r : lm_image_sync(&img->writer, err);
}

int lm_save_write(struct lm_session *s, struct lm_error *err)
{
	int64_t begin;
	int r = write_memory(s, err);

	if (r)
		return r;
	begin = lm_now_ns();
	r = lm_switchover_save_state(s, err);
	s->summary.blackout.device_state_ns = lm_now_ns() - begin;
	s->summary.blackout.device_state_bytes = s->img->state_bytes;
	if (!r)
		r = lm_session_stage(s, "state", err);
	begin = lm_now_ns();
	if (!r)
		r = finish_image(s, err);
	s->summary.copying_ns += lm_now_ns() - begin; /* what is not on the disk is not saved */
	return r ? r : lm_session_stage(s, "synced", err);
}

/* ---- the end ---- */

/* Behind it the image is the guest, and the guest never runs here again. */
static int commit(struct lm_session *s, struct lm_error *err)
{
	struct lm_image_session *img = s->img;
	int r = lm_session_stage(s, "commit", err);

	if (!r)
		r = lm_session_check_cancel(s, err);
	if (r)
		return r;
	if (!lm_guardian_commit(&s->guardian))
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the pause was undone by the guardian");
	r = lm_image_rename(&img->writer, err);
	if (!r)
		r = lm_session_stage(s, "renamed", err);
	if (!r)
		r = lm_image_sync_dir(&img->writer, err);
	if (!r)
		r = lm_session_stage(s, "durable", err);
	return r;
}

static void release(struct lm_session *s)
{
	int64_t begin = lm_now_ns();
	struct lm_error e = { 0 };

	if (lm_locks_release(&s->handover.locks, lm_image_lock_deadline(s), &e))
		lm_session_log(s, LM_LOG_ERROR, "the guest is saved, but a storage lock was not released: %s; release it with "
			       "`migrate-rdma lock release`, else only this host can restore the guest", e.msg);
	s->summary.blackout.lock_ns = lm_now_ns() - begin;
}

static void say_done(struct lm_session *s)
{
	struct lm_error e = { 0 };

	s->summary.guest_runs_here = false;
	s->summary.blackout.total_ns = s->summary.blackout.stop_ns + lm_now_ns() - s->src.stopped_seen_ns;
	if (lm_session_stage(s, "released", &e) || lm_session_stage(s, "done", &e))
		lm_session_log(s, LM_LOG_DEBUG, "%s", e.msg); /* nothing depends on it any more */
}

/*
 * The guest runs on.  First the image must not be restored any more: who is killed in
 * between leaves a guest that is paused, and neither runs nor is in an image.
 */
static void undo(struct lm_session *s)
{
	struct lm_image_session *img = s->img;
	struct lm_error e = { 0 };

	if (lm_image_abandon(&img->writer, &e) && img->writer.renamed) {
		s->src.commit_sent = true;
		s->summary.outcome = LM_OUTCOME_IN_DOUBT;
		s->summary.guest_runs_here = false;
		lm_session_log(s, LM_LOG_ERROR, "%s: the guest stays paused here, because the image could be restored: remove "
			       "it, then `migrate-rdma resolve --run-here`", e.msg);
		return;
	}
	if (s->src.pause_begun)
		lm_guardian_uncommit(&s->guardian);
	lm_switchover_undo(s);
}

static int save(struct lm_session *s, struct lm_error *err)
{
	int r;

	lm_image_opened_event(s);
	r = lm_save_pause(s, err);
	if (!r && lm_broken("release-late"))
		release(s);
	if (!r)
		r = lm_save_write(s, err);
	if (!r)
		r = commit(s, err);
	if (r)
		return r;
	s->img->saved = s->src.commit_sent = true;
	release(s);
	lm_guardian_idle(&s->guardian);
	say_done(s);
	return 0;
}

int lm_save_run(struct lm_session *s, struct lm_error *err)
{
	int r = lm_session_stage(s, "open", err);

	if (!r)
		r = note_locks(s, err);
	if (!r)
		r = lm_pool_new(lm_image_threads(s), &s->pool, err);
	if (!r)
		r = s->opt.address ? lm_quick_run(s, err) : save(s, err);
	if (r && !s->src.commit_sent) {
		undo(s);
		if (s->control.stream)
			lm_control_send_abort(&s->control, err, lm_deadline_after(LM_ABORT_TIMEOUT_NS));
	}
	return r;
}
