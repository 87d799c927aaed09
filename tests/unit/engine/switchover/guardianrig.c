/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "guardianrig.h"

struct seen *seen;
const struct lm_guardian_locks *locks;
struct lm_lock_notes notes;
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

const struct lm_vm_ops fake_ops = { .name = "fake", .force = fake_force };

int guardian_setup(void **state)
{
	(void)state;
	memset(seen, 0, sizeof(*seen));
	seen->force = NOTHING;
	seen->commit = -1;
	return ftruncate(log_fd, 0);
}

/* ---- the engine ---- */

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

void engine_log(void)
{
	dup2(log_fd, STDERR_FILENO);
}

pid_t engine_fork(enum lm_side side, bool was_running, enum step step, int64_t pause_ns)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	struct lm_vm vm = { .ops = &fake_ops, .info.running = was_running, .guardian_fd = eventfd(0, EFD_CLOEXEC),
			    .pidfd = eventfd(0, EFD_CLOEXEC) };
	struct lm_guardian g;
	struct lm_error err;

	engine_log();
	if (lm_guardian_start(&g, &vm, side, locks, &err))
		_exit(1);
	engine_steps(&g, step, pause_ns);
	atomic_store(&seen->engine_ready, true);
	if (step == STOP)
		_exit(0);
	for (;;)
		pause();
}

bool wait_for(bool (*done)(void), unsigned timeout_ms)
{
	for (unsigned i = 0; i < timeout_ms / 5; i++) {
		if (done())
			return true;
		unit_sleep_ms(5);
	}
	return done();
}

bool engine_is_ready(void)
{
	return atomic_load(&seen->engine_ready);
}

bool forced(void)
{
	return atomic_load(&seen->calls) > 0;
}

/* The test is the subreaper: a guardian whose engine is gone becomes its child, and ends. */
void reap_guardians(void)
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

void engine_kill(pid_t pid)
{
	assert_true(wait_for(engine_is_ready, 5000));
	kill(pid, SIGKILL);
}

int killed_after(enum lm_side side, bool was_running, enum step step)
{
	guardian_setup(NULL);
	engine_kill(engine_fork(side, was_running, step, 0));
	reap_guardians();
	if (atomic_load(&seen->calls)) {
		assert_int_equal(seen->calls, 1);
		assert_true(seen->right_fds);
	}
	return seen->force;
}

const char *log_text(void)
{
	static char text[4096];
	ssize_t n = pread(log_fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = 0;
	return text;
}

/* ---- locks ---- */

static const char *const uris[] = { "fake:0", "fake:1" };
const struct lm_guardian_locks of_a = { uris, 2, "a" }, of_b = { uris, 2, "b" };

void offer_locks(struct lm_locks *a, struct lm_locks *b)
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

void close_locks(struct lm_locks *a, struct lm_locks *b)
{
	locks = NULL;
	memset(&notes, 0, sizeof(notes));
	lm_locks_close(a);
	lm_locks_close(b);
}

/* ---- running ---- */

int guardian_run(const struct CMUnitTest *tests, size_t n)
{
	log_fd = mkostemp(log_path, O_APPEND | O_CLOEXEC);
	unlink(log_path);
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (log_fd < 0 || seen == MAP_FAILED || prctl(PR_SET_CHILD_SUBREAPER, 1))
		return 1;
	return _cmocka_run_group_tests("guardian", tests, n, NULL, NULL);
}
