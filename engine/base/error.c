/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "error.h"

static void err_set(struct lm_error *err, int code, enum lm_scope scope, const char *fmt, va_list ap)
{
	err->code = code;
	err->scope = scope;
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
}

int lm_err(struct lm_error *err, int code, enum lm_scope scope, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	va_start(ap, fmt);
	err_set(err, code, scope, fmt, ap);
	va_end(ap);
	return code;
}

int lm_err_errno(struct lm_error *err, int code, enum lm_scope scope, const char *fmt, ...)
{
	char buf[128];
	va_list ap;
	size_t len;

	if (!err)
		return code;
	va_start(ap, fmt);
	err_set(err, code, scope, fmt, ap);
	va_end(ap);
	len = strlen(err->msg);
	snprintf(err->msg + len, sizeof(err->msg) - len, ": %s", strerror_r(-code, buf, sizeof(buf)));
	return code;
}

int lm_err_prefix(struct lm_error *err, const char *fmt, ...)
{
	char text[LM_ERROR_MSG_MAX];
	va_list ap;
	int len;

	if (!err)
		return -EIO;
	memcpy(text, err->msg, sizeof(text));
	va_start(ap, fmt);
	len = vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	if (len >= 0 && (size_t)len < sizeof(err->msg))
		snprintf(err->msg + len, sizeof(err->msg) - len, ": %.*s",
			 (int)(sizeof(err->msg) - len - 3), text);
	return err->code;
}
