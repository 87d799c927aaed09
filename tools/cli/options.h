/* SPDX-License-Identifier: Apache-2.0 */
/* From the words of a command line to struct cli_settings, by an option table. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include "cli.h"

/* The engine's defaults and nothing else. */
void cli_settings_init(struct cli_settings *ret);

/*
 * argv[0] is the subcommand.  Returns 0, or -EINVAL with a message in err that says what to write
 * instead.  When --help is among the options, missing options are no error.  Not thread-safe
 * (getopt).
 */
int cli_options_parse(const struct cli_subcommand *sub, int argc, char *argv[],
		      struct cli_settings *settings, struct lm_error *err);

/* The default of an option as --help shows it; false: it has none worth showing. */
bool cli_option_default(const struct cli_option *option, char *buf, size_t size);

#endif
