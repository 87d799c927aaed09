/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether an OFD lock on a file is seen by the other hosts.  A file system that is
 * not known to do it is refused: a lock that only looks like one is worse than none.
 */
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "engine/base/cleanup.h"
#include "lease_record.h"

#define OPTIONS_MAX 2048

enum verdict { LOCAL, SHARED };

/* type is that of /proc/self/mountinfo; a word in refuse (mount options) makes it local. */
static const struct fs_kind {
	const char *type;
	enum verdict verdict;
	const char *need;     /* prefix of an option that must be there; NULL: none */
	const char *refuse[4]; /* prefixes of options that must not */
	const char *why;
} kinds[] = {
	{ "nfs", SHARED, NULL, { "nolock", "local_lock=all", "local_lock=posix" },
	  "it is mounted with locks that stay on this host" },
	{ "nfs4", SHARED, NULL, { "nolock", "local_lock=all", "local_lock=posix" },
	  "it is mounted with locks that stay on this host" },
	{ "ceph", SHARED, NULL, { NULL }, NULL },
	{ "gfs2", SHARED, NULL, { "localflocks", "lockproto=lock_nolock" },
	  "it is mounted with locks that stay on this host" },
	{ "ocfs2", SHARED, "cluster_stack=", { "localflocks" },
	  "only with a user-space cluster stack (mount option cluster_stack) do its record locks reach other hosts" },
	{ "gpfs", SHARED, NULL, { NULL }, NULL },
	{ "lustre", SHARED, "flock", { "localflock", "noflock" }, "it is not mounted with the option flock" },
	{ "cifs", SHARED, NULL, { "nobrl" }, "it is mounted with nobrl: locks stay on this host" },
	{ "smb3", SHARED, NULL, { "nobrl" }, "it is mounted with nobrl: locks stay on this host" },
	{ "fuse.glusterfs", SHARED, NULL, { NULL }, NULL },
	{ "fuse.ceph", SHARED, NULL, { NULL }, NULL },
	{ "fuse.ceph-fuse", SHARED, NULL, { NULL }, NULL },
};

/* The type and both lists of options of the file system that dev is. */
static bool mount_find(dev_t dev, char type[64], char options[OPTIONS_MAX])
{
	LM_AUTO_FILE FILE *f = fopen("/proc/self/mountinfo", "re");
	LM_AUTO_FREE char *line = NULL;
	size_t size = 0;

	while (f && getline(&line, &size, f) > 0) {
		char *end = strstr(line, " - "), mount[1024] = "", super[1024] = "";
		unsigned major, minor;

		if (!end || sscanf(line, "%*d %*d %u:%u %*s %*s %1023s", &major, &minor, mount) != 3 ||
		    makedev(major, minor) != dev)
			continue;
		if (sscanf(end + 3, "%63s %*s %1023s", type, super) < 1)
			continue;
		snprintf(options, OPTIONS_MAX, "%s,%s", mount, super);
		return true;
	}
	return false;
}

static bool has_option(const char *options, const char *prefix)
{
	size_t len = strlen(prefix);

	for (const char *p = options; *p; p += strcspn(p, ","), p += *p == ',')
		if (!strncmp(p, prefix, len))
			return true;
	return false;
}

static bool kind_good(const struct fs_kind *k, const char *options)
{
	if (k->verdict == LOCAL || (k->need && !has_option(options, k->need)))
		return false;
	for (size_t i = 0; i < 4 && k->refuse[i]; i++)
		if (has_option(options, k->refuse[i]))
			return false;
	return true;
}

int lease_fs_check(int fd, const char *path, struct lm_error *err)
{
	char type[64] = "?", options[OPTIONS_MAX] = "";
	struct stat st;

	if (fstat(fd, &st))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%s", path);
	if (!mount_find(st.st_dev, type, options))
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%.300s: its file system is not in "
			      "/proc/self/mountinfo, so it is not known whether locks reach other hosts", path);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (strcmp(kinds[i].type, type))
			continue;
		if (kind_good(&kinds[i], options))
			return 0;
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%.300s is on %s, and %s", path, type, kinds[i].why);
	}
	return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%.300s is on %s, whose locks do not reach other hosts (or are "
		      "not known to): put it on a cluster file system or NFS, or use scsi-pr: or sanlock:", path, type);
}
