/* SPDX-License-Identifier: Apache-2.0 */
/* lease: the file, and the open file that a guest's process keeps for us. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "backends.h"
#include "engine/base/cleanup.h"
#include "lease_state.h"

#define OPEN_FLAGS (O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_DSYNC)

static int try_open(const char *path, int flags)
{
	int fd = open(path, flags | O_DIRECT, 0600);

	if (fd < 0 && errno == EINVAL)
		fd = open(path, flags, 0600); /* a file system without O_DIRECT */
	return fd < 0 ? -errno : fd;
}

static int regular(int fd, const char *path, struct lm_error *err)
{
	struct stat st;

	if (fstat(fd, &st))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%.300s", path);
	if (S_ISBLK(st.st_mode))
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%.300s is a block device, whose locks stay on this "
			      "host: use scsi-pr: or sanlock:", path);
	if (!S_ISREG(st.st_mode))
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%.300s is not a file", path);
	return 0;
}

int lease_create(struct lease *s, struct lm_error *err)
{
	int fd = try_open(s->path, OPEN_FLAGS | O_CREAT);

	if (fd < 0)
		return lm_err_errno(err, fd, LM_SCOPE_OPERATION, "cannot make the file");
	s->fd = fd;
	return regular(fd, s->path, err);
}

static int fs_check(const struct lease *s, struct lm_error *err)
{
	char dir[LM_LOCK_URI_MAX];
	LM_AUTO_FD int fd = -1;

	if (s->fd >= 0)
		return lease_fs_check(s->fd, s->path, err);
	snprintf(dir, sizeof(dir), "%s", s->path);
	strrchr(dir, '/')[1] = 0;
	fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%.300s", dir);
	return lease_fs_check(fd, s->path, err);
}

/* The process's descriptor of the same file, taken over, or -1. */
static int adopt_fd(int32_t pid, const struct stat *want)
{
	char path[64];
	struct dirent *d;
	int ret = -1;
	LM_AUTO_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = pidfd >= 0 ? opendir(path) : NULL;
	while (dir && ret < 0 && (d = readdir(dir))) {
		struct stat st;

		if (*d->d_name == '.' || fstatat(dirfd(dir), d->d_name, &st, 0) || st.st_dev != want->st_dev ||
		    st.st_ino != want->st_ino)
			continue;
		ret = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(d->d_name), 0);
	}
	if (dir)
		closedir(dir);
	return ret;
}

/* The open file that a living guest's process holds for us, in place of our own. */
static void adopt(struct lease *s, int32_t pid)
{
	struct stat st;
	int fd;

	if (s->fd < 0 || pid <= 0 || fstat(s->fd, &st))
		return;
	fd = adopt_fd(pid, &st);
	if (fd < 0)
		return;
	lm_close_fd(&s->fd);
	s->fd = fd;
}

void lease_close(struct lm_lock *l)
{
	struct lease *s = lease_of(l);

	lm_close_fd(&s->fd); /* the OFD lock falls when no duplicate is left */
	free(s);
}

int lease_attach(struct lease *s, struct lm_error *err)
{
	int fd, r = 0;

	if (s->fd >= 0)
		return 0;
	fd = try_open(s->path, OPEN_FLAGS);
	if (fd < 0 && fd != -ENOENT)
		return lm_err_errno(err, fd, LM_SCOPE_OPERATION, "cannot open %.300s", s->path);
	s->fd = fd < 0 ? -1 : fd;
	if (s->fd >= 0)
		r = regular(s->fd, s->path, err);
	if (!r && !s->local)
		r = fs_check(s, err);
	if (!r)
		adopt(s, s->holder_pid);
	else
		lm_close_fd(&s->fd);
	return r;
}

int lease_ofd(int fd, int command, short type)
{
	struct flock f = { .l_type = type, .l_whence = SEEK_SET, .l_start = LEASE_LOCK_AT, .l_len = 1 };

	if (fcntl(fd, command, &f))
		return -errno;
	return command == F_OFD_GETLK && f.l_type != F_UNLCK ? -EBUSY : 0;
}
