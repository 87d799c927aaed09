/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images: a guest that was saved to a file.  engine/IMAGE.md has the format.
 *
 * An image is written under another name in the same folder (PATH.saving) and gets its
 * own by rename(2) when all of it is on the disk, so that under PATH there is a whole
 * image or the one from before.  Memory lies in chunks of 64 pages; of each chunk the
 * pages that are not zero are stored, with a checksum.  Chunks may be written and read
 * in any order.
 *
 * Nothing that is read is believed: an image that is not whole, or not what it says, is
 * refused with the reason.
 *
 * Threads: an image or writer belongs to the session's thread; lm_image_write_chunks,
 * lm_image_read_chunks and lm_image_chunk_* may be called by many threads for different
 * chunks.  All I/O blocks.
 */
#ifndef LM_IMAGE_H
#define LM_IMAGE_H

#include <limits.h>
#include <stdatomic.h>
#include <sys/uio.h>
#include "engine/base/le.h"
#include "engine/lock/lock.h"
#include "engine/base/region.h"
#include "engine/vm/vm.h"

#define LM_IMAGE_VERSION 1      /* what this code writes */
#define LM_IMAGE_COMPAT 1       /* oldest version that can read it */
#define LM_IMAGE_BLOCK 4096     /* everything lies at a multiple of it: O_DIRECT */
#define LM_IMAGE_CHUNK_PAGES 64 /* a word of a bitmap */
#define LM_IMAGE_CHUNK_BYTES (LM_IMAGE_CHUNK_PAGES * LM_PAGE_SIZE)
#define LM_IMAGE_GROUP 16       /* chunks that are written and read together: 4 MiB */
#define LM_IMAGE_ID_SIZE 16
#define LM_IMAGE_HASH_SIZE 16
#define LM_IMAGE_STATE_MAX (UINT64_C(1) << 30) /* device state, bytes */
#define LM_IMAGE_LOCKS_MAX LM_LOCKS_MAX

/* Block 0 */
struct lm_image_wire_head {
	char magic[8];
	struct le32 version, compat;
	struct le32 flags; /* LM_IMAGE_* */
	struct le32 chunk_pages;
	uint8_t id[LM_IMAGE_ID_SIZE]; /* random */
	struct le64 saved_ns;         /* CLOCK_REALTIME */
	char host[64];                /* where it was saved */
	char vmm[16], machine[64], vmm_version[64];
	char guest_name[64], guest_uuid[40];
	struct le32 vcpus, nregions, nlocks, reserved;
	struct le64 nchunks;
	struct le64 index_offset, index_bytes; /* regions, locks, chunks */
	struct le64 state_offset, state_bytes;
	struct le64 stored_pages;
	struct le64 file_size;
	uint8_t index_hash[LM_IMAGE_HASH_SIZE], state_hash[LM_IMAGE_HASH_SIZE];
	uint8_t hash[LM_IMAGE_HASH_SIZE]; /* of all before */
};
_Static_assert(sizeof(struct lm_image_wire_head) == 480, "image head");
#define LM_IMAGE_RUNNING 1u /* the guest ran when it was saved */

/* Block 1: the only one that changes later. */
struct lm_image_wire_mark {
	char magic[8];
	struct le32 state; /* enum lm_image_mark */
	struct le32 uses;
	uint8_t id[LM_IMAGE_ID_SIZE]; /* the image's */
	uint8_t use[LM_IMAGE_ID_SIZE]; /* random: who marked it knows it again */
	struct le64 time_ns;
	char host[64];
	struct le32 nepochs, reserved;
	struct le64 epochs[LM_IMAGE_LOCKS_MAX]; /* of the locks, as who marked it left them; none: as in the index */
	uint8_t hash[LM_IMAGE_HASH_SIZE];
};

/* The last block: without it the image is not whole. */
struct lm_image_wire_trailer {
	char magic[8];
	uint8_t id[LM_IMAGE_ID_SIZE];
	struct le64 file_size;
	uint8_t head_hash[LM_IMAGE_HASH_SIZE];
	uint8_t hash[LM_IMAGE_HASH_SIZE];
};

struct lm_image_wire_region {
	char name[LM_REGION_NAME_MAX];
	struct le64 size, page_size;
};

struct lm_image_wire_lock {
	char uri[LM_LOCK_URI_MAX];
	uint8_t id[LM_LOCK_ID_SIZE];
	struct le64 epoch; /* when it was released */
};

