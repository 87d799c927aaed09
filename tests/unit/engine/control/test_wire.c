/* SPDX-License-Identifier: Apache-2.0 */
/* Decoders of control messages: what they take, and above all what they refuse. */
#include "unit.h"
#include "engine/control/wire.h"

static uint8_t buf[LM_WIRE_PAYLOAD_MAX];
static struct lm_error err;
static struct lm_open got; /* large */

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_header_comes_back_as_it_was_made),
		cmocka_unit_test(a_bad_header_is_refused),
		cmocka_unit_test(every_message_has_a_name),
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
