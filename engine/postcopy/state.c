/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "state.h"

#define MAGIC "LMPOSTC"
#define VERSION 1

int64_t lm_pcstate_wait_ns = 10 * LM_NS_PER_S;

/* A directory that is ours and nobody else can write to. */
static bool private_dir(const char *path)
{
	struct stat st;

	if (mkdir(path, 0700) && errno != EEXIST)
		return false;
	return !lstat(path, &st) && S_ISDIR(st.st_mode) && st.st_uid == geteuid() && !(st.st_mode & 022);
}

/* The places where a state may be: at is 0, 1, ...; false when there are no more. */
static bool state_dir(unsigned at, char *buf, size_t size)
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	bool has_xdg = xdg && *xdg == '/';

	if (at > (has_xdg ? 1u : 0u))
		return false;
	return snprintf(buf, size, "%s/migrate-rdma", has_xdg && !at ? xdg : "/run") < (int)size;
}

static void state_file(char *buf, size_t size, const char *dir, enum lm_side side, int32_t vm_pid)
{
	snprintf(buf, size, "%s/postcopy-%s-%d", dir, side == LM_SOURCE ? "source" : "destination", vm_pid);
}

/* Where to make one: the first place. */
static int new_path(char *buf, size_t size, enum lm_side side, int32_t vm_pid, struct lm_error *err)
{
	char dir[96];

	if (!state_dir(0, dir, sizeof(dir)) || !private_dir(dir))
		return lm_err(err, -EACCES, LM_SCOPE_SESSION,
			      "post-copy keeps its state in %s, which cannot be made or is not ours alone: set "
			      "XDG_RUNTIME_DIR, or use --postcopy never", dir);
	state_file(buf, size, dir, side, vm_pid);
	return 0;
}

/*
 * The place where the file is: the program that recovers may have another environment than the one
 * that began.  Without a file, the first place.
 */
static int old_path(char *buf, size_t size, enum lm_side side, int32_t vm_pid, struct lm_error *err)
{
	char dir[96];

	for (unsigned i = 0; state_dir(i, dir, sizeof(dir)); i++) {
		state_file(buf, size, dir, side, vm_pid);
		if (private_dir(dir) && !access(buf, F_OK))
			return 0;
	}
	return new_path(buf, size, side, vm_pid, err);
}

/* Start time of a process, 0 when there is none (a zombie has ended). */
static uint64_t start_of(int32_t pid)
{
	char path[64], text[1024], *at;
	unsigned long long start = 0;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	lm_close_fd(&fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	at = strrchr(text, ')'); /* the name may hold anything */
	if (!at || at[1] != ' ' || at[2] == 'Z' || at[2] == 'X')
		return 0;
	/* state is field 3, starttime 22 */
	if (sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start) != 1)
		return 0;
	return start;
}

static int lock(struct lm_pcstate *st, struct lm_error *err)
{
	int64_t deadline = lm_deadline_after(lm_pcstate_wait_ns);
	struct timespec nap = { 0, 10 * LM_NS_PER_MS };

	while (flock(st->fd, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot lock %s", st->path);
		if (lm_now_ns() > deadline)
			return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
				      "another migrate-rdma takes care of this guest's post-copy (%s is locked)", st->path);
		nanosleep(&nap, NULL);
	}
	return 0;
}

static int map(struct lm_pcstate *st, struct lm_error *err)
{
	void *p = mmap(NULL, st->size, PROT_READ | PROT_WRITE, MAP_SHARED, st->fd, 0);

	if (p == MAP_FAILED)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot map %s", st->path);
	st->head = p;
	for (unsigned i = 0; i < st->head->nregions; i++) {
		const struct lm_pcstate_region *r = &st->head->regions[i];

		if (r->bitmap)
			st->whole[i] = (struct lm_bitmap){ r->size >> LM_PAGE_SHIFT,
							   (uint64_t *)((uint8_t *)p + r->bitmap) };
	}
	return 0;
}

static void fill_head(struct lm_pcstate_head *h, enum lm_side side, int32_t vm_pid, const struct lm_ram *ram)
{
	uint64_t at = (sizeof(*h) + LM_PAGE_SIZE - 1) / LM_PAGE_SIZE * LM_PAGE_SIZE;

	memset(h, 0, sizeof(*h));
	memcpy(h->magic, MAGIC, sizeof(MAGIC));
	h->version = VERSION;
	h->head_size = sizeof(*h);
	h->side = side;
	h->vm_pid = vm_pid;
	h->vm_start = start_of(vm_pid);
	h->engine_pid = getpid();
	h->engine_start = start_of(getpid());
	h->vm_fd = -1;
	h->nregions = ram->nregions;
	for (unsigned i = 0; i < ram->nregions; i++) {
		const struct lm_region *r = &ram->regions[i];

		h->regions[i] = (struct lm_pcstate_region){
			.size = r->size, .page_size = r->page_size, .vm_addr = r->vm_addr,
			.file_offset = r->file_offset, .dev = r->dev, .ino = r->ino,
			.bitmap = side == LM_DEST ? at : 0,
		};
		memcpy(h->regions[i].name, r->name, sizeof(h->regions[i].name));
		at += side == LM_DEST ? lm_bitmap_nwords(lm_region_npages(r)) * 8 : 0;
	}
}

