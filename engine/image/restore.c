/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restore: check the image, take the storage locks, bring memory and device state into a
 * QEMU that waits, mark the image as used, and run the guest.
 *
 *   locked             this host holds the locks, and nobody has since they were released
 *   filled             eager: all memory is read and checked.  lazy: a pager shows it when it is touched
 *   prepare, loading, loaded    QEMU has its device state
 *   commit, marked     the image says that it was used: from here on the guest is here
 *   resumed            it runs
 *   postcopy, whole    lazy: the rest of the memory is read while it runs
 *
 * Until `marked` everything that fails leaves the image as it was, and frees the locks.
 */
#include <string.h>
#include <sys/random.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "restore.h"
#include "transport.h"
#include "walk.h"
#include "engine/base/testhook.h"

/* ---- what is refused before anything is touched ---- */

static int check_mark(const struct lm_restore *rs, const struct lm_image *img, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	static const char *const why[] = {
		[LM_IMAGE_PENDING] = "belongs to a quick migration that was not completed: its guest may run on the host that it came from",
		[LM_IMAGE_USED] = "has been restored before: its guest has run since then and has written to its disks",
		[LM_IMAGE_VOID] = "was given up: its guest went on on the host where it was saved",
	};

	if (img->mark == LM_IMAGE_FRESH || c->opt.again)
		return 0;
	if (img->mark == LM_IMAGE_PENDING && c->opt.address)
		return 0;
	return lm_err(err, -EALREADY, LM_SCOPE_SESSION, "%s %s (%s, on %s); --again restores it all the same", img->path,
		      why[img->mark], lm_image_mark_name(img->mark), img->mark_host);
}

static int check_resume(const struct lm_restore *rs, struct lm_error *err)
{
	const struct lm_pcstate_head *h = rs->pull->both.state.head;

	if (strcmp(h->transport, "image"))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "this guest's pages come from another host: `migrate-rdma recover`");
	if (memcmp(h->secret, rs->image.head.id, LM_IMAGE_ID_SIZE))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%s is not the image that this guest came from", rs->c->opt.image);
	return 0;
}

int lm_restore_read_image(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	struct lm_image *img = &rs->image;
	int r = lm_image_open(img, c->opt.image, !c->recovering, err);

	if (r)
		return r;
	rs->before = img->mark;
	if (img->direct_fd < 0)
		lm_ctx_log(c, LM_LOG_WARN, "the file system of %s refuses O_DIRECT: the image is read through the page cache",
			   c->opt.image);
	if (c->recovering)
		return check_resume(rs, err);
	r = check_mark(rs, img, err);
	if (!r)
		r = lm_image_check_vm(img, &c->vm->info, &c->ram, err);
	if (!r)
		r = lm_image_read_state(img, &rs->state, err);
	if (!r && !c->ram.regions[0].host)
		r = lm_ram_map(&c->ram, true, err);
	return r;
}

int lm_restore_init(struct lm_restore *rs, struct lm_ctx *c, struct lm_incoming *in, struct lm_postcopy_dest *pull,
		    struct lm_error *err)
{
	rs->c = c;
	rs->in = in;
	rs->pull = pull;
	rs->image.fd = rs->image.direct_fd = -1;
	if (getrandom(rs->use, sizeof(rs->use), 0) != sizeof(rs->use))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "no random numbers");
	snprintf(rs->image.path, sizeof(rs->image.path), "%s", c->opt.image); /* what the guardian looks at */
	return c->opt.address ? 0 : lm_restore_read_image(rs, err);
}

static bool was_marked(const void *arg)
{
	const struct lm_restore *rs = arg;

	return lm_image_marked_by(rs->image.path, rs->use);
}

struct lm_guardian_witness lm_restore_witness(const struct lm_restore *rs)
{
	return (struct lm_guardian_witness){ .happened = was_marked, .arg = rs };
}

void lm_restore_close(struct lm_restore *rs)
{
	if (!rs->c)
		return;
	lm_pageset_fini(&rs->existing);
	lm_image_close(&rs->image);
	free(rs->state);
}

/* ---- locks ---- */

