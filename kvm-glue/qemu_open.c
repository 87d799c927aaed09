/* SPDX-License-Identifier: Apache-2.0 */
/* Connecting to a running QEMU: which version it is, which machine, which process. */
#include <string.h>
#include <sys/syscall.h>
#include "engine/base/cleanup.h"
#include "qemu_priv.h"

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
	q->base.guardian_fd = -1;
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
		q->base.guardian_fd = lm_qmp_fd(q->qmp);
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
