/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps against a model that keeps one byte per bit. */
#include "unit.h"
#include "engine/base/bitmap.h"

static const uint64_t sizes[] = { 0, 1, 2, 63, 64, 65, 127, 128, 129, 1000 };
#define NSIZES (sizeof(sizes) / sizeof(sizes[0]))
#define MODEL_MAX 1000

struct model {
	uint64_t nbits;
	bool bits[MODEL_MAX + 1];
};

static void model_fill(struct model *m, uint64_t first, uint64_t n, bool value)
{
	for (uint64_t i = first; i < first + n; i++)
		m->bits[i] = value;
}

static uint64_t model_count(const struct model *m, uint64_t first, uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = first; i < first + n; i++)
		sum += m->bits[i];
	return sum;
}

static uint64_t model_run(const struct model *m, uint64_t from, uint64_t end, uint64_t *ret_first)
{
	uint64_t n = 0;

	while (from < end && !m->bits[from])
		from++;
	*ret_first = from;
	while (from < end && m->bits[from]) {
		from++;
		n++;
	}
	return n;
}

/* Every question that a bitmap answers, about [first, first + n). */
static void assert_same(const struct lm_bitmap *b, const struct model *m, uint64_t first, uint64_t n)
{
	uint64_t at = 0, model_at = 0, got, want;

	for (uint64_t i = 0; i < m->nbits; i++)
		if (lm_bitmap_test(b, i) != m->bits[i])
			fail_msg("bit %llu of %llu differs", (unsigned long long)i, (unsigned long long)m->nbits);
	assert_int_equal(lm_bitmap_count(b), model_count(m, 0, m->nbits));
	assert_int_equal(lm_bitmap_count_range(b, first, n), model_count(m, first, n));
	got = lm_bitmap_next_run(b, first, first + n, &at);
	want = model_run(m, first, first + n, &model_at);
	assert_int_equal(got, want);
	if (want)
		assert_int_equal(at, model_at);
	if (m->nbits % 64)
		assert_int_equal(b->words[m->nbits / 64] >> (m->nbits % 64), 0);
}

static void random_step(struct lm_bitmap *b, struct model *m, uint64_t *x)
{
	uint64_t first = unit_random(x) % (m->nbits + 1);
	uint64_t n = unit_random(x) % (m->nbits - first + 1);

	switch (unit_random(x) % 6) {
	case 0:
		lm_bitmap_set_range(b, first, n);
		model_fill(m, first, n, true);
		break;
	case 1:
		lm_bitmap_clear_range(b, first, n);
		model_fill(m, first, n, false);
		break;
	case 2:
		if (first < m->nbits)
			lm_bitmap_set(b, first);
		model_fill(m, first, first < m->nbits, true);
		break;
	case 3:
		if (first < m->nbits)
			lm_bitmap_clear(b, first);
		model_fill(m, first, first < m->nbits, false);
		break;
	case 4:
		if (unit_random(x) % 16 == 0) {
			lm_bitmap_clear_all(b);
			model_fill(m, 0, m->nbits, false);
		}
		break;
	default:
		break;
	}
	assert_same(b, m, first, n);
}

static void random_operations_agree_with_a_model(void **state)
{
	(void)state;
	for (unsigned s = 0; s < NSIZES; s++) {
		struct model m = { .nbits = sizes[s] };
		struct lm_bitmap b;
		uint64_t x = 0x9e3779b97f4a7c15u + s;

		assert_int_equal(lm_bitmap_init(&b, sizes[s]), 0);
		for (unsigned i = 0; i < 3000; i++)
			random_step(&b, &m, &x);
		lm_bitmap_fini(&b);
	}
}

static void every_range_near_a_word_boundary_is_exact(void **state)
{
	struct model m = { .nbits = 200 };
	struct lm_bitmap b;

	(void)state;
	assert_int_equal(lm_bitmap_init(&b, 200), 0);
	for (uint64_t first = 60; first < 70; first++)
		for (uint64_t n = 0; n <= 200 - first; n++) {
			lm_bitmap_set_range(&b, first, n);
			model_fill(&m, first, n, true);
			assert_same(&b, &m, first, n);
			lm_bitmap_clear_range(&b, first, n);
			model_fill(&m, first, n, false);
			assert_same(&b, &m, 0, 200);
		}
	lm_bitmap_fini(&b);
}

