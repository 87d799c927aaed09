/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "runtime.h"

/* Ours, a directory, and closed to others: else somebody else could have made it. */
static int private_parent(const char *path)
{
	struct stat st;

	if (mkdir(path, 0700) && errno != EEXIST)
		return -errno;
	if (lstat(path, &st))
		return -errno;
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 022)
		return -EPERM;
	return 0;
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
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	char parent[64];

	if (xdg && *xdg == '/' && snprintf(parent, sizeof(parent), "%s/migrate-rdma", xdg) <
	    (int)sizeof(parent) && !private_parent(parent) && !make_in(parent, "qemu", buf, size))
		return 0;
	if (!geteuid() && !private_parent("/run/migrate-rdma") &&
	    !make_in("/run/migrate-rdma", "qemu", buf, size))
		return 0;
	return make_in("/tmp", "migrate-rdma-qemu", buf, size);
}
