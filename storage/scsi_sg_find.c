/* SPDX-License-Identifier: Apache-2.0 */
/* Which SCSI disks a device stands for: itself, or those below a multipath map.  From sysfs, so it does not block. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "engine/base/cleanup.h"
#include "scsi_sg.h"

static int add(const char *name, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *n,
	       struct lm_error *err)
{
	if (*n == LM_SCSI_PATHS_MAX)
		return lm_err(err, -E2BIG, LM_SCOPE_OPERATION, "more than %d paths", LM_SCSI_PATHS_MAX);
	if (strlen(name) >= LM_SG_NAME_MAX)
		return lm_err(err, -ENAMETOOLONG, LM_SCOPE_OPERATION, "%.64s: no SCSI disk has such a long name", name);
	paths[*n] = lm_sg_path(name);
	if (!paths[*n])
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	(*n)++;
	return 0;
}

/* First line of /sys/dev/block/M:N/what; false when there is none. */
static bool sysfs_read(dev_t dev, const char *what, char *buf, size_t size)
{
	char path[128];
	LM_AUTO_FILE FILE *f = NULL;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(dev), minor(dev), what);
	f = fopen(path, "re");
	return f && fgets(buf, (int)size, f);
}

static int by_name(const void *a, const void *b)
{
	const struct lm_scsi_path *const *x = a, *const *y = b;

	return strverscmp((*x)->name, (*y)->name);
}

/* The disks below a multipath map.  In an order that does not change: the first is the one that reserves. */
static int add_slaves(dev_t dev, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *n,
		      struct lm_error *err)
{
	char path[128];
	struct dirent *d;
	DIR *dir;
	int r = 0;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves", major(dev), minor(dev));
	dir = opendir(path);
	if (!dir)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%s", path);
	while (!r && (d = readdir(dir)))
		if (*d->d_name != '.')
			r = add(d->d_name, paths, n, err);
	closedir(dir);
	qsort(paths, *n, sizeof(*paths), by_name);
	if (!r && !*n)
		r = lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "the multipath map has no path");
	return r;
}

static int find(const char *device, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *n,
		struct lm_error *err)
{
	char text[256];
	struct stat st;

	if (stat(device, &st))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%.300s", device);
	if (!S_ISBLK(st.st_mode))
		return lm_err(err, -ENOTBLK, LM_SCOPE_OPERATION, "%.300s is not a block device", device);
	if (sysfs_read(st.st_rdev, "dm/uuid", text, sizeof(text))) {
		if (!strncmp(text, "mpath-", 6))
			return add_slaves(st.st_rdev, paths, n, err);
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%.300s is a device-mapper device, but no multipath map: name "
			      "the whole LUN", device);
	}
	if (sysfs_read(st.st_rdev, "partition", text, sizeof(text)))
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%.300s is a partition, and a reservation is of the whole "
			      "LUN: name that", device);
	return add(strrchr(device, '/') + 1, paths, n, err);
}

int lm_scsi_sg_paths(const char *device, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *ret_n,
		     struct lm_error *err)
{
	char real[4096];
	unsigned n = 0;
	int r;

	*ret_n = 0;
	if (!realpath(device, real))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%.300s", device);
	r = find(real, paths, &n, err);
	for (unsigned i = 0; r && i < n; i++)
		lm_scsi_close(paths[i]);
	*ret_n = r ? 0 : n;
	return r;
}
