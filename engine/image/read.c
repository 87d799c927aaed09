/* SPDX-License-Identifier: Apache-2.0 */
/* Reading an image, and marking it.  Everything in it is checked before it is used. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include "engine/base/cleanup.h"
#include "image.h"

static int damaged(const struct lm_image *img, struct lm_error *err, const char *what)
{
	return lm_err(err, -EUCLEAN, LM_SCOPE_SESSION, "%s is damaged: %s: take another copy of it", img->path, what);
}

static int read_error(const struct lm_image *img, int64_t n, struct lm_error *err)
{
	if (n >= 0)
		return lm_err(err, -EUCLEAN, LM_SCOPE_SESSION, "%s is shorter than it was", img->path);
	return lm_err_errno(err, (int)n, LM_SCOPE_SESSION, "cannot read %s", img->path);
}

static int read_all(const struct lm_image *img, void *buf, uint64_t bytes, uint64_t offset, struct lm_error *err)
{
	uint8_t *p = buf;

	while (bytes) {
		ssize_t n = pread(img->fd, p, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return read_error(img, n < 0 ? -errno : 0, err);
		p += n;
		offset += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

static int read_vector(const struct lm_image *img, int fd, struct iovec *iov, int n, uint64_t offset, struct lm_error *err)
{
	while (n) {
		ssize_t done = preadv(fd, iov, n, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return read_error(img, done < 0 ? -errno : 0, err);
		offset += (uint64_t)done;
		lm_image_advance(&iov, &n, (size_t)done);
	}
	return 0;
}

/* ---- opening ---- */

static int read_head(struct lm_image *img, uint64_t size, struct lm_error *err)
{
	struct lm_image_wire_head head;
	struct lm_image_wire_trailer trailer;
	int r;

	if (size < sizeof(head))
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s is no image of a guest: `migrate-rdma save` writes one",
			      img->path);
	r = read_all(img, &head, sizeof(head), 0, err);
	if (!r && (r = lm_image_get_head(&head, &img->head, err)))
		lm_err_prefix(err, "%s", img->path);
	if (r)
		return r;
	if (size != img->head.file_size)
		return lm_err(err, -EUCLEAN, LM_SCOPE_SESSION, "%s is not whole: it has %llu bytes and should have %llu: "
			      "was it copied to its end?", img->path, (unsigned long long)size,
			      (unsigned long long)img->head.file_size);
	r = read_all(img, &trailer, sizeof(trailer), size - LM_IMAGE_BLOCK, err);
	return r ? r : lm_image_check_trailer(&trailer, &head, err);
}

static int read_mark(struct lm_image *img, struct lm_error *err)
{
	struct lm_image_wire_mark m;
	int r = read_all(img, &m, sizeof(m), LM_IMAGE_BLOCK, err);

	if (r)
		return r;
	if (!lm_image_mark_valid(&m, img->head.id))
		return damaged(img, err, "the mark that says whether it has run cannot be read");
	img->mark = lm_le32_get(m.state);
	img->uses = lm_le32_get(m.uses);
	img->mark_ns = (int64_t)lm_le64_get(m.time_ns);
	memcpy(img->mark_host, m.host, sizeof(img->mark_host));
	memcpy(img->use, m.use, sizeof(img->use));
	img->nepochs = lm_le32_get(m.nepochs);
	for (unsigned i = 0; i < img->nepochs; i++)
		img->epochs[i] = lm_le64_get(m.epochs[i]);
	return 0;
}

static int take_regions(struct lm_image *img, const struct lm_image_wire_region *w, struct lm_error *err)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < img->head.nregions; i++) {
		struct lm_image_region *r = &img->regions[i];

		if (strnlen(w[i].name, sizeof(w[i].name)) == sizeof(w[i].name))
			return damaged(img, err, "name of a memory backend");
		memcpy(r->name, w[i].name, sizeof(r->name));
		r->size = lm_le64_get(w[i].size);
		r->page_size = lm_le64_get(w[i].page_size);
		if (!r->size || r->size > LM_REGION_SIZE_MAX || r->size % LM_PAGE_SIZE || !r->page_size ||
		    r->page_size % LM_PAGE_SIZE || r->page_size & (r->page_size - 1))
			return damaged(img, err, "size of a memory backend");
		img->region_chunk0[i] = n;
		n += lm_image_chunks_of(r->size);
	}
	img->region_chunk0[img->head.nregions] = n;
	return n == img->head.nchunks ? 0 : damaged(img, err, "number of its chunks");
}

