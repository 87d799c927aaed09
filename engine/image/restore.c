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
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "session.h"
#include "walk.h"
#include "engine/base/testhook.h"

/* ---- what is refused before anything is touched ---- */

static int check_mark(const struct lm_session *s, const struct lm_image *img, struct lm_error *err)
{
	static const char *const why[] = {
		[LM_IMAGE_PENDING] = "belongs to a quick migration that did not end: its guest may run where it came from",
		[LM_IMAGE_USED] = "has been restored before: its guest has run since, and has written to its disks",
		[LM_IMAGE_VOID] = "was given up: its guest went on where it was",
	};

	if (img->mark == LM_IMAGE_FRESH || s->opt.again)
		return 0;
	if (img->mark == LM_IMAGE_PENDING && s->opt.address)
		return 0;
	return lm_err(err, -EALREADY, LM_SCOPE_SESSION, "%s %s (%s, on %s); --again restores it all the same", img->path,
		      why[img->mark], lm_image_mark_name(img->mark), img->mark_host);
}

static int check_resume(const struct lm_session *s, struct lm_error *err)
{
	const struct lm_pcstate_head *h = s->pull.state.head;

	if (strcmp(h->transport, "image"))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "this guest's pages come from another host: `migrate-rdma recover`");
	if (memcmp(h->secret, s->img->image.head.id, LM_IMAGE_ID_SIZE))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%s is not the image that this guest came from", s->opt.image);
	return 0;
}

int lm_restore_read_image(struct lm_session *s, struct lm_error *err)
{
	struct lm_image *img = &s->img->image;
	int r = lm_image_open(img, s->opt.image, !s->recovering, err);

	if (r)
		return r;
	s->img->before = img->mark;
	if (img->direct_fd < 0)
		lm_session_log(s, LM_LOG_WARN, "the file system of %s refuses O_DIRECT: the image is read through the page cache",
			       s->opt.image);
	if (s->recovering)
		return check_resume(s, err);
	r = check_mark(s, img, err);
	if (!r)
		r = lm_image_check_vm(img, &s->vm->info, &s->ram, err);
	if (!r)
		r = lm_image_read_state(img, &s->img->state, err);
	if (!r && !s->ram.regions[0].host)
		r = lm_ram_map(&s->ram, true, err);
	return r;
}

int lm_restore_open_image(struct lm_session *s, struct lm_error *err)
{
	int r = lm_image_session_new(s, err);

	if (!r && getrandom(s->img->use, sizeof(s->img->use), 0) != sizeof(s->img->use))
		r = lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "no random numbers");
	snprintf(s->img->image.path, sizeof(s->img->image.path), "%s", s->opt.image); /* what the guardian looks at */
	if (r || s->opt.address) /* quick: it is written yet */
		return r;
	return lm_restore_read_image(s, err);
}

/* ---- locks ---- */

static int foreign_epoch(const struct lm_session *s, unsigned i, uint64_t epoch, struct lm_error *err)
{
	return lm_err(err, -ESTALE, LM_SCOPE_SESSION, "the lock %s was held by somebody after the guest was saved (epoch %llu, in "
		      "the image %llu): the disks may not fit its memory any more. Find out who had it; --force-locks restores "
		      "the guest all the same", s->handover.locks.lock[i]->uri, (unsigned long long)epoch,
		      (unsigned long long)s->img->image.epochs[i]);
}

static int check_lock_count(const struct lm_session *s, struct lm_error *err)
{
	const struct lm_image *img = &s->img->image;

	if (img->head.nlocks == s->handover.locks.n || s->opt.force_locks)
		return 0;
	return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "the guest was saved with %u storage locks (%.200s%s), this restore has %u: "
		      "give the same --lock options in the same order", img->head.nlocks, img->head.nlocks ? img->locks[0].uri : "",
		      img->head.nlocks > 1 ? " ..." : "", s->handover.locks.n);
}

/*
 * An acquire makes the epoch grow by one, or, of a lock that this host has already, leaves
 * it.  More is the trace of somebody else.
 */
static bool follows(const struct lm_session *s, unsigned i, uint64_t epoch)
{
	uint64_t known = s->img->image.epochs[i];

	return epoch == known || epoch == known + 1;
}

static int check_epochs(struct lm_session *s, struct lm_error *err)
{
	struct lm_image_lock now[LM_IMAGE_LOCKS_MAX];
	const struct lm_image *img = &s->img->image;
	int r = s->opt.force_locks ? 0 : lm_image_lock_ids(s, now, err);

	for (unsigned i = 0; !r && !s->opt.force_locks && i < s->handover.locks.n; i++) {
		uint64_t epoch = s->handover.locks.lock[i]->epoch;

		if (memcmp(now[i].id, img->locks[i].id, sizeof(now[i].id)))
			r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "the lock %s is not the one that the guest was saved with (%s): "
				   "other storage", s->handover.locks.lock[i]->uri, img->locks[i].uri);
		else if (!follows(s, i, epoch))
			r = foreign_epoch(s, i, epoch, err);
	}
	return r;
}

