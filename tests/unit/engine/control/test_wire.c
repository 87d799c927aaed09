/* SPDX-License-Identifier: Apache-2.0 */
/* Decoders of control messages: what they take, and above all what they refuse. */
#include "unit.h"
#include "engine/control/wire.h"
#include "engine/postcopy/both.h"
#include "engine/control/wire.h"

static uint8_t buf[LM_WIRE_PAYLOAD_MAX];
static struct lm_error err;

/* ---- header ---- */

static struct lm_wire_header header(void)
{
	return (struct lm_wire_header){
		.magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16(LM_MSG_PING), .len = lm_le32(8), .seq = lm_le64(7),
	};
}

static void a_header_comes_back_as_it_was_made(void **state)
{
	struct lm_wire_header h = header();
	unsigned type;
	uint32_t len;

	(void)state;
	assert_ok(lm_wire_get_header(&h, 7, &type, &len, &err), err);
	assert_int_equal(type, LM_MSG_PING);
	assert_int_equal(len, 8);
	h.len = lm_le32(LM_WIRE_PAYLOAD_MAX);
	assert_ok(lm_wire_get_header(&h, 7, &type, &len, &err), err);
}

static void a_bad_header_is_refused(void **state)
{
	unsigned type;
	uint32_t len;

	(void)state;
#define refused(field, value)                                                            \
	do {                                                                             \
		struct lm_wire_header h = header();                                      \
		h.field = value;                                                         \
		assert_fails(lm_wire_get_header(&h, 7, &type, &len, &err), -EPROTO, err); \
	} while (0)
	refused(magic, lm_le32(LM_WIRE_MAGIC + 1));
	refused(magic, lm_le32(__builtin_bswap32(LM_WIRE_MAGIC)));
	refused(type, lm_le16(0));
	refused(type, lm_le16(LM_MSG_TYPES));
	refused(type, lm_le16(UINT16_MAX));
	refused(reserved, lm_le16(1));
	refused(reserved2, lm_le32(1));
	refused(len, lm_le32(LM_WIRE_PAYLOAD_MAX + 1));
	refused(len, lm_le32(UINT32_MAX));
	refused(seq, lm_le64(6));
	refused(seq, lm_le64(8));
	refused(seq, lm_le64(UINT64_MAX));
#undef refused
}

static void every_message_has_a_name(void **state)
{
	(void)state;
	for (unsigned i = 1; i < LM_MSG_TYPES; i++)
		assert_string_not_equal(lm_msg_name(i), "unknown message");
	assert_string_equal(lm_msg_name(0), "unknown message");
	assert_string_equal(lm_msg_name(LM_MSG_TYPES), "unknown message");
	assert_string_equal(lm_msg_name(UINT32_MAX), "unknown message");
}

/* ---- HELLO ---- */

static void hello_comes_back_as_it_was_made(void **state)
{
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	assert_int_equal(len, sizeof(struct lm_wire_hello));
	assert_ok(lm_wire_get_hello(buf, len, software, &err), err);
	assert_string_equal(software, lm_version());
}

static void a_longer_hello_of_a_later_version_is_taken(void **state)
{
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	memset(buf + len, 0xff, 100);
	assert_ok(lm_wire_get_hello(buf, len + 100, software, &err), err);
}

static void a_truncated_hello_is_refused(void **state)
{
	char software[32];
	size_t full = lm_wire_put_hello(buf);

	(void)state;
	for (size_t len = 0; len < full; len++)
		assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
}

static void versions_that_do_not_match_are_told_apart_from_nonsense(void **state)
{
	struct lm_wire_hello *h = (void *)buf;
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	h->version = lm_le16(LM_WIRE_COMPAT - 1);
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTONOSUPPORT, err);
	lm_wire_put_hello(buf);
	h->version = lm_le16(9);
	h->compat = lm_le16(LM_WIRE_VERSION + 1);
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTONOSUPPORT, err);
	/* Newer, but understood by us. */
	h->compat = lm_le16(LM_WIRE_VERSION);
	assert_ok(lm_wire_get_hello(buf, len, software, &err), err);
}

static void software_names_that_cannot_be_printed_are_refused(void **state)
{
	struct lm_wire_hello *h = (void *)buf;
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	memset(h->software, 'a', sizeof(h->software));
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
	lm_wire_put_hello(buf);
	h->software[3] = '\033';
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
	h->software[3] = (char)0xff;
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
}

/* ---- OPEN ---- */

static void open_fill(struct lm_open *o, unsigned nregions)
{
	memset(o, 0, sizeof(*o));
	strcpy(o->transports, "tcp");
	strcpy(o->info.vmm, "qemu");
	strcpy(o->info.machine, "pc-q35-7.2");
	strcpy(o->info.version, "7.2.22");
	o->info.vcpus = 4;
	o->info.running = true;
	o->nlanes = 2;
	o->nregions = nregions;
	for (unsigned i = 0; i < nregions; i++) {
		snprintf(o->regions[i].name, sizeof(o->regions[i].name), "ram%u", i);
		o->regions[i].size = (uint64_t)(i + 1) << 21;
		o->regions[i].page_size = i % 2 ? 2 << 20 : 4096;
	}
}

