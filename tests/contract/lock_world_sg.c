/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent reservations through the kernel's own SCSI disks, in the lab (--with san): three hosts
 * with their own nexuses to LIO.  Two worlds: multipath maps, and plain disks of another
 * unit.  Writing is the kernel's, with O_DIRECT, and through every path.
 *
 * All hosts use the same URI, as they would: each has a mount namespace in which that
 * name is a link to its own device.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "lock_contract.h"
#include "storage/scsi_pr.h"

#define LINKS "/run/lock-disks"
#define BLOCK 4096
#define KEY UINT64_C(0x7e57)

enum unit { MAPS = 1, DISKS = 2 };

static char devices[NHOSTS][3][64]; /* by host and unit */
static unsigned next_unit;

static bool get(const char *name, char *ret)
{
	const char *value = getenv(name);

	if (value)
		snprintf(ret, 64, "%s", value);
	return value;
}

static bool sg_start(enum unit first, char *why, size_t size)
{
	char second[256] = "";

	next_unit = first;
	if (!get("LAB_DISK", devices[0][MAPS]) || !get("LAB_B_DISK", devices[1][MAPS]) ||
	    !get("LAB_C_DISK", devices[2][MAPS]) || !getenv("LAB_SECOND")) {
		snprintf(why, size, "needs the lab: tools/lab/run --with san");
		return false;
	}
	snprintf(second, sizeof(second), "%s", getenv("LAB_SECOND"));
	if (sscanf(second, "%63[^,],%63[^,],%63[^,]", devices[0][DISKS], devices[1][DISKS], devices[2][DISKS]) != 3) {
		snprintf(why, size, "LAB_SECOND does not name three disks");
		return false;
	}
	mkdir(LINKS, 0755);
	return true;
}

static bool maps_start(char *why, size_t size)
{
	return sg_start(MAPS, why, size);
}

static bool disks_start(char *why, size_t size)
{
	return sg_start(DISKS, why, size);
}

static void sg_stop(void)
{
	rmdir(LINKS);
}

/* All that is registered or reserved there goes. */
static void clear(const char *device)
{
	struct lm_scsi_path *paths[LM_SCSI_PATHS_MAX];
	int64_t deadline = lm_now_ns() + 10 * LM_NS_PER_S;
	struct lm_error err = { 0 };
	unsigned n = 0;
	int r = lm_scsi_sg_paths(device, paths, &n, &err);

	if (!r)
		r = lm_scsi_connect(paths[0], deadline, &err);
	if (!r)
		r = lm_pr_out(paths[0], LM_PR_REGISTER_IGNORE, 0, 0, KEY, false, deadline, &err);
	if (!r)
		r = lm_pr_out(paths[0], LM_PR_CLEAR, 0, KEY, 0, false, deadline, &err);
	for (unsigned i = 0; i < n; i++)
		lm_scsi_close(paths[i]);
	if (r)
		fail_msg("%s cannot be cleared: %s", device, err.msg);
}

/* LIO's loop deadlocks in PREEMPT AND ABORT: not there. */
static void sg_fresh(char uri[LM_LOCK_URI_MAX])
{
	clear(devices[2][next_unit]);
	snprintf(uri, LM_LOCK_URI_MAX, "scsi-pr:" LINKS "/%u?abort=no", next_unit);
	next_unit = MAPS + DISKS - next_unit;
}

static void sg_enter(unsigned host)
{
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("disks", LINKS, "tmpfs", 0, NULL) || symlink(devices[host][MAPS], LINKS "/1") ||
	    symlink(devices[host][DISKS], LINKS "/2")) {
		perror(LINKS);
		_exit(1);
	}
}

static int write_path(struct lm_scsi_path *p)
{
	uint8_t block[512] = { 0x55 };
	struct lm_scsi_cmd cmd = {
		.cdb = { 0x2a, [8] = 1 }, .cdb_len = 10, .direction = LM_SCSI_DATA_OUT, .data = block, .len = sizeof(block),
	};

	return lm_scsi_exec(p, &cmd, lm_now_ns() + 5 * LM_NS_PER_S, NULL);
}

/* As a guest's disk would. */
static int write_device(const struct lm_lock *l)
{
	char device[] = LINKS "/1";
	void *block = NULL;
	int fd, r;

	device[sizeof(LINKS)] = l->uri[strcspn(l->uri, "?") - 1];
	if (posix_memalign(&block, BLOCK, BLOCK))
		return -ENOMEM;
	memset(block, 0x55, BLOCK);
	fd = open(device, O_WRONLY | O_DIRECT | O_CLOEXEC);
	r = fd < 0 || pwrite(fd, block, BLOCK, 0) != BLOCK ? -errno : 0;
	if (fd >= 0)
		close(fd);
	free(block);
	return r;
}

/* 0: it can write, the owner through all paths; another that can through any is told so, too. */
static int sg_write(struct lm_lock *l)
{
	unsigned n, can;
	struct lm_scsi_path *const *paths = lm_scsi_pr_paths(l, &n);
	int r = write_device(l);

	can = !r;
	for (unsigned i = 0; i < n; i++)
		can += !write_path(paths[i]);
	if (can == n + 1 || (can && l->state != LM_LOCK_OWNED))
		return 0;
	if (can)
		return -EXDEV;
	return r == -EBADE ? -EBUSY : -EPROTO; /* the kernel's word for RESERVATION CONFLICT */
}

const struct world map_world = {
	.name = "scsi-map", .start = maps_start, .stop = sg_stop, .fresh = sg_fresh, .enter = sg_enter,
	.write = sg_write, .rule = "lock-proof",
};
const struct world disk_world = {
	.name = "scsi-disk", .start = disks_start, .stop = sg_stop, .fresh = sg_fresh, .enter = sg_enter,
	.write = sg_write, .rule = "lock-proof",
};
