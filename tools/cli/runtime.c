/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "runtime.h"

#define NAME "migrate-rdma"

/* The path of one of the places, in the order in which they are tried; -ENOENT: it does not apply here. */
static int place(unsigned index, char *buf, size_t size)
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	int len = -1;

	switch (index) {
	case 0:
		len = xdg && *xdg == '/' ? snprintf(buf, size, "%s/" NAME, xdg) : -1;
		break;
	case 1:
		len = snprintf(buf, size, "/run/" NAME);
		break;
	case 2: /* where a login of this user has XDG_RUNTIME_DIR, though ours is not set */
		len = snprintf(buf, size, "/run/user/%u/" NAME, (unsigned)geteuid());
		break;
	}
	return len < 0 || (size_t)len >= size ? -ENOENT : 0;
}

int cli_runtime_dir_open(unsigned index, bool make, char *buf, size_t size)
{
	struct stat st;
	int fd, rc = place(index, buf, size);

	if (rc)
		return rc;
	if (make && mkdir(buf, 0700) && errno != EEXIST)
		return -errno;
	fd = open(buf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* Ours and closed to others: else somebody else could have made it, or what is in it. */
	if (!fstat(fd, &st) && st.st_uid == geteuid() && !(st.st_mode & 022))
		return fd;
	close(fd);
	return -EPERM;
}

static int make_in(const char *parent, const char *name, char *buf, size_t size)
{
	int len = snprintf(buf, size, "%s/%s-XXXXXX", parent, name);

	if (len < 0 || (size_t)len >= size)
		return -ENAMETOOLONG;
	return mkdtemp(buf) ? 0 : -errno;
}

int cli_runtime_dir_make(char *buf, size_t size)
{
	char parent[64];

	for (unsigned i = 0; i < 2; i++) {
		int fd = cli_runtime_dir_open(i, true, parent, sizeof(parent));

		if (fd < 0)
			continue;
		close(fd);
		if (!make_in(parent, "qemu", buf, size))
			return 0;
	}
	return make_in("/tmp", "migrate-rdma-qemu", buf, size);
}
