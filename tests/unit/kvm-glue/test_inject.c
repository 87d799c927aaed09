/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls injected into a child that checks all the time that nothing
 * happens to it: what its own calls return, what its registers hold, which
 * signals it gets.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "kvm-glue/inject.h"

/* A helper is forked for each, which an address sanitizer makes ten times as slow. */
#ifdef __SANITIZE_ADDRESS__
#define INJECTIONS 200
#else
#define INJECTIONS 1000
#endif
#define SIGNAL (SIGRTMIN + 3)

/* What the child says, in shared memory. */
static struct shared {
	_Atomic uint64_t turns;   /* of its loop */
	_Atomic uint64_t bad;     /* things that should not have happened */
	_Atomic long what;        /* the last of them */
	_Atomic uint64_t signals; /* taken, in order */
	_Atomic uint32_t futex;
} *sh;

static pid_t child;

static void bad(long what)
{
	sh->what = what;
	sh->bad++;
}

/* ---- what children do ---- */

static int never[2]; /* a pipe that says nothing */

static void do_poll(void)
{
	struct pollfd p = { .fd = never[0], .events = POLLIN };
	uint64_t signals = sh->signals;
	int n = poll(&p, 1, 7);

	/* a handler that ran makes poll return; nothing else may */
	if (n > 0 || (n < 0 && (errno != EINTR || sh->signals == signals)))
		bad(n < 0 ? -errno : n);
}

static void do_ppoll_forever(void)
{
	struct pollfd p = { .fd = never[0], .events = POLLIN };
	uint64_t signals = sh->signals;
	int n = ppoll(&p, 1, NULL, NULL);

	if (n >= 0 || errno != EINTR || sh->signals == signals)
		bad(n < 0 ? -errno : n);
}

static void do_read(void)
{
	char c;
	ssize_t n = read(never[0], &c, 1);

	bad(n < 0 ? -errno : 1000 + n); /* the handler has SA_RESTART: it never returns */
}

static void do_nanosleep(void)
{
	struct timespec t = { .tv_nsec = 3 * LM_NS_PER_MS }, left = t;
	int64_t before = lm_now_ns(), signals = (int64_t)sh->signals;

	if (nanosleep(&t, &left) && (errno != EINTR || (int64_t)sh->signals == signals))
		bad(-errno);
	else if ((int64_t)sh->signals == signals && lm_now_ns() - before < t.tv_nsec)
		bad(1);
}

static void do_futex(void)
{
	const struct timespec t = { .tv_nsec = 3 * LM_NS_PER_MS };
	uint64_t signals = sh->signals;
	long r = syscall(SYS_futex, &sh->futex, FUTEX_WAIT, 0, &t, NULL, 0);

	if (r == 0 || (errno != ETIMEDOUT && (errno != EINTR || sh->signals == signals)))
		bad(r ? -errno : 1);
}

/* All in registers, vector registers too: one that changes changes the sum. */
static void do_spin(void)
{
	static volatile double expected;
	static volatile uint64_t expected_x;
	double a = 1, b = 0.5, c = 3;
	uint64_t x = 88172645463325252u;

	for (int i = 0; i < 200000; i++) {
		a = a * 1.0000001 + b;
		b = b * 0.9999999 + c * 1e-9;
		c += a * 1e-12;
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	if (expected != 0 && (expected != a + b + c || expected_x != x))
		bad(1);
	expected = a + b + c;
	expected_x = x;
}

static void do_getppid(void)
{
	static pid_t parent;
	pid_t p = (pid_t)syscall(SYS_getppid);

	if (parent && p != parent)
		bad(p);
	parent = p;
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	/* real-time signals come in order and none is merged with another */
	if ((uint64_t)info->si_value.sival_int != sh->signals)
		bad(100000 + info->si_value.sival_int);
	sh->signals++;
}

static void child_start(void (*work)(void))
{
	struct sigaction sa = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };

	memset(sh, 0, sizeof(*sh));
	assert_int_equal(pipe2(never, O_CLOEXEC), 0);
	child = fork();
	assert_true(child >= 0);
	if (child)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigaction(SIGNAL, &sa, NULL);
	for (;;) {
		sh->turns++;
		work();
	}
}

static int setup(void **state)
{
	(void)state;
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return sh == MAP_FAILED;
}

static int teardown(void **state)
{
	(void)state;
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	child = 0;
	munmap(sh, 4096);
	close(never[0]);
	close(never[1]);
	return 0;
}

