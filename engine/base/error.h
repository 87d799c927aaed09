/* SPDX-License-Identifier: Apache-2.0 */
/* Errors: negative errno plus a text for the person who reads it. */
#ifndef LM_ERROR_H
#define LM_ERROR_H

#include <errno.h>
#include "engine/migrate_rdma.h"

/*
 * Fill *err (which may be NULL) and return code, so that a caller can write
 * `return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "...")`.  code is negative.
 */
int lm_err(struct lm_error *err, int code, enum lm_scope scope, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* The same, with ": strerror(-code)" added to the text. */
int lm_err_errno(struct lm_error *err, int code, enum lm_scope scope, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* Put words before the text that is there: "lane 2: connection reset". Returns err->code. */
int lm_err_prefix(struct lm_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static inline void lm_err_clear(struct lm_error *err)
{
	if (err) {
		err->code = 0;
		err->msg[0] = 0;
	}
}

#endif
