/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The events of a session as its user wants them: a progress bar, plain lines,
 * or JSON.  Standard output carries the result (the summary, or all of the
 * JSON), standard error everything else.  Any thread may call; nothing blocks
 * (sink.h) but cli_output_close().
 */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include "cli.h"
#include "phase.h"
#include "summary.h"

struct cli_output;

/* The settings must outlive it.  Sets the log level and the callback in settings->lm. */
int cli_output_open(struct cli_settings *settings, enum cli_side side, struct cli_output **ret);
lm_event_fn cli_output_event;

/* A line of our own, shown as the engine's log lines are. */
void cli_output_log(struct cli_output *out, enum lm_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The guest has been switched over with pages missing: from now on both hosts are needed, whatever happens. */
bool cli_output_in_postcopy(struct cli_output *out);
/* A signal asks for something: print what follows from it. */
void cli_output_asked(struct cli_output *out, enum cli_ask ask);
/* receive: the QEMU that was started, and what it says. */
void cli_output_qemu(struct cli_output *out, int32_t pid, const char *qmp, const char *log);
void cli_output_qemu_says(struct cli_output *out, const char *line);

/*
 * The end.  Every session that was asked for has one, even one that could not be
 * opened: err is then why.  Does nothing when the engine has said so already.
 */
void cli_output_end(struct cli_output *out, const struct lm_summary *summary);
/* Waits a little for a slow reader. */
void cli_output_close(struct cli_output *out);

#endif
