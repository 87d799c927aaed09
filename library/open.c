/* SPDX-License-Identifier: Apache-2.0 */
/* The public way in: a session of the engine over a QEMU. */
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "kvm-glue/qemu.h"
#include "engine/session/session.h"
#include "kvm-glue/uffd_pager.h"


static void attach_log(void *opaque, enum lm_log_level level, const char *text)
{
	const struct lm_options *o = opaque;
	struct lm_event e = { .type = LM_EVENT_LOG, .time_ns = lm_clock_ns(CLOCK_REALTIME) };

	if (!o->event || level > o->log_level)
		return;
	e.u.log.level = level;
	e.u.log.text = text;
	o->event(o->event_opaque, &e);
}

/* ---- a post-copy to go on with: nothing is asked of the VM, which may itself wait for pages ---- */

static void orphan_detach(struct lm_vm *vm)
{
	lm_close_fd(&vm->pidfd);
	free(vm);
}

static const struct lm_vm_ops orphan_ops = { .name = "orphan", .detach = orphan_detach };

static int orphan_new(pid_t pid, struct lm_vm **ret, struct lm_error *err)
{
	struct lm_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	vm->ops = &orphan_ops;
	vm->guardian_fd = -1;
	vm->pid = pid;
	vm->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (vm->pidfd < 0) {
		int r = lm_err_errno(err, -errno, LM_SCOPE_VM, "process %d", (int)pid);

		free(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

/* The process that listens on the QMP socket; it does not have to answer. */
static int find_pid(const struct lm_options *o, pid_t *ret, struct lm_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);
	int fd, r = 0;

	*ret = o->pid;
	if (o->pid)
		return 0;
	if (!o->qmp || strlen(o->qmp) >= sizeof(addr.sun_path))
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "give the QMP socket of the guest's QEMU, or --pid");
	strcpy(addr.sun_path, o->qmp);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		r = lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "cannot connect to %s (give --pid if QEMU is stuck)",
				 o->qmp);
	lm_close_fd(&fd);
	*ret = cred.pid;
	return r;
}

/* With every page whole the engine before us may have taken the pager out already. */
static int pager_reopen(pid_t pid, const struct lm_ram *ram, const struct lm_pcstate_head *head,
			struct lm_pager **ret, struct lm_error *err)
{
	int r = lm_uffd_pager_reopen(pid, ram, head->vm_fd, ret, err);

	if (!r || !head->whole)
		return r;
	*ret = NULL;
	lm_err_clear(err);
	return 0;
}

static int recover_open(struct lm_options *copy, enum lm_side side, int cancel_fd, struct lm_session **ret,
			struct lm_error *err)
{
	struct lm_pager *pager = NULL;
	struct lm_pcstate state = { 0 };
	struct lm_ram ram = { 0 };
	struct lm_vm *vm = NULL;
	pid_t pid;
	int r = find_pid(copy, &pid, err);

	if (!r)
		r = orphan_new(pid, &vm, err);
	if (!r)
		r = lm_pcstate_open(&state, side, pid, err);
	if (!r && side == LM_SOURCE && !state.head->committed)
		r = lm_err(err, -EINVAL, LM_SCOPE_OPERATION,
			   "this guest was not switched over: it runs here, and there is nothing to recover");
	if (!r)
		r = lm_pcstate_ram(&state, &ram, err);
	if (!r)
		r = lm_qemu_ram_reopen(pid, &ram, side == LM_DEST, err);
	if (!r && side == LM_DEST)
		r = pager_reopen(pid, &ram, state.head, &pager, err);
	if (!r)
		return lm_session_new_recover(copy, side, vm, cancel_fd, &ram, pager, &state, ret, err);
	lm_pager_close(pager);
	lm_ram_fini(&ram);
	lm_pcstate_close(&state);
	if (vm)
		lm_vm_detach(vm);
	lm_close_fd(&cancel_fd);
	free(copy);
	return r;
}

int lm_recover_open(const struct lm_options *options, bool destination, struct lm_session **ret_session,
		    struct lm_error *err)
{
	int cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct lm_options *copy = malloc(sizeof(*copy));

	*ret_session = NULL;
	if (cancel_fd < 0 || !copy) {
		free(copy);
		lm_close_fd(&cancel_fd);
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory or descriptors");
	}
	*copy = *options;
	return recover_open(copy, destination ? LM_DEST : LM_SOURCE, cancel_fd, ret_session, err);
}

typedef int new_fn(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
		   struct lm_error *err);

static int session_open(const struct lm_options *options, enum lm_side side, new_fn *new, struct lm_session **ret,
			struct lm_error *err)
{
	int cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), r;
	struct lm_options *copy;
	struct lm_vm *vm;

	*ret = NULL;
	if (cancel_fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "eventfd");
	/* The VM logs through it as long as it lives, so the session frees it. */
	copy = malloc(sizeof(*copy));
	if (copy)
		*copy = *options;
	r = copy ? 0 : lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	if (!r) {
		struct lm_qemu_options q = {
			.qmp = options->qmp, .pid = options->pid, .side = side,
			.timeout_ns = options->qmp_timeout_ns, .cancel_fd = cancel_fd,
			.log = attach_log, .log_opaque = copy,
		};

		r = lm_qemu_attach(&q, &vm, err);
	}
	if (r) {
		free(copy);
		lm_close_fd(&cancel_fd);
		return r;
	}
	return new(copy, vm, cancel_fd, ret, err);
}

static int new_source(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
		      struct lm_error *err)
{
	return lm_session_new(options, LM_SOURCE, vm, cancel_fd, ret, err);
}

static int new_dest(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
		    struct lm_error *err)
{
	return lm_session_new(options, LM_DEST, vm, cancel_fd, ret, err);
}

int lm_source_open(const struct lm_options *options, struct lm_session **ret_session, struct lm_error *err)
{
	return session_open(options, LM_SOURCE, new_source, ret_session, err);
}

int lm_dest_open(const struct lm_options *options, struct lm_session **ret_session, struct lm_error *err)
{
	return session_open(options, LM_DEST, new_dest, ret_session, err);
}

int lm_save_open(const struct lm_options *options, struct lm_session **ret_session, struct lm_error *err)
{
	return session_open(options, LM_SOURCE, lm_session_new_save, ret_session, err);
}

int lm_restore_open(const struct lm_options *options, struct lm_session **ret_session, struct lm_error *err)
{
	return session_open(options, LM_DEST, lm_session_new_restore, ret_session, err);
}

int lm_restore_resume(const struct lm_options *options, struct lm_session **ret_session, struct lm_error *err)
{
	return lm_recover_open(options, true, ret_session, err);
}