static size_t open_put(unsigned nregions)
{
	static struct lm_open o;

	open_fill(&o, nregions);
	return lm_wire_put_open(buf, &o);
}

static struct lm_open got; /* large */

static void open_comes_back_as_it_was_made(void **state)
{
	static const unsigned counts[] = { 1, 2, LM_REGIONS_MAX };
	static struct lm_open o;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		size_t len = open_put(counts[i]);

		open_fill(&o, counts[i]);
		assert_true(len <= LM_WIRE_PAYLOAD_MAX);
		memset(&got, 0xff, sizeof(got));
		assert_ok(lm_wire_get_open(buf, len, &got, &err), err);
		assert_memory_equal(&got, &o, sizeof(o));
	}
}

static void verify_and_a_paused_guest_are_carried(void **state)
{
	static struct lm_open o;

	(void)state;
	open_fill(&o, 1);
	o.info.running = false;
	o.verify = true;
	o.nlocks = LM_LOCKS_MAX;
	assert_ok(lm_wire_get_open(buf, lm_wire_put_open(buf, &o), &got, &err), err);
	assert_int_equal(got.nlocks, LM_LOCKS_MAX);
	assert_false(got.info.running);
	assert_true(got.verify);
}

static void an_open_of_any_other_length_is_refused(void **state)
{
	size_t full = open_put(3);

	(void)state;
	for (size_t len = 0; len < full + 200; len++)
		if (len != full)
			assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
}

static void impossible_numbers_in_open_are_refused(void **state)
{
	struct lm_wire_open *o = (void *)buf;
	struct lm_wire_region *r = (void *)(o + 1);

	(void)state;
#define refused(field, value)                                                      \
	do {                                                                       \
		size_t len = open_put(2);                                          \
		field = value;                                                     \
		assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err); \
	} while (0)
	refused(o->nregions, lm_le32(0));
	refused(o->nregions, lm_le32(1));
	refused(o->nregions, lm_le32(3));
	refused(o->nregions, lm_le32(LM_REGIONS_MAX + 1));
	refused(o->nregions, lm_le32(UINT32_MAX));
	refused(o->nregions, lm_le32(0x10000002)); /* times 80, in 32 bits: 160 */
	refused(o->nlanes, lm_le32(0));
	refused(o->nlanes, lm_le32(LM_LANES_MAX + 1));
	refused(o->nlanes, lm_le32(UINT32_MAX));
	refused(o->flags, lm_le32(4));
	refused(o->flags, lm_le32(0x80000001));
	refused(o->flags, lm_le32((LM_LOCKS_MAX + 1) << LM_OPEN_LOCKS_SHIFT));
	refused(o->flags, lm_le32(0x10001)); /* the bit above the number of locks */
	refused(r[1].size, lm_le64(0));
	refused(r[1].size, lm_le64((2 << 20) + 4096)); /* no multiple of its page size */
	refused(r[0].size, lm_le64(4097));
	refused(r[0].size, lm_le64(LM_REGION_SIZE_MAX + 4096));
	refused(r[0].size, lm_le64(UINT64_MAX - 4095));
	refused(r[0].page_size, lm_le64(0));
	refused(r[0].page_size, lm_le64(2048));
	refused(r[0].page_size, lm_le64(12288));
	refused(r[0].page_size, lm_le64(UINT64_C(1) << 31));
	refused(r[0].page_size, lm_le64(UINT64_C(1) << 63));
#undef refused
}

static void the_largest_numbers_in_open_are_taken(void **state)
{
	struct lm_wire_open *o = (void *)buf;
	struct lm_wire_region *r = (void *)(o + 1);
	size_t len = open_put(1);

	(void)state;
	o->nlanes = lm_le32(LM_LANES_MAX);
	r->size = lm_le64(LM_REGION_SIZE_MAX);
	r->page_size = lm_le64(LM_RUN_MAX);
	assert_ok(lm_wire_get_open(buf, len, &got, &err), err);
	assert_int_equal(got.regions[0].size, LM_REGION_SIZE_MAX);
}

static void texts_in_open_must_end_and_be_printable(void **state)
{
	struct lm_wire_open *o = (void *)buf;
	struct lm_wire_region *r = (void *)(o + 1);
	struct { char *at; size_t size; } fields[] = {
		{ o->transports, sizeof(o->transports) }, { o->vmm, sizeof(o->vmm) },
		{ o->machine, sizeof(o->machine) },     { o->vmm_version, sizeof(o->vmm_version) },
		{ r[0].name, sizeof(r[0].name) },       { r[1].name, sizeof(r[1].name) },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		size_t len = open_put(2);

		memset(fields[i].at, 'a', fields[i].size);
		assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
		fields[i].at[fields[i].size - 1] = 0;
		assert_ok(lm_wire_get_open(buf, len, &got, &err), err);
		fields[i].at[0] = '\n';
		assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
	}
}

