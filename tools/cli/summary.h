/* SPDX-License-Identifier: Apache-2.0 */
/* What a person reads when a session has ended. */
#ifndef CLI_SUMMARY_H
#define CLI_SUMMARY_H

#include "cli.h"

enum cli_side { CLI_SIDE_SEND, CLI_SIDE_RECEIVE, CLI_SIDE_SAVE, CLI_SIDE_RESTORE };

enum cli_exit cli_exit_code(enum lm_outcome outcome);

/* What a person has to type to go on with this guest; any of it may be missing. */
struct cli_place {
	const char *peer;
	const char *image;   /* save, restore */
	const char *qmp;     /* else pid */
	int32_t pid;
	const char *address; /* where the destination listens */
	bool insecure;
	bool postcopy;       /* the guest was switched over with pages missing */
};

/* The numbers of a completed migration. */
void cli_summary_table(enum cli_side side, const struct lm_summary *s, FILE *to);
/* "blackout 11.2 ms = stop 1.1 + last scan 0.2 + ..."; nothing when there was none. */
void cli_summary_blackout(const struct lm_blackout *b, FILE *to);
/* What was left behind at the switchover and how it followed; nothing when there was no post-copy. */
void cli_summary_postcopy(const struct lm_postcopy_stats *p, FILE *to);
/* How it ended, where the guest is, and what to do now. */
void cli_summary_verdict(enum cli_side side, const struct lm_summary *s, const struct cli_place *place, FILE *to);

#endif
