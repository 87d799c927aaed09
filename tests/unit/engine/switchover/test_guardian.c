/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guardian of an engine that is killed or hangs.  The engine is a child
 * process; the VM is a table whose force op writes down what it was asked to do.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "fakelock.h"
#include "engine/switchover/guardian.h"
#include "unit.h"

#define NOTHING (-1)

/* Shared by the test, the engine and the guardian. */
struct seen {
	_Atomic int force;        /* enum lm_force of the last call, or NOTHING */
	_Atomic unsigned calls;
	_Atomic bool force_fails;
	_Atomic pid_t guardian;
	_Atomic bool right_fds;   /* guardian_fd and pidfd were those of the VM */
	_Atomic int commit;       /* what lm_guardian_commit() said; -1: not asked */
	_Atomic bool engine_ready;
};

static struct seen *seen;
static char log_path[] = "/tmp/test-guardian-XXXXXX";
static int log_fd;

static int fake_force(int guardian_fd, int pidfd, enum lm_force what, int64_t deadline_ns, struct lm_error *err)
{
	atomic_store(&seen->guardian, getpid());
	atomic_store(&seen->right_fds, fcntl(guardian_fd, F_GETFD) >= 0 && fcntl(pidfd, F_GETFD) >= 0 &&
					       deadline_ns > lm_now_ns());
	atomic_store(&seen->force, what);
	atomic_fetch_add(&seen->calls, 1);
	return atomic_load(&seen->force_fails) ? lm_err(err, -EIO, LM_SCOPE_VM, "QEMU does not answer") : 0;
}

static const struct lm_vm_ops fake_ops = { .name = "fake", .force = fake_force };

static int setup(void **state)
{
	(void)state;
	memset(seen, 0, sizeof(*seen));
	seen->force = NOTHING;
	seen->commit = -1;
	return ftruncate(log_fd, 0);
}

/* What the engine gives its guardian; NULL: the guest has no locks. */
static const struct lm_guardian_locks *locks;
static struct lm_lock_notes notes;

enum step { IDLE, PAUSE, PAUSE_OFFERING, PAUSE_OFFER, PAUSE_OFFER_COMMIT, PAUSE_COMMIT,
	    PAUSE_COMMIT_RUN, PAUSE_IDLE, COMMIT_UNCOMMIT, STOP };

/* What the engine does before it says that it is ready, and then waits to be killed. */
static void engine_steps(struct lm_guardian *g, enum step step, int64_t pause_ns)
{
	if (step != IDLE)
		lm_guardian_pause(g, pause_ns ? lm_now_ns() + pause_ns : LM_NO_DEADLINE);
	if (step == PAUSE_OFFERING || step == PAUSE_OFFER || step == PAUSE_OFFER_COMMIT)
		lm_guardian_offer(g);
	if (step == PAUSE_OFFER || step == PAUSE_OFFER_COMMIT)
		lm_guardian_offer_done(g);
	lm_guardian_notes(g, &notes);
	if (step == PAUSE_COMMIT || step == PAUSE_COMMIT_RUN)
		lm_guardian_run(g, step == PAUSE_COMMIT_RUN);
	if (step == PAUSE_COMMIT || step == PAUSE_COMMIT_RUN || step == COMMIT_UNCOMMIT || step == PAUSE_OFFER_COMMIT)
		atomic_store(&seen->commit, lm_guardian_commit(g));
	if (step == COMMIT_UNCOMMIT)
		lm_guardian_uncommit(g);
	if (step == PAUSE_IDLE)
		lm_guardian_idle(g);
	if (step == STOP)
		lm_guardian_stop(g);
}

static pid_t engine_fork(enum lm_side side, bool was_running, enum step step, int64_t pause_ns)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	struct lm_vm vm = { .ops = &fake_ops, .info.running = was_running, .guardian_fd = eventfd(0, EFD_CLOEXEC),
			    .pidfd = eventfd(0, EFD_CLOEXEC) };
	struct lm_guardian g;
	struct lm_error err;

	dup2(log_fd, STDERR_FILENO);
	if (lm_guardian_start(&g, &vm, side, locks, &err))
		_exit(1);
	engine_steps(&g, step, pause_ns);
	atomic_store(&seen->engine_ready, true);
	if (step == STOP)
		_exit(0);
	for (;;)
		pause();
}