static void a_region_without_a_name_is_refused(void **state)
{
	struct lm_wire_region *r = (void *)(buf + sizeof(struct lm_wire_open));
	size_t len = open_put(1);

	(void)state;
	memset(r->name, 0, sizeof(r->name));
	assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
}

static void texts_that_are_too_long_are_cut_when_sent(void **state)
{
	static struct lm_open o;

	(void)state;
	open_fill(&o, 1);
	memset(o.transports, 't', sizeof(o.transports)); /* not even terminated */
	assert_ok(lm_wire_get_open(buf, lm_wire_put_open(buf, &o), &got, &err), err);
	assert_int_equal(strspn(got.transports, "t"), sizeof(got.transports) - 1);
}

/* ---- OPENED, READY, LANE_DROP ---- */

static void opened_grants_at_most_what_was_asked(void **state)
{
	struct lm_opened opened = { .transport = "tcp", .token = { 1, 2, 3 }, .endpoint = { 9, 8, 7 }, .nlanes = 3,
				    .postcopy = true };
	struct lm_wire_opened o;
	struct lm_opened got_opened;

	(void)state;
	assert_int_equal(lm_wire_put_opened(&o, &opened), sizeof(o));
	assert_ok(lm_wire_get_opened(&o, sizeof(o), 3, &got_opened, &err), err);
	assert_memory_equal(&got_opened, &opened, sizeof(opened));
	assert_fails(lm_wire_get_opened(&o, sizeof(o), 2, &got_opened, &err), -EPROTO, err);
	o.nlanes = lm_le32(0);
	assert_fails(lm_wire_get_opened(&o, sizeof(o), 3, &got_opened, &err), -EPROTO, err);
	o.nlanes = lm_le32(UINT32_MAX);
	assert_fails(lm_wire_get_opened(&o, sizeof(o), 3, &got_opened, &err), -EPROTO, err);
	o.nlanes = lm_le32(1);
	memset(o.transport, 't', sizeof(o.transport));
	assert_fails(lm_wire_get_opened(&o, sizeof(o), 3, &got_opened, &err), -EPROTO, err);
}

static void a_bad_opened_is_refused(void **state)
{
	struct lm_wire_opened o[2] = { { .nlanes = lm_le32(1) } };
	struct lm_opened got_opened;

	(void)state;
	for (size_t len = 0; len < sizeof(o); len++)
		if (len != sizeof(o[0]))
			assert_fails(lm_wire_get_opened(o, len, 1, &got_opened, &err), -EPROTO, err);
	o[0].flags = lm_le32(LM_OPENED_REOPEN << 1);
	assert_fails(lm_wire_get_opened(o, sizeof(o[0]), 1, &got_opened, &err), -EPROTO, err);
}

static void lane_open_names_a_lane_that_is_there(void **state)
{
	struct lm_wire_lane_open o[2] = { { .lane = lm_le32(3), .token = "0123456789abcde" } };
	uint8_t token[LM_TOKEN_SIZE];
	unsigned lane = 0;

	(void)state;
	assert_ok(lm_wire_get_lane_open(o, sizeof(o[0]), 4, &lane, token, &err), err);
	assert_int_equal(lane, 3);
	assert_memory_equal(token, "0123456789abcde", sizeof(token));
	for (size_t len = 0; len < sizeof(o); len++)
		if (len != sizeof(o[0]))
			assert_fails(lm_wire_get_lane_open(o, len, 4, &lane, token, &err), -EPROTO, err);
	assert_fails(lm_wire_get_lane_open(o, sizeof(o[0]), 3, &lane, token, &err), -EPROTO, err);
	o[0].reserved = lm_le32(1);
	assert_fails(lm_wire_get_lane_open(o, sizeof(o[0]), 4, &lane, token, &err), -EPROTO, err);
}

static void ready_has_one_key_per_region(void **state)
{
	struct lm_key in[3], out[3] = { 0 };

	(void)state;
	memset(in, 0x5a, sizeof(in));
	assert_ok(lm_wire_get_ready(in, sizeof(in), 3, out, &err), err);
	assert_memory_equal(in, out, sizeof(in));
	for (size_t len = 0; len < sizeof(in); len++)
		assert_fails(lm_wire_get_ready(in, len, 3, out, &err), -EPROTO, err);
	assert_fails(lm_wire_get_ready(in, sizeof(in), 2, out, &err), -EPROTO, err);
}

