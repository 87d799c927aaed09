/* SPDX-License-Identifier: Apache-2.0 */
/* The fixed blocks of an image: head, mark and trailer, there and back. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#define XXH_STATIC_LINKING_ONLY /* the state, to have it on the stack */
#include <xxhash.h>
#include "engine/base/clock.h"
#include "image.h"

static const char head_magic[8] = "LMIMAGE", mark_magic[8] = "LMIMARK", trailer_magic[8] = "LMIWHOL";

void lm_image_hash(const void *p, size_t len, uint8_t ret[static LM_IMAGE_HASH_SIZE])
{
	XXH128_canonical_t out;

	XXH128_canonicalFromHash(&out, XXH3_128bits(p, len));
	memcpy(ret, out.digest, LM_IMAGE_HASH_SIZE);
}

bool lm_image_mask_run(uint64_t mask, unsigned *at, unsigned *ret_first, unsigned *ret_n)
{
	uint64_t rest = *at < 64 ? mask >> *at << *at : 0;

	if (!rest)
		return false;
	*ret_first = (unsigned)__builtin_ctzll(rest);
	rest = ~(rest >> *ret_first);
	*ret_n = rest ? (unsigned)__builtin_ctzll(rest) : 64;
	if (*ret_n > 64 - *ret_first)
		*ret_n = 64 - *ret_first;
	*at = *ret_first + *ret_n;
	return true;
}

uint64_t lm_image_chunk_hash(const uint8_t *base, uint64_t mask)
{
	XXH3_state_t state;
	unsigned at = 0, first, n;

	XXH3_INITSTATE(&state);
	XXH3_64bits_reset(&state);
	while (lm_image_mask_run(mask, &at, &first, &n))
		XXH3_64bits_update(&state, base + first * LM_PAGE_SIZE, n * LM_PAGE_SIZE);
	return XXH3_64bits_digest(&state);
}

void lm_image_advance(struct iovec **iov, int *n, size_t done)
{
	for (; *n && done >= (*iov)->iov_len; --*n, ++*iov)
		done -= (*iov)->iov_len;
	if (!*n)
		return;
	(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + done;
	(*iov)->iov_len -= done;
}

const char *lm_image_mark_name(enum lm_image_mark mark)
{
	static const char *const names[] = { "fresh", "pending", "used", "void" };

	return (unsigned)mark < sizeof(names) / sizeof(names[0]) ? names[mark] : "unknown";
}

/* ---- the head ---- */

void lm_image_put_head(const struct lm_image_head *h, struct lm_image_wire_head *ret)
{
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->magic, head_magic, sizeof(ret->magic));
	ret->version = lm_le32(LM_IMAGE_VERSION);
	ret->compat = lm_le32(LM_IMAGE_COMPAT);
	ret->flags = lm_le32(h->running ? LM_IMAGE_RUNNING : 0);
	ret->chunk_pages = lm_le32(LM_IMAGE_CHUNK_PAGES);
	memcpy(ret->id, h->id, sizeof(ret->id));
	ret->saved_ns = lm_le64((uint64_t)h->saved_ns);
	memcpy(ret->host, h->host, sizeof(ret->host));
	memcpy(ret->vmm, h->info.vmm, sizeof(ret->vmm));
	memcpy(ret->machine, h->info.machine, sizeof(ret->machine));
	memcpy(ret->vmm_version, h->info.version, sizeof(ret->vmm_version));
	memcpy(ret->guest_name, h->guest_name, sizeof(ret->guest_name));
	memcpy(ret->guest_uuid, h->guest_uuid, sizeof(ret->guest_uuid));
	ret->vcpus = lm_le32(h->info.vcpus);
	ret->nregions = lm_le32(h->nregions);
	ret->nlocks = lm_le32(h->nlocks);
	ret->nchunks = lm_le64(h->nchunks);
	ret->index_offset = lm_le64(h->index_offset);
	ret->index_bytes = lm_le64(h->index_bytes);
	ret->state_offset = lm_le64(h->state_offset);
	ret->state_bytes = lm_le64(h->state_bytes);
	ret->stored_pages = lm_le64(h->stored_pages);
	ret->file_size = lm_le64(h->file_size);
	memcpy(ret->index_hash, h->index_hash, LM_IMAGE_HASH_SIZE);
	memcpy(ret->state_hash, h->state_hash, LM_IMAGE_HASH_SIZE);
	lm_image_hash(ret, offsetof(struct lm_image_wire_head, hash), ret->hash);
}

