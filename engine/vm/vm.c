/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "engine/base/testhook.h"
#include "vm.h"

int lm_vm_regions(struct lm_vm *vm, struct lm_ram *ret_ram, struct lm_error *err)
{
	memset(ret_ram, 0, sizeof(*ret_ram));
	return vm->ops->regions(vm, ret_ram, err);
}

int lm_vm_ram_is(struct lm_vm *vm, const struct lm_ram *ram, bool *ret, struct lm_error *err)
{
	struct lm_ram now;
	int r;

	*ret = false;
	if (vm->ops->ram_is)
		return vm->ops->ram_is(vm, ram, ret, err);
	r = lm_vm_regions(vm, &now, err);
	if (r)
		return r;
	*ret = lm_ram_same(ram, &now);
	lm_ram_fini(&now);
	return 0;
}

int lm_vm_identity(struct lm_vm *vm, char ret_name[static 64], char ret_uuid[static 40], struct lm_error *err)
{
	ret_name[0] = ret_uuid[0] = 0;
	return vm->ops->identity ? vm->ops->identity(vm, ret_name, ret_uuid, err) : 0;
}

int lm_vm_tracker(struct lm_vm *vm, const struct lm_ram *ram, struct lm_dirty **ret, struct lm_error *err)
{
	*ret = NULL;
	return vm->ops->tracker(vm, ram, ret, err);
}

int lm_vm_pager(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err)
{
	*ret = NULL;
	if (!vm->ops->pager)
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "this VMM has no pager for post-copy");
	return vm->ops->pager(vm, ram, ret, err);
}

int lm_vm_drain(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	if (lm_broken("drain"))
		return 0;
	return vm->ops->drain(vm, deadline_ns, err);
}

int lm_vm_pause_start(struct lm_vm *vm, int state_fd, struct lm_error *err)
{
	return vm->ops->pause_start(vm, state_fd, err);
}

int lm_vm_pause_wait(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err)
{
	return vm->ops->pause_wait(vm, timeout_ms, ret, err);
}

int lm_vm_state_save(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	return vm->ops->state_save(vm, deadline_ns, err);
}

int lm_vm_state_load(struct lm_vm *vm, int state_fd, struct lm_error *err)
{
	return vm->ops->state_load(vm, state_fd, err);
}

int lm_vm_state_wait(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	return vm->ops->state_wait(vm, deadline_ns, err);
}

int lm_vm_resume(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err)
{
	return vm->ops->resume(vm, deadline_ns, ret, err);
}

int lm_vm_keep_fd(struct lm_vm *vm, const char *name, int fd, struct lm_error *err)
{
	if (!vm->ops->keep_fd)
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "this VM keeps no descriptors");
	return vm->ops->keep_fd(vm, name, fd, err);
}

int lm_vm_end(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	return vm->ops->force(vm->guardian_fd, vm->pidfd, LM_FORCE_END, deadline_ns, err);
}

void lm_vm_detach(struct lm_vm *vm)
{
	if (vm)
		vm->ops->detach(vm);
}
