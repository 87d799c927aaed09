/* SPDX-License-Identifier: Apache-2.0 */
/* The guardian of an engine that is killed: what it does on each side, in each phase, and how it ends. */
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "guardianrig.h"

/* ---- the source ---- */

static void a_source_engine_that_dies_before_the_pause_needs_nothing(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_SOURCE, true, IDLE), NOTHING);
	assert_int_equal(killed_after(LM_SOURCE, true, PAUSE_IDLE), NOTHING);
	assert_string_equal(log_text(), "");
}

static void a_source_engine_that_dies_in_the_pause_leaves_a_running_guest(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_SOURCE, true, PAUSE), LM_FORCE_UNDO_RUN);
	assert_non_null(strstr(log_text(), "runs here again"));
}

static void a_guest_that_was_paused_by_its_user_stays_paused(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_SOURCE, false, PAUSE), LM_FORCE_UNDO);
}

static void a_source_engine_that_dies_after_commit_leaves_the_guest_alone_and_says_so(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_SOURCE, true, PAUSE_COMMIT), NOTHING);
	assert_int_equal(seen->commit, true);
	assert_non_null(strstr(log_text(), "in doubt"));
	assert_non_null(strstr(log_text(), "resolve"));
}

static void a_commit_that_was_not_sent_is_undone_like_a_pause(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_SOURCE, true, COMMIT_UNCOMMIT), LM_FORCE_UNDO_RUN);
}

static void a_force_that_fails_is_reported(void **state)
{
	(void)state;
	guardian_setup(NULL);
	seen->force_fails = true;
	engine_kill(engine_fork(LM_SOURCE, true, PAUSE, 0));
	reap_guardians();
	assert_int_equal(seen->calls, 1);
	assert_non_null(strstr(log_text(), "QEMU does not answer"));
	assert_non_null(strstr(log_text(), "resolve"));
}

/* ---- the destination ---- */

static void a_destination_engine_that_dies_before_loading_needs_nothing(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_DEST, false, IDLE), NOTHING);
}

static void a_destination_engine_that_dies_before_commit_takes_its_guest_along(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_DEST, false, PAUSE), LM_FORCE_END);
	assert_non_null(strstr(log_text(), "ended"));
}

static void a_destination_engine_that_dies_after_commit_has_its_guest_run(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_DEST, false, PAUSE_COMMIT_RUN), LM_FORCE_RUN);
}

static void a_guest_that_shall_stay_paused_is_not_run_by_the_guardian(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_DEST, false, PAUSE_COMMIT), NOTHING);
}

static void a_destination_engine_that_dies_after_all_is_done_leaves_its_guest_alone(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_DEST, false, PAUSE_IDLE), NOTHING);
}

/* ---- dismissal ---- */

static void dismissal_in_any_phase_leaves_no_process_and_does_nothing(void **state)
{
	(void)state;
	assert_int_equal(killed_after(LM_SOURCE, true, STOP), NOTHING);
	assert_int_equal(killed_after(LM_DEST, false, STOP), NOTHING);
	assert_string_equal(log_text(), "");
}

static void a_guardian_can_be_stopped_twice_and_leaves_no_process(void **state)
{
	struct lm_vm vm = { .ops = &fake_ops, .guardian_fd = eventfd(0, EFD_CLOEXEC), .pidfd = eventfd(0, EFD_CLOEXEC) };
	struct lm_guardian g;
	struct lm_error err;

	(void)state;
	assert_ok(lm_guardian_start(&g, &vm, LM_SOURCE, NULL, &err), err);
	lm_guardian_stop(&g);
	lm_guardian_stop(&g); /* takes one that is stopped */
	close(vm.guardian_fd);
	close(vm.pidfd);
	reap_guardians();
}

static void the_guardian_holds_no_descriptor_but_its_own(void **state)
{
	struct lm_vm vm = { .ops = &fake_ops, .guardian_fd = eventfd(0, EFD_CLOEXEC), .pidfd = eventfd(0, EFD_CLOEXEC) };
	struct lm_guardian g;
	struct lm_error err;
	int ends[2];
	char c;

	(void)state;
	/* Somebody waits for the end of this pipe, as a caller does for our stdout. */
	assert_int_equal(pipe(ends), 0);
	assert_ok(lm_guardian_start(&g, &vm, LM_SOURCE, NULL, &err), err);
	close(ends[1]);
	assert_int_equal(read(ends[0], &c, 1), 0); /* hangs if the guardian kept it */
	lm_guardian_stop(&g);
	close(ends[0]);
	close(vm.guardian_fd);
	close(vm.pidfd);
	reap_guardians();
}

static void signals_to_the_engines_group_do_not_reach_the_guardian(void **state)
{
	pid_t pid;

	(void)state;
	pid = engine_fork(LM_SOURCE, true, PAUSE, 0);
	setpgid(pid, pid);
	assert_true(wait_for(engine_is_ready, 5000));
	kill(-pid, SIGKILL); /* as a shell or a supervisor does */
	reap_guardians();
	assert_int_equal(seen->force, LM_FORCE_UNDO_RUN);
}

static void without_a_guardian_every_call_is_harmless(void **state)
{
	struct lm_guardian g = { .fd = -1 };

	(void)state;
	lm_guardian_pause(&g, 0);
	assert_true(lm_guardian_commit(&g));
	lm_guardian_uncommit(&g);
	lm_guardian_idle(&g);
	lm_guardian_stop(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_source_engine_that_dies_before_the_pause_needs_nothing, guardian_setup),
		cmocka_unit_test_setup(a_source_engine_that_dies_in_the_pause_leaves_a_running_guest, guardian_setup),
		cmocka_unit_test_setup(a_guest_that_was_paused_by_its_user_stays_paused, guardian_setup),
		cmocka_unit_test_setup(a_source_engine_that_dies_after_commit_leaves_the_guest_alone_and_says_so, guardian_setup),
		cmocka_unit_test_setup(a_commit_that_was_not_sent_is_undone_like_a_pause, guardian_setup),
		cmocka_unit_test_setup(a_force_that_fails_is_reported, guardian_setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_before_loading_needs_nothing, guardian_setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_before_commit_takes_its_guest_along, guardian_setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_after_commit_has_its_guest_run, guardian_setup),
		cmocka_unit_test_setup(a_guest_that_shall_stay_paused_is_not_run_by_the_guardian, guardian_setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_after_all_is_done_leaves_its_guest_alone, guardian_setup),
		cmocka_unit_test_setup(dismissal_in_any_phase_leaves_no_process_and_does_nothing, guardian_setup),
		cmocka_unit_test_setup(a_guardian_can_be_stopped_twice_and_leaves_no_process, guardian_setup),
		cmocka_unit_test_setup(the_guardian_holds_no_descriptor_but_its_own, guardian_setup),
		cmocka_unit_test_setup(signals_to_the_engines_group_do_not_reach_the_guardian, guardian_setup),
		cmocka_unit_test_setup(without_a_guardian_every_call_is_harmless, guardian_setup),
	};

	return guardian_run(tests, sizeof(tests) / sizeof(*tests));
}
