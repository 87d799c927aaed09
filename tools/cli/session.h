/* SPDX-License-Identifier: Apache-2.0 */
/* What send and receive have in common: open a session, run it, say how it ended. */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include "output.h"
#include "signals.h"

typedef int cli_session_open_fn(const struct lm_options *options, struct lm_session **ret_session,
				struct lm_error *err);

/* *ret is the summary, also of a session that could not be opened.  Returns the exit code. */
enum cli_exit cli_session_run(struct cli_settings *settings, cli_session_open_fn *open,
			      struct cli_signals *signals, struct cli_output *out,
			      struct lm_summary *ret);
/* For what fails before there is a session. */
enum cli_exit cli_session_refuse(struct cli_output *out, const struct lm_error *err,
				 struct lm_summary *ret);

#endif
