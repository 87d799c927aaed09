/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cleanup.h"
#include "region.h"
#include "zero.h"

static void region_fini(struct lm_region *r)
{
	if (r->host)
		munmap(r->host, r->size);
	r->host = NULL;
	lm_close_fd(&r->fd);
}

void lm_ram_fini(struct lm_ram *ram)
{
	for (unsigned i = 0; i < ram->nregions; i++)
		region_fini(&ram->regions[i]);
	free(ram->regions);
	memset(ram, 0, sizeof(*ram));
}

uint64_t lm_ram_size(const struct lm_ram *ram)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < ram->nregions; i++)
		sum += ram->regions[i].size;
	return sum;
}

int lm_ram_map(struct lm_ram *ram, bool writable, struct lm_error *err)
{
	int prot = PROT_READ | (writable ? PROT_WRITE : 0);
	/* Reading needs no huge pages of its own; writing fails here, not later, when there are none. */
	int flags = MAP_SHARED | (writable ? 0 : MAP_NORESERVE);

	for (unsigned i = 0; i < ram->nregions; i++) {
		struct lm_region *r = &ram->regions[i];
		void *p = mmap(NULL, r->size, prot, flags, r->fd, (off_t)r->file_offset);

		if (p == MAP_FAILED)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
					    "cannot map %llu bytes of memory backend %s",
					    (unsigned long long)r->size, r->name);
		r->host = p;
	}
	return 0;
}

static bool region_same(const struct lm_region *a, const struct lm_region *b)
{
	return !strcmp(a->name, b->name) && a->size == b->size && a->page_size == b->page_size &&
	       a->vm_addr == b->vm_addr && a->dev == b->dev && a->ino == b->ino &&
	       a->file_offset == b->file_offset;
}

bool lm_ram_same(const struct lm_ram *a, const struct lm_ram *b)
{
	if (a->nregions != b->nregions)
		return false;
	for (unsigned i = 0; i < a->nregions; i++)
		if (!region_same(&a->regions[i], &b->regions[i]))
			return false;
	return true;
}

void lm_region_clear(const struct lm_region *r, uint64_t first, uint64_t n)
{
	uint64_t offset = first << LM_PAGE_SHIFT, len = n << LM_PAGE_SHIFT;

	if (r->page_size != LM_PAGE_SIZE ||
	    fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(r->file_offset + offset), (off_t)len))
		memset(r->host + offset, 0, len);
}

static int read_error(const struct lm_region *r, int64_t n, struct lm_error *err)
{
	return lm_err_errno(err, n < 0 ? (int)n : -EIO, LM_SCOPE_SESSION, "cannot read memory backend %s", r->name);
}

