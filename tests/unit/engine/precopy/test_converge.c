/* SPDX-License-Identifier: Apache-2.0 */
/* When pre-copy goes on, switches over, forces or gives up. */
#include "unit.h"
#include "engine/precopy/converge.h"
#include "engine/base/region.h"

#define MS LM_NS_PER_MS

static struct lm_converge converge(enum lm_on_stall on_stall, uint64_t cap)
{
	struct lm_options o;
	struct lm_converge c;

	lm_options_default(&o);
	o.max_downtime_ns = 10 * MS;
	o.on_stall = on_stall;
	o.max_bandwidth_bytes_per_s = cap;
	lm_converge_init(&c, &o);
	return c;
}

static void learn(struct lm_converge *c, uint64_t bytes_per_s)
{
	struct lm_round r = { .bytes = bytes_per_s, .copy_ns = LM_NS_PER_S };

	lm_converge_round(c, &r);
}

static struct lm_decision decide(struct lm_converge *c, unsigned round, uint64_t dirty)
{
	struct lm_decision d;

	lm_converge_decide(c, round, dirty, 1 * MS, MS / 10, &d);
	return d;
}

static void an_idle_guest_is_switched_over_at_once(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);
	struct lm_decision d;

	(void)state;
	learn(&c, 1000000000);
	d = decide(&c, 1, 0);
	assert_int_equal(d.kind, LM_DECIDE_SWITCHOVER);
	assert_int_equal(d.predicted_ns, 1 * MS + MS / 10);
	assert_int_equal(d.max_downtime_ns, 10 * MS);
	assert_int_equal(d.round, 1);
	assert_true(strlen(d.reason) > 0);
}

static void the_prediction_is_scan_round_trip_and_copy(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);

	(void)state;
	learn(&c, 4096000000);
	/* 1000 pages are 4096000 bytes: 1 ms. */
	assert_int_equal(decide(&c, 1, 1000).predicted_ns, 2 * MS + MS / 10);
}

static void the_limit_itself_is_good_enough(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);
	struct lm_decision d;

	(void)state;
	learn(&c, 4096000000);
	lm_converge_decide(&c, 1, 9000, 1 * MS, 0, &d);
	assert_int_equal(d.predicted_ns, 10 * MS);
	assert_int_equal(d.kind, LM_DECIDE_SWITCHOVER);
	lm_converge_decide(&c, 1, 9000, 1 * MS, 1, &d);
	assert_int_equal(d.kind, LM_DECIDE_CONTINUE);
}

static void a_guest_that_converges_goes_on_until_it_fits(void **state)
{
	struct lm_converge c = converge(LM_STALL_ABORT, 0);
	uint64_t dirty = 1 << 20;
	unsigned round = 1;

	(void)state;
	learn(&c, 1000000000);
	while (decide(&c, round, dirty).kind == LM_DECIDE_CONTINUE) {
		round++;
		dirty = dirty * 7 / 10;
		assert_true(round < 100);
	}
	assert_int_equal(decide(&c, round, dirty).kind, LM_DECIDE_SWITCHOVER);
	assert_true(dirty * LM_PAGE_SIZE <= 9000000);
}

/* The round in which something else than CONTINUE was decided for a guest that never gets better. */
static unsigned stall_round(enum lm_on_stall policy, enum lm_decision_kind *ret)
{
	struct lm_converge c = converge(policy, 0);

	learn(&c, 100000000);
	for (unsigned round = 1; round <= 50; round++) {
		struct lm_decision d = decide(&c, round, 100000 + round % 3);

		*ret = d.kind;
		if (d.kind != LM_DECIDE_CONTINUE)
			return round;
	}
	return 0;
}

static void a_guest_that_does_not_converge_is_treated_as_the_policy_says(void **state)
{
	enum lm_decision_kind kind;

	(void)state;
	assert_int_equal(stall_round(LM_STALL_FORCE, &kind), 1 + LM_STALL_ROUNDS);
	assert_int_equal(kind, LM_DECIDE_FORCE);
	assert_int_equal(stall_round(LM_STALL_ABORT, &kind), 1 + LM_STALL_ROUNDS);
	assert_int_equal(kind, LM_DECIDE_ABORT);
	assert_int_equal(stall_round(LM_STALL_WAIT, &kind), 0);
	assert_int_equal(kind, LM_DECIDE_CONTINUE);
}

static void gains_below_a_tenth_do_not_count(void **state)
{
	struct lm_converge c = converge(LM_STALL_ABORT, 0);
	uint64_t dirty = 1000000;
	unsigned round = 1;

	(void)state;
	learn(&c, 100000000);
	while (decide(&c, round, dirty).kind == LM_DECIDE_CONTINUE) {
		round++;
		dirty -= 1000;
	}
	assert_int_equal(round, 1 + LM_STALL_ROUNDS);
}

