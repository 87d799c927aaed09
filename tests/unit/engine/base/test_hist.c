/* SPDX-License-Identifier: Apache-2.0 */
/* Durations in buckets: how far a quantile is off at most, and what the extremes do. */
#include "unit.h"
#include "engine/base/hist.h"

static struct lm_hist *hist_new(void)
{
	return calloc(1, sizeof(struct lm_hist));
}

static void nothing_has_no_quantile(void **state)
{
	struct lm_hist *h = hist_new();

	(void)state;
	assert_int_equal(lm_hist_quantile(h, 0), 0);
	assert_int_equal(lm_hist_quantile(h, 0.5), 0);
	assert_int_equal(lm_hist_quantile(h, 1), 0);
	free(h);
}

/* A value alone in front of a much larger one: what the quantile says is the end of its bucket. */
static int64_t bucket_end_of(int64_t v)
{
	struct lm_hist *h = hist_new();
	int64_t end;

	lm_hist_add(h, v);
	lm_hist_add(h, INT64_MAX);
	end = lm_hist_quantile(h, 0);
	free(h);
	return end;
}

static void a_value_is_found_within_a_sixteenth(void **state)
{
	uint64_t x = 88172645463325252u;

	(void)state;
	for (unsigned i = 0; i < 3000; i++) {
		int64_t v = (int64_t)(unit_random(&x) >> (1 + i % 63)), end = bucket_end_of(v);

		assert_true(end >= v);
		assert_true(end - v <= v / 16);
	}
}

static void the_edges_of_all_buckets_are_kept(void **state)
{
	(void)state;
	for (unsigned shift = 0; shift < 63; shift++)
		for (int64_t d = -1; d <= 1; d++) {
			int64_t v = (int64_t)((UINT64_C(1) << shift) + (uint64_t)d), end = bucket_end_of(v);

			assert_true(end >= v && end - v <= v / 16);
		}
	for (int64_t v = 0; v < 16; v++)
		assert_int_equal(bucket_end_of(v), v);
}

static void larger_values_lie_in_no_earlier_bucket(void **state)
{
	int64_t last = 0;

	(void)state;
	for (int64_t v = 0; v < 100000; v++) {
		int64_t end = bucket_end_of(v);

		assert_true(end >= last);
		last = end;
	}
}

static void the_largest_value_counts_and_overflows_nothing(void **state)
{
	struct lm_hist *h = hist_new();

	(void)state;
	for (unsigned i = 0; i < 10; i++)
		lm_hist_add(h, INT64_MAX);
	assert_int_equal(h->count, 10);
	assert_true(lm_hist_quantile(h, 0.5) == INT64_MAX);
	assert_true(h->max_ns == INT64_MAX);
	assert_true(h->sum_ns == INT64_MAX); /* at its limit, not below zero */
	free(h);
}

static void a_time_that_went_backwards_counts_as_none(void **state)
{
	struct lm_hist *h = hist_new();

	(void)state;
	lm_hist_add(h, -5);
	lm_hist_add(h, INT64_MIN);
	assert_int_equal(h->count, 2);
	assert_int_equal(h->sum_ns, 0);
	assert_int_equal(lm_hist_quantile(h, 1), 0);
	free(h);
}

static int by_value(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return x < y ? -1 : x > y;
}

static void quantiles_are_those_of_the_sorted_values(void **state)
{
	static const double quantiles[] = { 0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1 };
	enum { N = 5000 };
	int64_t *all = malloc(N * sizeof(*all)), sum = 0, last = 0;
	struct lm_hist *h = hist_new();
	uint64_t x = 7;

	(void)state;
	for (unsigned i = 0; i < N; i++) {
		all[i] = (int64_t)(unit_random(&x) >> (20 + i % 40));
		sum += all[i];
		lm_hist_add(h, all[i]);
	}
	qsort(all, N, sizeof(*all), by_value);
	for (unsigned i = 0; i < sizeof(quantiles) / sizeof(quantiles[0]); i++) {
		unsigned at = (unsigned)(quantiles[i] * N) < N ? (unsigned)(quantiles[i] * N) : N - 1;
		int64_t got = lm_hist_quantile(h, quantiles[i]);

		assert_true(got >= all[at] && got - all[at] <= all[at] / 16);
		assert_true(got >= last && got <= h->max_ns);
		last = got;
	}
	assert_true(h->sum_ns == sum);
	assert_true(h->max_ns == all[N - 1]);
	free(all);
	free(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_has_no_quantile),
		cmocka_unit_test(a_value_is_found_within_a_sixteenth),
		cmocka_unit_test(the_edges_of_all_buckets_are_kept),
		cmocka_unit_test(larger_values_lie_in_no_earlier_bucket),
		cmocka_unit_test(the_largest_value_counts_and_overflows_nothing),
		cmocka_unit_test(a_time_that_went_backwards_counts_as_none),
		cmocka_unit_test(quantiles_are_those_of_the_sorted_values),
	};

	return cmocka_run_group_tests_name("hist", tests, NULL, NULL);
}
