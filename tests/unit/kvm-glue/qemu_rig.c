/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "qemu_rig.h"

#define ARGS_MAX 64

static const char *binary(void)
{
	const char *b = getenv("LM_TEST_QEMU");

	return b ? b : "qemu-system-x86_64";
}

bool rig_available(void)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "%s --version >/dev/null 2>&1", binary());
	if (system(cmd) == 0)
		return true;
	printf("SKIP: %s is not installed\n", binary());
	return false;
}

static void argument_expand(const char *arg, const char *ram, char *ret, size_t size)
{
	const char *at = strstr(arg, "@RAM");

	if (at)
		snprintf(ret, size, "%.*s%s%s", (int)(at - arg), arg, ram, at + 4);
	else
		snprintf(ret, size, "%s", arg);
}

static void qemu_exec(char **argv, pid_t parent)
{
	int null = open("/dev/null", O_RDWR);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	dup2(null, STDIN_FILENO);
	if (!getenv("LM_TEST_VERBOSE"))
		dup2(null, STDERR_FILENO);
	execvp(argv[0], argv);
	_exit(127);
}

/* The socket is a file a moment before QEMU listens on it. */
static bool listens(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool yes;

	memcpy(a.sun_path, path, strlen(path) + 1);
	yes = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;
	close(fd);
	return yes;
}

static bool socket_wait(struct rig_qemu *q)
{
	const struct timespec pause = { .tv_nsec = 5000000 };

	for (int i = 0; i < 4000; i++) {
		if (listens(q->qmp))
			return true;
		if (waitpid(q->pid, NULL, WNOHANG) == q->pid) {
			q->pid = 0;
			break;
		}
		nanosleep(&pause, NULL);
	}
	return false;
}

bool rig_try(struct rig_qemu *q, ...)
{
	static char text[ARGS_MAX][256];
	char qmp[128], *argv[ARGS_MAX + 16];
	pid_t parent = getpid();
	const char *arg;
	int n = 0, i = 0;
	va_list ap;

	memset(q, 0, sizeof(*q));
	strcpy(q->dir, "/dev/shm/lm-glue-XXXXXX");
	if (!mkdtemp(q->dir))
		abort();
	snprintf(q->qmp, sizeof(q->qmp), "%s/qmp", q->dir);
	snprintf(q->ram, sizeof(q->ram), "%s/ram", q->dir);
	snprintf(qmp, sizeof(qmp), "unix:%s,server=on,wait=off", q->qmp);
	argv[n++] = (char *)binary();
	argv[n++] = "-display";
	argv[n++] = "none";
	argv[n++] = "-nodefaults";
	argv[n++] = "-qmp";
	argv[n++] = qmp;
	va_start(ap, q);
	while ((arg = va_arg(ap, const char *)) && i < ARGS_MAX) {
		argument_expand(arg, q->ram, text[i], sizeof(text[i]));
		argv[n++] = text[i++];
	}
	va_end(ap);
	argv[n] = NULL;
	fflush(NULL);
	q->pid = fork();
	if (!q->pid)
		qemu_exec(argv, parent);
	return socket_wait(q);
}

void rig_end(struct rig_qemu *q)
{
	if (q->pid > 0) {
		kill(q->pid, SIGKILL);
		waitpid(q->pid, NULL, 0);
	}
	if (q->dir[0]) {
		unlink(q->qmp);
		unlink(q->ram);
		rmdir(q->dir);
	}
	memset(q, 0, sizeof(*q));
}
