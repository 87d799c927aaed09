/* SPDX-License-Identifier: Apache-2.0 */
/* The argument of one option. */
#ifndef CLI_OPTION_VALUE_H
#define CLI_OPTION_VALUE_H

#include "cli.h"

/* Store text (NULL for an option without an argument) where the option's table says, or say what is wrong with it. */
int cli_option_value(const struct cli_option *o, const char *text, struct cli_settings *settings,
		     struct lm_error *err);

#endif
