/* SPDX-License-Identifier: Apache-2.0 */
#include "cli.h"
#include "json.h"
#include "text.h"

static void human(void *opaque, const struct lm_check *c)
{
	char found[sizeof(c->found)], advice[sizeof(c->advice)];

	(void)opaque;
	printf("    %s: %s\n", c->name, cli_text_clean(c->found, found, sizeof(found)));
	if (*c->advice)
		printf("        -> %s\n", cli_text_clean(c->advice, advice, sizeof(advice)));
}

static void json(void *opaque, const struct lm_check *c)
{
	cli_json_check(c, opaque, stdout);
}

int cli_transports(const struct cli_subcommand *self, struct cli_settings *settings)
{
	(void)self;
	for (const char *const *name = lm_transport_names(); *name; name++) {
		if (settings->json)
			cli_json_transport(*name, stdout);
		else
			printf("%s\n", *name);
		lm_check_transport(*name, settings->json ? json : human, (void *)*name);
	}
	return CLI_EXIT_OK;
}
