/* SPDX-License-Identifier: Apache-2.0 */
/* Every decoder of a control message.  Byte 0 chooses it, the rest is the payload. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"
#include "engine/control/wire.h"

static struct lm_error err;

static void header(const uint8_t *p, size_t len)
{
	struct lm_wire_header h;
	unsigned type;
	uint32_t n;

	if (len < sizeof(h))
		return;
	memcpy(&h, p, sizeof(h));
	if (!lm_wire_get_header(&h, lm_le64_get(h.seq), &type, &n, &err))
		assert(type && type < LM_MSG_TYPES && n <= LM_WIRE_PAYLOAD_MAX);
}

static void hello(const uint8_t *p, size_t len)
{
	char software[32];

	if (!lm_wire_get_hello(p, len, software, &err))
		assert(strlen(software) < sizeof(software));
}

/* What was accepted must survive being sent on. */
static void open_message(const uint8_t *p, size_t len)
{
	static struct lm_open a, b;
	static uint8_t buf[LM_WIRE_PAYLOAD_MAX];

	if (lm_wire_get_open(p, len, &a, &err))
		return;
	assert(a.nlocks <= LM_LOCKS_MAX);
	assert(a.nregions && a.nregions <= LM_REGIONS_MAX && a.nlanes && a.nlanes <= LM_LANES_MAX);
	assert(!lm_wire_get_open(buf, lm_wire_put_open(buf, &a), &b, &err));
	assert(!memcmp(&a, &b, sizeof(a)));
}

static void opened(const uint8_t *p, size_t len)
{
	struct lm_opened opened;

	if (!lm_wire_get_opened(p, len, 4, &opened, &err))
		assert(opened.nlanes && opened.nlanes <= 4);
}

static void ready(const uint8_t *p, size_t len)
{
	struct lm_key keys[3];

	lm_wire_get_ready(p, len, 3, keys, &err);
}

static void resident(const uint8_t *p, size_t len)
{
	struct lm_bitmap maps[2];

	lm_bitmap_init(&maps[0], 70);
	lm_bitmap_init(&maps[1], 4096);
	if (!lm_wire_get_resident(p, len, maps, 2, &err))
		assert(!(maps[0].words[1] >> 6)); /* nothing past the end */
	lm_bitmap_fini(&maps[0]);
	lm_bitmap_fini(&maps[1]);
}

static void small(const uint8_t *p, size_t len)
{
	struct lm_wire_saved saved;
	uint8_t token[LM_TOKEN_SIZE];
	int64_t load, resume;
	unsigned lane;
	uint32_t n;

	lm_wire_get_u32(p, len, "number", &n, &err);
	lm_wire_get_saved(p, len, &saved, &err);
	if (!lm_wire_get_lane_open(p, len, 4, &lane, token, &err))
		assert(lane < 4);
	if (!lm_wire_get_times(p, len, &load, &resume, &err))
		assert(load >= 0 && resume >= 0);
}

static struct lm_region left_regions[2] = { { .size = 70 * LM_PAGE_SIZE }, { .size = LM_PAGE_SIZE } };

static void left_extent(void *opaque, unsigned region, uint64_t first, uint64_t n, bool zero)
{
	uint64_t npages = lm_region_npages(&left_regions[region]);

	(void)opaque;
	(void)zero;
	assert(n && first < npages && n <= npages - first);
}

static void left(const uint8_t *p, size_t len)
{
	const struct lm_ram ram = { .regions = left_regions, .nregions = 2 };
	bool end;

	lm_wire_get_left(p, len, &ram, left_extent, NULL, &end, &err);
}

static void postcopy_opened(const uint8_t *p, size_t len)
{
	uint8_t secret[LM_TOKEN_SIZE];
	struct lm_opened opened;

	if (!lm_wire_get_postcopy_opened(p, len, 3, &opened, secret, &err))
		assert(opened.nlanes == 3 && strlen(opened.transport) < sizeof(opened.transport));
}

static void missing(const uint8_t *p, size_t len)
{
	struct lm_postcopy_stats s;

	if (!lm_wire_get_missing(p, len, &s, &err))
		assert(s.fault_p50_ns >= 0 && s.fault_p99_ns >= 0 && s.fault_max_ns >= 0 && s.waited_ns >= 0 &&
		       s.duration_ns >= 0);
}

static void locks(const uint8_t *p, size_t len)
{
	static struct lm_lock_notes notes;
	struct lm_lock_note note;

	if (lm_wire_get_locks(p, len, 2, &notes, &err))
		return;
	assert(notes.n == 2);
	for (unsigned i = 0; i < notes.n; i++)
		if (!lm_lock_note_get(notes.note[i], &note, &err))
			assert(lm_lock_name_valid(note.host) && lm_lock_name_valid(note.scheme));
}

static void abort_message(const uint8_t *p, size_t len)
{
	char text[40];
	int code;

	if (lm_wire_get_abort(p, len, &code, text, sizeof(text), &err))
		return;
	assert(code < 0 && code > -4096);
	assert(strlen(text) < sizeof(text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const decoders[])(const uint8_t *p, size_t len) = {
		header, hello, open_message, opened, ready, resident, small, abort_message,
		left, postcopy_opened, missing, locks,
	};
	uint8_t *copy;

	if (!size)
		return 0;
	/* Of the exact size: a read past the end is found. */
	copy = malloc(size);
	memcpy(copy, data + 1, size - 1);
	decoders[data[0] % (sizeof(decoders) / sizeof(decoders[0]))](copy, size - 1);
	free(copy);
	return 0;
}
