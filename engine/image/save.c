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
#include "save.h"
#include "walk.h"
#include "engine/base/testhook.h"

int lm_save_init(struct lm_save *sv, struct lm_ctx *c, struct lm_outgoing *out, struct lm_error *err)
{
	int r;

	sv->c = c;
	sv->out = out;
	sv->writer.fd = sv->writer.dir_fd = -1;
	r = lm_vm_identity(c->vm, sv->head.guest_name, sv->head.guest_uuid, err);
	if (!r)
		r = lm_ram_map(&c->ram, false, err);
	if (!r)
		r = lm_image_create(&sv->writer, c->opt.image, &c->ram, err);
	if (!r && !sv->writer.direct)
		lm_ctx_log(c, LM_LOG_WARN, "the file system of %s refuses O_DIRECT: the image is written through the page "
			   "cache, which costs memory and a copy", c->opt.image);
	return r;
}

/* The guardian has a copy of the session's memory, as it is when it is forked. */
static bool was_saved(const void *arg)
{
	const struct lm_save *sv = arg;

	return lm_image_is(sv->writer.path, sv->writer.id);
}

struct lm_guardian_witness lm_save_witness(const struct lm_save *sv)
{
	/* Of a quick migration COMMIT decides. */
	return (struct lm_guardian_witness){ .happened = sv->c->opt.address ? NULL : was_saved, .arg = sv };
}

void lm_save_close(struct lm_save *sv)
{
	if (!sv->c)
		return;
	/* A session that was opened but never run has also made a file. */
	if (sv->writer.chunks && !sv->saved && !sv->writer.renamed)
		lm_image_abandon(&sv->writer, NULL);
	lm_image_writer_close(&sv->writer);
	lm_pageset_fini(&sv->existing);
	free(sv->state);
}

/* ---- the guest stops ---- */

/* Belongs to the relay's thread, and to the session's thread when the relay has ended. */
static int keep_state(void *opaque, const uint8_t *p, size_t len, struct lm_error *err)
{
	struct lm_save *sv = opaque;

	if (len > LM_IMAGE_STATE_MAX - sv->state_bytes)
		return lm_err(err, -EMSGSIZE, LM_SCOPE_SESSION, "the device state is larger than %llu bytes",
			      (unsigned long long)LM_IMAGE_STATE_MAX);
	if (sv->state_bytes + len > sv->state_room) {
		uint64_t room = (sv->state_bytes + len) * 2;
		uint8_t *state = realloc(sv->state, room);

		if (!state)
			return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
		sv->state = state;
		sv->state_room = room;
	}
	memcpy(sv->state + sv->state_bytes, p, len);
	sv->state_bytes += len;
	return 0;
}

int lm_save_pause(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int vm_fd, r = lm_ctx_stage(c, "pausing", err);

	if (r)
		return r;
	/* The pause lasts as long as the disk needs; the guardian ends it early only when we die. */
	c->deadline_ns = c->opt.timeout_ns ? lm_deadline_after(c->opt.timeout_ns) : LM_NO_DEADLINE;
	r = lm_relay_start_sink(&sv->out->relay, keep_state, sv, &vm_fd, err);
	if (!r)
		r = lm_outgoing_pause(sv->out, vm_fd, err);
	while (!r && (r = lm_outgoing_pause_wait(sv->out, 100, err)) == -EAGAIN) {
		r = lm_ctx_check_cancel(c, err);
		if (!r && lm_now_ns() > c->deadline_ns)
			r = lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the guest did not stop in time");
	}
	if (r)
		return r;
	r = lm_ctx_stage(c, "paused", err);
	return r ? r : lm_outgoing_check_layout(sv->out, err);
}

/* ---- writing ---- */

static int write_group(struct lm_image_walk *w, unsigned region, uint64_t first, unsigned n, uint64_t *ret_bytes,
		       struct lm_error *err)
{
	struct lm_save *sv = w->opaque;
	int r = lm_image_existing_group(sv->c, &sv->existing, region, first, n, err);

	return r ? r : lm_image_write_chunks(&sv->writer, region, first, n, sv->existing.maps[region].words + first,
					     ret_bytes, err);
}

static int write_memory(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	struct lm_image_walk walk = { .group = write_group, .opaque = sv };
	int64_t begin = lm_now_ns();
	int r = lm_image_existing(c, &sv->existing, err);

	if (!r) {
		lm_image_reserve(&sv->writer, lm_pageset_count(&sv->existing));
		r = lm_image_walk(&walk, c, err);
	}
	if (r)
		return r;
	c->summary.blackout.last_copy_ns = lm_now_ns() - begin;
	c->summary.sent_pages = c->summary.bytes >> LM_PAGE_SHIFT;
	c->summary.existing_pages = lm_pageset_count(&sv->existing);
	c->summary.blackout.last_pages = c->summary.sent_pages;
	return lm_ctx_stage(c, "copied", err);
}

/* Which storage the locks are of, and their epochs, which grow when anybody else gets them. */
static int note_locks(struct lm_save *sv, struct lm_error *err)
{
	int r = lm_image_lock_ids(sv->out->handover, sv->saved_locks, err);

	sv->head.nlocks = sv->out->handover->locks.n;
	for (unsigned i = 0; !r && i < sv->out->handover->locks.n; i++) {
		strcpy(sv->saved_locks[i].uri, sv->out->handover->locks.lock[i]->uri);
		sv->saved_locks[i].epoch = sv->out->handover->locks.lock[i]->epoch;
	}
	return r;
}

