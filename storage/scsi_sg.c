/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths that the kernel has: a SCSI disk, or the disks below a device-mapper
 * multipath map.  Commands go to the disks themselves, so that each path is the nexus
 * that the kernel's own I/O uses.
 *
 * They go through /dev/sgN, where a command is sent and its answer fetched later: in
 * ioctl(SG_IO) a process waits for a target that does not answer until the kernel gives
 * up, and not even SIGKILL ends that.  A command that is given up here goes on
 * in the kernel, and may still be done by the target.
 */
#include <fcntl.h>
#include <poll.h>
#include <scsi/sg.h>
#include <scsi/sg_lib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "scsi_sg.h"

#define NO_ESCALATE 0x100 /* SG_SCSI_RESET_NO_ESCALATE: this unit, not its bus */
/*
 * When the kernel gives a command up it stops all I/O of the path, resets, and aborts.
 * That is not for our deadlines to bring about: this is its own limit for a disk's commands.
 */
#define KERNEL_MS 30000
#define AGAIN_US 10000

struct sg_path {
	struct lm_scsi_path path;
	char disk[LM_SG_NAME_MAX]; /* "sda" */
	int fd;                    /* of its /dev/sgN */
};

static struct sg_path *sg_of(struct lm_scsi_path *p)
{
	return (struct sg_path *)p;
}

static int sg_connect(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	struct sg_path *s = sg_of(p);
	char device[64];
	int r;

	(void)deadline_ns;
	lm_close_fd(&s->fd);
	r = lm_sg_device(s->disk, device, sizeof(device), err);
	if (r)
		return r;
	s->fd = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (s->fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "path %s: %s", s->disk, device);
	return 0;
}

/* The disk is there, and the one that was opened. */
static bool sg_alive(struct lm_scsi_path *p)
{
	struct pollfd f = { .fd = sg_of(p)->fd };

	return f.fd >= 0 && poll(&f, 1, 0) >= 0 && !(f.revents & (POLLHUP | POLLERR | POLLNVAL));
}

static int lost(struct sg_path *s, struct lm_error *err, const char *why)
{
	lm_close_fd(&s->fd); /* so the answer to a command that was given up is not taken for that of the next one */
	return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "%s", why);
}

static int wait_answer(struct sg_path *s, int64_t deadline_ns, struct lm_error *err)
{
	struct pollfd f = { .fd = s->fd, .events = POLLIN };
	int r;

	do
		r = poll(&f, 1, lm_deadline_poll_ms(deadline_ns));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return lost(s, err, "poll");
	if (!r)
		return lost(s, err, "no answer in time");
	if (!(f.revents & POLLIN))
		return lost(s, err, "the disk is gone");
	return 0;
}

static void answer(const struct sg_io_hdr *h, const uint8_t *sense, struct lm_scsi_cmd *cmd)
{
	struct sg_scsi_sense_hdr parsed;

	cmd->status = h->status;
	if (cmd->direction == LM_SCSI_DATA_IN && h->resid >= 0 && (size_t)h->resid <= cmd->len)
		cmd->got = cmd->len - (size_t)h->resid;
	if (h->sb_len_wr && sg_scsi_normalize_sense(sense, h->sb_len_wr, &parsed)) {
		cmd->sense_key = parsed.sense_key;
		cmd->asc = (uint16_t)(parsed.asc << 8 | parsed.ascq);
	}
}

