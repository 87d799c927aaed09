/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "running.h"
#include "runtime.h"

#define PREFIX     "send-"
#define LOCK_TRIES 20 /* a process that reads the file holds its lock for a moment */
#define NAP_NS     5000000

struct cli_running {
	int dir_fd, fd;
	char name[32];
};

/* What is in a file. */
struct card {
	int32_t pid;
	uint64_t start;
	uint64_t qmp_dev, qmp_ino; /* 0: unknown */
	int postcopy;
};

uint64_t cli_process_start(int32_t pid)
{
	char path[64], text[1024], *at;
	unsigned long long start = 0;
	FILE *f;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = 0;
	at = strrchr(text, ')'); /* the name before it may hold anything */
	if (!at || at[1] != ' ' || at[2] == 'Z' || at[2] == 'X')
		return 0;
	at += 2; /* field 3; the start time is field 22 */
	for (unsigned field = 3; at && field < 22; field++) {
		at = strchr(at, ' ');
		at = at ? at + 1 : NULL;
	}
	return at && sscanf(at, "%llu", &start) == 1 ? start : 0;
}

/* ---- the sender's side ---- */

static int lock(int fd)
{
	const struct timespec nap = { 0, NAP_NS };

	for (unsigned i = 0; i < LOCK_TRIES; i++) {
		if (!flock(fd, LOCK_EX | LOCK_NB))
			return 0;
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		nanosleep(&nap, NULL);
	}
	return -EBUSY;
}

/* Whether the open file is the one at this name: its former owner may just have removed it. */
static bool is_named(int dir_fd, const char *name, int fd)
{
	struct stat named, ours;

	return !fstatat(dir_fd, name, &named, AT_SYMLINK_NOFOLLOW) && !fstat(fd, &ours) &&
	       named.st_dev == ours.st_dev && named.st_ino == ours.st_ino && S_ISREG(ours.st_mode);
}

/* A locked file of that name; the descriptor, or a negative errno. */
static int open_locked(int dir_fd, const char *name)
{
	for (unsigned i = 0; i < LOCK_TRIES; i++) {
		int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
		int rc = fd < 0 ? -errno : lock(fd);

		if (!rc && is_named(dir_fd, name, fd))
			return fd;
		if (fd >= 0)
			close(fd);
		if (rc)
			return rc;
	}
	return -EBUSY;
}

static int write_card(int fd, const char *qmp, bool postcopy)
{
	uint64_t start = cli_process_start(getpid());
	struct stat st = { 0 };
	char text[256];
	int len;

	if (!start)
		return -ESRCH; /* no /proc */
	if (qmp && (stat(qmp, &st) || !S_ISSOCK(st.st_mode)))
		st = (struct stat){ 0 };
	len = snprintf(text, sizeof(text), "migrate-rdma send 1: process %d started %" PRIu64 " qmp %" PRIu64 ":%"
		       PRIu64 " postcopy %d\n", getpid(), start, (uint64_t)st.st_dev, (uint64_t)st.st_ino, postcopy);
	if (ftruncate(fd, 0))
		return -errno;
	return pwrite(fd, text, (size_t)len, 0) == len ? 0 : -EIO;
}

static int first_dir(void)
{
	char path[128];
	int fd, rc = -ENOENT;

	for (unsigned i = 0; i < CLI_RUNTIME_PLACES; i++) {
		fd = cli_runtime_dir_open(i, true, path, sizeof(path));
		if (fd >= 0)
			return fd;
		if (fd != -ENOENT)
			rc = fd;
	}
	return rc;
}

int cli_running_add(int32_t vm_pid, const char *qmp, bool postcopy, struct cli_running **ret)
{
	struct cli_running *r = calloc(1, sizeof(*r));
	int rc;

	if (!r)
		return -ENOMEM;
	snprintf(r->name, sizeof(r->name), PREFIX "%d", vm_pid);
	r->fd = -1;
	r->dir_fd = rc = first_dir();
	if (rc >= 0)
		r->fd = rc = open_locked(r->dir_fd, r->name);
	if (rc >= 0)
		rc = write_card(r->fd, qmp, postcopy);
	if (!rc) {
		*ret = r;
		return 0;
	}
	cli_running_remove(r);
	return rc;
}

void cli_running_remove(struct cli_running *r)
{
	if (!r)
		return;
	if (r->fd >= 0) {
		if (is_named(r->dir_fd, r->name, r->fd))
			unlinkat(r->dir_fd, r->name, 0);
		close(r->fd); /* gives the lock back */
	}
	if (r->dir_fd >= 0)
		close(r->dir_fd);
	free(r);
}