static int foreign_epoch(const struct lm_restore *rs, unsigned i, uint64_t epoch, struct lm_error *err)
{
	return lm_err(err, -ESTALE, LM_SCOPE_SESSION, "somebody held the lock %s after the guest was saved (epoch %llu, in "
		      "the image %llu): the disks may not fit its memory any more. Find out who had it; --force-locks restores "
		      "the guest all the same", rs->in->handover->locks.lock[i]->uri, (unsigned long long)epoch,
		      (unsigned long long)rs->image.epochs[i]);
}

static int check_lock_count(const struct lm_restore *rs, struct lm_error *err)
{
	const struct lm_image *img = &rs->image;

	if (img->head.nlocks == rs->in->handover->locks.n || rs->c->opt.force_locks)
		return 0;
	return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "the guest was saved with %u storage locks (%.200s%s), this restore has %u: "
		      "give the same --lock options in the same order", img->head.nlocks, img->head.nlocks ? img->locks[0].uri : "",
		      img->head.nlocks > 1 ? " ..." : "", rs->in->handover->locks.n);
}

/*
 * An acquire makes the epoch grow by one, or, of a lock that this host has already, leaves
 * it.  More is the trace of somebody else.
 */
static bool follows(const struct lm_restore *rs, unsigned i, uint64_t epoch)
{
	uint64_t known = rs->image.epochs[i];

	return epoch == known || epoch == known + 1;
}

static int check_epochs(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	struct lm_image_lock now[LM_IMAGE_LOCKS_MAX];
	const struct lm_image *img = &rs->image;
	int r = c->opt.force_locks ? 0 : lm_image_lock_ids(rs->in->handover, now, err);

	for (unsigned i = 0; !r && !c->opt.force_locks && i < rs->in->handover->locks.n; i++) {
		uint64_t epoch = rs->in->handover->locks.lock[i]->epoch;

		if (memcmp(now[i].id, img->locks[i].id, sizeof(now[i].id)))
			r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "the lock %s is not the one that the guest was saved with (%s): "
				   "other storage", rs->in->handover->locks.lock[i]->uri, img->locks[i].uri);
		else if (!follows(rs, i, epoch))
			r = foreign_epoch(rs, i, epoch, err);
	}
	return r;
}

/*
 * The mark gets the epochs with which this host had the locks, even if we are killed later.  So
 * the next restore knows that nobody else had them.  An epoch that shows another owner stays as it
 * is.
 */
static int note_epochs(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_image *img = &rs->image;

	for (unsigned i = 0; i < rs->in->handover->locks.n && i < img->nepochs; i++) {
		const struct lm_lock *l = rs->in->handover->locks.lock[i];

		if (l->state == LM_LOCK_OWNED && follows(rs, i, l->epoch))
			img->epochs[i] = l->epoch;
	}
	return rs->in->handover->locks.n ? lm_image_set_mark(img, rs->before, NULL, err) : 0;
}

static void unlock(struct lm_restore *rs)
{
	struct lm_ctx *c = rs->c;
	struct lm_error e = { 0 };

	if (lm_locks_give_back(&rs->in->handover->locks, lm_image_lock_deadline(c), &e))
		lm_ctx_log(c, LM_LOG_ERROR, "a storage lock was not released: %s", e.msg);
}

static int lock(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	int64_t begin = lm_now_ns();
	int r = check_lock_count(rs, err), noted;

	if (r || lm_broken("restore-lock"))
		return r;
	r = lm_locks_acquire(&rs->in->handover->locks, lm_image_lock_deadline(c), err);
	if (!r)
		r = check_epochs(rs, err);
	noted = note_epochs(rs, r ? NULL : err);
	r = r ? r : noted;
	if (r)
		unlock(rs);
	c->summary.blackout.lock_ns = lm_now_ns() - begin;
	return r;
}

/* ---- memory ---- */

/* What the file holds already and the image does not is zero. */
static int clear_rest(struct lm_restore *rs, unsigned region, uint64_t first, unsigned n, struct lm_bitmap *resident,
		      struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	uint64_t page = first * LM_IMAGE_CHUNK_PAGES, end = page + n * LM_IMAGE_CHUNK_PAGES, at, run;
	int r;

	if (end > resident->nbits)
		end = resident->nbits;
	r = lm_image_existing_group(c, &rs->existing, region, first, n, err);
	for (unsigned i = 0; !r && i < n; i++)
		resident->words[first + i] &= ~lm_image_pages(&rs->image, rs->image.region_chunk0[region] + first + i);
	while (!r && (run = lm_bitmap_next_run(resident, page, end, &at))) {
		lm_region_clear(&c->ram.regions[region], at, run);
		page = at + run;
	}
	return r;
}

