/* SPDX-License-Identifier: Apache-2.0 */
/* Reaching a QMP socket: most of what goes wrong here is a matter of how QEMU was started. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "qmp_input.h"

static int path_check(const char *path, struct lm_error *err)
{
	struct stat st;

	if (!path || !path[0])
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "no path of a QMP socket was given");
	if (stat(path, &st)) {
		if (errno == ENOENT)
			return lm_err(err, -ENOENT, LM_SCOPE_SESSION,
				      "there is no QMP socket %s: start QEMU with -qmp unix:%s,server=on,wait=off",
				      path, path);
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot reach the QMP socket %s", path);
	}
	if (!S_ISSOCK(st.st_mode))
		return lm_err(err, -ENOTSOCK, LM_SCOPE_SESSION,
			      "%s is not a socket: give the path of QEMU's -qmp unix:PATH,server=on,wait=off", path);
	return 0;
}

/* A socket address holds 107 characters; longer paths go through the folder's descriptor. */
static int address_fill(const char *path, struct sockaddr_un *addr, int *ret_dir, struct lm_error *err)
{
	const char *slash = strrchr(path, '/');
	LM_AUTO_FREE char *dir = NULL;

	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	if (strlen(path) < sizeof(addr->sun_path)) {
		strcpy(addr->sun_path, path);
		return 0;
	}
	if (!slash || strlen(slash) >= sizeof(addr->sun_path) - sizeof("/proc/self/fd/2147483647"))
		return lm_err(err, -ENAMETOOLONG, LM_SCOPE_SESSION, "the name of the QMP socket %s is too "
				"long", path);
	dir = strndup(path, (size_t)(slash - path) + 1);
	*ret_dir = dir ? open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	if (*ret_dir < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot open the folder of %s", path);
	snprintf(addr->sun_path, sizeof(addr->sun_path), "/proc/self/fd/%d%s", *ret_dir, slash);
	return 0;
}

static int connect_error(const char *path, int code, struct lm_error *err)
{
	if (code == -ECONNREFUSED)
		return lm_err(err, code, LM_SCOPE_VM,
			      "nobody listens at the QMP socket %s: the QEMU that made it has ended", path);
	if (code == -EAGAIN)
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
			      "the QMP socket %s is busy: QEMU serves one client at a time and others wait "
			      "already; give QEMU another -qmp socket for migrate-rdma", path);
	return lm_err_errno(err, code, LM_SCOPE_SESSION, "cannot connect to the QMP socket %s", path);
}

static int socket_connect(const char *path, int64_t deadline_ns, int *ret_fd, struct lm_error *err)
{
	const struct timespec pause = { .tv_nsec = 10 * LM_NS_PER_MS };
	LM_AUTO_FD int dir = -1;
	LM_AUTO_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un addr;
	int r = address_fill(path, &addr, &dir, err);

	if (r)
		return r;
	if (fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "socket");
	/* EAGAIN: the queue of the listener is full, which poll(2) cannot wait for */
	while (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		if (errno != EINTR && (errno != EAGAIN || lm_now_ns() >= deadline_ns))
			return connect_error(path, -errno, err);
		nanosleep(&pause, NULL);
	}
	*ret_fd = lm_steal_fd(&fd);
	return 0;
}

static int greeting_wait(struct lm_qmp *q, const char *path, int64_t deadline_ns, struct lm_error *err)
{
	while (!q->greeted) {
		int r = lm_qmp_step(q, deadline_ns, "no greeting", err);

		if (r == -ETIMEDOUT)
			return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
				      "%s does not greet: another client is connected to this QMP socket "
				      "(close it, or give QEMU another -qmp socket for migrate-rdma), or it is "
				      "not QMP, or QEMU hangs", path);
		if (r)
			return r;
	}
	return 0;
}

int lm_qmp_connect(const char *path, int cancel_fd, int64_t deadline_ns, struct lm_qmp **ret,
		   struct lm_error *err)
{
	struct lm_qmp *q = NULL;
	int fd = -1, r;

	r = path_check(path, err);
	if (!r)
		r = socket_connect(path, deadline_ns, &fd, err);
	if (r)
		return r;
	r = lm_qmp_adopt(fd, &q, err);
	if (r)
		return r;
	lm_qmp_set_cancel(q, cancel_fd);
	r = greeting_wait(q, path, deadline_ns, err);
	if (!r)
		r = lm_qmp_execute(q, "qmp_capabilities", NULL, deadline_ns, NULL, err);
	if (r)
		lm_qmp_close(q);
	else
		*ret = q;
	return r;
}
