/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "launch.h"
#include "launch_log.h"
#include "options.h"
#include "runtime.h"

#define START_S      30   /* until QMP answers */
#define POLL_MS      20
#define GOODBYE_MS   3000 /* from SIGTERM to SIGKILL */

struct cli_launch {
	pid_t pid;
	int pidfd;
	bool own_socket;             /* we named it: remove it at the end */
	char dir[CLI_PATH_MAX];
	char qmp[CLI_PATH_MAX];
	char log[CLI_PATH_MAX + 16];
	struct cli_launch_log *relay;
};

static int fail(struct lm_error *err, int code, const char *what)
{
	err->code = code;
	err->scope = LM_SCOPE_SESSION;
	snprintf(err->msg, sizeof(err->msg), "%s: %s", what, strerror(-code));
	return code;
}

static int set_paths(struct cli_launch *l, const char *qmp, struct lm_error *err)
{
	int rc = cli_runtime_dir_make(l->dir, sizeof(l->dir) - 16);

	if (rc) {
		*l->dir = 0;
		return fail(err, rc, "making a directory for QEMU's socket");
	}
	l->own_socket = !qmp;
	snprintf(l->log, sizeof(l->log), "%s/qemu.log", l->dir);
	if (!qmp)
		snprintf(l->qmp, sizeof(l->qmp), "%.90s/qmp.sock", l->dir);
	else if (snprintf(l->qmp, sizeof(l->qmp), "%s", qmp) >= (int)sizeof(l->qmp))
		return cli_invalid(err, "--qmp: a socket's path has at most %zu letters", sizeof(l->qmp) - 1);
	return 0;
}

static int file_actions(posix_spawn_file_actions_t *actions, const char *log)
{
	int rc = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);

	if (!rc)
		rc = posix_spawn_file_actions_addopen(actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(actions, 1, 2);
	return -rc;
}

static int attributes(posix_spawnattr_t *attr, const sigset_t *mask)
{
	sigset_t defaults;
	int rc;

	sigfillset(&defaults);
	rc = posix_spawnattr_setsigdefault(attr, &defaults);
	if (!rc)
		rc = posix_spawnattr_setsigmask(attr, mask);
	if (!rc)
		rc = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK |
					      POSIX_SPAWN_SETSIGDEF);
	return -rc;
}

static int spawn(struct cli_launch *l, char *const *words, const sigset_t *mask)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	extern char **environ;
	int rc;

	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attr);
	rc = file_actions(&actions, l->log);
	if (!rc)
		rc = attributes(&attr, mask);
	if (!rc)
		rc = -posix_spawnp(&l->pid, words[0], &actions, &attr, words, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&actions);
	if (rc)
		l->pid = 0;
	return rc;
}

/* Reaps it when it has ended; says how. */
static bool has_ended(struct cli_launch *l, char *how, size_t size)
{
	siginfo_t info = { 0 };

	if (waitid(P_PID, (id_t)l->pid, &info, WEXITED | WNOHANG) || !info.si_pid)
		return false;
	if (info.si_code == CLD_EXITED)
		snprintf(how, size, "status %d", info.si_status);
	else
		snprintf(how, size, "signal %d", info.si_status);
	l->pid = 0;
	return true;
}

/* 0: connected to the socket, which says nothing yet (*ret_fd); else a negative errno. */
static int try_connect(const char *path, int *ret_fd)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		close(fd);
		return -errno;
	}
	*ret_fd = fd;
	return 0;
}

