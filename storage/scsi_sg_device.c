/* SPDX-License-Identifier: Apache-2.0 */
/* The /dev/sg device of a SCSI disk.  From sysfs, so it does not block. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "scsi_sg.h"

/* The first entry of a folder. */
static bool first_entry(const char *folder, char *ret, size_t size)
{
	DIR *dir = opendir(folder);
	struct dirent *d;
	bool found = false;

	while (dir && !found && (d = readdir(dir))) {
		found = *d->d_name != '.' && strlen(d->d_name) < size;
		if (found)
			memcpy(ret, d->d_name, strlen(d->d_name) + 1);
	}
	if (dir)
		closedir(dir);
	return found;
}

int lm_sg_device(const char *disk, char *ret, size_t size, struct lm_error *err)
{
	char folder[128], name[LM_SG_NAME_MAX];

	snprintf(folder, sizeof(folder), "/sys/block/%s/device", disk);
	if (access(folder, F_OK))
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "path %s: there is no such SCSI disk (any more)", disk);
	snprintf(folder, sizeof(folder), "/sys/block/%s/device/scsi_generic", disk);
	if (!first_entry(folder, name, sizeof(name)))
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "path %s has no /dev/sg device, and is it a SCSI disk? If so: "
			      "modprobe sg", disk);
	snprintf(ret, size, "/dev/%s", name);
	return 0;
}