/* ---- injecting ---- */

static struct lm_error err;

static int64_t inject_getpid(void)
{
	struct lm_inject_call c = { .nr = SYS_getpid };
	int64_t held_ns = 0;

	if (lm_inject(child, &c, 1, &held_ns, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(c.ret, child);
	return held_ns;
}

static unsigned child_fds(void)
{
	char path[64];
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)child);
	d = opendir(path);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void assert_well(void)
{
	if (sh->bad)
		fail_msg("%llu things went wrong in the child, the last is "
				"%ld", (unsigned long long)sh->bad, sh->what);
}

static void turns_wait(uint64_t n)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };
	uint64_t before = sh->turns;

	for (int i = 0; i < 3000 && sh->turns < before + n; i++)
		nanosleep(&pause, NULL);
	assert_true(sh->turns >= before + n);
}

static void first_turn_wait(void)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };

	for (int i = 0; i < 3000 && !sh->turns; i++)
		nanosleep(&pause, NULL);
	assert_true(sh->turns > 0);
}

static void inject_many(const char *name)
{
	int64_t sum = 0, max = 0;

	for (int i = 0; i < INJECTIONS; i++) {
		int64_t ns = inject_getpid();

		sum += ns;
		max = ns > max ? ns : max;
	}
	print_message("%s: held for %.0f us on average, %.0f at most\n", name, (double)sum / 1e3 / INJECTIONS,
		      (double)max / 1e3);
	assert_well();
}

static void notices_nothing(void (*work)(void), const char *name)
{
	child_start(work);
	first_turn_wait();
	inject_many(name);
	if (work != do_read && work != do_ppoll_forever)
		turns_wait(2);
	else
		assert_int_equal(sh->turns, 1);
	assert_well();
}

static void in_poll(void **state)
{
	(void)state;
	notices_nothing(do_poll, "poll");
}

static void in_ppoll_without_end(void **state)
{
	(void)state;
	notices_nothing(do_ppoll_forever, "ppoll");
}

static void in_read(void **state)
{
	(void)state;
	notices_nothing(do_read, "read");
}

static void in_nanosleep(void **state)
{
	(void)state;
	notices_nothing(do_nanosleep, "nanosleep");
}

static void in_futex(void **state)
{
	(void)state;
	notices_nothing(do_futex, "futex");
}

static void while_computing(void **state)
{
	(void)state;
	notices_nothing(do_spin, "spinning");
}

static void between_system_calls(void **state)
{
	(void)state;
	notices_nothing(do_getppid, "system calls");
}

/* ---- signals during injection ---- */

static _Atomic bool sending;

static void *send_signals(void *arg)
{
	const struct timespec pause = { .tv_nsec = 30000 };
	uint64_t *n = arg;

	while (sending) {
		union sigval v = { .sival_int = (int)*n };

		if (!sigqueue(child, SIGNAL, v))
			++*n;
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static void gets_all_signals(void (*work)(void), const char *name)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };
	pthread_t t;
	uint64_t sent = 0;

	child_start(work);
	first_turn_wait();
	sending = true;
	assert_int_equal(pthread_create(&t, NULL, send_signals, &sent), 0);
	inject_many(name);
	sending = false;
	pthread_join(t, NULL);
	for (int i = 0; i < 3000 && sh->signals < sent; i++)
		nanosleep(&pause, NULL);
	assert_true(sent > 100);
	assert_int_equal(sh->signals, sent);
	assert_well();
}

static void signals_in_poll(void **state)
{
	(void)state;
	gets_all_signals(do_poll, "poll with signals");
}

static void signals_in_read(void **state)
{
	(void)state;
	gets_all_signals(do_read, "read with signals");
}

static void signals_in_nanosleep(void **state)
{
	(void)state;
	gets_all_signals(do_nanosleep, "nanosleep with signals");
}

static void signals_while_computing(void **state)
{
	(void)state;
	gets_all_signals(do_spin, "spinning with signals");
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

/* ---- the engine is killed at any moment of it ---- */

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
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(in_poll),
		T(in_ppoll_without_end),
		T(in_read),
		T(in_nanosleep),
		T(in_futex),
		T(while_computing),
		T(between_system_calls),
		T(signals_in_poll),
		T(signals_in_read),
		T(signals_in_nanosleep),
		T(signals_while_computing),
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
