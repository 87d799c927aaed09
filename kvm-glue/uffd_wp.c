/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * A userfaultfd that was made inside the process write-protects its RAM in
 * asynchronous mode: the first write to a page clears a bit in its page table
 * entry, in the kernel, without a message to anybody.  PAGEMAP_SCAN returns the
 * pages whose bit is clear and sets it again, atomically for each page.
 *
 * The scan for written pages asks for exactly one category, PAGE_IS_WRITTEN, in
 * its mask and in its answer.  Only then does the kernel take a path of its own
 * in which an empty page table entry counts as written: a page that was written
 * and then dropped from the page table (swapped, reclaimed, discarded).  With
 * other categories asked for, some kernels would lose that write.
 *
 * A page that was not written but discarded (a hole punched into the file) keeps
 * its protection as a marker and is not reported.  It is found by a second scan,
 * for pages that are not present.  That one comes after the first: a page that
 * is discarded between the two is then seen by the second, in this call; in the
 * other order it would be seen one call later.  See README.md.
 *
 * A process that has ended has no page tables, and a scan of them finds nothing.
 * So every collect ends with a look whether the address space still exists.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include "engine/base/cleanup.h"
#include "inject.h"
#include "uapi.h"
#include "uffd_wp.h"

#define SCAN_VEC 512 /* stretches per call of the kernel: 12 KiB of stack */
/* Per call of the kernel: faults and mmap(2) of the process wait for no longer than this takes (2 ms). */
#define PROTECT_STEP (UINT64_C(256) << 20)

struct uffd_wp {
	struct lm_dirty base;
	pid_t pid;
	int uffd;
	int pagemap;
	unsigned nregistered; /* regions */
};

static int gone(const struct uffd_wp *u, struct lm_error *err)
{
	return lm_err(err, -ESRCH, LM_SCOPE_VM, "process %d has ended", (int)u->pid);
}

static int syscall_error(const struct uffd_wp *u, const char *what, const struct lm_region *r, struct lm_error *err)
{
	if (errno == ESRCH)
		return gone(u, err);
	return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "%s of memory backend %s", what, r->name);
}

/* pagemap gives nothing to read when the address space is gone. */
static bool is_alive(const struct uffd_wp *u)
{
	uint64_t entry;

	return pread(u->pagemap, &entry, sizeof(entry), 0) == sizeof(entry);
}

static int api_negotiate(struct uffd_wp *u, struct lm_error *err)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = LM_UFFD_FEATURE_WP_ASYNC | LM_UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    LM_UFFD_FEATURE_WP_UNPOPULATED,
	};

	if (ioctl(u->uffd, UFFDIO_API, &api))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
				    "this kernel cannot track writes from outside (needs Linux 6.7 or newer)");
	return 0;
}

/*
 * In user mode only: that needs no privilege in the process, and asynchronous
 * protection never hands a fault of the kernel (KVM, vhost, read(2)) to anybody.
 */
static int uffd_make(struct uffd_wp *u, struct lm_error *err)
{
	struct lm_inject_call call = {
		.nr = SYS_userfaultfd,
		.args = { O_CLOEXEC | O_NONBLOCK | LM_UFFD_USER_MODE_ONLY },
		.result = LM_INJECT_MOVE_FD,
	};
	int r = lm_inject(u->pid, &call, 1, NULL, err);

	if (r)
		return r;
	if (call.ret < 0)
		return lm_err_errno(err, (int)call.ret, LM_SCOPE_SESSION,
				    "userfaultfd is not available in process %d (forbidden by a seccomp "
				    "filter, or kernel without CONFIG_USERFAULTFD)", (int)u->pid);
	u->uffd = call.fd;
	return api_negotiate(u, err);
}

static int pagemap_open(struct uffd_wp *u, struct lm_error *err)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)u->pid);
	u->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (u->pagemap < 0 && (errno == ENOENT || errno == ESRCH))
		return gone(u, err);
	if (u->pagemap < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot open %s", path);
	return 0;
}

static int region_register(struct uffd_wp *u, const struct lm_region *r, struct lm_error *err)
{
	struct uffdio_register reg = { .range = { r->vm_addr, r->size }, .mode = UFFDIO_REGISTER_MODE_WP };

	if (!ioctl(u->uffd, UFFDIO_REGISTER, &reg))
		return 0;
	if (errno == EBUSY)
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
			      "memory backend %s: another userfaultfd is at work in process %d (QEMU's own "
			      "post-copy or background snapshot, or another migrate-rdma)", r->name, (int)u->pid);
	return syscall_error(u, "registering", r, err);
}

/* A step is a whole number of huge pages, also of those of 1 GiB. */
static uint64_t protect_step(const struct lm_region *r)
{
	return r->page_size > PROTECT_STEP ? r->page_size : PROTECT_STEP;
}

static int region_protect(struct uffd_wp *u, const struct lm_region *r, struct lm_error *err)
{
	uint64_t step = protect_step(r);

	for (uint64_t at = 0; at < r->size; at += step) {
		uint64_t len = r->size - at < step ? r->size - at : step;
		struct uffdio_writeprotect wp = { .range = { r->vm_addr + at, len },
						  .mode = UFFDIO_WRITEPROTECT_MODE_WP };

		/* EAGAIN: the layout of the process' memory was being changed */
		while (ioctl(u->uffd, UFFDIO_WRITEPROTECT, &wp))
			if (errno != EAGAIN && errno != EINTR)
				return syscall_error(u, "write-protecting", r, err);
	}
	return 0;
}