static void a_lane_number_is_four_bytes(void **state)
{
	struct le32 v[2] = { lm_le32(0x01020304), lm_le32(0) };
	uint32_t n = 0;

	(void)state;
	assert_ok(lm_wire_get_u32(v, 4, "LANE_DROP", &n, &err), err);
	assert_int_equal(n, 0x01020304);
	for (size_t len = 0; len <= sizeof(v); len++)
		if (len != 4)
			assert_fails(lm_wire_get_u32(v, len, "LANE_DROP", &n, &err), -EPROTO, err);
}

/* ---- RESIDENT ---- */

static size_t resident_put(uint32_t region, uint32_t count, uint64_t first, uint64_t n)
{
	struct lm_wire_resident *w = (void *)buf;
	struct lm_wire_extent *x = (void *)(w + 1);

	w->region = lm_le32(region);
	w->count = lm_le32(count);
	for (uint32_t i = 0; i < count && i <= LM_WIRE_EXTENTS_MAX; i++)
		x[i] = (struct lm_wire_extent){ lm_le64(first + i * (n + 1)), lm_le64(n) };
	return sizeof(*w) + count * sizeof(*x);
}

static void resident_sets_the_pages_of_its_region(void **state)
{
	struct lm_bitmap maps[2];

	(void)state;
	lm_bitmap_init(&maps[0], 1 << 16);
	lm_bitmap_init(&maps[1], 100);
	assert_ok(lm_wire_get_resident(buf, resident_put(1, 2, 10, 20), maps, 2, &err), err);
	assert_int_equal(lm_bitmap_count(&maps[0]), 0);
	assert_int_equal(lm_bitmap_count(&maps[1]), 40);
	assert_int_equal(lm_bitmap_count_range(&maps[1], 10, 20) + lm_bitmap_count_range(&maps[1], 31, 20), 40);
	assert_ok(lm_wire_get_resident(buf, resident_put(0, LM_WIRE_EXTENTS_MAX, 0, 3), maps, 2, &err), err);
	assert_int_equal(lm_bitmap_count(&maps[0]), 3 * LM_WIRE_EXTENTS_MAX);
	assert_ok(lm_wire_get_resident(buf, resident_put(0, 0, 0, 0), maps, 2, &err), err);
	lm_bitmap_fini(&maps[0]);
	lm_bitmap_fini(&maps[1]);
}

static void extents_outside_of_their_region_are_refused(void **state)
{
	static const uint64_t bad[][2] = {
		{ 0, 0 }, { 5, 0 }, { 0, 101 }, { 100, 1 }, { 99, 2 }, { UINT64_MAX, 1 }, { 1, UINT64_MAX },
		{ 50, UINT64_MAX - 49 }, { UINT64_MAX - 1, 3 },
	};
	struct lm_bitmap map;

	(void)state;
	lm_bitmap_init(&map, 100);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_fails(lm_wire_get_resident(buf, resident_put(0, 1, bad[i][0], bad[i][1]), &map, 1, &err),
			     -EPROTO, err);
	assert_int_equal(lm_bitmap_count(&map), 0);
	assert_ok(lm_wire_get_resident(buf, resident_put(0, 1, 0, 100), &map, 1, &err), err);
	lm_bitmap_fini(&map);
}

static void counts_that_do_not_fit_the_resident_message_are_refused(void **state)
{
	struct lm_wire_resident *w = (void *)buf;
	struct lm_bitmap map;
	size_t full = resident_put(0, 2, 0, 10);

	(void)state;
	lm_bitmap_init(&map, 100);
	for (size_t len = 0; len < full + 64; len++)
		if (len != full)
			assert_fails(lm_wire_get_resident(buf, len, &map, 1, &err), -EPROTO, err);
	w->count = lm_le32(0x10000002); /* times 16, in 32 bits: 32 */
	assert_fails(lm_wire_get_resident(buf, full, &map, 1, &err), -EPROTO, err);
	w->count = lm_le32(LM_WIRE_EXTENTS_MAX + 1);
	assert_fails(lm_wire_get_resident(buf, sizeof(*w) + (LM_WIRE_EXTENTS_MAX + 1) * sizeof(struct lm_wire_extent),
					  &map, 1, &err), -EPROTO, err);
	assert_fails(lm_wire_get_resident(buf, resident_put(1, 2, 0, 10), &map, 1, &err), -EPROTO, err);
	assert_fails(lm_wire_get_resident(buf, resident_put(UINT32_MAX, 2, 0, 10), &map, 1, &err), -EPROTO, err);
	lm_bitmap_fini(&map);
}

/* ---- SAVED, LOADED, RESUMED, ABORT ---- */

static void saved_is_taken_at_its_length_only(void **state)
{
	struct lm_wire_saved in[2] = { { .state_bytes = lm_le64(1), .lane_bytes = lm_le64(UINT64_MAX) } }, out;

	(void)state;
	assert_ok(lm_wire_get_saved(in, sizeof(out), &out, &err), err);
	assert_memory_equal(in, &out, sizeof(out));
	for (size_t len = 0; len < sizeof(in); len++)
		if (len != sizeof(out))
			assert_fails(lm_wire_get_saved(in, len, &out, &err), -EPROTO, err);
}

