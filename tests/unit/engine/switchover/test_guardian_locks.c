/* SPDX-License-Identifier: Apache-2.0 */
/* The guardian and storage locks: it runs the guest only where its host has them. */
#include "guardianrig.h"

/* The host that has the locks when the engine is killed. */
enum owner { NOBODY, OTHER_HOST };

static int killed_with_locks(enum lm_side side, enum step step, enum owner owner)
{
	int64_t soon = lm_deadline_after(LM_NS_PER_S);
	struct lm_locks a, b;
	struct lm_error err;
	int r;

	offer_locks(&a, &b);
	if (owner == OTHER_HOST && side == LM_SOURCE)
		assert_ok(lm_locks_take(&b, &notes, soon, &err), err);
	else if (owner == OTHER_HOST)
		assert_ok(lm_locks_reclaim(&a, false, soon, &err), err);
	locks = side == LM_SOURCE ? &of_a : &of_b;
	r = killed_after(side, side == LM_SOURCE, step);
	close_locks(&a, &b);
	return r;
}

static void offered_locks_are_taken_back_before_the_guest_runs(void **state)
{
	(void)state;
	assert_int_equal(killed_with_locks(LM_SOURCE, PAUSE_OFFER, NOBODY), LM_FORCE_UNDO_RUN);
	assert_true(fakelock_owns("a", 2));
	assert_non_null(strstr(log_text(), "runs here again"));
}

static void after_commit_the_locks_say_that_the_destination_never_runs(void **state)
{
	(void)state;
	assert_int_equal(killed_with_locks(LM_SOURCE, PAUSE_OFFER_COMMIT, NOBODY), LM_FORCE_UNDO_RUN);
	assert_true(fakelock_owns("a", 2));
}

static void a_destination_that_has_the_locks_keeps_the_guest(void **state)
{
	(void)state;
	assert_int_equal(killed_with_locks(LM_SOURCE, PAUSE_OFFER_COMMIT, OTHER_HOST), NOTHING);
	assert_true(fakelock_owns("b", 2));
	assert_non_null(strstr(log_text(), "the destination has the storage lock"));
}

static void locks_that_were_not_offered_are_left_alone(void **state)
{
	(void)state;
	/* The locks are b's by now: the guardian runs the guest all the same, so it has not asked for them. */
	assert_int_equal(killed_with_locks(LM_SOURCE, PAUSE, OTHER_HOST), LM_FORCE_UNDO_RUN);
}

static void the_destination_takes_the_locks_before_the_guest_runs(void **state)
{
	(void)state;
	assert_int_equal(killed_with_locks(LM_DEST, PAUSE_COMMIT_RUN, NOBODY), LM_FORCE_RUN);
	assert_true(fakelock_owns("b", 2));
	assert_int_equal(killed_with_locks(LM_DEST, PAUSE_COMMIT, NOBODY), NOTHING);
	assert_true(fakelock_owns("b", 2)); /* the guest stays paused, as it should, and the locks are b's */
}

static void a_source_that_was_first_keeps_the_guest(void **state)
{
	(void)state;
	assert_int_equal(killed_with_locks(LM_DEST, PAUSE_COMMIT_RUN, OTHER_HOST), LM_FORCE_END);
	assert_true(fakelock_owns("a", 2));
}

/* Teeth: a guest would run on a host that may not write. */
static void without_the_locks_both_sides_would_run(void **state)
{
	(void)state;
	setenv("LM_BREAK", "lock-reclaim", 1);
	assert_int_equal(killed_with_locks(LM_SOURCE, PAUSE_OFFER, NOBODY), LM_FORCE_UNDO_RUN);
	assert_false(fakelock_owns("a", 2));
	assert_int_equal(killed_with_locks(LM_SOURCE, PAUSE_OFFER_COMMIT, OTHER_HOST), LM_FORCE_UNDO_RUN);
	assert_true(fakelock_owns("b", 2));
	setenv("LM_BREAK", "lock-take", 1);
	assert_int_equal(killed_with_locks(LM_DEST, PAUSE_COMMIT_RUN, OTHER_HOST), LM_FORCE_RUN);
	assert_true(fakelock_owns("a", 2));
	unsetenv("LM_BREAK");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(offered_locks_are_taken_back_before_the_guest_runs, guardian_setup),
		cmocka_unit_test_setup(after_commit_the_locks_say_that_the_destination_never_runs, guardian_setup),
		cmocka_unit_test_setup(a_destination_that_has_the_locks_keeps_the_guest, guardian_setup),
		cmocka_unit_test_setup(locks_that_were_not_offered_are_left_alone, guardian_setup),
		cmocka_unit_test_setup(the_destination_takes_the_locks_before_the_guest_runs, guardian_setup),
		cmocka_unit_test_setup(a_source_that_was_first_keeps_the_guest, guardian_setup),
		cmocka_unit_test_setup(without_the_locks_both_sides_would_run, guardian_setup),
	};

	return guardian_run(tests, sizeof(tests) / sizeof(*tests));
}
