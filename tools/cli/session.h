/* SPDX-License-Identifier: Apache-2.0 */
/* What send, receive and recover have in common: open a session, run it, say how it ended. */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include <stdbool.h>
#include "output.h"
#include "signals.h"

typedef int cli_session_open_fn(const struct lm_options *options, struct lm_session **ret_session,
				struct lm_error *err);

/*
 * Open a session and run it; findable: `migrate-rdma postcopy` is to find it.  *ret is
 * the summary, also of a session that could not be opened.  Returns the exit code.
 */
enum cli_exit cli_session_run(struct cli_settings *settings, cli_session_open_fn *open, bool findable,
			      struct cli_signals *signals, struct cli_output *out,
			      struct lm_summary *ret);
/* Signals and output around a session of one side; run does the rest.  Returns the exit code. */
typedef enum cli_exit cli_session_body_fn(struct cli_settings *settings, struct cli_signals *signals,
					  struct cli_output *out);
enum cli_exit cli_session_frame(const struct cli_subcommand *self, struct cli_settings *settings,
				enum cli_side side, cli_session_body_fn *body);
/* The guest has certainly moved, so the QEMU of this host is no longer needed. */
void cli_session_quit_source(const struct cli_settings *settings, struct cli_output *out);
/* receive, restore: a session over a QEMU that waits, or that is started and, when no guest lives in it, ended. */
enum cli_exit cli_receive_run(struct cli_settings *settings, cli_session_open_fn *open, struct cli_signals *signals,
			      struct cli_output *out);
/* What the option table cannot say. */
int cli_receive_check_usage(const struct cli_subcommand *self, const struct cli_settings *settings);
/* For what fails before there is a session. */
enum cli_exit cli_session_refuse(struct cli_output *out, const struct lm_error *err,
				 struct lm_summary *ret);

#endif
