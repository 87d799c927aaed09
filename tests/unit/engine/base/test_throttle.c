/* SPDX-License-Identifier: Apache-2.0 */
/* The bandwidth cap: pages that may wait pay for pages that may not. */
#include "unit.h"
#include "engine/base/clock.h"
#include "engine/base/throttle.h"

#define MIB (UINT64_C(1) << 20)

static void without_a_cap_everything_is_allowed(void **state)
{
	struct lm_throttle t = { 0 };

	(void)state;
	lm_throttle_charge(&t, UINT64_MAX);
	assert_true(lm_throttle_allows(&t));
	assert_int_equal(atomic_load(&t.booked_ns), 0);
}

static void what_is_charged_counts(void **state)
{
	struct lm_throttle t = { .max_bytes_per_s = 1000 * MIB };
	int64_t before = lm_now_ns();

	(void)state;
	assert_true(lm_throttle_allows(&t));
	lm_throttle_charge(&t, 1000 * MIB);
	assert_true(atomic_load(&t.booked_ns) > before + LM_NS_PER_S / 2);
	assert_false(lm_throttle_allows(&t));
}

/* Otherwise a guest that touches pages without a pause would keep the background from ever going on. */
static void the_debt_ends_somewhere(void **state)
{
	struct lm_throttle t = { .max_bytes_per_s = MIB };

	(void)state;
	for (unsigned i = 0; i < 100000; i++)
		lm_throttle_charge(&t, 4096); /* 3.9 ms each */
	assert_true(atomic_load(&t.booked_ns) < lm_now_ns() + LM_THROTTLE_DEBT_NS + 10 * LM_NS_PER_MS);
}

static void unused_allowance_is_not_saved_up(void **state)
{
	struct lm_throttle t = { .max_bytes_per_s = MIB };
	int64_t before = lm_now_ns();

	(void)state;
	lm_throttle_charge(&t, MIB / 10);
	assert_true(atomic_load(&t.booked_ns) > before + 90 * LM_NS_PER_MS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_a_cap_everything_is_allowed),
		cmocka_unit_test(what_is_charged_counts),
		cmocka_unit_test(the_debt_ends_somewhere),
		cmocka_unit_test(unused_allowance_is_not_saved_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
