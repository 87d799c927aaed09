/* SPDX-License-Identifier: Apache-2.0 */
/* What can be injected into a process, and what happens when the process or the engine stops or dies meanwhile. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "inject_rig.h"

/* ---- what can be injected ---- */

static void arguments_and_errors_come_through(void **state)
{
	struct lm_inject_call c[3] = {
		{ .nr = SYS_dup, .args = { (uint64_t)-1 } },
		{ .nr = SYS_getpid },
	};

	(void)state;
	child_start(do_poll);
	assert_int_equal(lm_inject(child, c, 2, NULL, &err), 0);
	assert_int_equal(c[0].ret, -EBADF);
	assert_int_equal(c[1].ret, -ECANCELED);
	c[0].args[0] = (uint64_t)never[0];
	assert_int_equal(lm_inject(child, c, 2, NULL, &err), 0);
	assert_true(c[0].ret >= 0);
	assert_int_equal(c[1].ret, child);
}

static void descriptors_are_moved_and_copied(void **state)
{
	struct lm_inject_call c[2] = {
		{ .nr = SYS_eventfd2, .args = { 7, 0 }, .result = LM_INJECT_MOVE_FD },
		{ .nr = SYS_eventfd2, .args = { 8, 0 }, .result = LM_INJECT_COPY_FD },
	};
	uint64_t v;
	unsigned before;

	(void)state;
	child_start(do_poll);
	turns_wait(1);
	before = child_fds();
	assert_int_equal(lm_inject(child, c, 2, NULL, &err), 0);
	assert_int_equal(read(c[0].fd, &v, sizeof(v)), sizeof(v));
	assert_int_equal(v, 7);
	assert_int_equal(read(c[1].fd, &v, sizeof(v)), sizeof(v));
	assert_int_equal(v, 8);
	assert_int_equal(fcntl(c[0].fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(child_fds(), before + 1);
	close(c[0].fd);
	close(c[1].fd);
}

/* ---- stopped, killed, traced ---- */

static char process_state(pid_t pid)
{
	char path[64], line[256], st = '?';
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (f && fgets(line, sizeof(line), f) && strrchr(line, ')'))
		st = strrchr(line, ')')[2];
	if (f)
		fclose(f);
	return st;
}

static void state_wait(char want)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };

	for (int i = 0; i < 1000 && process_state(child) != want; i++)
		nanosleep(&pause, NULL);
	assert_int_equal(process_state(child), want);
}

static void a_stopped_process_stays_stopped(void **state)
{
	uint64_t turns;

	(void)state;
	child_start(do_poll);
	turns_wait(1);
	kill(child, SIGSTOP);
	state_wait('T');
	turns = sh->turns;
	for (int i = 0; i < 50; i++)
		inject_getpid();
	state_wait('T');
	assert_int_equal(sh->turns, turns);
	kill(child, SIGCONT);
	turns_wait(5);
	assert_well();
}

static void a_stop_signal_meanwhile_is_obeyed(void **state)
{
	(void)state;
	child_start(do_poll);
	turns_wait(1);
	for (int i = 0; i < 100; i++) {
		kill(child, SIGSTOP);
		inject_getpid();
		state_wait('T');
		kill(child, SIGCONT);
		inject_getpid();
	}
	turns_wait(5);
	assert_well();
}

static void *kill_soon(void *arg)
{
	const struct timespec pause = { .tv_nsec = 20 * LM_NS_PER_MS };

	(void)arg;
	nanosleep(&pause, NULL);
	kill(child, SIGKILL);
	return NULL;
}

static void a_process_that_is_killed_meanwhile_is_an_error(void **state)
{
	struct lm_inject_call c = { .nr = SYS_getpid };
	pthread_t t;
	int r;

	(void)state;
	child_start(do_poll);
	assert_int_equal(pthread_create(&t, NULL, kill_soon, NULL), 0);
	while (!(r = lm_inject(child, &c, 1, NULL, &err)))
		;
	assert_int_equal(r, -ESRCH);
	assert_int_equal(err.scope, LM_SCOPE_VM);
	pthread_join(t, NULL);
}

static void a_traced_process_is_refused(void **state)
{
	struct lm_inject_call c = { .nr = SYS_getpid };

	(void)state;
	child_start(do_poll);
	assert_int_equal(ptrace(PTRACE_SEIZE, child, NULL, NULL), 0);
	assert_int_equal(lm_inject(child, &c, 1, NULL, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "is traced by process"));
}

static void no_process_is_an_error(void **state)
{
	struct lm_inject_call c = { .nr = SYS_getpid };

	(void)state;
	assert_int_equal(lm_inject(0x3ffffe, &c, 1, NULL, &err), -ESRCH);
}

/* ---- the engine is killed at any moment of an injection ---- */

static void engine_main(void)
{
	struct lm_inject_call c = { .nr = SYS_userfaultfd, .args = { 1 | O_CLOEXEC }, .result = LM_INJECT_MOVE_FD };

	for (;;)
		if (!lm_inject(child, &c, 1, NULL, &err))
			close(c.fd);
}

static void an_engine_that_is_killed_leaves_the_process_whole(void **state)
{
	const struct timespec rest = { .tv_nsec = 100 * LM_NS_PER_MS };
	unsigned before;

	(void)state;
	child_start(do_spin);
	turns_wait(1);
	before = child_fds();
	for (long i = 0; i < 100; i++) {
		struct timespec t = { .tv_nsec = 500000 + i * 37000 };
		pid_t engine = fork();

		if (!engine)
			engine_main();
		nanosleep(&t, NULL);
		kill(engine, SIGKILL);
		waitpid(engine, NULL, 0);
	}
	nanosleep(&rest, NULL); /* the last helper ends its work */
	inject_getpid();        /* nobody traces the child any more */
	turns_wait(2);
	assert_well();
	assert_int_equal(child_fds(), before);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, child_setup, child_teardown)
	const struct CMUnitTest tests[] = {
		T(a_stopped_process_stays_stopped),
		T(a_stop_signal_meanwhile_is_obeyed),
		T(a_process_that_is_killed_meanwhile_is_an_error),
		T(a_traced_process_is_refused),
		T(no_process_is_an_error),
		T(arguments_and_errors_come_through),
		T(descriptors_are_moved_and_copied),
		T(an_engine_that_is_killed_leaves_the_process_whole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