static bool wait_for(bool (*done)(void), unsigned timeout_ms)
{
	for (unsigned i = 0; i < timeout_ms / 5; i++) {
		if (done())
			return true;
		unit_sleep_ms(5);
	}
	return done();
}

static bool engine_is_ready(void)
{
	return atomic_load(&seen->engine_ready);
}

static bool forced(void)
{
	return atomic_load(&seen->calls) > 0;
}

/* We are the subreaper: a guardian whose engine is gone becomes our child, and ends. */
static void reap_guardians(void)
{
	for (unsigned i = 0; i < 1000; i++) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0 && errno == ECHILD)
			return;
		if (!pid)
			unit_sleep_ms(5);
	}
	fail_msg("a process is left over");
}

static void engine_kill(pid_t pid)
{
	assert_true(wait_for(engine_is_ready, 5000));
	kill(pid, SIGKILL);
}

/* Kill the engine after these steps: what the guardian asks of the VM. */
static int killed_after(enum lm_side side, bool was_running, enum step step)
{
	setup(NULL);
	engine_kill(engine_fork(side, was_running, step, 0));
	reap_guardians();
	if (atomic_load(&seen->calls)) {
		assert_int_equal(seen->calls, 1);
		assert_true(seen->right_fds);
	}
	return seen->force;
}

static const char *log_text(void)
{
	static char text[4096];
	ssize_t n = pread(log_fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = 0;
	return text;
}

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
	setup(NULL);
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

/* ---- storage locks ---- */

static const char *const uris[] = { "fake:0", "fake:1" };
static const struct lm_guardian_locks of_a = { uris, 2, "a" }, of_b = { uris, 2, "b" };

/* a has offered its locks to b. */
static void offer_locks(struct lm_locks *a, struct lm_locks *b)
{
	const struct lm_lock_params pa = { .host = "a" }, pb = { .host = "b" };
	int64_t soon = lm_deadline_after(LM_NS_PER_S);
	struct lm_lock_notes announce, answer;
	struct lm_error err;

	fakelock_reset();
	assert_ok(lm_locks_open(uris, 2, &pa, a, &err), err);
	assert_ok(lm_locks_open(uris, 2, &pb, b, &err), err);
	assert_ok(lm_locks_acquire(a, soon, &err), err);
	assert_ok(lm_locks_announce(a, &announce, soon, &err), err);
	assert_ok(lm_locks_prepare(b, &announce, &answer, soon, &err), err);
	assert_ok(lm_locks_offer(a, &answer, true, &notes, soon, &err), err);
}

/* Who has got the locks when the engine is killed. */
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
	locks = NULL;
	memset(&notes, 0, sizeof(notes));
	lm_locks_close(&a);
	lm_locks_close(&b);
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
	/* They are b's by now, which only shows that nobody asked. */
	assert_int_equal(killed_with_locks(LM_SOURCE, PAUSE, OTHER_HOST), LM_FORCE_UNDO_RUN);
}