static void durations_are_never_negative(void **state)
{
	struct lm_wire_times t[2] = { { lm_le64(5), lm_le64(INT64_MAX) } };
	int64_t load, resume;

	(void)state;
	assert_ok(lm_wire_get_times(t, sizeof(t[0]), &load, &resume, &err), err);
	assert_int_equal(load, 5);
	assert_true(resume == INT64_MAX);
	for (size_t len = 0; len < sizeof(t); len++)
		if (len != sizeof(t[0]))
			assert_fails(lm_wire_get_times(t, len, &load, &resume, &err), -EPROTO, err);
	t[0].load_ns = lm_le64(UINT64_C(1) << 63);
	assert_fails(lm_wire_get_times(t, sizeof(t[0]), &load, &resume, &err), -EPROTO, err);
	t[0].load_ns = lm_le64(0);
	t[0].resume_ns = lm_le64(UINT64_MAX);
	assert_fails(lm_wire_get_times(t, sizeof(t[0]), &load, &resume, &err), -EPROTO, err);
}

static void notes_come_in_the_number_of_locks(void **state)
{
	static uint8_t in[(LM_LOCKS_MAX + 2) * LM_LOCK_NOTE_SIZE];
	static struct lm_lock_notes out;

	(void)state;
	memset(in, 7, sizeof(in));
	assert_ok(lm_wire_get_locks(in, 3 * LM_LOCK_NOTE_SIZE, 3, &out, &err), err);
	assert_int_equal(out.n, 3);
	assert_memory_equal(out.note, in, 3 * LM_LOCK_NOTE_SIZE);
	assert_fails(lm_wire_get_locks(in, 0, 0, &out, &err), -EPROTO, err);
	assert_fails(lm_wire_get_locks(in, 2 * LM_LOCK_NOTE_SIZE, 3, &out, &err), -EPROTO, err);
	assert_fails(lm_wire_get_locks(in, 4 * LM_LOCK_NOTE_SIZE, 3, &out, &err), -EPROTO, err);
	assert_fails(lm_wire_get_locks(in, 3 * LM_LOCK_NOTE_SIZE - 1, 3, &out, &err), -EPROTO, err);
	assert_fails(lm_wire_get_locks(in, sizeof(in), LM_LOCKS_MAX + 2, &out, &err), -EPROTO, err);
}

static void abort_carries_its_reason(void **state)
{
	char text[64];
	int code;

	(void)state;
	assert_ok(lm_wire_get_abort(buf, lm_wire_put_abort(buf, -EIO, "the disk\033[31m is gone\n"), &code, text,
				    sizeof(text), &err), err);
	assert_int_equal(code, -EIO);
	assert_string_equal(text, "the disk?[31m is gone?");
	assert_ok(lm_wire_get_abort(buf, lm_wire_put_abort(buf, ENOMEM, ""), &code, text, sizeof(text), &err), err);
	assert_int_equal(code, -ENOMEM);
	assert_string_equal(text, "");
}

static void a_long_abort_is_cut_to_the_readers_room(void **state)
{
	char sent[2 * LM_ERROR_MSG_MAX], text[16];
	int code;
	size_t len;

	(void)state;
	memset(sent, 'x', sizeof(sent));
	sent[sizeof(sent) - 1] = 0;
	len = lm_wire_put_abort(buf, EIO, sent);
	assert_true(len < sizeof(struct lm_wire_abort) + LM_ERROR_MSG_MAX);
	assert_ok(lm_wire_get_abort(buf, len, &code, text, sizeof(text), &err), err);
	assert_string_equal(text, "xxxxxxxxxxxxxxx");
	assert_ok(lm_wire_get_abort(buf, len, &code, text, 1, &err), err);
	assert_string_equal(text, "");
}

static void an_abort_code_is_always_an_error(void **state)
{
	static const uint32_t codes[] = { 0, 4096, 0x7fffffff, 0x80000000, UINT32_MAX };
	struct lm_wire_abort *a = (void *)buf;
	char text[8];
	int code;

	(void)state;
	for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		a->code = lm_le32(codes[i]);
		a->len = lm_le32(0);
		assert_ok(lm_wire_get_abort(buf, sizeof(*a), &code, text, sizeof(text), &err), err);
		assert_int_equal(code, -ECONNABORTED);
	}
}

static void an_abort_whose_length_lies_is_refused(void **state)
{
	struct lm_wire_abort *a = (void *)buf;
	size_t full = lm_wire_put_abort(buf, EIO, "reason");
	char text[8];
	int code;

	(void)state;
	for (size_t len = 0; len < full + 20; len++)
		if (len != full)
			assert_fails(lm_wire_get_abort(buf, len, &code, text, sizeof(text), &err), -EPROTO, err);
	a->len = lm_le32(UINT32_MAX);
	assert_fails(lm_wire_get_abort(buf, full, &code, text, sizeof(text), &err), -EPROTO, err);
}

