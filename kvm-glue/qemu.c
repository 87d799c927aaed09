/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching to a running QEMU, and letting go of it. */
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include "engine/base/cleanup.h"
#include "qemu_priv.h"
#include "uffd_wp.h"

void qemu_debug(struct qemu *q, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	if (!q->log)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	q->log(q->log_opaque, LM_LOG_DEBUG, text);
}

int qemu_ask(struct qemu *q, const char *command, struct json_object *args, struct json_object **ret,
	     struct lm_error *err)
{
	return lm_qmp_execute(q->qmp, command, args, qemu_deadline(q), ret, err);
}

int qemu_qom_get(struct qemu *q, const char *path, const char *property, struct json_object **ret,
		 struct lm_error *err)
{
	return qemu_ask(q, "qom-get", lm_js_strings("path", path, "property", property, NULL), ret, err);
}

int qemu_proc_open(const struct qemu *q, const char *name, int flags)
{
	char path[128];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)q->pid, name);
	return open(path, flags | O_CLOEXEC);
}

static int version_read(struct qemu *q, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *v = NULL;
	struct json_object *n;
	int r = qemu_ask(q, "query-version", NULL, &v, err);

	if (r)
		return r;
	n = lm_js_get(v, "qemu");
	q->major = (int)lm_js_int(n, "major", 0);
	q->minor = (int)lm_js_int(n, "minor", 0);
	snprintf(q->base.info.version, sizeof(q->base.info.version), "%d.%d.%d %s", q->major, q->minor,
		 (int)lm_js_int(n, "micro", 0), lm_js_text(v, "package"));
	return 0;
}

/* "pc-q35-7.2-machine" is the type of machine pc-q35-7.2, whatever alias was asked for. */
static int machine_read(struct qemu *q, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *type = NULL;
	const char *name;
	size_t len;
	int r = qemu_qom_get(q, "/machine", "type", &type, err);

	if (r)
		return r;
	name = json_object_get_string(type);
	len = name ? strlen(name) : 0;
	if (len > strlen("-machine") && !strcmp(name + len - strlen("-machine"), "-machine"))
		len -= strlen("-machine");
	snprintf(q->base.info.machine, sizeof(q->base.info.machine), "%.*s", (int)len, name ? name : "");
	return 0;
}

static int info_read(struct qemu *q, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *cpus = NULL;
	struct qemu_status st;
	int r = version_read(q, err);

	if (!r)
		r = machine_read(q, err);
	if (!r)
		r = qemu_ask(q, "query-cpus-fast", NULL, &cpus, err);
	if (!r)
		r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);
	if (r)
		return r;
	strcpy(q->base.info.vmm, "qemu");
	q->base.info.vcpus = (unsigned)lm_js_len(cpus);
	q->base.info.running = st.running;
	return 0;
}

static int process_find(struct qemu *q, pid_t pid, struct lm_error *err)
{
	q->pid = pid ? pid : lm_qmp_peer_pid(q->qmp);
	if (q->pid <= 0)
		return lm_err(err, -ESRCH, LM_SCOPE_SESSION,
			      "the process behind the QMP socket is in another PID namespace: give it with --pid");
	q->base.pid = q->pid;
	q->base.pidfd = (int)syscall(SYS_pidfd_open, q->pid, 0);
	if (q->base.pidfd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
				    "cannot open process %d%s", (int)q->pid,
				    pid ? "" : ", which made the QMP socket: give QEMU's own with --pid");
	return 0;
}

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
	.rescue = qemu_rescue,
	.detach = qemu_detach,
};

void qemu_close(struct qemu *q)
{
	if (!q)
		return;
	lm_qmp_close(q->qmp);
	lm_close_fd(&q->base.pidfd);
	lm_close_fd(&q->state_fd);
	lm_js_put(&q->caps_before);
	lm_js_put(&q->params_before);
	free(q);
}

static struct qemu *qemu_new(const struct lm_qemu_options *o)
{
	struct qemu *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->base.ops = &qemu_ops;
	q->base.rescue_fd = -1;
	q->side = o->side;
	q->base.pidfd = -1;
	q->state_fd = -1;
	q->timeout_ns = o->timeout_ns > 0 ? o->timeout_ns : QEMU_TIMEOUT_NS;
	q->log = o->log;
	q->log_opaque = o->log_opaque;
	return q;
}

int qemu_open(const struct lm_qemu_options *options, struct qemu **ret, struct lm_error *err)
{
	struct qemu *q = qemu_new(options);
	int r;

	if (!q)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	r = lm_qmp_connect(options->qmp, options->cancel_fd, qemu_deadline(q), &q->qmp, err);
	if (!r) {
		lm_qmp_set_event(q->qmp, qemu_on_event, q);
		q->base.rescue_fd = lm_qmp_fd(q->qmp);
		r = process_find(q, options->pid, err);
	}
	if (!r)
		r = info_read(q, err);
	if (r) {
		qemu_close(q);
		return r;
	}
	*ret = q;
	return 0;
}

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
	*ret = &q->base;
	return 0;
}
