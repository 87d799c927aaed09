/* SPDX-License-Identifier: Apache-2.0 */
/* What lease: refuses, and what it does about files that are damaged, replaced, or kept open by a guest. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "engine/lock/lock.h"

#define ok(call) do { struct lm_error err = { 0 }; int r_ = (call); if (r_) fail_msg("%d: %s", r_, err.msg); } while (0)

static char dir[] = "lease-test.XXXXXX";
static char where[512], path[600], uri[700];

static int64_t soon(void)
{
	return lm_now_ns() + 2 * LM_NS_PER_S;
}

static int try_open(const char *name, const char *host, int32_t holder, struct lm_lock **ret)
{
	struct lm_lock_params p = { .host = host, .deadline_ns = soon(), .holder_pid = holder };

	return lm_lock_open(name, &p, ret, NULL);
}

static struct lm_lock *lock_of(const char *host, int32_t holder)
{
	struct lm_lock *l = NULL;

	assert_int_equal(try_open(uri, host, holder, &l), 0);
	return l;
}

static int setup(void **state)
{
	(void)state;
	unlink(path);
	return 0;
}

static void local_file_systems_are_refused(void **state)
{
	struct lm_lock *l = NULL;
	char name[700];

	(void)state;
	snprintf(name, sizeof(name), "lease:%s", path); /* not there yet: its folder counts */
	assert_int_equal(try_open(name, "a", 0, &l), -ENOTSUP);
	close(open(path, O_CREAT | O_RDWR, 0600));
	assert_int_equal(try_open(name, "a", 0, &l), -ENOTSUP);
	assert_int_equal(try_open("lease:/dev/shm/no-lease", "a", 0, &l), -ENOTSUP);
	assert_null(l);
}

static void what_is_not_a_file_is_refused(void **state)
{
	struct lm_lock *l = NULL;
	char name[700];

	(void)state;
	assert_int_equal(try_open("lease:relative?local=yes", "a", 0, &l), -EINVAL);
	assert_int_equal(try_open("lease:/x?local=yes&other=1", "a", 0, &l), -EINVAL);
	assert_int_equal(try_open("lease:/dev/null?local=yes", "a", 0, &l), -ENOTSUP);
	assert_int_not_equal(try_open("lease:/?local=yes", "a", 0, &l), 0);
	assert_int_equal(symlink("elsewhere", path), 0);
	snprintf(name, sizeof(name), "lease:%s?local=yes", path);
	assert_int_equal(try_open(name, "a", 0, &l), -ELOOP);
	unlink(path);
	if (!mknod(path, S_IFBLK | 0600, makedev(7, 0)))
		assert_int_not_equal(try_open(name, "a", 0, &l), 0);
	assert_null(l);
}

static void hosts_have_plain_names(void **state)
{
	struct lm_lock *l = NULL;

	(void)state;
	assert_int_equal(try_open(uri, "a b", 0, &l), -EINVAL);
	assert_int_equal(try_open(uri, "", 0, &l), -EINVAL);
	assert_int_equal(try_open("nothing:x", "a", 0, &l), -EINVAL);
}

static void spoil(off_t at)
{
	int fd = open(path, O_RDWR);
	char byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte = (char)~byte;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void a_damaged_record_is_held_by_somebody(void **state)
{
	struct lm_lock_info info;
	struct lm_lock *a;
	uint64_t epoch;

	(void)state;
	a = lock_of("a", 0);
	ok(lm_lock_acquire(a, soon(), &err));
	epoch = a->epoch;
	lm_lock_close(a);
	spoil(40);
	a = lock_of("a", 0);
	assert_int_equal(lm_lock_acquire(a, soon(), NULL), -EUCLEAN);
	assert_int_equal(lm_lock_release(a, soon(), NULL), -EUCLEAN);
	ok(lm_lock_query(a, &info, soon(), &err));
	assert_int_equal(info.state, LM_LOCK_DAMAGED);
	ok(lm_lock_break(a, soon(), &err));
	ok(lm_lock_acquire(a, soon(), &err));
	assert_true(a->epoch > epoch);
	lm_lock_close(a);
}

static void a_removed_or_replaced_file_is_noticed(void **state)
{
	uint8_t note[LM_LOCK_NOTE_SIZE];
	struct lm_lock *a, *b;

	(void)state;
	a = lock_of("a", 0);
	ok(lm_lock_acquire(a, soon(), &err));
	unlink(path);
	assert_int_equal(lm_lock_announce(a, note, soon(), NULL), -ESTALE);
	b = lock_of("b", 0);
	ok(lm_lock_acquire(b, soon(), &err));
	assert_int_equal(lm_lock_announce(a, note, soon(), NULL), -ESTALE);
	lm_lock_close(a);
	lm_lock_close(b);
}

/* A guest's process, which was given the descriptor. */
static pid_t keeper(const struct lm_lock *l)
{
	pid_t pid = fork();

	if (!pid) {
		(void)l; /* its keep_fd came with the fork */
		for (;;)
			pause();
	}
	return pid;
}

static void a_process_that_keeps_the_descriptor_keeps_others_out(void **state)
{
	uint8_t announce[LM_LOCK_NOTE_SIZE], answer[LM_LOCK_NOTE_SIZE], offer[LM_LOCK_NOTE_SIZE];
	struct lm_lock *a, *again, *b;
	pid_t pid;

	(void)state;
	a = lock_of("a", 0);
	ok(lm_lock_acquire(a, soon(), &err));
	assert_true(a->keep_fd >= 0);
	pid = keeper(a);
	lm_lock_close(a);
	b = lock_of("b", 0);
	assert_int_equal(lm_lock_break(b, soon(), NULL), -EBUSY);
	again = lock_of("a", 0); /* another process of the same host, for another guest, say */
	assert_int_equal(lm_lock_acquire(again, soon(), NULL), -EBUSY);
	lm_lock_close(again);
	again = lock_of("a", pid); /* the one that knows the guest */
	ok(lm_lock_acquire(again, soon(), &err));
	ok(lm_lock_announce(again, announce, soon(), &err));
	ok(lm_lock_prepare(b, announce, answer, soon(), &err));
	ok(lm_lock_offer(again, answer, true, offer, soon(), &err));
	ok(lm_lock_take(b, offer, NULL, soon(), &err)); /* although the keeper lives */
	lm_lock_close(again);
	lm_lock_close(b);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(local_file_systems_are_refused, setup),
		cmocka_unit_test_setup(what_is_not_a_file_is_refused, setup),
		cmocka_unit_test_setup(hosts_have_plain_names, setup),
		cmocka_unit_test_setup(a_damaged_record_is_held_by_somebody, setup),
		cmocka_unit_test_setup(a_removed_or_replaced_file_is_noticed, setup),
		cmocka_unit_test_setup(a_process_that_keeps_the_descriptor_keeps_others_out, setup),
	};
	int failed;

	if (!mkdtemp(dir) || !realpath(dir, where))
		return 1;
	snprintf(path, sizeof(path), "%s/lease", where);
	snprintf(uri, sizeof(uri), "lease:%s?local=yes", path);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	rmdir(where);
	return failed;
}