static int damaged(struct lm_error *err, const char *what)
{
	return lm_err(err, -EUCLEAN, LM_SCOPE_SESSION, "the image is damaged: %s: take another copy of it", what);
}

/* Printable text that ends inside its field. */
static bool text_valid(const char *p, size_t size)
{
	size_t len = strnlen(p, size);

	if (len == size)
		return false;
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)p[i] < ' ' || p[i] == 127)
			return false;
	return true;
}

static bool texts_valid(const struct lm_image_wire_head *w)
{
	return text_valid(w->host, sizeof(w->host)) && text_valid(w->vmm, sizeof(w->vmm)) &&
	       text_valid(w->machine, sizeof(w->machine)) && text_valid(w->vmm_version, sizeof(w->vmm_version)) &&
	       text_valid(w->guest_name, sizeof(w->guest_name)) && text_valid(w->guest_uuid, sizeof(w->guest_uuid));
}

/* [offset, offset + bytes) lies behind the fixed blocks and before the trailer. */
static bool inside(const struct lm_image_head *h, uint64_t offset, uint64_t bytes)
{
	uint64_t end = h->file_size - LM_IMAGE_BLOCK;

	return offset % LM_IMAGE_BLOCK == 0 && offset >= 2 * LM_IMAGE_BLOCK && offset <= end && bytes <= end - offset;
}

static int check_numbers(const struct lm_image_head *h, struct lm_error *err)
{
	if (!h->nregions || h->nregions > LM_REGIONS_MAX)
		return damaged(err, "number of memory backends");
	if (h->nlocks > LM_IMAGE_LOCKS_MAX)
		return damaged(err, "number of locks");
	if (h->file_size % LM_IMAGE_BLOCK || h->file_size < 3 * LM_IMAGE_BLOCK || h->file_size > INT64_MAX)
		return damaged(err, "size");
	if (!inside(h, h->index_offset, h->index_bytes) || h->nchunks > h->index_bytes / sizeof(struct lm_image_wire_chunk))
		return damaged(err, "place of the index");
	if (h->index_bytes != h->nregions * sizeof(struct lm_image_wire_region) +
				      h->nlocks * sizeof(struct lm_image_wire_lock) +
				      h->nchunks * sizeof(struct lm_image_wire_chunk))
		return damaged(err, "size of the index");
	if (!h->state_bytes || h->state_bytes > LM_IMAGE_STATE_MAX || !inside(h, h->state_offset, h->state_bytes))
		return damaged(err, "place of the device state");
	return 0;
}

static int check_version(const struct lm_image_wire_head *w, struct lm_error *err)
{
	if (memcmp(w->magic, head_magic, sizeof(w->magic)))
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "this is no image of a guest: `migrate-rdma save` writes one");
	if (lm_le32_get(w->compat) > LM_IMAGE_VERSION || lm_le32_get(w->version) < LM_IMAGE_COMPAT)
		return lm_err(err, -EPROTONOSUPPORT, LM_SCOPE_SESSION,
			      "the image is of format %u (needs a program that reads %u), this program reads %d to %d: "
			      "restore it with the version of migrate-rdma that saved it", lm_le32_get(w->version),
			      lm_le32_get(w->compat), LM_IMAGE_COMPAT, LM_IMAGE_VERSION);
	return 0;
}

