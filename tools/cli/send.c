/* SPDX-License-Identifier: Apache-2.0 */
#include "cli.h"
#include "session.h"

void cli_session_quit_source(const struct cli_settings *settings, struct cli_output *out)
{
	struct lm_error err = { 0 };
	char text[512] = "";

	if (lm_resolve(settings->lm.qmp, LM_RESOLVE_END_HERE, text, sizeof(text), &err))
		cli_output_log(out, LM_LOG_ERROR, "the QEMU of this host could not be ended: %s", err.msg);
	else
		cli_output_log(out, LM_LOG_INFO, "the QEMU of this host has ended");
}

static enum cli_exit send_guest(struct cli_settings *settings, struct cli_signals *signals,
				struct cli_output *out)
{
	struct lm_summary summary;
	enum cli_exit rc = cli_session_run(settings, lm_source_open, true, signals, out, &summary);

	if (rc == CLI_EXIT_OK && settings->quit_source)
		cli_session_quit_source(settings, out);
	return rc;
}

int cli_send(const struct cli_subcommand *self, struct cli_settings *settings)
{
	const struct lm_options *o = &settings->lm;

	if (o->postcopy != LM_POSTCOPY_AUTO && (o->postcopy_after_rounds || o->postcopy_after_ns))
		return cli_usage_error(self, "--postcopy-after goes with --postcopy auto");
	return cli_session_frame(self, settings, CLI_SIDE_SEND, send_guest);
}
