/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting a destination's QEMU, and signals.  The QEMU is this program again,
 * called with the word "fake" and how it is to behave.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "unit.h"
#include "launch.h"
#include "signals.h"

/* --- the fake -------------------------------------------------------------- */

static void fake_listen(const char *value)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), client;

	sscanf(value, "unix:%100[^,]", addr.sun_path);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 1))
		exit(3);
	while ((client = accept(fd, NULL, NULL)) >= 0) {
		if (write(client, "{\"QMP\": {}}\n", 12) < 0)
			continue;
		close(client);
	}
}

static int fake(int argc, char *argv[])
{
	const char *mode = argv[2];

	fprintf(stderr, "fake: %s\n", mode);
	if (!strcmp(mode, "ends"))
		return 1;
	if (!strcmp(mode, "stubborn"))
		signal(SIGTERM, SIG_IGN);
	for (int i = 3; i < argc - 1 && strcmp(mode, "silent"); i++) {
		if (!strcmp(argv[i], "-qmp"))
			fake_listen(argv[i + 1]);
	}
	pause();
	return 0;
}

/* --- the tests ---------------------------------------------------------------- */

struct place {
	char dir[40];                 /* XDG_RUNTIME_DIR */
	struct cli_settings settings;
	struct cli_signals *signals;
	struct cli_output *out;
};

static int setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	strcpy(p->dir, "/tmp/test-launch-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	setenv("XDG_RUNTIME_DIR", p->dir, 1);
	assert_int_equal(cli_signals_start(&p->signals), 0);
	assert_int_equal(cli_output_open(&p->settings, CLI_SIDE_RECEIVE, &p->out), 0);
	cli_signals_set_output(p->signals, p->out);
	*state = p;
	return 0;
}

static int teardown(void **state)
{
	struct place *p = *state;
	char parent[64];
	int rc;

	cli_signals_stop(p->signals);
	cli_output_close(p->out);
	snprintf(parent, sizeof(parent), "%s/migrate-rdma", p->dir);
	rmdir(parent);
	rc = rmdir(p->dir); /* fails when something was left in it */
	free(p);
	return rc;
}

static int start(struct place *p, const char *mode, const char *qmp, struct cli_launch **launch,
		 struct lm_error *err)
{
	char program[] = "/proc/self/exe", word[] = "fake", how[16], *words[] = { program, word, how, NULL };

	snprintf(how, sizeof(how), "%s", mode);
	memset(err, 0, sizeof(*err));
	return cli_launch_start(words, qmp, p->signals, p->out, launch, err);
}

/* The directories that were made and not removed. */
static unsigned left_behind(const struct place *p)
{
	char parent[64];
	struct dirent *e;
	unsigned n = 0;
	DIR *d;

	snprintf(parent, sizeof(parent), "%s/migrate-rdma", p->dir);
	d = opendir(parent);
	while (d && (e = readdir(d)))
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

static void remove_dir_of(const char *qmp)
{
	char path[160];

	snprintf(path, sizeof(path), "%s", qmp);
	unlink(path);
	strcpy(strrchr(path, '/'), "/qemu.log");
	unlink(path);
	*strrchr(path, '/') = 0;
	rmdir(path);
}

static bool greets(const char *qmp)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char c = 0;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", qmp);
	if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)) && read(fd, &c, 1) < 0)
		c = 0;
	close(fd);
	return c == '{';
}