static size_t file_size(const struct lm_pcstate_head *h)
{
	size_t size = (sizeof(*h) + LM_PAGE_SIZE - 1) / LM_PAGE_SIZE * LM_PAGE_SIZE;

	for (unsigned i = 0; i < h->nregions; i++)
		size += h->side == LM_DEST ? lm_bitmap_nwords(h->regions[i].size >> LM_PAGE_SHIFT) * 8 : 0;
	return size;
}

static int write_new(struct lm_pcstate *st, const struct lm_pcstate_head *h, struct lm_error *err)
{
	int r;

	st->size = file_size(h);
	/* posix_fallocate: a full tmpfs is an error here and not a signal later. */
	r = ftruncate(st->fd, 0) ? -errno : -posix_fallocate(st->fd, 0, (off_t)st->size);
	if (!r && pwrite(st->fd, h, sizeof(*h), 0) != (ssize_t)sizeof(*h))
		r = -EIO;
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot write %s", st->path);
	r = map(st, err);
	for (unsigned i = 0; !r && h->side == LM_DEST && i < h->nregions; i++)
		lm_bitmap_set_range(&st->whole[i], 0, st->whole[i].nbits);
	return r;
}

static bool has_a_name(const struct lm_pcstate *st)
{
	struct stat sb;

	return fstat(st->fd, &sb) || sb.st_nlink;
}

