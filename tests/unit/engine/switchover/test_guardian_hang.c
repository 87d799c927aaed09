/* SPDX-License-Identifier: Apache-2.0 */
/* The guardian of an engine that hangs while the guest stands still. */
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "guardianrig.h"

static void a_pause_beyond_its_limit_is_undone_and_commit_refused(void **state)
{
	int64_t begin = lm_now_ns(), took;
	pid_t pid = fork();

	(void)state;
	if (!pid) { /* the engine: it hangs in the pause, comes back too late and tries to commit */
		struct lm_vm vm = { .ops = &fake_ops, .info.running = true, .guardian_fd = eventfd(0, 0),
				    .pidfd = eventfd(0, 0) };
		struct lm_guardian g;
		struct lm_error err;

		engine_log();
		if (lm_guardian_start(&g, &vm, LM_SOURCE, NULL, &err))
			_exit(1);
		lm_guardian_pause(&g, lm_now_ns() + 300 * LM_NS_PER_MS);
		wait_for(forced, 10000);
		atomic_store(&seen->commit, lm_guardian_commit(&g));
		lm_guardian_stop(&g);
		_exit(0);
	}
	assert_true(wait_for(forced, 10000));
	took = lm_now_ns() - begin;
	reap_guardians();
	assert_true(took > 1300 * LM_NS_PER_MS); /* the limit and one second of grace */
	assert_true(took < 5 * LM_NS_PER_S);
	assert_int_equal(seen->force, LM_FORCE_UNDO_RUN);
	assert_int_equal(seen->calls, 1);
	assert_int_equal(seen->commit, false);
}

/* The engine may have come back meanwhile, and paused the guest after its pause was revoked. */
static void an_undone_pause_is_undone_again_when_the_engine_dies_later(void **state)
{
	pid_t pid;

	(void)state;
	pid = engine_fork(LM_SOURCE, true, PAUSE, 10 * LM_NS_PER_MS);
	assert_true(wait_for(forced, 10000));
	engine_kill(pid);
	reap_guardians();
	assert_int_equal(seen->calls, 2);
	assert_int_equal(seen->force, LM_FORCE_UNDO_RUN);
}

/* The storage may still carry out the engine's offer: then the lock of a guest that runs would be on offer. */
static void nothing_is_undone_while_the_engine_hangs_in_an_offer(void **state)
{
	struct lm_locks a, b;
	pid_t pid;

	(void)state;
	offer_locks(&a, &b);
	locks = &of_a;
	pid = engine_fork(LM_SOURCE, true, PAUSE_OFFERING, 1 * LM_NS_PER_MS);
	assert_true(wait_for(engine_is_ready, 5000));
	unit_sleep_ms(1400);
	assert_int_equal(seen->calls, 0);
	assert_false(fakelock_owns("a", 2));
	engine_kill(pid);
	reap_guardians();
	assert_int_equal(seen->calls, 1);
	assert_int_equal(seen->force, LM_FORCE_UNDO_RUN);
	assert_true(fakelock_owns("a", 2));
	close_locks(&a, &b);
}

static void without_waiting_for_the_offer_the_guest_runs_meanwhile(void **state)
{
	struct lm_locks a, b;
	pid_t pid;

	(void)state;
	offer_locks(&a, &b);
	locks = &of_a;
	setenv("LM_BREAK", "lock-hang", 1);
	pid = engine_fork(LM_SOURCE, true, PAUSE_OFFERING, 1 * LM_NS_PER_MS);
	assert_true(wait_for(forced, 5000));
	engine_kill(pid);
	reap_guardians();
	unsetenv("LM_BREAK");
	close_locks(&a, &b);
}

static void a_pause_within_its_limit_is_left_alone(void **state)
{
	pid_t pid;

	(void)state;
	pid = engine_fork(LM_SOURCE, true, PAUSE_COMMIT, 1 * LM_NS_PER_MS);
	assert_true(wait_for(engine_is_ready, 5000));
	assert_int_equal(seen->commit, true);
	/* The engine has committed: the guardian undoes nothing, however long the answer takes. */
	unit_sleep_ms(1400);
	assert_int_equal(seen->calls, 0);
	engine_kill(pid);
	reap_guardians();
	assert_int_equal(seen->calls, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_pause_beyond_its_limit_is_undone_and_commit_refused, guardian_setup),
		cmocka_unit_test_setup(an_undone_pause_is_undone_again_when_the_engine_dies_later, guardian_setup),
		cmocka_unit_test_setup(nothing_is_undone_while_the_engine_hangs_in_an_offer, guardian_setup),
		cmocka_unit_test_setup(without_waiting_for_the_offer_the_guest_runs_meanwhile, guardian_setup),
		cmocka_unit_test_setup(a_pause_within_its_limit_is_left_alone, guardian_setup),
	};

	return guardian_run(tests, sizeof(tests) / sizeof(*tests));
}
