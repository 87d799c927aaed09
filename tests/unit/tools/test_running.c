/* SPDX-License-Identifier: Apache-2.0 */
/* A running `send` is found by its guest, and nobody else is ever signalled. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "unit.h"
#include "running.h"
#include "runtime.h"
#include "signals.h"

#define VM 5000000 /* above what Linux gives out: no process of this host */

static char dir[64], path[128], qmp[96];
static int qmp_fd = -1;

static int setup(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/test-running-XXXXXX");
	assert_non_null(mkdtemp(dir));
	setenv("XDG_RUNTIME_DIR", dir, 1);
	snprintf(path, sizeof(path), "%s/migrate-rdma/send-%d", dir, VM);
	snprintf(qmp, sizeof(qmp), "%s/qmp", dir);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", qmp);
	qmp_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return bind(qmp_fd, (struct sockaddr *)&addr, sizeof(addr)); /* nobody listens: nobody is to connect */
}

static int teardown(void **state)
{
	char command[128];

	(void)state;
	close(qmp_fd);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command);
}

/* A `send` of another process: adds itself, and ends with 0 when SIGUSR1 comes, with 2 when SIGTERM does. */
static pid_t sender(const char *socket, bool postcopy)
{
	int ready[2], sig;
	char c = 0;
	pid_t pid;

	assert_false(pipe2(ready, O_CLOEXEC));
	pid = fork();
	if (!pid) {
		struct cli_running *running = NULL;
		sigset_t set;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigaddset(&set, SIGTERM);
		sigprocmask(SIG_BLOCK, &set, NULL);
		if (cli_running_add(VM, socket, postcopy, &running) || write(ready[1], &c, 1) != 1)
			_exit(1);
		sigwait(&set, &sig);
		cli_running_remove(running);
		_exit(sig == SIGUSR1 ? 0 : 2);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	return pid;
}

static int end(pid_t pid, int sig)
{
	int status;

	if (sig)
		kill(pid, sig);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

static int ask(const char *socket, int32_t vm_pid, const char *hint)
{
	struct lm_error err = { 0 };
	int32_t pid;
	int rc = cli_running_ask(socket, vm_pid, &pid, &err);

	if (rc && (!hint || !strstr(err.msg, hint)))
		fail_msg("%d: %s", rc, err.msg);
	return rc;
}

/* Written as a sender writes it, and locked when *ret_fd is wanted. */
static void put_file(const char *text, int *ret_fd)
{
	char parent[96];
	int fd;

	snprintf(parent, sizeof(parent), "%s/migrate-rdma", dir);
	mkdir(parent, 0700);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	if (ret_fd)
		assert_false(flock(*ret_fd = fd, LOCK_EX));
	else
		close(fd);
}

static void it_is_found_by_process_and_by_socket(void **state)
{
	pid_t pid = sender(qmp, true);

	(void)state;
	assert_int_equal(ask(NULL, VM, NULL), 0);
	assert_int_equal(end(pid, 0), 0);
	assert_int_equal(access(path, F_OK), -1);
	pid = sender(qmp, true);
	assert_int_equal(ask(qmp, 0, NULL), 0);
	assert_int_equal(end(pid, 0), 0);
	assert_int_equal(ask(qmp, 0, "no 'migrate-rdma send'"), -ESRCH);
	assert_int_equal(ask(NULL, VM, "process 5000000"), -ESRCH);
	assert_int_equal(ask(dir, 0, "not a QMP socket"), -ENOTSOCK);
}

static void another_guest_is_another_guest(void **state)
{
	pid_t pid = sender(NULL, true);

	(void)state;
	assert_int_equal(ask(qmp, 0, "no 'migrate-rdma send'"), -ESRCH);
	assert_int_equal(ask(NULL, VM + 1, "no 'migrate-rdma send'"), -ESRCH);
	assert_int_equal(end(pid, SIGTERM), 2);
}

static void one_that_never_does_is_not_asked(void **state)
{
	pid_t pid = sender(qmp, false);

	(void)state;
	assert_int_equal(ask(qmp, 0, "--postcopy never"), -EOPNOTSUPP);
	assert_int_equal(end(pid, SIGTERM), 2);
}

static void a_file_that_a_killed_one_left_is_passed_over_and_overwritten(void **state)
{
	pid_t pid = sender(qmp, true);

	(void)state;
	assert_int_equal(end(pid, SIGKILL), 100 + SIGKILL);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(ask(NULL, VM, "no 'migrate-rdma send'"), -ESRCH);
	assert_int_equal(ask(qmp, 0, "no 'migrate-rdma send'"), -ESRCH);
	pid = sender(qmp, true);
	assert_int_equal(ask(qmp, 0, NULL), 0);
	assert_int_equal(end(pid, 0), 0);
}

/* We hold the lock for it, and the process is there: only that it began at another time tells. */
static void a_process_that_got_the_number_again_is_not_signalled(void **state)
{
	unsigned long long start;
	pid_t pid = sender(qmp, true);
	char text[256];
	int fd;

	(void)state;
	start = cli_process_start(pid);
	assert_true(start > 0);
	assert_false(unlink(path));
	snprintf(text, sizeof(text), "migrate-rdma send 1: process %d started %llu qmp 0:0 postcopy 1\n", pid, start - 1);
	put_file(text, &fd);
	assert_int_equal(ask(NULL, VM, "no 'migrate-rdma send'"), -ESRCH);
	close(fd);
	snprintf(text, sizeof(text), "migrate-rdma send 1: process %d started %llu qmp 0:0 postcopy 1\n", pid, start);
	put_file(text, NULL); /* true, but nobody holds it */
	assert_int_equal(ask(NULL, VM, "no 'migrate-rdma send'"), -ESRCH);
	put_file(text, &fd); /* and the check of the checks: now it is */
	assert_int_equal(ask(NULL, VM, NULL), 0);
	close(fd);
	assert_int_equal(end(pid, 0), 0);
}

static void what_is_not_whole_is_not_believed(void **state)
{
	static const char *const texts[] = {
		"", "\n", "migrate-rdma send 1: process ", "migrate-rdma send 1: process 1 started 1 qmp 0:0 postcopy 1\n",
		"migrate-rdma send 1: process -1 started 1 qmp 0:0 postcopy 1\n",
		"migrate-rdma send 2: process 77 started 1 qmp 0:0 postcopy 1\n",
		"migrate-rdma send 1: process 77 started 0 qmp 0:0 postcopy 1\n",
		"migrate-rdma send 1: process 77 started 1 qmp 0:0 postcopy 1\nmore\n",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		int fd;

		put_file(texts[i], &fd);
		assert_int_equal(ask(NULL, VM, "no 'migrate-rdma send'"), -ESRCH);
		close(fd);
	}
}

static void two_senders_of_one_guest_are_one_too_many(void **state)
{
	pid_t pid = sender(qmp, true);
	struct cli_running *running = NULL;

	(void)state;
	assert_int_equal(cli_running_add(VM, qmp, true, &running), -EBUSY);
	assert_int_equal(ask(qmp, 0, NULL), 0);
	assert_int_equal(end(pid, 0), 0);
}

static void the_file_of_a_successor_stays(void **state)
{
	struct cli_running *first = NULL, *second = NULL;

	(void)state;
	assert_int_equal(cli_running_add(VM, qmp, true, &first), 0);
	assert_false(unlink(path));
	assert_int_equal(cli_running_add(VM, qmp, true, &second), 0);
	cli_running_remove(first);
	assert_int_equal(access(path, F_OK), 0);
	cli_running_remove(second);
	assert_int_equal(access(path, F_OK), -1);
}

static void links_and_open_directories_are_not_used(void **state)
{
	struct cli_running *running = NULL;
	char parent[96], target[96], buf[128];
	struct stat st;
	int fd;

	(void)state;
	snprintf(parent, sizeof(parent), "%s/migrate-rdma", dir);
	snprintf(target, sizeof(target), "%s/precious", dir);
	fd = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "precious", 8), 8);
	close(fd);
	assert_false(mkdir(parent, 0700));
	assert_false(symlink(target, path));
	assert_int_equal(cli_running_add(VM, qmp, true, &running), -ELOOP);
	assert_int_equal(ask(NULL, VM, "no 'migrate-rdma send'"), -ESRCH);
	assert_false(stat(target, &st));
	assert_int_equal(st.st_size, 8);
	assert_false(unlink(path));
	assert_false(mkfifo(path, 0600)); /* opening it must not wait for a writer */
	assert_int_equal(ask(NULL, VM, "no 'migrate-rdma send'"), -ESRCH);
	assert_false(unlink(path));
	assert_false(chmod(parent, 0770));
	assert_int_equal(cli_runtime_dir_open(0, true, buf, sizeof(buf)), -EPERM);
	assert_false(rmdir(parent));
	assert_false(symlink(dir, parent));
	assert_true(cli_runtime_dir_open(0, true, buf, sizeof(buf)) < 0);
}