/* ---- the asker's side ---- */

__attribute__((format(printf, 3, 4)))
static int fail(struct lm_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	err->code = code;
	err->scope = LM_SCOPE_OPERATION;
	return code;
}

/* One that is empty, half written or of another version is none. */
static bool parse_card(const char *text, struct card *ret)
{
	int end = 0;

	return sscanf(text, "migrate-rdma send 1: process %" SCNd32 " started %" SCNu64 " qmp %" SCNu64 ":%" SCNu64
		      " postcopy %d%n", &ret->pid, &ret->start, &ret->qmp_dev, &ret->qmp_ino, &ret->postcopy,
		      &end) == 5 && !strcmp(text + end, "\n") && ret->pid > 1 && ret->start;
}

/* Reads the card of a sender that lives, as far as the file shows; false: there is none. */
static bool read_card(int dir_fd, const char *name, struct card *ret)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	char text[256];
	struct stat st;
	ssize_t n = -1;
	bool held;

	if (fd < 0)
		return false;
	held = !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_uid == geteuid() && flock(fd, LOCK_SH | LOCK_NB);
	if (held)
		n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = 0;
	return parse_card(text, ret);
}

static bool find_by_pid(int dir_fd, int32_t vm_pid, struct card *ret)
{
	char name[32];

	snprintf(name, sizeof(name), PREFIX "%d", vm_pid);
	return read_card(dir_fd, name, ret);
}

static bool find_by_qmp(int dir_fd, const struct stat *qmp, struct card *ret)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;
	bool found = false;

	if (!dir) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	while (!found && (entry = readdir(dir)))
		found = !strncmp(entry->d_name, PREFIX, strlen(PREFIX)) && read_card(dir_fd, entry->d_name, ret) &&
			ret->qmp_dev == qmp->st_dev && ret->qmp_ino == qmp->st_ino;
	closedir(dir);
	return found;
}

/* The process that wrote the card, as a pidfd; -ESRCH: it has ended, whoever has its number now. */
static int hold(const struct card *card)
{
	int fd = pidfd_open(card->pid, 0);

	if (fd < 0)
		return -errno;
	/*
	 * In this order: a process that has this number now and that start time also had it when the
	 * pidfd was opened.
	 */
	if (cli_process_start(card->pid) == card->start)
		return fd;
	close(fd);
	return -ESRCH;
}

static int find(const char *qmp, int32_t vm_pid, struct card *ret, struct lm_error *err)
{
	struct stat st = { 0 };
	char path[128];

	if (qmp && (stat(qmp, &st) || !S_ISSOCK(st.st_mode)))
		return fail(err, -ENOTSOCK, "%s is not a QMP socket; --pid names the process of QEMU instead", qmp);
	for (unsigned i = 0; i < CLI_RUNTIME_PLACES; i++) {
		int dir_fd = cli_runtime_dir_open(i, false, path, sizeof(path)), pidfd = -ESRCH;

		if (dir_fd < 0)
			continue;
		if (qmp ? find_by_qmp(dir_fd, &st, ret) : find_by_pid(dir_fd, vm_pid, ret))
			pidfd = hold(ret);
		close(dir_fd);
		if (pidfd >= 0)
			return pidfd;
	}
	if (qmp)
		return fail(err, -ESRCH, "no 'migrate-rdma send' of this user moves the guest behind %s from this host; "
			    "run this on the host of that 'send', as its user", qmp);
	return fail(err, -ESRCH, "no 'migrate-rdma send' of this user moves the guest of process %d from this host; "
		    "run this on the host of that 'send', as its user", vm_pid);
}

int cli_running_ask(const char *qmp, int32_t vm_pid, int32_t *ret_pid, struct lm_error *err)
{
	struct card card;
	int pidfd = find(qmp, vm_pid, &card, err), rc = 0;

	if (pidfd < 0)
		return pidfd;
	if (!card.postcopy)
		rc = fail(err, -EOPNOTSUPP, "that 'send' (process %d) was started with --postcopy never", card.pid);
	else if (pidfd_send_signal(pidfd, SIGUSR1, NULL, 0))
		rc = fail(err, -errno, errno == ESRCH ? "that 'send' (process %d) has just ended" :
			  "process %d cannot be signalled: it belongs to another user", card.pid);
	close(pidfd);
	*ret_pid = card.pid;
	return rc;
}