static void one_good_round_ends_a_stall(void **state)
{
	struct lm_converge c = converge(LM_STALL_ABORT, 0);

	(void)state;
	learn(&c, 100000000);
	for (unsigned round = 1; round <= LM_STALL_ROUNDS; round++)
		assert_int_equal(decide(&c, round, 100000).kind, LM_DECIDE_CONTINUE);
	assert_int_equal(decide(&c, LM_STALL_ROUNDS + 1, 80000).kind, LM_DECIDE_CONTINUE);
	for (unsigned i = 1; i < LM_STALL_ROUNDS; i++)
		assert_int_equal(decide(&c, LM_STALL_ROUNDS + 1 + i, 100000).kind, LM_DECIDE_CONTINUE);
	assert_int_equal(decide(&c, 3 * LM_STALL_ROUNDS, 100000).kind, LM_DECIDE_ABORT);
}

static void a_guest_that_falls_silent_after_a_stall_is_switched_over(void **state)
{
	struct lm_converge c = converge(LM_STALL_ABORT, 0);

	(void)state;
	learn(&c, 100000000);
	for (unsigned round = 1; round <= LM_STALL_ROUNDS; round++)
		decide(&c, round, 100000);
	assert_int_equal(decide(&c, LM_STALL_ROUNDS + 1, 3).kind, LM_DECIDE_SWITCHOVER);
}

static void the_bandwidth_cap_bounds_the_prediction(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 4096000);

	(void)state;
	learn(&c, 4096000000);
	assert_int_equal(decide(&c, 1, 1000).predicted_ns, LM_NS_PER_S + 1 * MS + MS / 10);
	/* A link that is slower than the cap is what counts. */
	c = converge(LM_STALL_WAIT, UINT64_MAX);
	learn(&c, 4096000000);
	assert_int_equal(decide(&c, 1, 1000).predicted_ns, 2 * MS + MS / 10);
}

static void nothing_measured_yet_is_taken_for_a_slow_link(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);

	(void)state;
	assert_int_equal(decide(&c, 1, 0).kind, LM_DECIDE_SWITCHOVER);
	assert_int_equal(decide(&c, 1, 1 << 20).kind, LM_DECIDE_CONTINUE);
}

static void small_or_impossible_rounds_teach_nothing(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);
	struct lm_round tiny = { .bytes = 4096, .copy_ns = LM_NS_PER_S };
	struct lm_round timeless = { .bytes = 1 << 30, .copy_ns = 0 };

	(void)state;
	learn(&c, 1000000000);
	lm_converge_round(&c, &tiny);
	lm_converge_round(&c, &timeless);
	timeless.copy_ns = -5;
	lm_converge_round(&c, &timeless);
	assert_true(c.bytes_per_s == 1e9);
}

static void throughput_follows_the_link_smoothly(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);

	(void)state;
	learn(&c, 1000000000);
	learn(&c, 100000000);
	assert_true(c.bytes_per_s > 1e8 && c.bytes_per_s < 1e9);
	for (unsigned i = 0; i < 20; i++)
		learn(&c, 100000000);
	assert_true(c.bytes_per_s < 1.01e8);
}

static void huge_numbers_stay_positive_and_finite(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 1);
	uint64_t all = (LM_REGION_SIZE_MAX >> LM_PAGE_SHIFT) * LM_REGIONS_MAX;
	struct lm_decision d;

	(void)state;
	learn(&c, UINT64_MAX);
	lm_converge_decide(&c, UINT32_MAX, all, LM_NS_PER_S * 3600, LM_NS_PER_S * 3600, &d);
	assert_int_equal(d.kind, LM_DECIDE_CONTINUE);
	assert_true(d.predicted_ns > LM_NS_PER_S * 3600);
	assert_true(strlen(d.reason) < sizeof(d.reason));
}

/* ---- post-copy ---- */

static struct lm_converge hybrid(void)
{
	struct lm_converge c = converge(LM_STALL_ABORT, 0);

	c.can_postcopy = true;
	learn(&c, 1u << 30);
	return c;
}

static void rounds_go_on_while_they_save_a_quarter(void **state)
{
	struct lm_converge c = hybrid();
	uint64_t dirty = 1u << 22;

	(void)state;
	assert_int_equal(decide(&c, 1, dirty).kind, LM_DECIDE_CONTINUE); /* nothing to compare with */
	for (unsigned round = 2; round < 8; round++) {
		dirty = dirty * 70 / 100;
		assert_int_equal(decide(&c, round, dirty).kind, LM_DECIDE_CONTINUE);
	}
	dirty = dirty * 80 / 100;
	assert_int_equal(decide(&c, 8, dirty).kind, LM_DECIDE_POSTCOPY);
}

static void a_guest_that_writes_more_is_not_waited_for(void **state)
{
	struct lm_converge c = hybrid();
	struct lm_decision d;

	(void)state;
	decide(&c, 1, 1u << 20);
	d = decide(&c, 2, 1u << 21);
	assert_int_equal(d.kind, LM_DECIDE_POSTCOPY);
	assert_non_null(strstr(d.reason, "pay"));
	assert_non_null(strstr(d.reason, "2097152 pages"));
}