/*
 * Who comes next finds in the mark with which epoch we had them, and need not wonder whose
 * that was; also when we are killed.  One that tells of somebody else stays one that does.
 */
static int note_epochs(struct lm_session *s, struct lm_error *err)
{
	struct lm_image *img = &s->img->image;

	for (unsigned i = 0; i < s->handover.locks.n && i < img->nepochs; i++) {
		const struct lm_lock *l = s->handover.locks.lock[i];

		if (l->state == LM_LOCK_OWNED && follows(s, i, l->epoch))
			img->epochs[i] = l->epoch;
	}
	return s->handover.locks.n ? lm_image_set_mark(img, s->img->before, NULL, err) : 0;
}

static void unlock(struct lm_session *s)
{
	struct lm_error e = { 0 };

	if (lm_locks_give_back(&s->handover.locks, lm_image_lock_deadline(s), &e))
		lm_session_log(s, LM_LOG_ERROR, "a storage lock was not released: %s", e.msg);
}

static int lock(struct lm_session *s, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	int r = check_lock_count(s, err), noted;

	if (r || lm_broken("restore-lock"))
		return r;
	r = lm_locks_acquire(&s->handover.locks, lm_image_lock_deadline(s), err);
	if (!r)
		r = check_epochs(s, err);
	noted = note_epochs(s, r ? NULL : err);
	r = r ? r : noted;
	if (r)
		unlock(s);
	s->summary.blackout.lock_ns = lm_now_ns() - begin;
	return r;
}

/* ---- memory ---- */

/* What the file holds already and the image does not is zero. */
static int clear_rest(struct lm_session *s, unsigned region, uint64_t first, unsigned n, struct lm_bitmap *resident,
		      struct lm_error *err)
{
	uint64_t page = first * LM_IMAGE_CHUNK_PAGES, end = page + n * LM_IMAGE_CHUNK_PAGES, at, run;
	int r;

	if (end > resident->nbits)
		end = resident->nbits;
	r = lm_image_existing_group(s, region, first, n, err);
	for (unsigned i = 0; !r && i < n; i++)
		resident->words[first + i] &= ~lm_image_pages(&s->img->image, s->img->image.region_chunk0[region] + first + i);
	while (!r && (run = lm_bitmap_next_run(resident, page, end, &at))) {
		lm_region_clear(&s->ram.regions[region], at, run);
		page = at + run;
	}
	return r;
}

static int read_group(struct lm_image_walk *w, unsigned region, uint64_t first, unsigned n, uint64_t *ret_bytes,
		      struct lm_error *err)
{
	struct lm_session *s = w->s;
	const struct lm_image *img = &s->img->image;
	int r = clear_rest(s, region, first, n, &s->img->existing.maps[region], err);

	if (!r)
		r = lm_image_read_chunks(img, &s->ram, region, first, n, err);
	for (unsigned i = 0; i < n; i++)
		*ret_bytes += (uint64_t)__builtin_popcountll(lm_image_pages(img, img->region_chunk0[region] + first + i)) *
			      LM_PAGE_SIZE;
	return r;
}

static int fill_eager(struct lm_session *s, struct lm_error *err)
{
	struct lm_image_walk walk = { .group = read_group };
	int r = lm_pool_new(lm_image_threads(s), &s->pool, err);

	if (!r)
		r = lm_image_existing(s, err);
	return r ? r : lm_image_walk(&walk, s, err);
}

static int leave_region(struct lm_session *s, unsigned region, struct lm_error *err)
{
	const struct lm_image *img = &s->img->image;
	struct lm_arrival *a = &s->pull.puller.arrival;
	struct lm_bitmap resident;
	int r = lm_bitmap_init(&resident, lm_region_npages(&s->ram.regions[region]));

	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "out of memory");
	r = lm_region_existing(&s->ram.regions[region], 0, resident.nbits, &resident, err);
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

static int connect_image(struct lm_session *s, struct lm_error *err)
{
	struct lm_transport_params p = { .side = LM_DEST, .direction = LM_PULL, .nlanes = s->pull.nlanes + 1, .ram = &s->ram };
	struct lm_key unused;
	int r;

	s->pull.transport = lm_transport_image_new(&s->img->image);
	if (!s->pull.transport)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	r = lm_transport_open(s->pull.transport, &p, err);
	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = lm_transport_region_add(s->pull.transport, &s->ram.regions[i], &unused, err);
	if (!r)
		lm_puller_up(&s->pull.puller, s->pull.transport);
	return r;
}

static int fill_lazy(struct lm_session *s, struct lm_error *err)
{
	int r;

	/* What goes on after our death knows the image by its id. */
	memcpy(s->pull.secret, s->img->image.head.id, sizeof(s->pull.secret));
	r = lm_postcopy_arm_here(s, err);
	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = leave_region(s, i, err);
	if (!r)
		r = lm_puller_serve(&s->pull.puller, err);
	s->pull.known = !r;
	return r ? r : connect_image(s, err);
}

