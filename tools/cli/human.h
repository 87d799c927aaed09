/* SPDX-License-Identifier: Apache-2.0 */
/* What a person sees of a session's events on standard error.  The caller holds the output's lock. */
#ifndef CLI_HUMAN_H
#define CLI_HUMAN_H

#include "output.h"

void cli_human_event(struct cli_output *out, const struct lm_event *e);
/* A line of its own, above the progress line. */
void cli_human_note(struct cli_output *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The progress line goes, if there is one. */
void cli_human_bar_remove(struct cli_output *out);

#endif