/* Nothing that a peer sends may be read past its end: for the address sanitizer. */
static void random_payloads_never_lead_out_of_the_message(void **state)
{
	uint64_t x = 99;

	(void)state;
	for (unsigned i = 0; i < 20000; i++) {
		size_t len = unit_random(&x) % 300;
		uint8_t *p = malloc(len ? len : 1);
		char text[64], software[32];
		struct lm_wire_saved saved;
		struct lm_opened opened;
		struct lm_bitmap map;
		struct lm_key keys[4];
		int64_t a, b;
		uint32_t u;
		int code;

		for (size_t k = 0; k < len; k++)
			p[k] = unit_random(&x) % 4 ? 0 : (uint8_t)unit_random(&x);
		lm_bitmap_init(&map, 64);
		lm_wire_get_hello(p, len, software, &err);
		lm_wire_get_open(p, len, &got, &err);
		lm_wire_get_opened(p, len, 4, &opened, &err);
		lm_wire_get_ready(p, len, 4, keys, &err);
		lm_wire_get_resident(p, len, &map, 1, &err);
		lm_wire_get_u32(p, len, "number", &u, &err);
		lm_wire_get_saved(p, len, &saved, &err);
		lm_wire_get_times(p, len, &a, &b, &err);
		lm_wire_get_abort(p, len, &code, text, sizeof(text), &err);
		lm_bitmap_fini(&map);
		free(p);
	}
}

/* ---- post-copy ---- */

static struct lm_opened opened_sample(void)
{
	struct lm_opened o = { .transport = "tcp", .nlanes = 3 };

	memset(o.token, 0x5a, sizeof(o.token));
	memset(o.endpoint, 0xc3, sizeof(o.endpoint));
	return o;
}

static void postcopy_opened_comes_back_as_it_was_made(void **state)
{
	const uint8_t secret[LM_TOKEN_SIZE] = "0123456789abcde";
	struct lm_opened o = opened_sample(), got;
	uint8_t got_secret[LM_TOKEN_SIZE];
	size_t len = lm_wire_put_postcopy_opened(buf, &o, secret);

	(void)state;
	assert_int_equal(len, sizeof(struct lm_wire_postcopy_opened));
	assert_ok(lm_wire_get_postcopy_opened(buf, len, 3, &got, got_secret, &err), err);
	assert_string_equal(got.transport, "tcp");
	assert_memory_equal(got.token, o.token, sizeof(o.token));
	assert_memory_equal(got.endpoint, o.endpoint, sizeof(o.endpoint));
	assert_memory_equal(got_secret, secret, sizeof(secret));
	assert_int_equal(got.nlanes, 3);
}

static void a_bad_postcopy_opened_is_refused(void **state)
{
	const uint8_t secret[LM_TOKEN_SIZE] = { 0 };
	struct lm_wire_postcopy_opened *w = (void *)buf;
	struct lm_opened o = opened_sample(), got;
	uint8_t got_secret[LM_TOKEN_SIZE];
	size_t full = lm_wire_put_postcopy_opened(buf, &o, secret);

	(void)state;
	for (size_t len = 0; len <= full + 16; len++)
		if (len != full)
			assert_fails(lm_wire_get_postcopy_opened(buf, len, 3, &got, got_secret, &err), -EPROTO, err);
	assert_fails(lm_wire_get_postcopy_opened(buf, full, 2, &got, got_secret, &err), -EPROTO, err);
	assert_fails(lm_wire_get_postcopy_opened(buf, full, 4, &got, got_secret, &err), -EPROTO, err);
	w->reserved = lm_le32(1);
	assert_fails(lm_wire_get_postcopy_opened(buf, full, 3, &got, got_secret, &err), -EPROTO, err);
	w->reserved = lm_le32(0);
	memset(w->transport, 'x', sizeof(w->transport)); /* without an end */
	assert_fails(lm_wire_get_postcopy_opened(buf, full, 3, &got, got_secret, &err), -EPROTO, err);
	memcpy(w->transport, "t\033cp", 5);
	assert_fails(lm_wire_get_postcopy_opened(buf, full, 3, &got, got_secret, &err), -EPROTO, err);
}

static struct lm_region left_regions[2] = { { .size = 70 * LM_PAGE_SIZE }, { .size = 1 * LM_PAGE_SIZE } };
static const struct lm_ram left_ram = { .regions = left_regions, .nregions = 2 };
static uint64_t left_calls, left_pages;