static int open_locked(struct lm_pcstate *st, enum lm_side side, int32_t vm_pid, int flags, struct lm_error *err)
{
	int r;

	memset(st, 0, sizeof(*st));
	st->fd = -1;
	r = flags & O_CREAT ? new_path(st->path, sizeof(st->path), side, vm_pid, err) :
			      old_path(st->path, sizeof(st->path), side, vm_pid, err);
	if (r)
		return r;
	do {
		lm_close_fd(&st->fd);
		st->fd = open(st->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
		if (st->fd < 0)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot open %s", st->path);
		r = lock(st, err);
		/*
		 * While this engine waited, the owner may have finished and removed the file: then the
		 * open file is not the one at this path.
		 */
	} while (!r && !has_a_name(st));
	return r;
}

int lm_pcstate_create(struct lm_pcstate *st, enum lm_side side, int32_t vm_pid, const struct lm_ram *ram,
		      struct lm_error *err)
{
	LM_AUTO_FREE struct lm_pcstate_head *h = malloc(sizeof(*h));
	int r = h ? open_locked(st, side, vm_pid, O_CREAT, err) :
		    lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");

	if (r)
		return r;
	fill_head(h, side, vm_pid, ram);
	r = write_new(st, h, err);
	if (r)
		unlink(st->path); /* half a state is of no use to anybody */
	return r;
}

static bool region_valid(const struct lm_pcstate_region *r)
{
	return r->size && r->size <= LM_REGION_SIZE_MAX && r->page_size >= LM_PAGE_SIZE &&
	       !(r->page_size & (r->page_size - 1)) && !(r->size % r->page_size);
}

/* Where fill_head() has put them. */
static bool bitmaps_valid(const struct lm_pcstate_head *h)
{
	uint64_t at = (sizeof(*h) + LM_PAGE_SIZE - 1) / LM_PAGE_SIZE * LM_PAGE_SIZE;

	for (unsigned i = 0; i < h->nregions; i++) {
		if (h->regions[i].bitmap != (h->side == LM_DEST ? at : 0))
			return false;
		at += lm_bitmap_nwords(h->regions[i].size >> LM_PAGE_SHIFT) * 8;
	}
	return true;
}

static bool head_valid(const struct lm_pcstate *st, const struct lm_pcstate_head *h, enum lm_side side)
{
	if (memcmp(h->magic, MAGIC, sizeof(MAGIC)) || h->version != VERSION || h->head_size != sizeof(*h) ||
	    h->side != (int32_t)side || !h->nregions || h->nregions > LM_REGIONS_MAX || !h->nlanes ||
	    h->nlanes >= LM_LANES_MAX)
		return false;
	for (unsigned i = 0; i < h->nregions; i++)
		if (!region_valid(&h->regions[i]))
			return false;
	return file_size(h) == st->size && bitmaps_valid(h);
}

/* An engine that is dying holds no lock any more, but perhaps still its devices. */
static int await_end(const struct lm_pcstate_head *h, struct lm_error *err)
{
	int64_t deadline = lm_deadline_after(lm_pcstate_wait_ns);
	struct timespec nap = { 0, 10 * LM_NS_PER_MS };

	while (h->engine_pid != getpid() && start_of(h->engine_pid) == h->engine_start) {
		if (lm_now_ns() > deadline)
			return lm_err(err, -EBUSY, LM_SCOPE_SESSION, "process %d still takes care of this post-copy: "
				      "end it first", h->engine_pid);
		nanosleep(&nap, NULL);
	}
	return 0;
}

int lm_pcstate_open(struct lm_pcstate *st, enum lm_side side, int32_t vm_pid, struct lm_error *err)
{
	LM_AUTO_FREE struct lm_pcstate_head *h = malloc(sizeof(*h));
	struct stat sb;
	int r = h ? open_locked(st, side, vm_pid, 0, err) : lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");

	if (r == -ENOENT)
		return lm_err(err, -ENOENT, LM_SCOPE_SESSION,
			      "no post-copy of process %d to recover on this host (%s is not there)", vm_pid, st->path);
	if (!r && (fstat(st->fd, &sb) || pread(st->fd, h, sizeof(*h), 0) != (ssize_t)sizeof(*h)))
		r = lm_err(err, -EIO, LM_SCOPE_SESSION, "cannot read %s", st->path);
	if (r)
		return r;
	st->size = (size_t)sb.st_size;
	if (!head_valid(st, h, side) || h->vm_pid != vm_pid)
		return lm_err(err, -EBADMSG, LM_SCOPE_SESSION, "%s is not a state of this version", st->path);
	if (!h->vm_start || start_of(vm_pid) != h->vm_start)
		return lm_err(err, -ESRCH, LM_SCOPE_SESSION, "%s belongs to process %d, which has ended: delete it", st->path,
			      vm_pid);
	r = await_end(h, err);
	if (!r)
		r = map(st, err);
	if (r)
		return r;
	st->head->engine_pid = getpid();
	st->head->engine_start = start_of(getpid());
	return 0;
}

enum lm_pccommit lm_pcstate_look(int32_t vm_pid)
{
	LM_AUTO_FREE struct lm_pcstate_head *h = malloc(sizeof(*h));
	enum lm_pccommit said = LM_PC_NONE;
	char path[128];
	int fd;

	if (!h || old_path(path, sizeof(path), LM_SOURCE, vm_pid, NULL))
		return LM_PC_NONE;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return LM_PC_NONE;
	if (pread(fd, h, sizeof(*h), 0) == (ssize_t)sizeof(*h) && !memcmp(h->magic, MAGIC, sizeof(MAGIC)) &&
	    h->version == VERSION && h->vm_pid == vm_pid && h->vm_start && h->vm_start == start_of(vm_pid) &&
	    h->committed <= LM_PC_ANSWERED)
		said = h->committed;
	lm_close_fd(&fd);
	return said;
}

int lm_pcstate_ram(const struct lm_pcstate *st, struct lm_ram *ret_ram, struct lm_error *err)
{
	memset(ret_ram, 0, sizeof(*ret_ram));
	ret_ram->regions = calloc(st->head->nregions, sizeof(*ret_ram->regions));
	if (!ret_ram->regions)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	ret_ram->nregions = st->head->nregions;
	for (unsigned i = 0; i < ret_ram->nregions; i++) {
		const struct lm_pcstate_region *from = &st->head->regions[i];
		struct lm_region *r = &ret_ram->regions[i];

		*r = (struct lm_region){ .size = from->size, .page_size = from->page_size, .vm_addr = from->vm_addr,
					 .file_offset = from->file_offset, .dev = from->dev, .ino = from->ino, .fd = -1 };
		memcpy(r->name, from->name, sizeof(r->name));
		r->name[sizeof(r->name) - 1] = 0;
	}
	return 0;
}

void lm_pcstate_close(struct lm_pcstate *st)
{
	if (st->head)
		munmap(st->head, st->size);
	if (st->path[0])
		lm_close_fd(&st->fd);
	memset(st, 0, sizeof(*st));
}

void lm_pcstate_remove(struct lm_pcstate *st)
{
	if (st->head)
		unlink(st->path);
	lm_pcstate_close(st);
}
