/* SPDX-License-Identifier: Apache-2.0 */
/* What a person reads when a session has ended. */
#ifndef CLI_SUMMARY_H
#define CLI_SUMMARY_H

#include "cli.h"

enum cli_side { CLI_SIDE_SEND, CLI_SIDE_RECEIVE };

enum cli_exit cli_exit_code(enum lm_outcome outcome);

/* The numbers of a completed migration. */
void cli_summary_table(enum cli_side side, const struct lm_summary *s, FILE *to);
/* "blackout 11.2 ms = stop 1.1 + last scan 0.2 + ..."; nothing when there was none. */
void cli_summary_blackout(const struct lm_blackout *b, FILE *to);
/* How it ended, where the guest is, and what to do now.  qmp may be NULL. */
void cli_summary_verdict(enum cli_side side, const struct lm_summary *s, const char *peer, const char *qmp,
			 FILE *to);

#endif
