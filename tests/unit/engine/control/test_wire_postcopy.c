/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of post-copy: what comes back as it was made, and what is refused. */
#include "unit.h"
#include "engine/control/wire.h"
#include "engine/postcopy/both.h"

static uint8_t buf[LM_WIRE_PAYLOAD_MAX];
static struct lm_error err;

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