static int take_locks(struct lm_image *img, const struct lm_image_wire_lock *w, struct lm_error *err)
{
	for (unsigned i = 0; i < img->head.nlocks; i++) {
		if (strnlen(w[i].uri, sizeof(w[i].uri)) == sizeof(w[i].uri))
			return damaged(img, err, "name of a lock");
		memcpy(img->locks[i].uri, w[i].uri, sizeof(img->locks[i].uri));
		memcpy(img->locks[i].id, w[i].id, sizeof(img->locks[i].id));
		img->locks[i].epoch = lm_le64_get(w[i].epoch);
		if (i >= img->nepochs) /* nobody has had them since it was saved */
			img->epochs[i] = img->locks[i].epoch;
	}
	img->nepochs = img->head.nlocks;
	return 0;
}

static bool chunk_valid(const struct lm_image *img, const struct lm_image_wire_chunk *c, uint64_t left)
{
	uint64_t offset = lm_le64_get(c->offset), pages = lm_le64_get(c->pages);
	uint64_t bytes = (uint64_t)__builtin_popcountll(pages) * LM_PAGE_SIZE, end = img->head.file_size - LM_IMAGE_BLOCK;

	if (!pages)
		return true;
	if (left < LM_IMAGE_CHUNK_BYTES && pages >> (left >> LM_PAGE_SHIFT))
		return false;
	return offset % LM_IMAGE_BLOCK == 0 && offset >= 2 * LM_IMAGE_BLOCK && offset <= end && bytes <= end - offset;
}

static int take_chunks(struct lm_image *img, const struct lm_image_wire_chunk *w, struct lm_error *err)
{
	for (unsigned i = 0; i < img->head.nregions; i++) {
		for (uint64_t c = img->region_chunk0[i]; c < img->region_chunk0[i + 1]; c++)
			if (!chunk_valid(img, &w[c], img->regions[i].size - (c - img->region_chunk0[i]) * LM_IMAGE_CHUNK_BYTES))
				return damaged(img, err, "place of a chunk");
	}
	img->chunks = malloc(img->head.nchunks * sizeof(*w));
	if (!img->chunks)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	memcpy(img->chunks, w, img->head.nchunks * sizeof(*w));
	return 0;
}

/* It is no longer than the file, which bounds what is allocated for it. */
static int read_index(struct lm_image *img, struct lm_error *err)
{
	const struct lm_image_head *h = &img->head;
	LM_AUTO_FREE uint8_t *index = malloc(h->index_bytes);
	const struct lm_image_wire_region *regions = (const void *)index;
	const struct lm_image_wire_lock *locks = (const void *)(regions + h->nregions);
	uint8_t hash[LM_IMAGE_HASH_SIZE];
	int r;

	if (!index)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	r = read_all(img, index, h->index_bytes, h->index_offset, err);
	if (r)
		return r;
	lm_image_hash(index, h->index_bytes, hash);
	if (memcmp(hash, h->index_hash, sizeof(hash)))
		return damaged(img, err, "checksum of its index");
	r = take_regions(img, regions, err);
	if (!r)
		r = take_locks(img, locks, err);
	return r ? r : take_chunks(img, (const void *)(locks + h->nlocks), err);
}

/* Nobody else is about to run it: an OFD lock, which also cluster file systems and NFS know. */
static int lock_file(struct lm_image *img, struct lm_error *err)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LM_IMAGE_BLOCK, .l_len = LM_IMAGE_BLOCK };

	if (!fcntl(img->fd, F_OFD_SETLK, &l))
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION, "another restore has %s open", img->path);
	return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot lock %s", img->path);
}

int lm_image_open_fd(struct lm_image *img, int fd, bool writable, struct lm_error *err)
{
	struct stat st;
	int r = 0;

	if (!img->path[0])
		strcpy(img->path, "the image");
	free(img->chunks);
	img->chunks = NULL;
	img->fd = fd;
	img->direct_fd = -1;
	if (fstat(fd, &st))
		r = read_error(img, -errno, err);
	else if (!S_ISREG(st.st_mode))
		r = lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%s is not a file", img->path);
	if (!r && writable)
		r = lock_file(img, err);
	if (!r)
		r = read_head(img, (uint64_t)st.st_size, err);
	if (!r)
		r = read_mark(img, err);
	if (!r)
		r = read_index(img, err);
	if (r)
		lm_image_close(img);
	return r;
}