static void the_destination_takes_the_locks_before_the_guest_runs(void **state)
{
	(void)state;
	assert_int_equal(killed_with_locks(LM_DEST, PAUSE_COMMIT_RUN, NOBODY), LM_FORCE_RUN);
	assert_true(fakelock_owns("b", 2));
	assert_int_equal(killed_with_locks(LM_DEST, PAUSE_COMMIT, NOBODY), NOTHING);
	assert_true(fakelock_owns("b", 2)); /* paused, as it shall be, but b's */
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

/* ---- an engine that hangs ---- */

static void a_pause_beyond_its_limit_is_undone_and_commit_refused(void **state)
{
	int64_t begin = lm_now_ns(), took;
	pid_t pid = fork();

	(void)state;
	if (!pid) { /* the engine: hangs in the pause, comes back too late and would commit */
		struct lm_vm vm = { .ops = &fake_ops, .info.running = true, .guardian_fd = eventfd(0, 0),
				    .pidfd = eventfd(0, 0) };
		struct lm_guardian g;
		struct lm_error err;

		dup2(log_fd, STDERR_FILENO);
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
	assert_true(took > 1300 * LM_NS_PER_MS); /* limit and the second of grace */
	assert_true(took < 5 * LM_NS_PER_S);
	assert_int_equal(seen->force, LM_FORCE_UNDO_RUN);
	assert_int_equal(seen->calls, 1);
	assert_int_equal(seen->commit, false);
}

/* It may have come back, and paused the guest when its pause was revoked already. */
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

/* What it has asked of the storage may yet be done, and then the lock of a guest that runs would be on offer. */
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
	locks = NULL;
	memset(&notes, 0, sizeof(notes));
	lm_locks_close(&a);
	lm_locks_close(&b);
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
	locks = NULL;
	memset(&notes, 0, sizeof(notes));
	lm_locks_close(&a);
	lm_locks_close(&b);
}

static void a_pause_within_its_limit_is_left_alone(void **state)
{
	pid_t pid;

	(void)state;
	pid = engine_fork(LM_SOURCE, true, PAUSE_COMMIT, 1 * LM_NS_PER_MS);
	assert_true(wait_for(engine_is_ready, 5000));
	assert_int_equal(seen->commit, true);
	/* Committed: however long the answer takes, nothing is undone. */
	unit_sleep_ms(1400);
	assert_int_equal(seen->calls, 0);
	engine_kill(pid);
	reap_guardians();
	assert_int_equal(seen->calls, 0);
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
		cmocka_unit_test_setup(a_source_engine_that_dies_before_the_pause_needs_nothing, setup),
		cmocka_unit_test_setup(a_source_engine_that_dies_in_the_pause_leaves_a_running_guest, setup),
		cmocka_unit_test_setup(a_guest_that_was_paused_by_its_user_stays_paused, setup),
		cmocka_unit_test_setup(a_source_engine_that_dies_after_commit_leaves_the_guest_alone_and_says_so, setup),
		cmocka_unit_test_setup(a_commit_that_was_not_sent_is_undone_like_a_pause, setup),
		cmocka_unit_test_setup(a_force_that_fails_is_reported, setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_before_loading_needs_nothing, setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_before_commit_takes_its_guest_along, setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_after_commit_has_its_guest_run, setup),
		cmocka_unit_test_setup(a_guest_that_shall_stay_paused_is_not_run_by_the_guardian, setup),
		cmocka_unit_test_setup(a_destination_engine_that_dies_after_all_is_done_leaves_its_guest_alone, setup),
		cmocka_unit_test_setup(offered_locks_are_taken_back_before_the_guest_runs, setup),
		cmocka_unit_test_setup(after_commit_the_locks_say_that_the_destination_never_runs, setup),
		cmocka_unit_test_setup(a_destination_that_has_the_locks_keeps_the_guest, setup),
		cmocka_unit_test_setup(locks_that_were_not_offered_are_left_alone, setup),
		cmocka_unit_test_setup(the_destination_takes_the_locks_before_the_guest_runs, setup),
		cmocka_unit_test_setup(a_source_that_was_first_keeps_the_guest, setup),
		cmocka_unit_test_setup(without_the_locks_both_sides_would_run, setup),
		cmocka_unit_test_setup(a_pause_beyond_its_limit_is_undone_and_commit_refused, setup),
		cmocka_unit_test_setup(an_undone_pause_is_undone_again_when_the_engine_dies_later, setup),
		cmocka_unit_test_setup(nothing_is_undone_while_the_engine_hangs_in_an_offer, setup),
		cmocka_unit_test_setup(without_waiting_for_the_offer_the_guest_runs_meanwhile, setup),
		cmocka_unit_test_setup(a_pause_within_its_limit_is_left_alone, setup),
		cmocka_unit_test_setup(dismissal_in_any_phase_leaves_no_process_and_does_nothing, setup),
		cmocka_unit_test_setup(a_guardian_can_be_stopped_twice_and_leaves_no_process, setup),
		cmocka_unit_test_setup(the_guardian_holds_no_descriptor_but_its_own, setup),
		cmocka_unit_test_setup(signals_to_the_engines_group_do_not_reach_the_guardian, setup),
		cmocka_unit_test_setup(without_a_guardian_every_call_is_harmless, setup),
	};

	log_fd = mkostemp(log_path, O_APPEND | O_CLOEXEC);
	unlink(log_path);
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (log_fd < 0 || seen == MAP_FAILED || prctl(PR_SET_CHILD_SUBREAPER, 1))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
