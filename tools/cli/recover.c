/* SPDX-License-Identifier: Apache-2.0 */
#include "cli.h"
#include "session.h"

static int open_source(const struct lm_options *options, struct lm_session **ret, struct lm_error *err)
{
	return lm_recover_open(options, false, ret, err);
}

static int open_dest(const struct lm_options *options, struct lm_session **ret, struct lm_error *err)
{
	return lm_recover_open(options, true, ret, err);
}

static enum cli_exit recover(struct cli_settings *settings, struct cli_signals *signals, struct cli_output *out)
{
	struct lm_summary summary;
	enum cli_exit rc = cli_session_run(settings, settings->listen ? open_dest : open_source, false, signals, out,
					   &summary);

	if (rc == CLI_EXIT_OK && settings->quit_source)
		cli_session_quit_source(settings, out);
	return rc;
}

int cli_recover(const struct cli_subcommand *self, struct cli_settings *settings)
{
	if (!settings->lm.qmp == !settings->lm.pid)
		return cli_usage_error(self, "say which guest: --qmp SOCKET, or --pid PID of its QEMU");
	if (!settings->listen == !settings->to)
		return cli_usage_error(self, "say --listen ADDRESS:PORT on the destination, --to ADDRESS:PORT on the source");
	if (settings->quit_source && (settings->listen || !settings->lm.qmp))
		return cli_usage_error(self, "--quit-source goes with --to and --qmp");
	settings->lm.address = settings->listen ? settings->listen : settings->to;
	settings->recovering = true;
	return cli_session_frame(self, settings, settings->listen ? CLI_SIDE_RECEIVE : CLI_SIDE_SEND, recover);
}