static int finish_image(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int r;

	sv->head.running = c->vm->info.running;
	sv->head.saved_ns = lm_clock_ns(CLOCK_REALTIME);
	sv->head.info = c->vm->info;
	lm_lock_host(sv->head.host);
	r = lm_image_finish(&sv->writer, &sv->head, sv->saved_locks, sv->state, sv->state_bytes,
			    c->opt.address ? LM_IMAGE_PENDING : LM_IMAGE_FRESH, err);
	return r ? r : lm_image_sync(&sv->writer, err);
}

int lm_save_write(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int64_t begin;
	int r = write_memory(sv, err);

	if (r)
		return r;
	begin = lm_now_ns();
	r = lm_outgoing_save_state(sv->out, err);
	c->summary.blackout.device_state_ns = lm_now_ns() - begin;
	c->summary.blackout.device_state_bytes = sv->state_bytes;
	if (!r)
		r = lm_ctx_stage(c, "state", err);
	begin = lm_now_ns();
	if (!r)
		r = finish_image(sv, err);
	c->summary.copying_ns += lm_now_ns() - begin; /* what is not on the disk is not saved */
	return r ? r : lm_ctx_stage(c, "synced", err);
}

int lm_save_name(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int r = lm_image_rename(&sv->writer, err);

	if (!r)
		r = lm_ctx_stage(c, "renamed", err);
	if (!r)
		r = lm_image_sync_dir(&sv->writer, err);
	return r ? r : lm_ctx_stage(c, "durable", err);
}

/* ---- the end ---- */

/* After this step the image is the guest, and the guest never runs here again. */
static int commit(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int r = lm_ctx_stage(c, "commit", err);

	if (!r)
		r = lm_ctx_check_cancel(c, err);
	if (r)
		return r;
	if (!lm_guardian_commit(sv->out->guardian))
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the pause was undone by the guardian");
	return lm_save_name(sv, err);
}

static void release(struct lm_save *sv)
{
	struct lm_ctx *c = sv->c;
	int64_t begin = lm_now_ns();
	struct lm_error e = { 0 };

	if (lm_locks_release(&sv->out->handover->locks, lm_image_lock_deadline(c), &e))
		lm_ctx_log(c, LM_LOG_ERROR, "the guest is saved, but a storage lock was not released: %s; release it with "
		           "`migrate-rdma lock release`, or only this host can restore the guest", e.msg);
	c->summary.blackout.lock_ns = lm_now_ns() - begin;
}

static void say_done(struct lm_save *sv)
{
	struct lm_ctx *c = sv->c;
	struct lm_error e = { 0 };

	c->summary.guest_runs_here = false;
	c->summary.blackout.total_ns = c->summary.blackout.stop_ns + lm_now_ns() - sv->out->stopped_seen_ns;
	if (lm_ctx_stage(c, "released", &e) || lm_ctx_stage(c, "done", &e))
		lm_ctx_log(c, LM_LOG_DEBUG, "%s", e.msg); /* nothing depends on it any more */
}

/*
 * The guest runs on.  First the image must not be restored any more: an engine that is killed in
 * between leaves a guest that is paused, and neither runs nor is in an image.
 */
static void undo(struct lm_save *sv)
{
	struct lm_ctx *c = sv->c;
	struct lm_error e = { 0 };

	if (lm_image_abandon(&sv->writer, &e) && sv->writer.renamed) {
		c->commit_sent = true;
		c->summary.outcome = LM_OUTCOME_IN_DOUBT;
		c->summary.guest_runs_here = false;
		lm_ctx_log(c, LM_LOG_ERROR, "%s: the guest stays paused here, because the image could be restored: remove "
			   "it, then `migrate-rdma resolve --run-here`", e.msg);
		return;
	}
	if (c->pause_begun)
		lm_guardian_uncommit(sv->out->guardian);
	lm_outgoing_undo(sv->out);
}

static int save(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int r;

	lm_image_opened(c);
	r = lm_save_pause(sv, err);
	if (!r && lm_broken("release-late"))
		release(sv);
	if (!r)
		r = lm_save_write(sv, err);
	if (!r)
		r = commit(sv, err);
	if (r)
		return r;
	sv->saved = c->commit_sent = true;
	release(sv);
	lm_guardian_idle(sv->out->guardian);
	say_done(sv);
	return 0;
}

int lm_save_begin(struct lm_save *sv, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;
	int r = lm_ctx_stage(c, "open", err);

	if (!r)
		r = note_locks(sv, err);
	return r ? r : lm_pool_new(lm_image_threads(c), &c->pool, err);
}

int lm_save_end(struct lm_save *sv, int r, struct lm_error *err)
{
	struct lm_ctx *c = sv->c;

	if (!r || c->commit_sent)
		return r;
	undo(sv);
	if (c->control.stream)
		lm_control_send_abort(&c->control, err, lm_deadline_after(LM_ABORT_TIMEOUT_NS));
	return r;
}

int lm_save_run(struct lm_save *sv, struct lm_error *err)
{
	int r = lm_save_begin(sv, err);

	if (!r)
		r = save(sv, err);
	return lm_save_end(sv, r, err);
}
