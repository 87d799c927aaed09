/* SPDX-License-Identifier: Apache-2.0 */
/* Asking a QEMU, and its process. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include "qemu_priv.h"

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
