/* SPDX-License-Identifier: Apache-2.0 */
#include "cli.h"
#include "running.h"

int cli_postcopy(const struct cli_subcommand *self, struct cli_settings *settings)
{
	struct lm_error err = { 0 };
	int32_t pid = 0;

	if (!settings->lm.qmp == !settings->lm.pid)
		return cli_usage_error(self, "say which guest: --qmp SOCKET, or --pid PID of its QEMU");
	if (cli_running_ask(settings->lm.qmp, settings->lm.pid, &pid, &err)) {
		fprintf(stderr, "migrate-rdma %s: nothing done: %s\n", self->name, err.msg);
		return CLI_EXIT_REFUSED;
	}
	if (!settings->quiet)
		printf("The 'send' of this guest (process %d) was asked to switch over now; its output tells the rest.\n",
		       pid);
	return CLI_EXIT_OK;
}
