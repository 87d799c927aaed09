/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of an output: for output.c and human.c. */
#ifndef CLI_OUTPUT_STATE_H
#define CLI_OUTPUT_STATE_H

#include <pthread.h>
#include <time.h>
#include "output.h"
#include "sink.h"

#define NS_PER_S INT64_C(1000000000)

struct cli_output {
	const struct cli_settings *settings;
	enum cli_side side;
	bool bar;                /* standard error is a terminal that can redraw a line */
	struct cli_sink *result; /* standard output */
	struct cli_sink *notes;  /* standard error */
	int64_t began_ns;
	char peer[128];

	pthread_mutex_t lock;    /* for all that follows */
	char drawn[512];         /* the progress line that stands on the terminal, "" if none */
	int64_t plain_ns;        /* time of the last progress line */
	struct cli_phase phase;
	char address[128];       /* where the destination listens */
	bool ended;
};

static inline int64_t cli_output_now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

#endif
