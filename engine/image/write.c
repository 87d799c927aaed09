/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing an image: chunks by many threads, straight out of guest RAM, each group of
 * them where the file ends at that moment; then the index, the head and the last
 * block; then fsync, rename, fsync of the folder.
 */
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include "engine/base/cleanup.h"
#include "image.h"
#include "engine/base/testhook.h"

#define SUFFIX ".saving"
#define COPY_BYTES (UINT64_C(1) << 20)

static uint64_t blocks(uint64_t bytes)
{
	return (bytes + LM_IMAGE_BLOCK - 1) / LM_IMAGE_BLOCK * LM_IMAGE_BLOCK;
}

static int write_error(const struct lm_image_writer *w, int code, struct lm_error *err)
{
	const char *advice = code == -ENOSPC || code == -EDQUOT ? ": make room, or save to another place" :
			     code == -EFBIG ? ": the file may not become so big (ulimit -f)" : "";

	return lm_err(err, code, LM_SCOPE_SESSION, "cannot write %s: %s%s", w->temporary, strerror(-code), advice);
}

/* All of it, wherever the kernel stops in between. */
static int write_all(struct lm_image_writer *w, struct iovec *iov, int n, uint64_t offset, struct lm_error *err)
{
	while (n) {
		ssize_t done = pwritev(w->fd, iov, n, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return write_error(w, done < 0 ? -errno : -EIO, err);
		offset += (uint64_t)done;
		lm_image_advance(&iov, &n, (size_t)done);
	}
	return 0;
}

/* From memory that is not aligned: through a buffer, and zeros to the end of the block. */
static int write_copy(struct lm_image_writer *w, const void *data, uint64_t bytes, uint64_t offset, struct lm_error *err)
{
	LM_AUTO_FREE uint8_t *buf = aligned_alloc(LM_IMAGE_BLOCK, COPY_BYTES);
	int r = 0;

	if (!buf)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (uint64_t at = 0; !r && at < bytes; at += COPY_BYTES) {
		uint64_t n = bytes - at < COPY_BYTES ? bytes - at : COPY_BYTES;
		struct iovec iov = { buf, blocks(n) };

		memcpy(buf, (const uint8_t *)data + at, n);
		memset(buf + n, 0, blocks(n) - n);
		r = write_all(w, &iov, 1, offset + at, err);
	}
	return r;
}

/* ---- making it ---- */

static int split_path(struct lm_image_writer *w, const char *path, struct lm_error *err)
{
	char dir[PATH_MAX];

	if (strlen(path) + strlen(SUFFIX) >= sizeof(w->path))
		return lm_err(err, -ENAMETOOLONG, LM_SCOPE_OPERATION, "the path of the image is too long");
	strcpy(w->path, path);
	snprintf(w->temporary, sizeof(w->temporary), "%.*s%s", (int)(PATH_MAX - sizeof(SUFFIX)), path, SUFFIX);
	strcpy(dir, path);
	w->dir_fd = open(dirname(dir), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return w->dir_fd < 0 ? lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "cannot open the folder of %s", path) : 0;
}

/* A file that a killed save has left may be overwritten; a file that a living save writes may not. */
static int open_temporary(struct lm_image_writer *w, struct lm_error *err)
{
	struct stat here, there;

	w->fd = open(w->temporary, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (w->fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "cannot make %s", w->temporary);
	if (flock(w->fd, LOCK_EX | LOCK_NB) || fstat(w->fd, &here) || stat(w->temporary, &there) ||
	    here.st_ino != there.st_ino || here.st_dev != there.st_dev)
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "another save writes %s: wait for it, or save under "
			      "another name", w->temporary);
	if (!S_ISREG(here.st_mode))
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "%s is not a file", w->temporary);
	if (ftruncate(w->fd, 0))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "cannot empty %s", w->temporary);
	/* A file system that opens with O_DIRECT may still refuse to write with it: the first write shows that. */
	w->direct = !fcntl(w->fd, F_SETFL, fcntl(w->fd, F_GETFL) | O_DIRECT);
	return 0;
}

static int try_direct(struct lm_image_writer *w, struct lm_error *err)
{
	static const uint8_t zeros[LM_IMAGE_BLOCK];
	int r = write_copy(w, zeros, sizeof(zeros), 0, err);

	if (r != -EINVAL || !w->direct)
		return r;
	w->direct = false;
	if (fcntl(w->fd, F_SETFL, fcntl(w->fd, F_GETFL) & ~O_DIRECT))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "fcntl");
	lm_err_clear(err);
	return write_copy(w, zeros, sizeof(zeros), 0, err);
}