static int wp_start(struct lm_dirty *d, struct lm_error *err)
{
	struct uffd_wp *u = (struct uffd_wp *)d;

	for (unsigned i = 0; i < d->ram->nregions; i++) {
		const struct lm_region *r = &d->ram->regions[i];
		int ret = region_register(u, r, err);

		if (ret)
			return ret;
		u->nregistered++;
		ret = region_protect(u, r, err);
		if (ret)
			return ret;
	}
	return 0;
}

struct scan {
	const struct uffd_wp *u;
	const struct lm_region *region;
	uint64_t flags, inverted, category;
	struct lm_bitmap *bits;
};

static void scan_note(const struct scan *s, const struct lm_page_region *found, long n)
{
	for (long i = 0; i < n; i++)
		lm_bitmap_set_range(s->bits, (found[i].start - s->region->vm_addr) >> LM_PAGE_SHIFT,
				    (found[i].end - found[i].start) >> LM_PAGE_SHIFT);
}

static int scan_error(const struct scan *s, struct lm_error *err)
{
	if (errno == ESRCH)
		return gone(s->u, err);
	if (errno == EPERM)
		return lm_err(err, -ESTALE, LM_SCOPE_SESSION,
			      "the mapping of memory backend %s in process %d has changed", s->region->name,
			      (int)s->u->pid);
	return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "scanning memory backend %s", s->region->name);
}

/* Addresses [at, end), as often as it takes: the kernel stops when its vector is full. */
static int scan_run(const struct scan *s, uint64_t at, uint64_t end, struct lm_error *err)
{
	struct lm_page_region found[SCAN_VEC];

	while (at < end) {
		struct lm_pm_scan_arg arg = {
			.size = sizeof(arg), .flags = s->flags, .start = at, .end = end,
			.vec = (uintptr_t)found, .vec_len = SCAN_VEC,
			.category_inverted = s->inverted, .category_mask = s->category, .return_mask = s->category,
		};
		long n = ioctl(s->u->pagemap, LM_PAGEMAP_SCAN, &arg);

		if (n < 0) /* also EINTR: what the kernel had found is lost */
			return scan_error(s, err);
		scan_note(s, found, n);
		if (arg.walk_end <= at)
			return lm_err(err, -EIO, LM_SCOPE_SESSION, "the scan of memory backend %s does not advance",
				      s->region->name);
		at = arg.walk_end;
	}
	return 0;
}

/*
 * A huge page belongs to the call in whose range it begins: all of it, so that
 * it is scanned once and its bits are written by one thread.
 */
static uint64_t huge_round_up(const struct lm_region *r, uint64_t page)
{
	uint64_t huge = r->page_size >> LM_PAGE_SHIFT;

	return (page + huge - 1) / huge * huge;
}

static int wp_collect(struct lm_dirty *d, unsigned index, uint64_t first, uint64_t n, struct lm_bitmap *written,
		      struct lm_bitmap *absent, struct lm_error *err)
{
	const struct uffd_wp *u = (struct uffd_wp *)d;
	const struct lm_region *region = &d->ram->regions[index];
	uint64_t from = region->vm_addr + (huge_round_up(region, first) << LM_PAGE_SHIFT);
	uint64_t to = region->vm_addr + (huge_round_up(region, first + n) << LM_PAGE_SHIFT);
	struct scan s = { .u = u, .region = region, .category = LM_PAGE_IS_WRITTEN, .bits = written,
			  .flags = LM_PM_SCAN_WP_MATCHING | LM_PM_SCAN_CHECK_WPASYNC };
	int r = scan_run(&s, from, to, err);

	if (!r && absent) {
		s = (struct scan){ .u = u, .region = region, .inverted = LM_PAGE_IS_PRESENT,
				   .category = LM_PAGE_IS_PRESENT, .bits = absent };
		r = scan_run(&s, from, to, err);
	}
	return r || is_alive(u) ? r : gone(u, err);
}

/*
 * In steps: the kernel clears the protection of all of a step's pages while it
 * keeps the process' page faults waiting, 8 ms for a GiB.  The mapping is cut in
 * two meanwhile and whole again afterwards.
 */
static void region_release(struct uffd_wp *u, const struct lm_region *r)
{
	uint64_t step = protect_step(r);

	for (uint64_t at = 0; at < r->size; at += step) {
		struct uffdio_range range = { r->vm_addr + at, r->size - at < step ? r->size - at : step };

		ioctl(u->uffd, UFFDIO_UNREGISTER, &range);
	}
}

static void wp_close(struct lm_dirty *d)
{
	struct uffd_wp *u = (struct uffd_wp *)d;

	for (unsigned i = 0; i < u->nregistered; i++)
		region_release(u, &d->ram->regions[i]);
	lm_close_fd(&u->uffd);
	lm_close_fd(&u->pagemap);
	free(u);
}

static const struct lm_dirty_ops uffd_wp_ops = {
	.name = "uffd-wp",
	.start = wp_start,
	.collect = wp_collect,
	.close = wp_close,
};

int lm_uffd_wp_new(pid_t pid, const struct lm_ram *ram, struct lm_dirty **ret, struct lm_error *err)
{
	struct uffd_wp *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	u->base.ops = &uffd_wp_ops;
	u->base.ram = ram;
	u->pid = pid;
	u->uffd = u->pagemap = -1;
	r = pagemap_open(u, err);
	if (!r)
		r = uffd_make(u, err);
	if (r) {
		wp_close(&u->base);
		return r;
	}
	*ret = &u->base;
	return 0;
}
