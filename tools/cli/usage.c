/* SPDX-License-Identifier: Apache-2.0 */
/* What is said to a command line that is wrong. */
#include <errno.h>
#include <stdarg.h>
#include "cli.h"

int cli_usage_error(const struct cli_subcommand *self, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "migrate-rdma %s: ", self->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n'migrate-rdma %s --help' lists its options.\n", self->name);
	return CLI_EXIT_USAGE;
}

int cli_invalid(struct lm_error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	err->code = -EINVAL;
	err->scope = LM_SCOPE_OPERATION;
	return -EINVAL;
}