int lm_image_create(struct lm_image_writer *w, const char *path, const struct lm_ram *ram, struct lm_error *err)
{
	uint64_t n = 0;
	int r;

	memset(w, 0, sizeof(*w));
	w->fd = w->dir_fd = -1;
	w->ram = ram;
	atomic_store(&w->end, 2 * LM_IMAGE_BLOCK);
	for (unsigned i = 0; i < ram->nregions; i++) {
		w->region_chunk0[i] = n;
		n += lm_image_chunks_of(ram->regions[i].size);
	}
	w->region_chunk0[ram->nregions] = n;
	w->chunks = calloc(n ? n : 1, sizeof(*w->chunks));
	if (!w->chunks)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	if (getrandom(w->id, sizeof(w->id), 0) != sizeof(w->id))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "no random numbers");
	r = split_path(w, path, err);
	if (!r)
		r = open_temporary(w, err);
	if (r) { /* what lies there is not ours to remove */
		lm_close_fd(&w->fd);
		return r;
	}
	return try_direct(w, err); /* on error lm_image_abandon() removes it */
}

void lm_image_reserve(struct lm_image_writer *w, uint64_t npages)
{
	/* Through the page cache this gains nothing, and on tmpfs it costs a pass over the memory. */
	if (w->direct && fallocate(w->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)(npages * LM_PAGE_SIZE)))
		return; /* the writes will tell */
}

/* ---- memory ---- */

struct group {
	struct iovec iov[LM_IMAGE_GROUP * LM_IMAGE_CHUNK_PAGES / 2 + 1];
	int niov;
	uint64_t bytes;
};

static void group_add(struct group *g, uint8_t *p, uint64_t len)
{
	struct iovec *last = g->niov ? &g->iov[g->niov - 1] : NULL;

	g->bytes += len;
	if (last && (uint8_t *)last->iov_base + last->iov_len == p)
		last->iov_len += len;
	else
		g->iov[g->niov++] = (struct iovec){ p, len };
}

/* Which pages of a chunk are stored, and their checksum; the offset is relative to the group's. */
static void chunk_add(struct group *g, const struct lm_region *r, uint64_t chunk, uint64_t existing,
		      struct lm_image_wire_chunk *ret)
{
	uint64_t offset = chunk * LM_IMAGE_CHUNK_BYTES, left = (r->size - offset) >> LM_PAGE_SHIFT;
	unsigned npages = left < LM_IMAGE_CHUNK_PAGES ? (unsigned)left : LM_IMAGE_CHUNK_PAGES, at = 0, first, n;
	uint64_t mask = existing & ~lm_region_zeros(r, offset, npages);

	*ret = (struct lm_image_wire_chunk){ .offset = lm_le64(g->bytes), .pages = lm_le64(mask) };
	if (!mask)
		return;
	ret->hash = lm_le64(lm_image_chunk_hash(r->host + offset, mask));
	while (lm_image_mask_run(mask, &at, &first, &n))
		group_add(g, r->host + offset + first * LM_PAGE_SIZE, n * LM_PAGE_SIZE);
}

int lm_image_write_chunks(struct lm_image_writer *w, unsigned region, uint64_t first, unsigned n,
			  const uint64_t *existing, uint64_t *ret_bytes, struct lm_error *err)
{
	struct lm_image_wire_chunk *chunks = w->chunks + w->region_chunk0[region] + first;
	struct group g = { .niov = 0 };
	uint64_t offset;

	for (unsigned i = 0; i < n; i++) {
		if (existing[i])
			chunk_add(&g, &w->ram->regions[region], first + i, existing[i], &chunks[i]);
	}
	*ret_bytes = g.bytes;
	if (!g.bytes)
		return 0;
	offset = atomic_fetch_add(&w->end, g.bytes);
	for (unsigned i = 0; i < n; i++)
		if (lm_le64_get(chunks[i].pages))
			chunks[i].offset = lm_le64(offset + lm_le64_get(chunks[i].offset));
		else
			chunks[i].offset = lm_le64(0);
	atomic_fetch_add(&w->stored_pages, g.bytes >> LM_PAGE_SHIFT);
	return write_all(w, g.iov, g.niov, offset, err);
}

/* ---- the rest, and the end ---- */

