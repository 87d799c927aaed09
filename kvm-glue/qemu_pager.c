/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pager of a destination's QEMU.
 *
 * userfaultfd(2) asks whether the process that calls it is privileged, and that is
 * QEMU, which mostly runs as a user of its own.  Who has /dev/userfaultfd open
 * (Linux 6.1) is not asked.  So where the call is refused we open the device,
 * give it to QEMU for a moment, and make the userfaultfd with it.
 */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include "engine/base/cleanup.h"
#include "qemu_priv.h"
#include "uffd_pager.h"

#define DEVICE "/dev/userfaultfd"
#define DEVICE_NAME "migrate-rdma-userfaultfd"

/* The number under which QEMU has the device open, -1 when it has not. */
static int device_number(const struct qemu *q, const struct stat *device)
{
	char path[64];
	struct dirent *e;
	struct stat st;
	int found = -1;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)q->pid);
	d = opendir(path);
	while (d && found < 0 && (e = readdir(d)))
		if (e->d_name[0] != '.' && !fstatat(dirfd(d), e->d_name, &st, 0) && S_ISCHR(st.st_mode) &&
		    st.st_rdev == device->st_rdev)
			found = (int)strtol(e->d_name, NULL, 10);
	if (d)
		closedir(d);
	return found;
}

static int pager_by_device(struct qemu *q, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err)
{
	LM_AUTO_FD int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	struct stat st;
	int r, number;

	if (fd < 0 || fstat(fd, &st))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
				    "QEMU runs without privileges and cannot wait for missing pages by itself, and "
				    DEVICE " cannot be opened: run migrate-rdma as root with Linux 6.1 or newer, or "
				    "sysctl vm.unprivileged_userfaultfd=1");
	r = lm_qmp_getfd(q->qmp, DEVICE_NAME, fd, qemu_deadline(q), err);
	if (r)
		return r;
	number = device_number(q, &st);
	r = number < 0 ? lm_err(err, -EIO, LM_SCOPE_SESSION, "QEMU did not keep " DEVICE) :
			 lm_uffd_pager_new_by(q->pid, ram, number, ret, err);
	/* the pager, if there is one, does not need it any more */
	qemu_ask(q, "closefd", lm_js_strings("fdname", DEVICE_NAME, NULL), NULL, NULL);
	return r;
}

int qemu_pager(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	int r;

	if (q->side != LM_DEST)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "only a destination waits for pages");
	r = lm_uffd_pager_new(q->pid, ram, ret, err);
	return r == -EPERM ? pager_by_device(q, ram, ret, err) : r;
}
