/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "cli.h"
#include "session.h"

/* The guest is known to run on the other host: what stands here is an empty shell. */
static void quit_source(const struct cli_settings *settings, struct cli_output *out)
{
	struct lm_error err = { 0 };
	char text[512] = "";

	if (lm_resolve(settings->lm.qmp, LM_RESOLVE_END_HERE, text, sizeof(text), &err))
		cli_output_log(out, LM_LOG_ERROR, "the QEMU of this host could not be ended: %s", err.msg);
	else
		cli_output_log(out, LM_LOG_INFO, "the QEMU of this host has ended");
}

int cli_send(const struct cli_subcommand *self, struct cli_settings *settings)
{
	struct cli_signals *signals = NULL;
	struct cli_output *out = NULL;
	struct lm_summary summary;
	int rc = cli_signals_start(&signals);

	if (!rc)
		rc = cli_output_open(settings, CLI_SIDE_SEND, &out);
	if (rc) {
		fprintf(stderr, "migrate-rdma %s: %s\n", self->name, strerror(-rc));
		cli_signals_stop(signals);
		return CLI_EXIT_REFUSED;
	}
	cli_signals_set_output(signals, out);
	rc = cli_session_run(settings, lm_source_open, signals, out, &summary);
	if (rc == CLI_EXIT_OK && settings->quit_source)
		quit_source(settings, out);
	cli_signals_stop(signals);
	cli_output_close(out);
	return rc;
}