static int read_group(struct lm_image_walk *w, unsigned region, uint64_t first, unsigned n, uint64_t *ret_bytes,
		      struct lm_error *err)
{
	struct lm_restore *rs = w->opaque;
	const struct lm_image *img = &rs->image;
	int r = clear_rest(rs, region, first, n, &rs->existing.maps[region], err);

	if (!r)
		r = lm_image_read_chunks(img, &rs->c->ram, region, first, n, err);
	for (unsigned i = 0; i < n; i++)
		*ret_bytes += (uint64_t)__builtin_popcountll(lm_image_pages(img, img->region_chunk0[region] + first + i)) *
			      LM_PAGE_SIZE;
	return r;
}

static int fill_eager(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	struct lm_image_walk walk = { .group = read_group, .opaque = rs };
	int r = lm_pool_new(lm_image_threads(c), &c->pool, err);

	if (!r)
		r = lm_image_existing(c, &rs->existing, err);
	return r ? r : lm_image_walk(&walk, c, err);
}

static int leave_region(struct lm_restore *rs, unsigned region, struct lm_error *err)
{
	const struct lm_image *img = &rs->image;
	struct lm_arrival *a = &rs->pull->puller.arrival;
	struct lm_bitmap resident;
	int r = lm_bitmap_init(&resident, lm_region_npages(&rs->c->ram.regions[region]));

	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "out of memory");
	r = lm_region_existing(&rs->c->ram.regions[region], 0, resident.nbits, &resident, err);
	for (uint64_t c = 0; !r && c < lm_bitmap_nwords(resident.nbits); c++) {
		uint64_t mask = lm_image_pages(img, img->region_chunk0[region] + c), zero = resident.words[c] & ~mask;
		unsigned at = 0, first, n;

		while (lm_image_mask_run(zero, &at, &first, &n))
			lm_arrival_leave(a, region, c * 64 + first, n, true);
		at = 0;
		while (lm_image_mask_run(mask, &at, &first, &n))
			lm_arrival_leave(a, region, c * 64 + first, n, false);
	}
	lm_bitmap_fini(&resident);
	return r;
}

static int connect_image(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	struct lm_transport_params p = { .side = LM_DEST, .direction = LM_PULL, .nlanes = rs->pull->both.nlanes + 1, .ram = &c->ram };
	struct lm_key unused;
	int r;

	rs->pull->both.transport = lm_transport_image_new(&rs->image);
	if (!rs->pull->both.transport)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	r = lm_transport_open(rs->pull->both.transport, &p, err);
	for (unsigned i = 0; !r && i < c->ram.nregions; i++)
		r = lm_transport_region_add(rs->pull->both.transport, &c->ram.regions[i], &unused, err);
	if (!r)
		lm_puller_up(&rs->pull->puller, rs->pull->both.transport);
	return r;
}

static int fill_lazy(struct lm_restore *rs, struct lm_error *err)
{
	int r;

	/* An engine that goes on after our death recognises the image by its id. */
	memcpy(rs->pull->both.secret, rs->image.head.id, sizeof(rs->pull->both.secret));
	r = lm_postcopy_arm_here(rs->pull, err);
	for (unsigned i = 0; !r && i < rs->c->ram.nregions; i++)
		r = leave_region(rs, i, err);
	if (!r)
		r = lm_puller_serve(&rs->pull->puller, err);
	rs->pull->known = !r;
	return r ? r : connect_image(rs, err);
}

int lm_restore_fill(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	int64_t begin = lm_now_ns();
	int r;

	c->summary.existing_pages = c->summary.sent_pages = rs->image.head.stored_pages;
	r = c->opt.lazy ? fill_lazy(rs, err) : fill_eager(rs, err);
	c->summary.blackout.last_copy_ns = lm_now_ns() - begin;
	return r ? r : lm_ctx_stage(c, "filled", err);
}

/* ---- device state ---- */

