// SPDX-License-Identifier: Apache-2.0
#include "tempdir.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int remove_one(const char *path, const struct stat *st, int type,
		      struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path) && errno != ENOENT ? -1 : 0;
}

void tempdir_remove(const char *path)
{
	/* FTW_MOUNT: never goes into a file system mounted below it. */
	nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

/*
 * In a session of its own, for test runners kill a test's process group.  It
 * keeps no file of the test open: a runner may wait for the end of a pipe.
 */
__attribute__((noreturn))
static void guard(const char *path, int alive)
{
	char c;

	setsid();
	signal(SIGPIPE, SIG_IGN);
	for (int fd = 0; fd < 1024; fd++) {
		if (fd != alive)
			close(fd);
	}
	while (read(alive, &c, 1) < 0 && errno == EINTR)
		;
	/* QEMU may take a moment to die and may still make a socket. */
	for (int i = 0; i < 20 && !access(path, F_OK); i++) {
		tempdir_remove(path);
		usleep(50000);
	}
	_exit(0);
}

int tempdir_make(char *path, unsigned int size)
{
	int alive[2];
	pid_t pid;

	snprintf(path, size, "/dev/shm/migrate-rdma-test-XXXXXX");
	if (!mkdtemp(path) || pipe2(alive, O_CLOEXEC)) {
		fprintf(stderr, "tempdir: cannot make %s: %s\n", path,
			strerror(errno));
		return -1;
	}
	pid = fork();
	if (!pid) {
		close(alive[1]);
		guard(path, alive[0]);
	}
	close(alive[0]);	/* alive[1] stays open until the caller ends */
	if (pid < 0)
		perror("tempdir: cannot start its guard");
	return pid < 0 ? -1 : 0;
}
