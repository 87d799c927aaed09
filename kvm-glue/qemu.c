/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching to a running QEMU, and letting go of it. */
#include <stdio.h>
#include <string.h>
#include "qemu_priv.h"
#include "uffd_wp.h"

static void qemu_detach(struct lm_vm *vm)
{
	struct qemu *q = qemu_of(vm);

	lm_qmp_set_cancel(q->qmp, -1);
	qemu_caps_restore(q);
	qemu_close(q);
}

static int qemu_tracker(struct lm_vm *vm, const struct lm_ram *ram, struct lm_dirty **ret, struct lm_error *err)
{
	return lm_uffd_wp_new(qemu_of(vm)->pid, ram, ret, err);
}

static int qemu_resume(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	int r;

	lm_qmp_set_cancel(q->qmp, -1);
	r = q->side == LM_SOURCE ? qemu_undo(q, deadline_ns, err) : qemu_run_loaded(q, deadline_ns, err);
	if (!r && ret)
		ret->stopped_ns = q->seen.resumed ? q->seen.resumed_ns : lm_clock_ns(CLOCK_REALTIME);
	return r;
}

static int qemu_identity(struct lm_vm *vm, char ret_name[64], char ret_uuid[40], struct lm_error *err)
{
	LM_AUTO_JS struct json_object *name = NULL;
	LM_AUTO_JS struct json_object *uuid = NULL;
	struct qemu *q = qemu_of(vm);
	int r = qemu_ask(q, "query-name", NULL, &name, err);

	if (!r)
		r = qemu_ask(q, "query-uuid", NULL, &uuid, err);
	if (r)
		return r;
	snprintf(ret_name, 64, "%s", lm_js_text(name, "name"));
	snprintf(ret_uuid, 40, "%s", lm_js_text(uuid, "UUID"));
	return 0;
}

static int qemu_keep_fd(struct lm_vm *vm, const char *name, int fd, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);

	return lm_qmp_getfd(q->qmp, name, fd, qemu_deadline(q), err);
}

static const struct lm_vm_ops qemu_ops = {
	.name = "qemu",
	.regions = qemu_regions,
	.ram_is = qemu_ram_is,
	.identity = qemu_identity,
	.tracker = qemu_tracker,
	.pager = qemu_pager,
	.drain = qemu_drain,
	.pause_start = qemu_pause_start,
	.pause_wait = qemu_pause_wait,
	.state_save = qemu_state_save,
	.state_load = qemu_state_load,
	.state_wait = qemu_state_wait,
	.resume = qemu_resume,
	.keep_fd = qemu_keep_fd,
	.force = qemu_force,
	.detach = qemu_detach,
};

struct first_failure {
	struct lm_check check;
	bool set;
};

static void failure_note(void *opaque, const struct lm_check *check)
{
	struct first_failure *f = opaque;

	if (f->set || check->status != LM_CHECK_FAIL)
		return;
	f->check = *check;
	f->set = true;
}

int lm_qemu_attach(const struct lm_qemu_options *options, struct lm_vm **ret, struct lm_error *err)
{
	struct first_failure f = { .set = false };
	struct qemu *q = NULL;
	int r = qemu_open(options, &q, err);

	if (!r)
		r = qemu_rules_check(q, failure_note, &f, err);
	if (r > 0)
		r = lm_err(err, -EOPNOTSUPP, LM_SCOPE_SESSION, "%s: %s; %s", f.check.name, f.check.found,
			   f.check.advice);
	if (r) {
		qemu_close(q);
		return r;
	}
	qemu_debug(q, "attached to QEMU %s, process %d, machine %s", q->base.info.version, (int)q->pid,
		   q->base.info.machine);
	q->base.ops = &qemu_ops;
	*ret = &q->base;
	return 0;
}
