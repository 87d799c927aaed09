/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths that the kernel has: a SCSI disk, or the disks below a device-mapper
 * multipath map.  Commands go to the disks themselves with SG_IO (libsgutils2), so that
 * each path is the nexus that the kernel's own I/O uses.
 */
#include <dirent.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <scsi/sg_lib.h>
#include <scsi/sg_pt.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "cleanup.h"
#include "clock.h"
#include "scsi_path.h"

#define NO_ESCALATE 0x100 /* SG_SCSI_RESET_NO_ESCALATE: this unit, not its bus */
#define COMMAND_S_MAX 30

struct sg_path {
	struct lm_scsi_path path;
	char device[64];
	int fd;
};

static struct sg_path *sg_of(struct lm_scsi_path *p)
{
	return (struct sg_path *)p;
}

static int sg_connect(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	struct sg_path *s = sg_of(p);

	(void)deadline_ns;
	lm_close_fd(&s->fd);
	s->fd = open(s->device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (s->fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%s", s->device);
	return 0;
}

static int seconds_left(int64_t deadline_ns)
{
	int ms = lm_deadline_poll_ms(deadline_ns);

	return ms < 0 || ms > COMMAND_S_MAX * 1000 ? COMMAND_S_MAX : (ms + 999) / 1000;
}

static void sg_answer(const struct sg_pt_base *pt, const uint8_t *sense, struct lm_scsi_cmd *cmd)
{
	struct sg_scsi_sense_hdr h;
	int resid = get_scsi_pt_resid(pt), len = get_scsi_pt_sense_len(pt);

	cmd->status = (uint8_t)get_scsi_pt_status_response(pt);
	if (cmd->direction == LM_SCSI_DATA_IN && resid >= 0 && (size_t)resid <= cmd->len)
		cmd->got = cmd->len - (size_t)resid;
	if (len > 0 && sg_scsi_normalize_sense(sense, len, &h)) {
		cmd->sense_key = h.sense_key;
		cmd->asc = (uint16_t)(h.asc << 8 | h.ascq);
	}
}

static int sg_exec(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err)
{
	struct sg_path *s = sg_of(p);
	int left = seconds_left(deadline_ns), r;
	struct sg_pt_base *pt;
	uint8_t sense[64] = { 0 };

	if (s->fd < 0 || !left)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, left ? "not open" : "no time left");
	pt = construct_scsi_pt_obj_with_fd(s->fd, 0);
	if (!pt)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	set_scsi_pt_cdb(pt, cmd->cdb, (int)cmd->cdb_len);
	set_scsi_pt_sense(pt, sense, sizeof(sense));
	if (cmd->direction == LM_SCSI_DATA_IN)
		set_scsi_pt_data_in(pt, cmd->data, (int)cmd->len);
	else if (cmd->direction == LM_SCSI_DATA_OUT)
		set_scsi_pt_data_out(pt, cmd->data, (int)cmd->len);
	r = do_scsi_pt(pt, -1, left, 0);
	if (r) {
		r = lm_err_errno(err, r < 0 ? r : -EIO, LM_SCOPE_OPERATION, "SG_IO");
	} else if (get_scsi_pt_result_category(pt) == SCSI_PT_RESULT_TRANSPORT_ERR ||
		   get_scsi_pt_result_category(pt) == SCSI_PT_RESULT_OS_ERR) {
		r = lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "no answer (host byte %x)", get_scsi_pt_transport_err(pt));
	} else {
		sg_answer(pt, sense, cmd);
	}
	destruct_scsi_pt_obj(pt);
	return r;
}

/* The kernel has no deadline for this; its own is the device's eh_timeout. */
static int sg_reset(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	int what = SG_SCSI_RESET_DEVICE | NO_ESCALATE;

	(void)deadline_ns;
	if (ioctl(sg_of(p)->fd, SG_SCSI_RESET, &what))
		return lm_err_errno(err, -EIO, LM_SCOPE_OPERATION, "%s: resetting the unit", p->name);
	return 0;
}

static void sg_close(struct lm_scsi_path *p)
{
	lm_close_fd(&sg_of(p)->fd);
	free(p);
}

static const struct lm_scsi_path_ops sg_ops = {
	.connect = sg_connect,
	.exec = sg_exec,
	.reset = sg_reset,
	.close = sg_close,
};

static int sg_add(const char *name, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *n,
		  struct lm_error *err)
{
	struct sg_path *s;

	if (*n == LM_SCSI_PATHS_MAX)
		return lm_err(err, -E2BIG, LM_SCOPE_OPERATION, "more than %d paths", LM_SCSI_PATHS_MAX);
	s = calloc(1, sizeof(*s));
	if (!s)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	s->path.ops = &sg_ops;
	s->fd = -1;
	snprintf(s->device, sizeof(s->device), "/dev/%.50s", name);
	snprintf(s->path.name, sizeof(s->path.name), "%.50s", name);
	paths[(*n)++] = &s->path;
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

/* The disks below a multipath map. */
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
			r = sg_add(d->d_name, paths, n, err);
	closedir(dir);
	if (!r && !*n)
		r = lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "the multipath map has no path");
	return r;
}

static int sg_find(const char *device, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *n,
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
	return sg_add(strrchr(device, '/') + 1, paths, n, err);
}

int lm_scsi_sg_paths(const char *device, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *ret_n,
		     struct lm_error *err)
{
	char real[4096];
	unsigned n = 0;
	int r;

	if (!realpath(device, real))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "%.300s", device);
	r = sg_find(real, paths, &n, err);
	for (unsigned i = 0; r && i < n; i++)
		lm_scsi_close(paths[i]);
	*ret_n = n;
	return r;
}