/* One look: 0 it greets us, -EAGAIN not yet, other when it never will. */
static int look(struct cli_launch *l, struct cli_signals *signals, int *fd, struct lm_error *err)
{
	struct pollfd fds[3] = {
		{ .fd = cli_signals_fd(signals), .events = POLLIN },
		{ .fd = l->pidfd, .events = POLLIN },
	};
	char how[32];

	if (*fd < 0)
		try_connect(l->qmp, fd);
	fds[2] = (struct pollfd){ .fd = *fd, .events = POLLIN };
	if (poll(fds, 3, POLL_MS) < 0 && errno != EINTR)
		return fail(err, -errno, "waiting for QEMU");
	if (fds[0].revents)
		return fail(err, -ECANCELED, "waiting for QEMU");
	if (fds[1].revents && has_ended(l, how, sizeof(how))) {
		snprintf(err->msg, sizeof(err->msg), "QEMU ended at once (%s); its output says why", how);
		err->scope = LM_SCOPE_SESSION;
		return err->code = -ECHILD;
	}
	return fds[2].revents & POLLIN ? 0 : -EAGAIN;
}

static int wait_ready(struct cli_launch *l, struct cli_signals *signals, struct lm_error *err)
{
	struct timespec now, end;
	int fd = -1, rc;

	clock_gettime(CLOCK_MONOTONIC, &end);
	do {
		rc = look(l, signals, &fd, err);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (rc == -EAGAIN && now.tv_sec < end.tv_sec + START_S);
	if (fd >= 0)
		close(fd);
	return rc == -EAGAIN ? fail(err, -ETIMEDOUT, "QEMU's QMP socket does not answer") : rc;
}

static int start(struct cli_launch *l, char *const *words, const char *qmp, struct cli_signals *signals,
		 struct cli_output *out, struct lm_error *err)
{
	char **all = NULL;
	int rc = set_paths(l, qmp, err);

	if (rc)
		return rc;
	rc = cli_launch_words(words, l->qmp, &all, err);
	if (rc)
		return rc;
	rc = spawn(l, all, cli_signals_old_mask(signals));
	free(all);
	if (rc)
		return fail(err, rc, words[0]);
	l->pidfd = pidfd_open(l->pid, 0);
	if (l->pidfd < 0)
		return fail(err, -errno, "pidfd_open");
	rc = cli_launch_log_start(l->log, out, &l->relay);
	return rc ? fail(err, rc, l->log) : wait_ready(l, signals, err);
}

int cli_launch_start(char *const *words, const char *qmp, struct cli_signals *signals,
		     struct cli_output *out, struct cli_launch **ret, struct lm_error *err)
{
	struct cli_launch *l = calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return fail(err, -ENOMEM, "starting QEMU");
	l->pidfd = -1;
	rc = start(l, words, qmp, signals, out, err);
	if (rc) {
		cli_launch_end(l);
		return rc;
	}
	cli_output_qemu(out, l->pid, l->qmp, l->log);
	*ret = l;
	return 0;
}

int32_t cli_launch_pid(const struct cli_launch *l)
{
	return l->pid;
}

const char *cli_launch_qmp(const struct cli_launch *l)
{
	return l->qmp;
}

static void release(struct cli_launch *l)
{
	cli_launch_log_stop(l->relay);
	if (l->pidfd >= 0)
		close(l->pidfd);
}

void cli_launch_leave(struct cli_launch *l)
{
	if (!l)
		return;
	release(l);
	free(l);
}

/* Without a pidfd by its number, which is still its: our child, and not reaped. */
static void send_signal(const struct cli_launch *l, int sig)
{
	if (l->pidfd < 0 || pidfd_send_signal(l->pidfd, sig, NULL, 0))
		kill(l->pid, sig);
}

static void end_process(struct cli_launch *l)
{
	struct pollfd ended = { .fd = l->pidfd, .events = POLLIN };

	if (l->pid <= 0)
		return;
	send_signal(l, SIGTERM);
	if (l->pidfd < 0 || poll(&ended, 1, GOODBYE_MS) <= 0)
		send_signal(l, SIGKILL);
	while (waitpid(l->pid, NULL, 0) < 0 && errno == EINTR)
		;
	l->pid = 0;
}

void cli_launch_end(struct cli_launch *l)
{
	if (!l)
		return;
	end_process(l);
	release(l); /* shows the rest of its output */
	if (*l->dir) {
		unlink(l->log);
		if (l->own_socket)
			unlink(l->qmp);
		rmdir(l->dir);
	}
	free(l);
}
