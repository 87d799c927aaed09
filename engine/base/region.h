/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM as the engine sees it: a list of regions, one per memory backend,
 * each a shared file that both QEMU and the engine have mapped.
 */
#ifndef LM_REGION_H
#define LM_REGION_H

#include <stdbool.h>
#include <stdint.h>
#include "error.h"
#include "bitmap.h"

#define LM_PAGE_SHIFT 12
#define LM_PAGE_SIZE (UINT64_C(1) << LM_PAGE_SHIFT)
#define LM_REGION_NAME_MAX 64
#define LM_REGIONS_MAX 256
#define LM_REGION_SIZE_MAX (UINT64_C(1) << 46)

struct lm_region {
	char name[LM_REGION_NAME_MAX]; /* id of the memory backend */
	uint64_t size;                 /* bytes, a multiple of page_size */
	uint64_t page_size;            /* of the backing file: 4096, or that of hugetlbfs */
	uint64_t vm_addr;              /* where QEMU has it mapped (source: what is tracked) */
	uint64_t file_offset;          /* of the first byte in the file */
	uint64_t dev, ino;             /* identity of the file */
	int fd;                        /* open for reading (source) or read-write (destination) */
	uint8_t *host;                 /* mapping in this process; NULL until lm_ram_map() */
};

struct lm_ram {
	struct lm_region *regions;
	unsigned nregions;
	bool may_discard; /* the guest can punch holes into its RAM (balloon, virtio-mem, ...) */
};

static inline uint64_t lm_region_npages(const struct lm_region *r)
{
	return r->size >> LM_PAGE_SHIFT;
}

void lm_ram_fini(struct lm_ram *ram);             /* unmaps, closes, frees; takes a zeroed one */
uint64_t lm_ram_size(const struct lm_ram *ram);
/* Map every region: read-only at the source, read-write at the destination. */
int lm_ram_map(struct lm_ram *ram, bool writable, struct lm_error *err);

/* Whether two descriptions are of the same memory (same files, same mappings). */
bool lm_ram_same(const struct lm_ram *a, const struct lm_ram *b);

/*
 * Make pages [first, first + n) zero, of a region that is mapped writable: freed where
 * the file allows.  hugetlbfs pages are cleared in place: freed, they might not come back.
 */
void lm_region_clear(const struct lm_region *r, uint64_t first, uint64_t n);

/*
 * Set the bits of the pages in [first, first + n) that may hold something else than
 * zeros: those for which the file has data (SEEK_DATA), or, on hugetlbfs, which does not
 * know holes, those of huge pages with content.  Allocates no memory in the file.
 */
int lm_region_existing(const struct lm_region *r, uint64_t first, uint64_t n,
		       struct lm_bitmap *existing, struct lm_error *err);

/*
 * npages <= 64 from the byte offset on, of a mapped region: bit i is set when page i
 * is all zeros.  Allocates no memory in the file: only pages that are in memory are
 * read through the mapping, the file is asked about the others.  When neither the
 * kernel nor the file will tell, pages are read through the mapping all the same.
 */
uint64_t lm_region_zeros(const struct lm_region *r, uint64_t offset, unsigned npages);

#endif