static int sg_exec(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err)
{
	static const int directions[] = {
		[LM_SCSI_NO_DATA] = SG_DXFER_NONE, [LM_SCSI_DATA_IN] = SG_DXFER_FROM_DEV,
		[LM_SCSI_DATA_OUT] = SG_DXFER_TO_DEV,
	};
	struct sg_path *s = sg_of(p);
	uint8_t sense[64] = { 0 };
	struct sg_io_hdr h = {
		.interface_id = 'S', .dxfer_direction = directions[cmd->direction], .cmd_len = (uint8_t)cmd->cdb_len,
		.mx_sb_len = sizeof(sense), .dxfer_len = (unsigned)cmd->len, .dxferp = cmd->data, .cmdp = cmd->cdb,
		.sbp = sense, .timeout = KERNEL_MS,
	};
	int r;

	if (s->fd < 0)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "not open");
	if (write(s->fd, &h, sizeof(h)) != (ssize_t)sizeof(h))
		return lost(s, err, errno == ENODEV ? "the disk is gone" : "the kernel does not take the command");
	r = wait_answer(s, deadline_ns, err);
	if (r)
		return r;
	if (read(s->fd, &h, sizeof(h)) != (ssize_t)sizeof(h))
		return lost(s, err, "the kernel has no answer");
	if (h.host_status)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "no answer (host byte %02x)", h.host_status);
	answer(&h, sense, cmd);
	return 0;
}

/* --- reset ------------------------------------------------------------------------ */

/* In a process of its own: errno of the reset goes into the pipe.  Only async-signal-safe calls. */
static void reset_main(int fd, int pipe_fd, int64_t deadline_ns)
{
	int what, code;

	/* The child may hang for minutes, so it closes all sockets, files and locks that it inherited. */
	fd = fcntl(fd, F_DUPFD, 3);
	pipe_fd = fcntl(pipe_fd, F_DUPFD, 3);
	dup2(fd, 0);
	dup2(pipe_fd, 1);
	close_range(2, ~0U, 0);
	do {
		what = SG_SCSI_RESET_DEVICE | NO_ESCALATE;
		code = ioctl(0, SG_SCSI_RESET, &what) ? errno : 0;
	} while (code == EAGAIN && lm_now_ns() < deadline_ns && !usleep(AGAIN_US)); /* error recovery runs */
	_exit(write(1, &code, sizeof(code)) != (ssize_t)sizeof(code));
}

/* Two forks: when it hangs in the kernel nobody has to wait for it. */
static int reset_start(int fd, int64_t deadline_ns, int *ret_pipe, struct lm_error *err)
{
	int pair[2], status;
	pid_t middle;

	if (pipe2(pair, O_CLOEXEC))
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "pipe");
	middle = fork();
	if (!middle) {
		if (!fork())
			reset_main(fd, pair[1], deadline_ns);
		_exit(0);
	}
	lm_close_fd(&pair[1]);
	*ret_pipe = pair[0];
	if (middle < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "fork");
	while (waitpid(middle, &status, 0) < 0 && errno == EINTR)
		;
	return 0;
}

static int sg_reset(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	struct pollfd f = { .events = POLLIN };
	LM_AUTO_FD int fd = -1;
	int code, n, r = reset_start(sg_of(p)->fd, deadline_ns, &fd, err);

	if (r)
		return r;
	f.fd = fd;
	do
		n = poll(&f, 1, lm_deadline_poll_ms(deadline_ns));
	while (n < 0 && errno == EINTR);
	if (!n)
		return lost(sg_of(p), err, "no answer to LOGICAL UNIT RESET in time");
	if (read(fd, &code, sizeof(code)) != (ssize_t)sizeof(code))
		code = EIO; /* the second fork failed, or somebody killed it */
	if (code)
		return lm_err(err, code == ENODEV ? -ENOLINK : -EIO, LM_SCOPE_OPERATION, "path %s: LOGICAL UNIT RESET: %s",
			      p->name, strerrordesc_np(code));
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
	.alive = sg_alive,
	.reset = sg_reset,
	.close = sg_close,
};

struct lm_scsi_path *lm_sg_path(const char *disk)
{
	struct sg_path *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->path.ops = &sg_ops;
	s->fd = -1;
	snprintf(s->disk, sizeof(s->disk), "%s", disk);
	snprintf(s->path.name, sizeof(s->path.name), "%s", disk);
	return &s->path;
}
