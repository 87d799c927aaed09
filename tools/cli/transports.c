/* SPDX-License-Identifier: Apache-2.0 */
#include "cli.h"
#include "json.h"

int cli_transports(const struct cli_subcommand *self, struct cli_settings *settings)
{
	(void)self;
	for (const char *const *name = lm_transport_names(); *name; name++) {
		if (settings->json)
			cli_json_transport(*name, stdout);
		else
			printf("%s\n", *name);
	}
	return CLI_EXIT_OK;
}
