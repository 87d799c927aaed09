/* SPDX-License-Identifier: Apache-2.0 */
/* What every subcommand says to a command line that is wrong. */
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
