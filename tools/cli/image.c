/* SPDX-License-Identifier: Apache-2.0 */
/* save, restore and quick */
#include "cli.h"
#include "session.h"

static enum cli_exit save(struct cli_settings *settings, struct cli_signals *signals, struct cli_output *out)
{
	struct lm_summary summary;
	enum cli_exit rc = cli_session_run(settings, lm_save_open, false, signals, out, &summary);

	if (rc == CLI_EXIT_OK && settings->quit_source)
		cli_session_quit_source(settings, out);
	return rc;
}

int cli_quick(const struct cli_subcommand *self, struct cli_settings *settings)
{
	return cli_session_frame(self, settings, CLI_SIDE_SEND, save);
}

int cli_save(const struct cli_subcommand *self, struct cli_settings *settings)
{
	return cli_session_frame(self, settings, CLI_SIDE_SAVE, save);
}

static enum cli_exit resume(struct cli_settings *settings, struct cli_signals *signals, struct cli_output *out)
{
	struct lm_summary summary;

	return cli_session_run(settings, lm_restore_resume, false, signals, out, &summary);
}

static enum cli_exit restore(struct cli_settings *settings, struct cli_signals *signals, struct cli_output *out)
{
	return cli_receive_run(settings, lm_restore_open, signals, out);
}

static int check_resume(const struct cli_subcommand *self, const struct cli_settings *settings)
{
	if (settings->words[0] || !settings->lm.qmp == !settings->lm.pid)
		return cli_usage_error(self, "--resume needs --qmp SOCKET or --pid PID of the guest's QEMU, and starts none");
	return CLI_EXIT_OK;
}

int cli_restore(const struct cli_subcommand *self, struct cli_settings *settings)
{
	int rc = settings->resume ? check_resume(self, settings) : cli_receive_check_usage(self, settings);

	if (rc)
		return rc;
	if (settings->resume && settings->lm.address)
		return cli_usage_error(self, "--resume goes on with what is here: no --listen");
	settings->lm.lazy = settings->paging;
	settings->recovering = settings->resume;
	return cli_session_frame(self, settings, CLI_SIDE_RESTORE, settings->resume ? resume : restore);
}