int lm_image_get_head(const struct lm_image_wire_head *w, struct lm_image_head *ret, struct lm_error *err)
{
	uint8_t hash[LM_IMAGE_HASH_SIZE];
	int r = check_version(w, err);

	if (r)
		return r;
	lm_image_hash(w, offsetof(struct lm_image_wire_head, hash), hash);
	if (memcmp(hash, w->hash, sizeof(hash)))
		return damaged(err, "checksum of its head");
	if (!texts_valid(w) || lm_le32_get(w->chunk_pages) != LM_IMAGE_CHUNK_PAGES ||
	    lm_le32_get(w->flags) & ~LM_IMAGE_RUNNING)
		return damaged(err, "its head");
	*ret = (struct lm_image_head){
		.version = lm_le32_get(w->version), .running = lm_le32_get(w->flags) & LM_IMAGE_RUNNING,
		.saved_ns = (int64_t)lm_le64_get(w->saved_ns), .nregions = lm_le32_get(w->nregions),
		.nlocks = lm_le32_get(w->nlocks), .nchunks = lm_le64_get(w->nchunks),
		.stored_pages = lm_le64_get(w->stored_pages), .index_offset = lm_le64_get(w->index_offset),
		.index_bytes = lm_le64_get(w->index_bytes), .state_offset = lm_le64_get(w->state_offset),
		.state_bytes = lm_le64_get(w->state_bytes), .file_size = lm_le64_get(w->file_size),
	};
	memcpy(ret->id, w->id, sizeof(ret->id));
	memcpy(ret->host, w->host, sizeof(ret->host));
	memcpy(ret->info.vmm, w->vmm, sizeof(ret->info.vmm));
	memcpy(ret->info.machine, w->machine, sizeof(ret->info.machine));
	memcpy(ret->info.version, w->vmm_version, sizeof(ret->info.version));
	memcpy(ret->guest_name, w->guest_name, sizeof(ret->guest_name));
	memcpy(ret->guest_uuid, w->guest_uuid, sizeof(ret->guest_uuid));
	memcpy(ret->index_hash, w->index_hash, sizeof(ret->index_hash));
	memcpy(ret->state_hash, w->state_hash, sizeof(ret->state_hash));
	ret->info.vcpus = lm_le32_get(w->vcpus);
	ret->info.running = ret->running;
	return check_numbers(ret, err);
}

/* ---- mark and trailer ---- */

void lm_image_put_mark(const uint8_t id[static LM_IMAGE_ID_SIZE], enum lm_image_mark mark, unsigned uses,
		       const uint8_t *use, const uint64_t *epochs, unsigned nepochs, struct lm_image_wire_mark *ret)
{
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->magic, mark_magic, sizeof(ret->magic));
	ret->state = lm_le32(mark);
	ret->uses = lm_le32(uses);
	memcpy(ret->id, id, LM_IMAGE_ID_SIZE);
	if (use)
		memcpy(ret->use, use, LM_IMAGE_ID_SIZE);
	ret->time_ns = lm_le64((uint64_t)lm_clock_ns(CLOCK_REALTIME));
	lm_lock_host(ret->host);
	ret->nepochs = lm_le32(nepochs);
	for (unsigned i = 0; i < nepochs; i++)
		ret->epochs[i] = lm_le64(epochs[i]);
	lm_image_hash(ret, offsetof(struct lm_image_wire_mark, hash), ret->hash);
}

bool lm_image_mark_valid(const struct lm_image_wire_mark *m, const uint8_t id[static LM_IMAGE_ID_SIZE])
{
	uint8_t hash[LM_IMAGE_HASH_SIZE];

	lm_image_hash(m, offsetof(struct lm_image_wire_mark, hash), hash);
	return !memcmp(m->magic, mark_magic, sizeof(m->magic)) && !memcmp(hash, m->hash, sizeof(hash)) &&
	       !memcmp(m->id, id, LM_IMAGE_ID_SIZE) && lm_le32_get(m->state) <= LM_IMAGE_VOID &&
	       lm_le32_get(m->nepochs) <= LM_IMAGE_LOCKS_MAX &&
	       text_valid(m->host, sizeof(m->host));
}

void lm_image_put_trailer(const struct lm_image_wire_head *head, struct lm_image_wire_trailer *ret)
{
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->magic, trailer_magic, sizeof(ret->magic));
	memcpy(ret->id, head->id, sizeof(ret->id));
	ret->file_size = head->file_size;
	memcpy(ret->head_hash, head->hash, sizeof(ret->head_hash));
	lm_image_hash(ret, offsetof(struct lm_image_wire_trailer, hash), ret->hash);
}

int lm_image_check_trailer(const struct lm_image_wire_trailer *t, const struct lm_image_wire_head *head,
			   struct lm_error *err)
{
	struct lm_image_wire_trailer want;

	lm_image_put_trailer(head, &want);
	return memcmp(t, &want, sizeof(want)) ? damaged(err, "its last block is not that of its first") : 0;
}