static void an_empty_bitmap_takes_every_call(void **state)
{
	struct lm_bitmap b, c;
	uint64_t first;

	(void)state;
	assert_int_equal(lm_bitmap_init(&b, 0), 0);
	assert_int_equal(lm_bitmap_init(&c, 0), 0);
	lm_bitmap_set_range(&b, 0, 0);
	lm_bitmap_clear_range(&b, 0, 0);
	lm_bitmap_clear_all(&b);
	lm_bitmap_or(&b, &c);
	assert_int_equal(lm_bitmap_count(&b), 0);
	assert_int_equal(lm_bitmap_next_run(&b, 0, 0, &first), 0);
	lm_bitmap_fini(&b);
	lm_bitmap_fini(&b);
	lm_bitmap_fini(&c);
}

static void or_adds_and_takes_nothing_away(void **state)
{
	(void)state;
	for (unsigned s = 1; s < NSIZES; s++) {
		struct lm_bitmap a, b;
		uint64_t x = s;

		lm_bitmap_init(&a, sizes[s]);
		lm_bitmap_init(&b, sizes[s]);
		for (uint64_t i = 0; i < sizes[s]; i++) {
			uint64_t v = unit_random(&x);

			if (v & 1)
				lm_bitmap_set(&a, i);
			if (v & 2)
				lm_bitmap_set(&b, i);
		}
		lm_bitmap_or(&a, &b);
		x = s;
		for (uint64_t i = 0; i < sizes[s]; i++)
			assert_int_equal(lm_bitmap_test(&a, i), (unit_random(&x) & 3) != 0);
		lm_bitmap_fini(&a);
		lm_bitmap_fini(&b);
	}
}

static void runs_visit_every_set_bit_once(void **state)
{
	struct lm_bitmap b;
	uint64_t x = 7, pos = 0, first, n, sum = 0, end = 0;

	(void)state;
	lm_bitmap_init(&b, 100003);
	for (unsigned i = 0; i < 500; i++) {
		uint64_t at = unit_random(&x) % 100003, len = unit_random(&x) % 300;

		lm_bitmap_set_range(&b, at, len < 100003 - at ? len : 100003 - at);
	}
	while ((n = lm_bitmap_next_run(&b, pos, b.nbits, &first))) {
		assert_true(first >= end);
		assert_true(!sum || first > end); /* runs do not touch */
		assert_int_equal(lm_bitmap_count_range(&b, first, n), n);
		sum += n;
		pos = end = first + n;
	}
	assert_int_equal(sum, lm_bitmap_count(&b));
	lm_bitmap_fini(&b);
}

static void a_bitmap_of_64_tib_of_pages_is_cheap_until_touched(void **state)
{
	struct lm_bitmap b;
	uint64_t nbits = UINT64_C(1) << 34, first;

	(void)state;
	assert_int_equal(lm_bitmap_init(&b, nbits), 0);
	lm_bitmap_set_range(&b, nbits - 3, 3);
	assert_int_equal(lm_bitmap_next_run(&b, nbits - 1000, nbits, &first), 3);
	assert_int_equal(first, nbits - 3);
	lm_bitmap_fini(&b);
}

static void a_size_that_cannot_be_had_is_enomem(void **state)
{
	struct lm_bitmap b;

	(void)state;
	assert_int_equal(lm_bitmap_init(&b, UINT64_MAX), -ENOMEM);
	lm_bitmap_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations_agree_with_a_model),
		cmocka_unit_test(every_range_near_a_word_boundary_is_exact),
		cmocka_unit_test(an_empty_bitmap_takes_every_call),
		cmocka_unit_test(or_adds_and_takes_nothing_away),
		cmocka_unit_test(runs_visit_every_set_bit_once),
		cmocka_unit_test(a_bitmap_of_64_tib_of_pages_is_cheap_until_touched),
		cmocka_unit_test(a_size_that_cannot_be_had_is_enomem),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