struct lm_image_wire_chunk {
	struct le64 offset; /* of the stored pages in the file; 0 when there are none */
	struct le64 pages;  /* bit i: page i of the chunk is stored; the others are zero */
	struct le64 hash;   /* XXH3, 64 bits, of the stored pages in their order */
};
_Static_assert(sizeof(struct lm_image_wire_chunk) == 24, "chunk");

enum lm_image_mark {
	LM_IMAGE_FRESH,   /* never ran */
	LM_IMAGE_PENDING, /* written by `quick`: only its destination may run it */
	LM_IMAGE_USED,    /* it was run, or is about to be */
	LM_IMAGE_VOID,    /* the guest went on where it was saved */
};

struct lm_image_region {
	char name[LM_REGION_NAME_MAX];
	uint64_t size, page_size;
};

struct lm_image_lock {
	char uri[LM_LOCK_URI_MAX];
	uint8_t id[LM_LOCK_ID_SIZE];
	uint64_t epoch;
};

/* What an image says about itself, decoded and checked. */
struct lm_image_head {
	unsigned version;
	uint8_t id[LM_IMAGE_ID_SIZE];
	bool running;
	int64_t saved_ns;
	char host[64];
	struct lm_vm_info info;
	char guest_name[64], guest_uuid[40];
	unsigned nregions, nlocks;
	uint64_t nchunks, stored_pages;
	uint64_t index_offset, index_bytes, state_offset, state_bytes, file_size;
	uint8_t index_hash[LM_IMAGE_HASH_SIZE], state_hash[LM_IMAGE_HASH_SIZE];
};

/* ---- reading (read.c) ---- */

struct lm_image {
	char path[PATH_MAX];
	int fd;        /* buffered; locked (OFD) as long as it is open for writing */
	int direct_fd; /* for chunks; the same file, or -1 where O_DIRECT is refused */
	struct lm_image_head head;
	struct lm_image_region regions[LM_REGIONS_MAX];
	struct lm_image_lock locks[LM_IMAGE_LOCKS_MAX];
	struct lm_image_wire_chunk *chunks;          /* of all regions, one after the other */
	uint64_t region_chunk0[LM_REGIONS_MAX + 1];
	enum lm_image_mark mark;
	unsigned uses;
	int64_t mark_ns;
	char mark_host[64];
	uint8_t use[LM_IMAGE_ID_SIZE];               /* of the mark */
	unsigned nepochs;
	uint64_t epochs[LM_IMAGE_LOCKS_MAX];         /* with which the locks were last released for it */
};

/*
 * Open and check head, trailer and index.  writable: to be marked later; -EBUSY when
 * somebody else has it so.  On error nothing is left open.
 */
int lm_image_open(struct lm_image *img, const char *path, bool writable, struct lm_error *err);
/* The same for a descriptor, which becomes the image's; without O_DIRECT. */
int lm_image_open_fd(struct lm_image *img, int fd, bool writable, struct lm_error *err);
void lm_image_close(struct lm_image *img); /* takes a zeroed one */
/* Whether a VM with this RAM can take it: machine, vCPUs, layout. */
int lm_image_check_vm(const struct lm_image *img, const struct lm_vm_info *info, const struct lm_ram *ram,
		      struct lm_error *err);
/* The whole device state, checked; *ret is the caller's (free). */
int lm_image_read_state(const struct lm_image *img, uint8_t **ret, struct lm_error *err);

static inline uint64_t lm_image_pages(const struct lm_image *img, uint64_t chunk)
{
	return lm_le64_get(img->chunks[chunk].pages);
}

/*
 * Read n <= LM_IMAGE_GROUP chunks of a region, from its chunk number first on, into the
 * same place of the mapped region, and check them.  Pages that are not stored are left
 * alone.  -EBADMSG: a checksum is wrong.
 */
int lm_image_read_chunks(const struct lm_image *img, const struct lm_ram *ram, unsigned region, uint64_t first,
			 unsigned n, struct lm_error *err);
/* One chunk to buf (LM_IMAGE_CHUNK_BYTES, aligned to a block), checked; zeros where nothing is stored. */
int lm_image_read_chunk(const struct lm_image *img, unsigned region, uint64_t chunk, uint8_t *buf,
			struct lm_error *err);

/*
 * Durable when it returns 0: what the mark says from here on, img->epochs included.  use
 * (may be NULL): random bytes that tell whose mark it is.
 */