static void it_goes_on_after_we_let_go(void **state)
{
	struct place *p = *state;
	struct cli_launch *launch;
	struct lm_error err;
	char qmp[CLI_PATH_MAX];
	struct stat st;
	pid_t pid;

	assert_int_equal(start(p, "good", NULL, &launch, &err), 0);
	pid = cli_launch_pid(launch);
	snprintf(qmp, sizeof(qmp), "%s", cli_launch_qmp(launch));
	assert_int_equal(getsid(pid), pid); /* no Ctrl-C of ours reaches it */
	assert_int_equal(stat(qmp, &st), 0);
	*strrchr(qmp, '/') = 0;
	assert_int_equal(stat(qmp, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	snprintf(qmp, sizeof(qmp), "%s", cli_launch_qmp(launch));
	cli_launch_leave(launch);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
	assert_true(greets(qmp));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	remove_dir_of(qmp);
}

static void it_is_ended_when_nothing_came_of_it(void **state)
{
	static const char *const modes[] = { "good", "stubborn" };
	struct place *p = *state;

	for (int i = 0; i < 2; i++) {
		struct cli_launch *launch;
		struct lm_error err;
		pid_t pid;

		assert_int_equal(start(p, modes[i], NULL, &launch, &err), 0);
		pid = cli_launch_pid(launch);
		cli_launch_end(launch);
		assert_int_equal(kill(pid, 0), -1);
		assert_int_equal(left_behind(p), 0);
	}
}

static void a_qemu_that_ends_at_once_is_told(void **state)
{
	struct place *p = *state;
	struct cli_launch *launch;
	struct lm_error err;

	assert_int_equal(start(p, "ends", NULL, &launch, &err), -ECHILD);
	assert_non_null(strstr(err.msg, "status 1"));
	assert_int_equal(left_behind(p), 0);
}

static void a_program_that_is_not_there_is_told(void **state)
{
	struct place *p = *state;
	char program[] = "/nowhere/qemu", *words[] = { program, NULL };
	struct cli_launch *launch;
	struct lm_error err = { 0 };

	assert_int_equal(cli_launch_start(words, NULL, p->signals, p->out, &launch, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "/nowhere/qemu"));
	assert_int_equal(left_behind(p), 0);
}

static void the_socket_is_where_it_was_asked_for(void **state)
{
	struct place *p = *state;
	char long_path[300], qmp[64];
	struct cli_launch *launch;
	struct lm_error err;

	snprintf(qmp, sizeof(qmp), "%s/my,own", p->dir);
	assert_int_equal(start(p, "good", "nodir/sock", &launch, &err), -ECHILD);
	memset(long_path, 'x', sizeof(long_path) - 1);
	long_path[sizeof(long_path) - 1] = 0;
	assert_int_equal(start(p, "good", long_path, &launch, &err), -EINVAL);
	snprintf(qmp, sizeof(qmp), "%s/own", p->dir);
	assert_int_equal(start(p, "good", qmp, &launch, &err), 0);
	assert_string_equal(cli_launch_qmp(launch), qmp);
	cli_launch_end(launch);
	unlink(qmp);
	assert_int_equal(left_behind(p), 0);
}

/* Takes a while to come through: the thread that takes signals is another one. */
static void wait_asked(struct place *p)
{
	struct pollfd asked = { .fd = cli_signals_fd(p->signals), .events = POLLIN };

	assert_int_equal(poll(&asked, 1, 5000), 1);
	assert_true(cli_signals_asked(p->signals));
}

static void signals_ask_to_stop_and_kill_nobody(void **state)
{
	static const int numbers[] = { SIGTSTP, SIGINT, SIGINT, SIGTERM, SIGHUP };
	struct place *p = *state;
	struct cli_launch *launch;
	struct lm_error err;

	assert_false(cli_signals_asked(p->signals));
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		kill(getpid(), numbers[i]);
	wait_asked(p);
	assert_int_equal(start(p, "silent", NULL, &launch, &err), -ECANCELED);
	assert_int_equal(left_behind(p), 0);
}

static void a_program_that_is_started_gets_our_old_signals(void **state)
{
	struct place *p = *state;
	struct cli_launch *launch;
	struct lm_error err;
	char path[64], line[256];
	unsigned long blocked = 1, ignored = 1;
	FILE *f;

	assert_int_equal(start(p, "good", NULL, &launch, &err), 0);
	snprintf(path, sizeof(path), "/proc/%d/status", cli_launch_pid(launch));
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		sscanf(line, "SigBlk: %lx", &blocked);
		sscanf(line, "SigIgn: %lx", &ignored);
	}
	fclose(f);
	assert_int_equal(blocked & (1ul << (SIGINT - 1) | 1ul << (SIGTERM - 1)), 0);
	assert_int_equal(ignored & 1ul << (SIGPIPE - 1), 0);
	cli_launch_end(launch);
}

int main(int argc, char *argv[])
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(it_goes_on_after_we_let_go),
		TEST(it_is_ended_when_nothing_came_of_it),
		TEST(a_qemu_that_ends_at_once_is_told),
		TEST(a_program_that_is_not_there_is_told),
		TEST(the_socket_is_where_it_was_asked_for),
		TEST(signals_ask_to_stop_and_kill_nobody),
		TEST(a_program_that_is_started_gets_our_old_signals),
	};

	if (argc > 2 && !strcmp(argv[1], "fake"))
		return fake(argc, argv);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
