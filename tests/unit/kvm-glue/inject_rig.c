/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "inject_rig.h"

struct shared *sh;
pid_t child;
int never[2];
struct lm_error err;

static void bad(long what)
{
	sh->what = what;
	sh->bad++;
}

/* ---- what children do ---- */

void do_poll(void)
{
	struct pollfd p = { .fd = never[0], .events = POLLIN };
	uint64_t signals = sh->signals;
	int n = poll(&p, 1, 7);

	/* a handler that ran makes poll return; nothing else may */
	if (n > 0 || (n < 0 && (errno != EINTR || sh->signals == signals)))
		bad(n < 0 ? -errno : n);
}

void do_ppoll_forever(void)
{
	struct pollfd p = { .fd = never[0], .events = POLLIN };
	uint64_t signals = sh->signals;
	int n = ppoll(&p, 1, NULL, NULL);

	if (n >= 0 || errno != EINTR || sh->signals == signals)
		bad(n < 0 ? -errno : n);
}

void do_read(void)
{
	char c;
	ssize_t n = read(never[0], &c, 1);

	bad(n < 0 ? -errno : 1000 + n); /* the handler has SA_RESTART: it never returns */
}

void do_nanosleep(void)
{
	struct timespec t = { .tv_nsec = 3 * LM_NS_PER_MS }, left = t;
	int64_t before = lm_now_ns(), signals = (int64_t)sh->signals;

	if (nanosleep(&t, &left) && (errno != EINTR || (int64_t)sh->signals == signals))
		bad(-errno);
	else if ((int64_t)sh->signals == signals && lm_now_ns() - before < t.tv_nsec)
		bad(1);
}

void do_futex(void)
{
	const struct timespec t = { .tv_nsec = 3 * LM_NS_PER_MS };
	uint64_t signals = sh->signals;
	long r = syscall(SYS_futex, &sh->futex, FUTEX_WAIT, 0, &t, NULL, 0);

	if (r == 0 || (errno != ETIMEDOUT && (errno != EINTR || sh->signals == signals)))
		bad(r ? -errno : 1);
}

/* All values are in registers, some in vector registers: a register that changes also changes the sum. */
void do_spin(void)
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

void do_getppid(void)
{
	static pid_t parent;
	pid_t p = (pid_t)syscall(SYS_getppid);

	if (parent && p != parent)
		bad(p);
	parent = p;
}

/* ---- its start and end ---- */

static void on_signal(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	/* real-time signals come in order and none is merged with another */
	if ((uint64_t)info->si_value.sival_int != sh->signals)
		bad(100000 + info->si_value.sival_int);
	sh->signals++;
}

void child_start(void (*work)(void))
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

int child_setup(void **state)
{
	(void)state;
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return sh == MAP_FAILED;
}

int child_teardown(void **state)
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

int64_t inject_getpid(void)
{
	struct lm_inject_call c = { .nr = SYS_getpid };
	int64_t held_ns = 0;

	if (lm_inject(child, &c, 1, &held_ns, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(c.ret, child);
	return held_ns;
}

unsigned child_fds(void)
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

void assert_well(void)
{
	if (sh->bad)
		fail_msg("%llu things went wrong in the child, the last is %ld", (unsigned long long)sh->bad, sh->what);
}

void turns_wait(uint64_t n)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };
	uint64_t before = sh->turns;

	for (int i = 0; i < 3000 && sh->turns < before + n; i++)
		nanosleep(&pause, NULL);
	assert_true(sh->turns >= before + n);
}

void first_turn_wait(void)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };

	for (int i = 0; i < 3000 && !sh->turns; i++)
		nanosleep(&pause, NULL);
	assert_true(sh->turns > 0);
}
