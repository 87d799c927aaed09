/* SPDX-License-Identifier: Apache-2.0 */
/* `migrate-rdma check`: it says the same as a refused attach, and looks at the limit of locked memory. */
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "attach_rig.h"

static int check_fails;
static char check_text[512];

static void check_note(void *opaque, const struct lm_check *c)
{
	(void)opaque;
	if (c->status != LM_CHECK_FAIL)
		return;
	check_fails++;
	snprintf(check_text, sizeof(check_text), "%s: %s; %.300s", c->name, c->found, c->advice);
}

static void the_reason_is_the_same_in_the_check(void **state)
{
	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-S", "-object",
		  "memory-backend-file,id=ram0,size=" RIG_MEM ",mem-path=/var/tmp,share=on", NULL);
	check_fails = 0;
	assert_int_equal(lm_check_guest(q.qmp, 0, check_note, NULL, &err), 1);
	assert_int_equal(check_fails, 1);
	assert_true(attach(LM_SOURCE) < 0);
	assert_memory_equal(err.msg, check_text, strlen(check_text));
}

static struct lm_check locked;

static void locked_note(void *opaque, const struct lm_check *c)
{
	(void)opaque;
	if (!strcmp(c->name, "locked memory"))
		locked = *c;
}

/*
 * The check without the capability, and with a limit of so many bytes.  It runs in a child: a process that
 * has given up a capability or a limit cannot take it back.
 */
static int check_limited(rlim_t limit)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2];

	if (setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){ limit, limit }))
		return limit > 8 << 20 ? 0 : 1; /* in a container nobody may raise it */
	if (syscall(SYS_capget, &h, d))
		return 1;
	d[CAP_IPC_LOCK / 32].effective &= ~(1u << (CAP_IPC_LOCK % 32));
	if (syscall(SYS_capset, &h, d) || lm_check_guest(q.qmp, 0, locked_note, NULL, &err))
		return 2;
	if (limit == RLIM_INFINITY)
		return locked.status == LM_CHECK_OK ? 0 : 3;
	if (limit >= UINT64_C(1) << 30)
		return locked.status == LM_CHECK_OK && strstr(locked.found, "at most 1024 MiB") ? 0 : 4;
	return locked.status == LM_CHECK_WARN && strstr(locked.found, "at most 8 MiB") && strstr(locked.advice, "ulimit -l") &&
	       strstr(locked.advice, "LimitMEMLOCK") && strstr(locked.advice, "--pin odp") ? 0 : 5;
}

static void the_memlock_limit_is_held_against_the_size_of_the_guest(void **state)
{
	static const rlim_t limits[] = { RLIM_INFINITY, UINT64_C(1) << 30, 8 << 20 };

	(void)state;
	rig_start_good(&q, "-S");
	for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		pid_t pid = fork();
		int status = 0;

		if (!pid)
			_exit(check_limited(limits[i]));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static void a_host_check_finishes(void **state)
{
	(void)state;
	check_fails = 0;
	assert_int_equal(lm_check_host(check_note, NULL), check_fails);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, attach_teardown)
	const struct CMUnitTest tests[] = {
		T(the_reason_is_the_same_in_the_check),
		T(the_memlock_limit_is_held_against_the_size_of_the_guest),
		T(a_host_check_finishes),
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