static void the_start_of_a_process_tells_who_it_is(void **state)
{
	pid_t pid = fork();
	siginfo_t info;

	(void)state;
	if (!pid)
		_exit(0);
	assert_false(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
	assert_int_equal(cli_process_start(pid), 0); /* a zombie */
	assert_int_equal(end(pid, 0), 0);
	assert_int_equal(cli_process_start(pid), 0);
	assert_true(cli_process_start(getpid()) > 0);
	prctl(PR_SET_NAME, ") Z 1 2 (");
	assert_true(cli_process_start(getpid()) > 0);
}

/* Before there is a session, in it, and when it is over. */
static void the_signal_ends_nobody_whenever_it_comes(void **state)
{
	pid_t pid = fork();

	(void)state;
	if (!pid) {
		struct cli_signals *signals = NULL;

		if (cli_signals_start(&signals))
			_exit(1);
		kill(getpid(), SIGUSR1);
		usleep(20000);
		kill(getpid(), SIGUSR1);
		cli_signals_stop(signals);
		kill(getpid(), SIGUSR1);
		_exit(0);
	}
	assert_int_equal(end(pid, 0), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(it_is_found_by_process_and_by_socket),
		TEST(another_guest_is_another_guest),
		TEST(one_that_never_does_is_not_asked),
		TEST(a_file_that_a_killed_one_left_is_passed_over_and_overwritten),
		TEST(a_process_that_got_the_number_again_is_not_signalled),
		TEST(what_is_not_whole_is_not_believed),
		TEST(two_senders_of_one_guest_are_one_too_many),
		TEST(the_file_of_a_successor_stays),
		TEST(links_and_open_directories_are_not_used),
		TEST(the_start_of_a_process_tells_who_it_is),
		TEST(the_signal_ends_nobody_whenever_it_comes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