int lm_restore_fill(struct lm_session *s, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	int r;

	s->summary.existing_pages = s->summary.sent_pages = s->img->image.head.stored_pages;
	r = s->opt.lazy ? fill_lazy(s, err) : fill_eager(s, err);
	s->summary.blackout.last_copy_ns = lm_now_ns() - begin;
	return r ? r : lm_session_stage(s, "filled", err);
}

/* ---- device state ---- */

static int load(struct lm_session *s, struct lm_error *err)
{
	int r = lm_dest_begin_load(s, err);

	if (!r)
		r = lm_session_stage(s, "loading", err);
	if (!r)
		r = lm_dest_write_state(s, s->img->state, s->img->image.head.state_bytes, err);
	if (r)
		return r;
	shutdown(s->dst.state_fd, SHUT_WR);
	return lm_vm_state_wait(s->vm, lm_session_vm_deadline(s), err);
}

int lm_restore_load(struct lm_session *s, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	int r = lm_session_stage(s, "prepare", err);

	if (!r)
		r = load(s, err);
	s->summary.blackout.device_state_bytes = s->img->image.head.state_bytes;
	s->summary.blackout.device_state_ns = s->dst.load_ns = lm_now_ns() - begin;
	return r ? r : lm_session_stage(s, "loaded", err);
}

/* ---- the guest runs ---- */

static int mark(struct lm_session *s, struct lm_error *err)
{
	int r = lm_broken("mark") ? 0 : lm_image_set_mark(&s->img->image, LM_IMAGE_USED, s->img->use, err);

	return r ? r : lm_session_stage(s, "marked", err);
}

int lm_restore_run_guest(struct lm_session *s, bool runs, struct lm_error *err)
{
	struct lm_vm_times times = { 0 };
	struct lm_error e = { 0 };
	int64_t begin = lm_now_ns();
	int r = lm_session_stage(s, "commit", err);

	if (!r)
		r = lm_session_check_cancel(s, err);
	if (r)
		return r;
	runs = runs && !s->opt.start_paused;
	lm_guardian_run(&s->guardian, runs);
	lm_guardian_commit(&s->guardian);
	s->dst.committed = true;
	if (s->handover.offer.n)
		r = lm_handover_take(s, err);
	if (!r)
		r = mark(s, err);
	if (!r)
		r = lm_dest_run_guest(s, runs, &times, err);
	if (r)
		return r;
	lm_guardian_idle(&s->guardian);
	lm_handover_keep(s);
	s->summary.guest_runs_here = runs;
	s->summary.blackout.resume_ns = lm_now_ns() - begin - s->handover.take_ns;
	s->summary.blackout.lock_ns += s->handover.take_ns;
	s->summary.blackout.total_ns = lm_now_ns() - s->started_ns;
	if (lm_session_stage(s, "resumed", &e))
		lm_session_log(s, LM_LOG_DEBUG, "%s", e.msg); /* it runs all the same */
	return 0;
}

/* As it was: unless the guest may have run. */
static void undo(struct lm_session *s, const struct lm_error *why)
{
	bool may_have_run = s->dst.may_have_run, ended = lm_dest_undo(s, why);
	struct lm_error e = { 0 };

	if (may_have_run || !ended)
		return;
	s->dst.committed = false;
	if (s->img->image.chunks && s->img->image.mark != s->img->before && lm_image_set_mark(&s->img->image, s->img->before, NULL, &e))
		lm_session_log(s, LM_LOG_ERROR, "%s: --again restores it all the same", e.msg);
}

static int resume(struct lm_session *s, struct lm_error *err)
{
	int r;

	lm_image_opened_event(s);
	r = s->pull.state.head->whole ? 0 : connect_image(s, err);
	return r ? r : lm_postcopy_pull_image(s, err);
}

static int restore(struct lm_session *s, struct lm_error *err)
{
	int r;

	lm_image_opened_event(s);
	r = lm_session_stage(s, "locked", err);
	if (!r)
		r = lm_restore_fill(s, err);
	if (!r)
		r = lm_restore_load(s, err);
	return r ? r : lm_restore_run_guest(s, s->img->image.head.running, err);
}

int lm_restore_run(struct lm_session *s, struct lm_error *err)
{
	int r = lm_session_stage(s, "open", err);

	if (!r && s->recovering)
		return resume(s, err);
	if (!r && !s->opt.address)
		r = lock(s, err);
	if (r)
		return r;
	r = s->opt.address ? lm_quick_receive(s, err) : restore(s, err);
	if (r) {
		undo(s, err);
		return r;
	}
	if (s->opt.lazy)
		r = lm_postcopy_pull_image(s, err);
	return r ? r : lm_session_stage(s, "done", err);
}