int lm_image_set_mark(struct lm_image *img, enum lm_image_mark mark, const uint8_t *use, struct lm_error *err);
/* By path, without struct lm_image, for the guardian: whether the mark there is the one with this `use`. */
bool lm_image_marked_by(const char *path, const uint8_t use[static LM_IMAGE_ID_SIZE]);
/* Whether the image under path is the one with this id, and not void. */
bool lm_image_is(const char *path, const uint8_t id[static LM_IMAGE_ID_SIZE]);
/* "fresh", "pending", ... */
const char *lm_image_mark_name(enum lm_image_mark mark);

/* ---- writing (write.c) ---- */

struct lm_image_writer {
	char path[PATH_MAX], temporary[PATH_MAX];
	int fd, dir_fd;
	bool direct;                  /* O_DIRECT */
	bool renamed;                 /* it has its own name */
	uint8_t id[LM_IMAGE_ID_SIZE];
	const struct lm_ram *ram;
	struct lm_image_wire_chunk *chunks;
	uint64_t region_chunk0[LM_REGIONS_MAX + 1];
	_Atomic uint64_t end;         /* of what has been given out of the file */
	_Atomic uint64_t stored_pages;
};

/* Make the temporary file; after an error, too, abandon and close are due.  ram stays the caller's and must be mapped before chunks are written. */
int lm_image_create(struct lm_image_writer *w, const char *path, const struct lm_ram *ram, struct lm_error *err);
/* Set aside room for npages; a file system that cannot says nothing. */
void lm_image_reserve(struct lm_image_writer *w, uint64_t npages);
/*
 * Store the pages of existing (a word per chunk, of that region) that are not zero, of n <=
 * LM_IMAGE_GROUP chunks, straight out of the mapped region.  *ret_bytes: how much that was.
 */
int lm_image_write_chunks(struct lm_image_writer *w, unsigned region, uint64_t first, unsigned n,
			  const uint64_t *existing, uint64_t *ret_bytes, struct lm_error *err);
/* What the head says besides; of *head the writer fills in what it knows. */
int lm_image_finish(struct lm_image_writer *w, struct lm_image_head *head, const struct lm_image_lock *locks,
		    const void *state, uint64_t state_bytes, enum lm_image_mark mark, struct lm_error *err);
/* On the disk, under its own name.  On error see w->renamed. */
int lm_image_sync(struct lm_image_writer *w, struct lm_error *err);
int lm_image_rename(struct lm_image_writer *w, struct lm_error *err);
int lm_image_sync_dir(struct lm_image_writer *w, struct lm_error *err);
/* The guest goes on: what was written must never run. The temporary file goes, a renamed one is marked void. */
int lm_image_abandon(struct lm_image_writer *w, struct lm_error *err);
void lm_image_writer_close(struct lm_image_writer *w); /* takes a zeroed one whose fds are -1 */

/* ---- the codec (image.c) ---- */

void lm_image_put_head(const struct lm_image_head *h, struct lm_image_wire_head *ret);
int lm_image_get_head(const struct lm_image_wire_head *w, struct lm_image_head *ret, struct lm_error *err);
/* use and epochs may be NULL. */
void lm_image_put_mark(const uint8_t id[static LM_IMAGE_ID_SIZE], enum lm_image_mark mark, unsigned uses,
		       const uint8_t *use, const uint64_t *epochs, unsigned nepochs, struct lm_image_wire_mark *ret);
void lm_image_put_trailer(const struct lm_image_wire_head *head, struct lm_image_wire_trailer *ret);
int lm_image_check_trailer(const struct lm_image_wire_trailer *t, const struct lm_image_wire_head *head,
			   struct lm_error *err);
bool lm_image_mark_valid(const struct lm_image_wire_mark *m, const uint8_t id[static LM_IMAGE_ID_SIZE]);
void lm_image_hash(const void *p, size_t len, uint8_t ret[static LM_IMAGE_HASH_SIZE]);
/* XXH3, 64 bits, of the pages in mask of a chunk that begins at base. */
uint64_t lm_image_chunk_hash(const uint8_t *base, uint64_t mask);
/* Next run of set bits from *at on: its first bit, its length; moves *at behind it. */
bool lm_image_mask_run(uint64_t mask, unsigned *at, unsigned *ret_first, unsigned *ret_n);
/* So much of a vector was read or written: what is left. */
void lm_image_advance(struct iovec **iov, int *n, size_t done);

static inline uint64_t lm_image_chunks_of(uint64_t region_size)
{
	return (region_size + LM_IMAGE_CHUNK_BYTES - 1) / LM_IMAGE_CHUNK_BYTES;
}

#endif