int lm_image_open(struct lm_image *img, const char *path, bool writable, struct lm_error *err)
{
	int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC), r;

	memset(img, 0, sizeof(*img));
	img->fd = img->direct_fd = -1;
	if (fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot open %s", path);
	snprintf(img->path, sizeof(img->path), "%s", path);
	r = lm_image_open_fd(img, fd, writable, err);
	if (!r) {
		char self[32];

		/* The same file, whatever lies under the path by now. */
		snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
		img->direct_fd = open(self, O_RDONLY | O_DIRECT | O_CLOEXEC);
	}
	return r;
}

void lm_image_close(struct lm_image *img)
{
	if (!img->path[0])
		return;
	lm_close_fd(&img->fd);
	lm_close_fd(&img->direct_fd);
	free(img->chunks);
	img->chunks = NULL;
	img->path[0] = 0;
}

/* ---- what it is for ---- */

static int check_region(const struct lm_region *mine, const struct lm_image_region *theirs, struct lm_error *err)
{
	if (strcmp(mine->name, theirs->name))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "memory backends differ: id=%s in the image, id=%s here",
			      theirs->name, mine->name);
	if (mine->size != theirs->size)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "memory backend %s has %llu bytes in the image, %llu here: "
			      "start QEMU with the same size=", mine->name, (unsigned long long)theirs->size,
			      (unsigned long long)mine->size);
	return 0;
}

int lm_image_check_vm(const struct lm_image *img, const struct lm_vm_info *info, const struct lm_ram *ram,
		      struct lm_error *err)
{
	const struct lm_vm_info *a = &img->head.info;
	int r = 0;

	if (strcmp(a->vmm, info->vmm))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "the image is of a guest of %s, this is %s", a->vmm, info->vmm);
	if (strcmp(a->machine, info->machine))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "machine types differ: %s in the image, %s here: start QEMU "
			      "with -machine %s", a->machine, info->machine, a->machine);
	if (a->vcpus != info->vcpus)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%u vCPUs in the image, %u here: start QEMU with the same -smp",
			      a->vcpus, info->vcpus);
	if (img->head.nregions != ram->nregions)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "the guest has %u memory backends in the image, %u here: start "
			      "QEMU with the same -object memory-backend-file options", img->head.nregions, ram->nregions);
	for (unsigned i = 0; !r && i < ram->nregions; i++)
		r = check_region(&ram->regions[i], &img->regions[i], err);
	return r;
}

int lm_image_read_state(const struct lm_image *img, uint8_t **ret, struct lm_error *err)
{
	uint8_t hash[LM_IMAGE_HASH_SIZE], *state = malloc(img->head.state_bytes);
	int r;

	if (!state)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	r = read_all(img, state, img->head.state_bytes, img->head.state_offset, err);
	if (!r) {
		lm_image_hash(state, img->head.state_bytes, hash);
		if (memcmp(hash, img->head.state_hash, sizeof(hash)))
			r = damaged(img, err, "checksum of the device state");
	}
	if (r) {
		free(state);
		return r;
	}
	*ret = state;
	return 0;
}

/* ---- memory ---- */

struct batch {
	struct iovec iov[LM_IMAGE_GROUP * LM_IMAGE_CHUNK_PAGES / 2 + 1];
	int niov;
	uint64_t offset, bytes; /* in the file */
};

static int batch_read(const struct lm_image *img, struct batch *b, struct lm_error *err)
{
	int r = b->niov ? read_vector(img, img->direct_fd >= 0 ? img->direct_fd : img->fd, b->iov, b->niov, b->offset, err) : 0;

	b->niov = 0;
	b->bytes = 0;
	return r;
}

static void batch_add(struct batch *b, uint8_t *base, uint64_t mask)
{
	unsigned at = 0, first, n;

	while (lm_image_mask_run(mask, &at, &first, &n)) {
		struct iovec *last = b->niov ? &b->iov[b->niov - 1] : NULL;
		uint8_t *p = base + first * LM_PAGE_SIZE;

		if (last && (uint8_t *)last->iov_base + last->iov_len == p)
			last->iov_len += n * LM_PAGE_SIZE;
		else
			b->iov[b->niov++] = (struct iovec){ p, n * LM_PAGE_SIZE };
		b->bytes += n * LM_PAGE_SIZE;
	}
}

