/* SPDX-License-Identifier: Apache-2.0 */
#include "cli.h"

int cli_version(const struct cli_subcommand *self, struct cli_settings *settings)
{
	(void)self;
	(void)settings;
	printf("migrate-rdma %s\n", lm_version());
	return CLI_EXIT_OK;
}