static void count_left(void *opaque, unsigned region, uint64_t first, uint64_t n, bool zero)
{
	uint64_t npages = lm_region_npages(&left_regions[region]);

	(void)zero;
	assert_ptr_equal(opaque, &left_calls);
	assert_true(region < 2 && n && first < npages && n <= npages - first);
	left_calls++;
	left_pages += n;
}

static int get_left(uint32_t region, uint32_t kind, uint32_t count, uint64_t first, uint64_t n, size_t len, bool *end)
{
	struct lm_wire_left *w = (void *)buf;
	struct lm_wire_extent *x = (void *)(w + 1);

	*w = (struct lm_wire_left){ .region = lm_le32(region), .kind = lm_le32(kind), .count = lm_le32(count) };
	x[0] = (struct lm_wire_extent){ lm_le64(first), lm_le64(n) };
	x[1] = (struct lm_wire_extent){ lm_le64(0), lm_le64(1) };
	left_calls = left_pages = 0;
	return lm_wire_get_left(buf, len, &left_ram, count_left, &left_calls, end, &err);
}

static void left_names_the_pages_of_its_region(void **state)
{
	const size_t head = sizeof(struct lm_wire_left), one = sizeof(struct lm_wire_extent);
	bool end;

	(void)state;
	assert_ok(get_left(0, LM_LEFT_DATA, 2, 3, 67, head + 2 * one, &end), err);
	assert_false(end);
	assert_int_equal(left_calls, 2);
	assert_int_equal(left_pages, 68);
	assert_ok(get_left(1, LM_LEFT_ZERO, 1, 0, 1, head + one, &end), err);
	assert_false(end);
	assert_int_equal(left_pages, 1);
	assert_ok(get_left(0, LM_LEFT_END, 0, 0, 0, head, &end), err);
	assert_true(end);
	assert_int_equal(left_calls, 0);
	assert_ok(get_left(0, LM_LEFT_DATA, 0, 0, 0, head, &end), err); /* none is allowed */
	assert_false(end);
}

static void a_left_that_lies_is_refused(void **state)
{
	const size_t head = sizeof(struct lm_wire_left), one = sizeof(struct lm_wire_extent);
	bool end;

	(void)state;
	for (size_t len = 0; len < head + 3 * one; len++)
		if (len != head + one)
			assert_fails(get_left(0, LM_LEFT_DATA, 1, 0, 1, len, &end), -EPROTO, err);
#define refused(...) assert_fails(get_left(__VA_ARGS__, &end), -EPROTO, err)
	refused(2, LM_LEFT_DATA, 1, 0, 1, head + one);
	refused(UINT32_MAX, LM_LEFT_DATA, 1, 0, 1, head + one);
	refused(2, LM_LEFT_END, 0, 0, 0, head);
	refused(0, LM_LEFT_END, 1, 0, 1, head + one);
	refused(0, LM_LEFT_END + 1, 1, 0, 1, head + one);
	refused(0, UINT32_MAX, 1, 0, 1, head + one);
	refused(0, LM_LEFT_DATA, 1, 0, 0, head + one);
	refused(0, LM_LEFT_DATA, 1, 70, 1, head + one);
	refused(0, LM_LEFT_DATA, 1, 69, 2, head + one);
	refused(0, LM_LEFT_DATA, 1, 1, UINT64_MAX, head + one);
	refused(0, LM_LEFT_DATA, 1, UINT64_MAX, 2, head + one);
	refused(0, LM_LEFT_DATA, LM_WIRE_EXTENTS_MAX + 1, 0, 1, head + (LM_WIRE_EXTENTS_MAX + 1) * one);
	refused(0, LM_LEFT_DATA, 1u << 28, 0, 1, head); /* times 16 is 0 in 32 bits */
#undef refused
	get_left(0, LM_LEFT_DATA, 1, 0, 1, 0, &end);
	((struct lm_wire_left *)(void *)buf)->reserved = lm_le32(1);
	assert_fails(lm_wire_get_left(buf, head + one, &left_ram, count_left, &left_calls, &end, &err), -EPROTO, err);
}

static void missing_is_taken_at_its_length_only_and_has_no_negative_times(void **state)
{
	struct lm_postcopy_stats s;
	size_t full = sizeof(struct lm_wire_missing);

	(void)state;
	memset(buf, 0xff, full + 8);
	for (size_t len = 0; len <= full + 8; len++)
		if (len != full)
			assert_fails(lm_wire_get_missing(buf, len, &s, &err), -EPROTO, err);
	assert_ok(lm_wire_get_missing(buf, full, &s, &err), err);
	assert_true(s.fault_p50_ns >= 0 && s.fault_p99_ns >= 0 && s.fault_max_ns >= 0);
	assert_true(s.waited_ns >= 0 && s.duration_ns >= 0);
	assert_true(s.used && !s.recoveries);
}