/* 1: there is a byte that is not zero in [pos, pos + len) of the file, 0: none, or -errno. */
static int64_t has_content(int fd, uint64_t pos, uint64_t len)
{
	uint8_t buf[16 * LM_PAGE_SIZE] __attribute__((aligned(64)));

	while (len) {
		size_t want = len < sizeof(buf) ? len : sizeof(buf);
		ssize_t n = pread(fd, buf, want, (off_t)pos);

		if (n <= 0 || (size_t)n % LM_PAGE_SIZE)
			return n < 0 ? -errno : -EIO;
		for (ssize_t i = 0; i < n; i += LM_PAGE_SIZE)
			if (!lm_page_is_zero(buf + i))
				return 1;
		pos += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/*
 * hugetlbfs has no SEEK_DATA, and reading one of its holes through a mapping
 * allocates a huge page.  read(2) does not: it gives zeros.  So a huge page exists
 * here when it has content; one that is all zeros is as good as a hole.
 */
static int huge_existing(const struct lm_region *r, uint64_t first, uint64_t n, struct lm_bitmap *existing,
			 struct lm_error *err)
{
	uint64_t per_huge = r->page_size >> LM_PAGE_SHIFT, end = first + n;
	struct stat st;

	if (fstat(r->fd, &st))
		return read_error(r, -errno, err);
	for (uint64_t at = first / per_huge * per_huge; st.st_blocks && at < end; at += per_huge) {
		uint64_t from = at < first ? first : at, to = at + per_huge < end ? at + per_huge : end;
		int64_t e = has_content(r->fd, r->file_offset + (at << LM_PAGE_SHIFT), r->page_size);

		if (e < 0)
			return read_error(r, e, err);
		if (e)
			lm_bitmap_set_range(existing, from, to - from);
	}
	return 0;
}

/*
 * lseek(2) moves the position of the descriptor.  Nothing else uses that position, and the offsets
 * that lseek returns do not depend on it, so threads may share the descriptor.
 */
int lm_region_existing(const struct lm_region *r, uint64_t first, uint64_t n,
		       struct lm_bitmap *existing, struct lm_error *err)
{
	uint64_t pos = r->file_offset + (first << LM_PAGE_SHIFT);
	uint64_t end = pos + (n << LM_PAGE_SHIFT);

	if (r->page_size > LM_PAGE_SIZE)
		return huge_existing(r, first, n, existing, err);
	while (pos < end) {
		off_t data = lseek(r->fd, (off_t)pos, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			return 0;
		if (data < 0)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
					    "SEEK_DATA in memory backend %s", r->name);
		if ((uint64_t)data >= end)
			return 0;
		hole = lseek(r->fd, data, SEEK_HOLE);
		if (hole <= data)
			return lm_err_errno(err, hole < 0 ? -errno : -EIO, LM_SCOPE_SESSION,
					    "SEEK_HOLE in memory backend %s", r->name);
		if ((uint64_t)hole > end)
			hole = (off_t)end;
		data &= ~(off_t)(LM_PAGE_SIZE - 1);
		lm_bitmap_set_range(existing, ((uint64_t)data - r->file_offset) >> LM_PAGE_SHIFT,
				    ((uint64_t)hole - (uint64_t)data + LM_PAGE_SIZE - 1) >> LM_PAGE_SHIFT);
		pos = (uint64_t)hole;
	}
	return 0;
}

/* Pages [at, end) of a file that knows its holes: how many from `at` on are one. */
static unsigned hole_pages(const struct lm_region *r, uint64_t pos, unsigned at, unsigned end)
{
	off_t from = (off_t)(pos + at * LM_PAGE_SIZE), data = lseek(r->fd, from, SEEK_DATA);
	uint64_t n;

	if (data < 0)
		return errno == ENXIO ? end - at : 0;
	n = ((uint64_t)data - (uint64_t)from) >> LM_PAGE_SHIFT;
	return n < end - at ? (unsigned)n : end - at;
}

/* The page at pos of hugetlbfs, where only read(2) looks at a hole without filling it; 0 or 1 page. */
static unsigned huge_zero_pages(const struct lm_region *r, uint64_t pos)
{
	uint8_t page[LM_PAGE_SIZE] __attribute__((aligned(64)));

	return pread(r->fd, page, sizeof(page), (off_t)pos) == (ssize_t)sizeof(page) && lm_page_is_zero(page);
}

/*
 * mincore(2) does not see pages that were swapped out, nor huge pages that this process has never
 * touched: so a page that it does not see may exist.
 */
uint64_t lm_region_zeros(const struct lm_region *r, uint64_t offset, unsigned npages)
{
	uint64_t pos = r->file_offset + offset, mask = 0;
	unsigned char there[64];
	unsigned i = 0;

	if (mincore(r->host + offset, npages * LM_PAGE_SIZE, there))
		memset(there, 1, sizeof(there));
	while (i < npages) {
		unsigned n = 0;

		if (!(there[i] & 1))
			n = r->page_size == LM_PAGE_SIZE ? hole_pages(r, pos, i, npages) :
							   huge_zero_pages(r, pos + i * LM_PAGE_SIZE);
		if (!n && !lm_page_is_zero(r->host + offset + i * LM_PAGE_SIZE)) {
			i++;
			continue;
		}
		for (unsigned end = i + (n ? n : 1); i < end; i++)
			mask |= UINT64_C(1) << i;
	}
	return mask;
}
