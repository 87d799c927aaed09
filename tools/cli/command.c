/* SPDX-License-Identifier: Apache-2.0 */
/* From argv to a subcommand. */
#include <string.h>
#include "options.h"

/* --help and --version are subcommands, too, for those who expect them. */
static const char *subcommand_name(const char *word)
{
	if (!strcmp(word, "--help") || !strcmp(word, "-h"))
		return "help";
	if (!strcmp(word, "--version") || !strcmp(word, "-V"))
		return "version";
	return word;
}

static int no_subcommand(const char *word)
{
	if (!word) {
		cli_help_overview(subcommands, stderr);
		return CLI_EXIT_USAGE;
	}
	fprintf(stderr, "migrate-rdma: there is no subcommand '%s'; there are:", word);
	for (const struct cli_subcommand *s = subcommands; s->name; s++)
		fprintf(stderr, " %s", s->name);
	fprintf(stderr, "\n");
	return CLI_EXIT_USAGE;
}

int cli_main(int argc, char *argv[])
{
	const struct cli_subcommand *sub = argc > 1 ? cli_subcommand_find(subcommand_name(argv[1])) : NULL;
	struct cli_settings settings;
	struct lm_error err = { 0 };

	if (!sub)
		return no_subcommand(argc > 1 ? argv[1] : NULL);
	cli_settings_init(&settings);
	settings.subcommands = subcommands;
	if (cli_options_parse(sub, argc - 1, argv + 1, &settings, &err))
		return cli_usage_error(sub, "%s", err.msg);
	if (settings.help) {
		cli_help_subcommand(sub, stdout);
		return CLI_EXIT_OK;
	}
	return sub->run(sub, &settings);
}