static void without_leave_for_postcopy_nothing_leads_to_it(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);

	(void)state;
	learn(&c, 1u << 30);
	c.postcopy_now = true;
	for (unsigned round = 1; round < 20; round++)
		assert_int_equal(decide(&c, round, 1u << 22).kind, LM_DECIDE_CONTINUE);
}

static void asked_for_it_comes_at_once_unless_it_is_not_needed(void **state)
{
	struct lm_converge c = hybrid();
	struct lm_decision d;

	(void)state;
	c.postcopy_now = true;
	d = decide(&c, 1, 1u << 22);
	assert_int_equal(d.kind, LM_DECIDE_POSTCOPY);
	assert_non_null(strstr(d.reason, "asked"));
	c = hybrid();
	c.postcopy_now = true;
	assert_int_equal(decide(&c, 1, 1).kind, LM_DECIDE_SWITCHOVER);
}

/* The policy for a stall is for guests that have no other way out. */
static void postcopy_comes_before_what_is_done_on_stall(void **state)
{
	struct lm_converge c = hybrid();

	(void)state;
	for (unsigned round = 1; round < 20; round++) {
		enum lm_decision_kind kind = decide(&c, round, 1u << 22).kind;

		assert_true(kind == (round == 1 ? LM_DECIDE_CONTINUE : LM_DECIDE_POSTCOPY));
	}
}

static void where_post_copy_can_follow_the_first_round_has_to_pay(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);
	struct lm_round first = { .bytes = 409600000, .copy_ns = LM_NS_PER_S, .dirty_pages = 100000 };

	(void)state;
	c.can_postcopy = true;
	lm_converge_round(&c, &first);
	assert_int_equal(decide(&c, 1, 80000).kind, LM_DECIDE_POSTCOPY);
	c = converge(LM_STALL_WAIT, 0);
	c.can_postcopy = true;
	lm_converge_round(&c, &first);
	assert_int_equal(decide(&c, 1, 50000).kind, LM_DECIDE_CONTINUE);
	assert_int_equal(decide(&c, 2, 25000).kind, LM_DECIDE_CONTINUE);
	assert_int_equal(decide(&c, 3, 24000).kind, LM_DECIDE_POSTCOPY);
}

static void a_round_is_hopeless_when_its_end_can_only_be_post_copy(void **state)
{
	struct lm_converge c = converge(LM_STALL_WAIT, 0);

	(void)state;
	assert_false(lm_converge_hopeless(&c, 1000, 1000, 10, LM_NS_PER_S));
	c.can_postcopy = true;
	assert_true(lm_converge_hopeless(&c, 1000, 1000, 10, LM_NS_PER_S));
	assert_true(lm_converge_hopeless(&c, 750, 1000, 10, LM_NS_PER_S));
	assert_false(lm_converge_hopeless(&c, 749, 1000, 10, LM_NS_PER_S));
	/* What is dirty fits into the downtime at the speed of this round. */
	assert_false(lm_converge_hopeless(&c, 1000, 1000, 1000, 10 * MS));
	/* Nothing is known about the speed yet. */
	assert_false(lm_converge_hopeless(&c, 1000, 1000, 0, LM_NS_PER_S));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_round_is_hopeless_when_its_end_can_only_be_post_copy),
		cmocka_unit_test(where_post_copy_can_follow_the_first_round_has_to_pay),
		cmocka_unit_test(an_idle_guest_is_switched_over_at_once),
		cmocka_unit_test(the_prediction_is_scan_round_trip_and_copy),
		cmocka_unit_test(the_limit_itself_is_good_enough),
		cmocka_unit_test(a_guest_that_converges_goes_on_until_it_fits),
		cmocka_unit_test(a_guest_that_does_not_converge_is_treated_as_the_policy_says),
		cmocka_unit_test(gains_below_a_tenth_do_not_count),
		cmocka_unit_test(one_good_round_ends_a_stall),
		cmocka_unit_test(a_guest_that_falls_silent_after_a_stall_is_switched_over),
		cmocka_unit_test(the_bandwidth_cap_bounds_the_prediction),
		cmocka_unit_test(nothing_measured_yet_is_taken_for_a_slow_link),
		cmocka_unit_test(small_or_impossible_rounds_teach_nothing),
		cmocka_unit_test(throughput_follows_the_link_smoothly),
		cmocka_unit_test(huge_numbers_stay_positive_and_finite),
		cmocka_unit_test(rounds_go_on_while_they_save_a_quarter),
		cmocka_unit_test(a_guest_that_writes_more_is_not_waited_for),
		cmocka_unit_test(without_leave_for_postcopy_nothing_leads_to_it),
		cmocka_unit_test(asked_for_it_comes_at_once_unless_it_is_not_needed),
		cmocka_unit_test(postcopy_comes_before_what_is_done_on_stall),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