static uint8_t *make_index(const struct lm_image_writer *w, const struct lm_image_head *h,
			   const struct lm_image_lock *locks)
{
	uint8_t *index = calloc(1, h->index_bytes);
	struct lm_image_wire_region *r = (void *)index;
	struct lm_image_wire_lock *l = (void *)(r + h->nregions);

	if (!index)
		return NULL;
	for (unsigned i = 0; i < h->nregions; i++) {
		memcpy(r[i].name, w->ram->regions[i].name, sizeof(r[i].name));
		r[i].size = lm_le64(w->ram->regions[i].size);
		r[i].page_size = lm_le64(w->ram->regions[i].page_size);
	}
	for (unsigned i = 0; i < h->nlocks; i++) {
		memcpy(l[i].uri, locks[i].uri, sizeof(l[i].uri));
		memcpy(l[i].id, locks[i].id, sizeof(l[i].id));
		l[i].epoch = lm_le64(locks[i].epoch);
	}
	memcpy(l + h->nlocks, w->chunks, h->nchunks * sizeof(*w->chunks));
	return index;
}

static int write_ends(struct lm_image_writer *w, const struct lm_image_head *head, enum lm_image_mark mark,
		      struct lm_error *err)
{
	struct lm_image_wire_head h;
	struct lm_image_wire_mark m;
	struct lm_image_wire_trailer t;
	int r;

	lm_image_put_head(head, &h);
	lm_image_put_mark(w->id, mark, 0, NULL, NULL, 0, &m);
	lm_image_put_trailer(&h, &t);
	r = write_copy(w, &t, sizeof(t), head->file_size - LM_IMAGE_BLOCK, err);
	if (!r)
		r = write_copy(w, &m, sizeof(m), LM_IMAGE_BLOCK, err);
	if (!r)
		r = write_copy(w, &h, sizeof(h), 0, err);
	/* What was set aside and not needed goes back. */
	if (!r && ftruncate(w->fd, (off_t)head->file_size))
		r = write_error(w, -errno, err);
	return r;
}

int lm_image_finish(struct lm_image_writer *w, struct lm_image_head *head, const struct lm_image_lock *locks,
		    const void *state, uint64_t state_bytes, enum lm_image_mark mark, struct lm_error *err)
{
	LM_AUTO_FREE uint8_t *index = NULL;
	int r;

	if (!state_bytes || state_bytes > LM_IMAGE_STATE_MAX)
		return lm_err(err, -EMSGSIZE, LM_SCOPE_SESSION, "device state of %llu bytes", (unsigned long long)state_bytes);
	memcpy(head->id, w->id, sizeof(head->id));
	head->nregions = w->ram->nregions;
	head->nchunks = w->region_chunk0[w->ram->nregions];
	head->stored_pages = atomic_load(&w->stored_pages);
	head->state_offset = atomic_load(&w->end);
	head->state_bytes = state_bytes;
	head->index_offset = head->state_offset + blocks(state_bytes);
	head->index_bytes = head->nregions * sizeof(struct lm_image_wire_region) +
			    head->nlocks * sizeof(struct lm_image_wire_lock) + head->nchunks * sizeof(*w->chunks);
	head->file_size = head->index_offset + blocks(head->index_bytes) + LM_IMAGE_BLOCK;
	index = make_index(w, head, locks);
	if (!index)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	lm_image_hash(state, state_bytes, head->state_hash);
	lm_image_hash(index, head->index_bytes, head->index_hash);
	r = write_copy(w, state, state_bytes, head->state_offset, err);
	if (!r)
		r = write_copy(w, index, head->index_bytes, head->index_offset, err);
	return r ? r : write_ends(w, head, mark, err);
}

int lm_image_sync(struct lm_image_writer *w, struct lm_error *err)
{
	return fsync(w->fd) ? write_error(w, -errno, err) : 0;
}

int lm_image_rename(struct lm_image_writer *w, struct lm_error *err)
{
	if (rename(w->temporary, w->path))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot rename %s to %s", w->temporary, w->path);
	w->renamed = true;
	return 0;
}

int lm_image_sync_dir(struct lm_image_writer *w, struct lm_error *err)
{
	return fsync(w->dir_fd) ? lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot write the folder of %s", w->path) : 0;
}

int lm_image_abandon(struct lm_image_writer *w, struct lm_error *err)
{
	struct lm_image_wire_mark m;
	int r;

	if (w->fd < 0) /* what lies there is another's */
		return 0;
	if (!w->renamed)
		return unlink(w->temporary) && errno != ENOENT ?
		       lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot remove %s", w->temporary) : 0;
	lm_image_put_mark(w->id, LM_IMAGE_VOID, 0, NULL, NULL, 0, &m);
	r = write_copy(w, &m, sizeof(m), LM_IMAGE_BLOCK, err);
	return r ? r : lm_image_sync(w, err);
}

void lm_image_writer_close(struct lm_image_writer *w)
{
	lm_close_fd(&w->fd);
	lm_close_fd(&w->dir_fd);
	free(w->chunks);
	w->chunks = NULL;
}
