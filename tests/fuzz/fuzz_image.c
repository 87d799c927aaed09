/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image of a guest, as any file may claim to be one.  A fuzzer guesses no checksum:
 * so the input is laid into the fields, and the checksums are made right.
 *
 * byte 0: bit 0: leave the checksums as they are.  The rest: the file.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "fuzz.h"
#include "engine/image/image.h"

#define FILE_MAX (1u << 16)

static uint8_t file[FILE_MAX];

static void make_right(size_t size)
{
	struct lm_image_wire_head *h = (void *)file;
	struct lm_image_wire_mark *m = (void *)(file + LM_IMAGE_BLOCK);
	uint64_t offset = lm_le64_get(h->index_offset), bytes = lm_le64_get(h->index_bytes);

	if (size < 3 * LM_IMAGE_BLOCK)
		return;
	memcpy(h->magic, "LMIMAGE", 8);
	h->version = h->compat = lm_le32(1);
	h->file_size = lm_le64(size);
	if (offset <= size && bytes <= size - offset)
		lm_image_hash(file + offset, bytes, h->index_hash);
	lm_image_hash(h, offsetof(struct lm_image_wire_head, hash), h->hash);
	lm_image_put_trailer(h, (void *)(file + size - LM_IMAGE_BLOCK));
	lm_image_put_mark(h->id, LM_IMAGE_FRESH, 0, NULL, NULL, 0, m);
}

static void read_it(const struct lm_image *img)
{
	static uint8_t buf[LM_IMAGE_CHUNK_BYTES] __attribute__((aligned(LM_IMAGE_BLOCK)));
	uint8_t *state = NULL;
	struct lm_error err;

	if (!lm_image_read_state(img, &state, &err))
		free(state);
	for (unsigned i = 0; i < img->head.nregions; i++) {
		assert(strlen(img->regions[i].name) < LM_REGION_NAME_MAX);
		for (uint64_t c = 0; c < lm_image_chunks_of(img->regions[i].size) && c < 64; c++)
			lm_image_read_chunk(img, i, c, buf, &err);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct lm_image img = { .path = "fuzz" };
	struct lm_error err;
	int fd;

	if (!size)
		return 0;
	size = size - 1 < FILE_MAX ? size - 1 : FILE_MAX;
	memcpy(file, data + 1, size);
	if (!(data[0] & 1))
		make_right(size);
	fd = memfd_create("image", MFD_CLOEXEC);
	if (fd < 0 || write(fd, file, size) != (ssize_t)size) {
		close(fd);
		return 0;
	}
	if (lm_image_open_fd(&img, fd, false, &err))
		return 0;
	read_it(&img);
	lm_image_close(&img);
	return 0;
}
