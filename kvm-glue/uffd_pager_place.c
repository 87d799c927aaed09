/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Showing pages to the VM.
 *
 * UFFDIO_CONTINUE takes a range and stops at the first page that is not simply
 * there to be mapped; what it did before that counts, and the next call begins at
 * the page and tells why.  Threads may place the same pages at the same time: for
 * each page one of them wins, and the others find it mapped.
 *
 * Nothing is locked and nothing is kept from call to call.
 */
#include <fcntl.h>
#include <sched.h>
#include "engine/base/cleanup.h"
#include "uapi.h"
#include "uffd_pager_priv.h"

int uffd_pager_gone(const struct uffd_pager *u, struct lm_error *err)
{
	return lm_err(err, -ESRCH, LM_SCOPE_VM, "process %d has ended", (int)u->pid);
}

/* pagemap gives nothing to read when the address space is gone. */
bool uffd_pager_is_alive(const struct uffd_pager *u)
{
	uint64_t entry;

	return pread(u->pagemap, &entry, sizeof(entry), 0) == sizeof(entry);
}

int uffd_pager_error(const struct uffd_pager *u, const char *what, const struct lm_region *r, struct lm_error *err)
{
	int code = -errno;

	if (code == -ESRCH || !uffd_pager_is_alive(u))
		return uffd_pager_gone(u, err);
	return lm_err_errno(err, code, LM_SCOPE_SESSION, "%s memory backend %s of process %d", what, r->name,
			    (int)u->pid);
}

/* Per call of the kernel: mmap(2) and the like of the process wait for no longer than this takes (0.1 ms). */
#define PLACE_STEP (UINT64_C(2) << 20)
#define PAGEMAP_VEC 512 /* entries per read: 4 KiB of stack */
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
/* Calls in a row without getting on.  Each of its reasons goes by itself, or was cured. */
#define TRIES_MAX 10000

struct placing {
	const struct uffd_pager *u;
	const struct lm_region *region;
	uint64_t at, end; /* addresses that are left */
	uint64_t step_max, step;
	unsigned tries;
};

static void advance(struct placing *s, uint64_t bytes)
{
	s->at += bytes;
	s->tries = 0;
}

static int wait_a_little(struct placing *s, struct lm_error *err)
{
	if (++s->tries > TRIES_MAX)
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
			      "a page of memory backend %s cannot be mapped: process %d changes its memory all "
			      "the time", s->region->name, (int)s->u->pid);
	if (s->tries > 1)
		sched_yield();
	return 0;
}

/* How much of [at, at + len), whose first page is mapped, is; at least that page. */
static uint64_t mapped_len(const struct placing *s, uint64_t len)
{
	uint64_t entries[PAGEMAP_VEC], n = len >> LM_PAGE_SHIFT, mapped = 1;
	ssize_t got;

	if (s->region->page_size > LM_PAGE_SIZE)
		return s->region->page_size;
	if (n > PAGEMAP_VEC)
		n = PAGEMAP_VEC;
	got = pread(s->u->pagemap, entries, n * sizeof(*entries),
		    (off_t)((s->at >> LM_PAGE_SHIFT) * sizeof(*entries)));
	n = got > 0 ? (uint64_t)got / sizeof(*entries) : 0;
	while (mapped < n && entries[mapped] & PAGEMAP_PRESENT)
		mapped++;
	return mapped << LM_PAGE_SHIFT;
}

/*
 * Mapped already, by another thread or an engine before us.  Whoever mapped it
 * also wakes, unless it was killed in between.
 */
static int mapped_skip(struct placing *s, uint64_t len, struct lm_error *err)
{
	struct uffdio_range range = { s->at, mapped_len(s, len) };

	if (ioctl(s->u->base.fd, UFFDIO_WAKE, &range))
		return uffd_pager_error(s->u, "waking who waits for", s->region, err);
	advance(s, range.len);
	return 0;
}

/*
 * No page in the file.  Fill all holes of this step at once; where the file has
 * pages that changes nothing.
 */
static int holes_fill(struct placing *s, uint64_t len, struct lm_error *err)
{
	const struct lm_region *r = s->region;

	if (!fallocate(r->fd, FALLOC_FL_KEEP_SIZE, (off_t)(r->file_offset + (s->at - r->vm_addr)), (off_t)len) ||
	    errno == EINTR)
		return wait_a_little(s, err);
	if (errno == ENOSPC || errno == ENOMEM)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
				    "no memory for pages of memory backend %s: make its tmpfs larger, or reserve "
				    "more huge pages", r->name);
	return uffd_pager_error(s->u, "filling holes of", r, err);
}

/*
 * Not all of the step is watched, or not in one piece: halve it.  A single page
 * was released, and the VM sees it without our help.
 */
static void narrow(struct placing *s, uint64_t len)
{
	uint64_t unit = s->region->page_size;

	if (len == unit)
		advance(s, unit);
	else
		s->step = len / 2 < unit ? unit : len / 2 / unit * unit;
}

static int place_some(struct placing *s, struct lm_error *err)
{
	uint64_t len = s->end - s->at < s->step ? s->end - s->at : s->step;
	struct uffdio_continue c = { .range = { s->at, len } };

	if (!ioctl(s->u->base.fd, UFFDIO_CONTINUE, &c)) {
		advance(s, len);
		s->step = s->step * 2 < s->step_max ? s->step * 2 : s->step_max;
		return 0;
	}
	if (c.mapped > 0) {
		advance(s, (uint64_t)c.mapped);
		return 0;
	}
	switch (errno) {
	case EAGAIN: /* the layout of the process' memory was being changed */
	case EINTR:
		return wait_a_little(s, err);
	case EEXIST:
		return mapped_skip(s, len, err);
	case EFAULT:
		return holes_fill(s, len, err);
	case ENOENT:
		narrow(s, len);
		return 0;
	default:
		return uffd_pager_error(s->u, "mapping", s->region, err);
	}
}

int uffd_pager_place(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	const struct lm_region *r = &p->ram->regions[region];
	uint64_t step = r->page_size > PLACE_STEP ? r->page_size : PLACE_STEP;
	struct placing s = {
		.u = uffd_pager_of(p), .region = r, .step_max = step, .step = step,
		.at = r->vm_addr + (first << LM_PAGE_SHIFT),
		.end = r->vm_addr + ((first + n) << LM_PAGE_SHIFT),
	};
	int ret = 0;

	while (!ret && s.at < s.end)
		ret = place_some(&s, err);
	return ret;
}
