/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How far a session is, from its events: whether it can still be cancelled, and what a
 * person who asks for that, or for post-copy, is to be told.  The engine decides by
 * itself; this only finds the words for it.
 */
#ifndef CLI_PHASE_H
#define CLI_PHASE_H

#include "cli.h"
#include "summary.h"

enum cli_ask { CLI_ASK_CANCEL, CLI_ASK_POSTCOPY };

struct cli_phase {
	bool recovering;       /* it began with its peer lost */
	bool committed;        /* the destination has been told to run the guest */
	bool postcopy;         /* it runs there, and pages are still here */
	bool whole;            /* every page is there */
	uint64_t missing_pages;
	int64_t heard_ns;      /* CLOCK_MONOTONIC: last word of the peer in post-copy */
};

/* At the beginning; recovering: the guest has been switched over before. */
void cli_phase_init(struct cli_phase *ret, bool recovering);
void cli_phase_event(struct cli_phase *phase, enum cli_side side, const struct lm_event *event, int64_t now_ns);
/* The answer to one that asks. Returns buf. */
char *cli_phase_answer(const struct cli_phase *phase, enum cli_side side, enum cli_ask ask,
		       const struct lm_options *options, int64_t now_ns, char *buf, size_t size);

#endif