static int load(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	int r = lm_incoming_begin_load(rs->in, err);

	if (!r)
		r = lm_ctx_stage(c, "loading", err);
	if (!r)
		r = lm_incoming_write_state(rs->in, rs->state, rs->image.head.state_bytes, err);
	if (r)
		return r;
	lm_incoming_end_state(rs->in);
	return lm_vm_state_wait(c->vm, lm_ctx_vm_deadline(c), err);
}

int lm_restore_load(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	int64_t begin = lm_now_ns();
	int r = lm_ctx_stage(c, "prepare", err);

	if (!r)
		r = load(rs, err);
	c->summary.blackout.device_state_bytes = rs->image.head.state_bytes;
	c->summary.blackout.device_state_ns = rs->in->load_ns = lm_now_ns() - begin;
	return r ? r : lm_ctx_stage(c, "loaded", err);
}

/* ---- the guest runs ---- */

static int mark(struct lm_restore *rs, struct lm_error *err)
{
	int r = lm_broken("mark") ? 0 : lm_image_set_mark(&rs->image, LM_IMAGE_USED, rs->use, err);

	return r ? r : lm_ctx_stage(rs->c, "marked", err);
}

int lm_restore_run_guest(struct lm_restore *rs, bool runs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	struct lm_error e = { 0 };
	int64_t begin = lm_now_ns();
	int r = lm_ctx_stage(c, "commit", err);

	if (!r)
		r = lm_ctx_check_cancel(c, err);
	if (r)
		return r;
	runs = runs && !c->opt.start_paused;
	lm_incoming_commit(rs->in, runs);
	if (rs->in->handover->offer.n)
		r = lm_handover_take(rs->in->handover, err);
	if (!r)
		r = mark(rs, err);
	if (!r)
		r = lm_incoming_run_guest(rs->in, runs, err);
	if (r)
		return r;
	lm_guardian_idle(rs->in->guardian);
	lm_handover_keep(rs->in->handover);
	c->summary.guest_runs_here = runs;
	c->summary.blackout.resume_ns = lm_now_ns() - begin - rs->in->handover->take_ns;
	c->summary.blackout.lock_ns += rs->in->handover->take_ns;
	c->summary.blackout.total_ns = lm_now_ns() - c->started_ns;
	if (lm_ctx_stage(c, "resumed", &e))
		lm_ctx_log(c, LM_LOG_DEBUG, "%s", e.msg); /* it runs all the same */
	return 0;
}

/* As it was: unless the guest may have run. */
static void undo(struct lm_restore *rs, const struct lm_error *why)
{
	bool may_have_run = rs->in->may_have_run, ended = lm_incoming_undo(rs->in, why);
	struct lm_error e = { 0 };

	if (may_have_run || !ended)
		return;
	rs->in->committed = false;
	if (rs->image.chunks && rs->image.mark != rs->before && lm_image_set_mark(&rs->image, rs->before, NULL, &e))
		lm_ctx_log(rs->c, LM_LOG_ERROR, "%s: --again restores it all the same", e.msg);
}

static int resume(struct lm_restore *rs, struct lm_error *err)
{
	int r;

	lm_image_opened(rs->c);
	r = rs->pull->both.state.head->whole ? 0 : connect_image(rs, err);
	return r ? r : lm_postcopy_pull_image(rs->pull, err);
}

static int restore(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	int r;

	lm_image_opened(c);
	r = lm_ctx_stage(c, "locked", err);
	if (!r)
		r = lm_restore_fill(rs, err);
	if (!r)
		r = lm_restore_load(rs, err);
	return r ? r : lm_restore_run_guest(rs, rs->image.head.running, err);
}

int lm_restore_end(struct lm_restore *rs, int r, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;

	if (r) {
		undo(rs, err);
		return r;
	}
	if (c->opt.lazy)
		r = lm_postcopy_pull_image(rs->pull, err);
	return r ? r : lm_ctx_stage(c, "done", err);
}

int lm_restore_run(struct lm_restore *rs, struct lm_error *err)
{
	struct lm_ctx *c = rs->c;
	int r = lm_ctx_stage(c, "open", err);

	if (!r && c->recovering)
		return resume(rs, err);
	if (!r)
		r = lock(rs, err);
	return r ? r : lm_restore_end(rs, restore(rs, err), err);
}
