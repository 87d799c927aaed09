/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include "cli.h"
#include "launch.h"
#include "session.h"

/* Only where it is certain that no guest lives in it. */
static bool is_empty(const struct lm_summary *s)
{
	switch (s->outcome) {
	case LM_OUTCOME_REFUSED:
	case LM_OUTCOME_ABORTED:
	case LM_OUTCOME_CANCELLED:
	case LM_OUTCOME_STALLED:
	case LM_OUTCOME_NONE:
	case LM_OUTCOME_VM_LOST:
		return !s->guest_runs_here;
	case LM_OUTCOME_COMPLETED:
	case LM_OUTCOME_IN_DOUBT:
	case LM_OUTCOME_INTERRUPTED:
		break;
	}
	return false;
}

enum cli_exit cli_receive_run(struct cli_settings *settings, cli_session_open_fn *open, struct cli_signals *signals,
			      struct cli_output *out)
{
	struct cli_launch *launch = NULL;
	struct lm_summary summary;
	struct lm_error err = { 0 };
	int rc;

	if (settings->words[0]) {
		rc = cli_launch_start(settings->words, settings->lm.qmp, signals, out, &launch, &err);
		if (rc)
			return cli_session_refuse(out, &err, &summary);
		settings->lm.qmp = cli_launch_qmp(launch);
		settings->lm.pid = cli_launch_pid(launch);
	}
	rc = cli_session_run(settings, open, false, signals, out, &summary);
	if (is_empty(&summary) && !cli_output_in_postcopy(out))
		cli_launch_end(launch);
	else
		cli_launch_leave(launch);
	settings->lm.qmp = NULL;
	return rc;
}

static enum cli_exit receive(struct cli_settings *settings, struct cli_signals *signals, struct cli_output *out)
{
	return cli_receive_run(settings, lm_dest_open, signals, out);
}

int cli_receive_check_usage(const struct cli_subcommand *self, const struct cli_settings *settings)
{
	struct lm_error err = { 0 };
	char **words = NULL;

	if (!settings->words[0])
		return settings->lm.qmp ? CLI_EXIT_OK :
		       cli_usage_error(self, "say --qmp SOCKET of a QEMU that waits (-incoming defer -S), "
				       "or start one: -- QEMU ARGUMENT...");
	if (settings->lm.pid)
		return cli_usage_error(self, "--pid is known when QEMU is started by --");
	if (cli_launch_words(settings->words, "", &words, &err))
		return cli_usage_error(self, "%s", err.msg);
	free(words);
	return CLI_EXIT_OK;
}

int cli_receive(const struct cli_subcommand *self, struct cli_settings *settings)
{
	int rc = cli_receive_check_usage(self, settings);

	return rc ? rc : (int)cli_session_frame(self, settings, CLI_SIDE_RECEIVE, receive);
}