static void payloads_of_one_size_have_that_size(void **state)
{
	struct lm_wire_recover recover;
	struct lm_wire_postcopy postcopy;

	(void)state;
	for (size_t len = 0; len < 40; len++) {
		assert_int_equal(lm_wire_get_fixed(buf, len, "R", &recover, sizeof(recover), &err),
				 len == LM_TOKEN_SIZE ? 0 : -EPROTO);
		assert_int_equal(lm_wire_get_fixed(buf, len, "P", &postcopy, sizeof(postcopy), &err),
				 len == 8 ? 0 : -EPROTO);
	}
}

static void secrets_are_compared_in_full(void **state)
{
	uint8_t a[LM_TOKEN_SIZE] = { 1, 2, 3 }, b[LM_TOKEN_SIZE];

	(void)state;
	for (unsigned i = 0; i < 8 * LM_TOKEN_SIZE; i++) {
		memcpy(b, a, sizeof(b));
		assert_true(lm_secret_equal(a, b));
		b[i / 8] ^= (uint8_t)(1u << i % 8);
		assert_false(lm_secret_equal(a, b));
	}
}

static void random_postcopy_payloads_never_lead_out_of_the_message(void **state)
{
	uint64_t x = 4242;

	(void)state;
	for (unsigned i = 0; i < 20000; i++) {
		size_t len = unit_random(&x) % 400;
		uint8_t *exact = malloc(len ? len : 1), secret[LM_TOKEN_SIZE];
		struct lm_postcopy_stats stats;
		struct lm_opened o;
		bool end;

		for (size_t j = 0; j < len; j++)
			exact[j] = unit_random(&x) % 3 ? 0 : (uint8_t)unit_random(&x);
		if (len >= 12 && i & 1) /* a count that fits */
			exact[8] = (uint8_t)((len - 12) / 16), exact[9] = exact[10] = exact[11] = 0;
		lm_wire_get_left(exact, len, &left_ram, count_left, &left_calls, &end, &err);
		lm_wire_get_missing(exact, len, &stats, &err);
		lm_wire_get_postcopy_opened(exact, len, 3, &o, secret, &err);
		free(exact);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_header_comes_back_as_it_was_made),
		cmocka_unit_test(a_bad_header_is_refused),
		cmocka_unit_test(every_message_has_a_name),
		cmocka_unit_test(hello_comes_back_as_it_was_made),
		cmocka_unit_test(a_longer_hello_of_a_later_version_is_taken),
		cmocka_unit_test(a_truncated_hello_is_refused),
		cmocka_unit_test(versions_that_do_not_match_are_told_apart_from_nonsense),
		cmocka_unit_test(software_names_that_cannot_be_printed_are_refused),
		cmocka_unit_test(open_comes_back_as_it_was_made),
		cmocka_unit_test(verify_and_a_paused_guest_are_carried),
		cmocka_unit_test(an_open_of_any_other_length_is_refused),
		cmocka_unit_test(impossible_numbers_in_open_are_refused),
		cmocka_unit_test(the_largest_numbers_in_open_are_taken),
		cmocka_unit_test(texts_in_open_must_end_and_be_printable),
		cmocka_unit_test(a_region_without_a_name_is_refused),
		cmocka_unit_test(texts_that_are_too_long_are_cut_when_sent),
		cmocka_unit_test(opened_grants_at_most_what_was_asked),
		cmocka_unit_test(a_bad_opened_is_refused),
		cmocka_unit_test(lane_open_names_a_lane_that_is_there),
		cmocka_unit_test(ready_has_one_key_per_region),
		cmocka_unit_test(a_lane_number_is_four_bytes),
		cmocka_unit_test(resident_sets_the_pages_of_its_region),
		cmocka_unit_test(extents_outside_of_their_region_are_refused),
		cmocka_unit_test(counts_that_do_not_fit_the_resident_message_are_refused),
		cmocka_unit_test(saved_is_taken_at_its_length_only),
		cmocka_unit_test(durations_are_never_negative),
		cmocka_unit_test(notes_come_in_the_number_of_locks),
		cmocka_unit_test(abort_carries_its_reason),
		cmocka_unit_test(a_long_abort_is_cut_to_the_readers_room),
		cmocka_unit_test(an_abort_code_is_always_an_error),
		cmocka_unit_test(an_abort_whose_length_lies_is_refused),
		cmocka_unit_test(random_payloads_never_lead_out_of_the_message),
		cmocka_unit_test(postcopy_opened_comes_back_as_it_was_made),
		cmocka_unit_test(a_bad_postcopy_opened_is_refused),
		cmocka_unit_test(left_names_the_pages_of_its_region),
		cmocka_unit_test(a_left_that_lies_is_refused),
		cmocka_unit_test(missing_is_taken_at_its_length_only_and_has_no_negative_times),
		cmocka_unit_test(payloads_of_one_size_have_that_size),
		cmocka_unit_test(secrets_are_compared_in_full),
		cmocka_unit_test(random_postcopy_payloads_never_lead_out_of_the_message),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