static int check_chunk(const struct lm_image *img, unsigned region, uint64_t chunk, const uint8_t *base,
		       struct lm_error *err)
{
	const struct lm_image_wire_chunk *c = &img->chunks[img->region_chunk0[region] + chunk];
	uint64_t mask = lm_le64_get(c->pages);

	if (!mask || lm_image_chunk_hash(base, mask) == lm_le64_get(c->hash))
		return 0;
	return lm_err(err, -EBADMSG, LM_SCOPE_SESSION, "%s is damaged: a checksum is wrong at byte %llu of %s (byte %llu of "
		      "the file): take another copy of it", img->path, (unsigned long long)(chunk * LM_IMAGE_CHUNK_BYTES),
		      img->regions[region].name, (unsigned long long)lm_le64_get(c->offset));
}

int lm_image_read_chunks(const struct lm_image *img, const struct lm_ram *ram, unsigned region, uint64_t first,
			 unsigned n, struct lm_error *err)
{
	const struct lm_image_wire_chunk *chunks = &img->chunks[img->region_chunk0[region] + first];
	uint8_t *base = ram->regions[region].host + first * LM_IMAGE_CHUNK_BYTES;
	struct batch b = { .niov = 0 };
	int r = 0;

	for (unsigned i = 0; !r && i < n; i++) {
		uint64_t mask = lm_le64_get(chunks[i].pages), offset = lm_le64_get(chunks[i].offset);

		if (!mask)
			continue;
		if (b.niov && b.offset + b.bytes != offset)
			r = batch_read(img, &b, err);
		if (!b.niov)
			b.offset = offset;
		batch_add(&b, base + i * LM_IMAGE_CHUNK_BYTES, mask);
	}
	if (!r)
		r = batch_read(img, &b, err);
	for (unsigned i = 0; !r && i < n; i++)
		r = check_chunk(img, region, first + i, base + i * LM_IMAGE_CHUNK_BYTES, err);
	return r;
}

int lm_image_read_chunk(const struct lm_image *img, unsigned region, uint64_t chunk, uint8_t *buf, struct lm_error *err)
{
	const struct lm_image_wire_chunk *c = &img->chunks[img->region_chunk0[region] + chunk];
	struct batch b = { .offset = lm_le64_get(c->offset) };
	int r;

	memset(buf, 0, LM_IMAGE_CHUNK_BYTES);
	batch_add(&b, buf, lm_le64_get(c->pages));
	r = batch_read(img, &b, err);
	return r ? r : check_chunk(img, region, chunk, buf, err);
}

/* ---- the mark ---- */

/* One block, which a disk writes whole or not at all. */
int lm_image_set_mark(struct lm_image *img, enum lm_image_mark mark, const uint8_t *use, struct lm_error *err)
{
	struct lm_image_wire_mark m;
	ssize_t n;

	lm_image_put_mark(img->head.id, mark, img->uses + (mark == LM_IMAGE_USED), use, img->epochs, img->nepochs, &m);
	n = pwrite(img->fd, &m, sizeof(m), LM_IMAGE_BLOCK);
	if (n != sizeof(m) || fdatasync(img->fd))
		return lm_err_errno(err, n < 0 || n == sizeof(m) ? -errno : -EIO, LM_SCOPE_SESSION,
				    "cannot mark %s as %s", img->path, lm_image_mark_name(mark));
	img->uses += mark == LM_IMAGE_USED;
	img->mark = mark;
	return 0;
}

static bool peek(const char *path, uint64_t offset, void *ret, size_t size)
{
	LM_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd >= 0 && pread(fd, ret, size, (off_t)offset) == (ssize_t)size;
}

bool lm_image_marked_by(const char *path, const uint8_t use[static LM_IMAGE_ID_SIZE])
{
	struct lm_image_wire_mark m;

	return peek(path, LM_IMAGE_BLOCK, &m, sizeof(m)) && lm_image_mark_valid(&m, m.id) &&
	       lm_le32_get(m.state) == LM_IMAGE_USED && !memcmp(m.use, use, LM_IMAGE_ID_SIZE);
}

bool lm_image_is(const char *path, const uint8_t id[static LM_IMAGE_ID_SIZE])
{
	struct lm_image_wire_mark m;

	return peek(path, LM_IMAGE_BLOCK, &m, sizeof(m)) && lm_image_mark_valid(&m, id) &&
	       lm_le32_get(m.state) != LM_IMAGE_VOID;
}
