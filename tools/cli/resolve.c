/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "text.h"

/* The answer may have several lines. */
static void print_text(char *text)
{
	char clean[1024], *save = NULL;

	for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
		printf("%s\n", cli_text_clean(l, clean, sizeof(clean)));
}

static void explain(enum lm_resolve what)
{
	if (what == LM_RESOLVE_RUN_HERE)
		printf("\nThis will run the guest on this host. If it runs on the other host, too, both write to\n"
		       "the same disks and destroy them. Do it only when the other host's QEMU is known to have\n"
		       "ended, or its host is known to be down and will not come back with it running.\n");
	else
		printf("\nThis will end the QEMU of this host and with it what it holds of the guest. Do it only\n"
		       "when the guest is known to run on the other host: else it is lost. It is lost, too, when its\n"
		       "post-copy was interrupted: it then needs pages that are only here ('migrate-rdma recover').\n");
}

static bool confirmed(const struct cli_settings *settings)
{
	char answer[16];

	if (settings->yes)
		return true;
	if (!isatty(STDIN_FILENO)) {
		fprintf(stderr, "migrate-rdma resolve: nothing done: standard input is no terminal, so no confirmation can be asked "
		        "for; --yes gives it\n");
		return false;
	}
	printf("Write 'yes' to do it: ");
	fflush(stdout);
	if (fgets(answer, sizeof(answer), stdin) && !strcmp(answer, "yes\n"))
		return true;
	printf("Nothing done.\n");
	return false;
}

static int act(const struct cli_settings *settings, enum lm_resolve what)
{
	char text[2048] = "", clean[LM_ERROR_MSG_MAX];
	struct lm_error err = { 0 };

	int r = lm_resolve_locked(settings->lm.qmp, what, settings->lm.locks, settings->lm.nlocks, settings->lm.lock_host,
				  text, sizeof(text), &err);

	if (r) {
		fflush(stdout);
		fprintf(stderr, "migrate-rdma resolve: %s\n", cli_text_clean(err.msg, clean, sizeof(clean)));
		return r == -EBUSY || r == -EPERM ? CLI_EXIT_REFUSED : CLI_EXIT_ABORTED;
	}
	print_text(text);
	return CLI_EXIT_OK;
}

int cli_resolve(const struct cli_subcommand *self, struct cli_settings *settings)
{
	enum lm_resolve what = settings->run_here ? LM_RESOLVE_RUN_HERE : LM_RESOLVE_END_HERE;
	int rc;

	if (settings->run_here + settings->end_here + settings->automatic > 1)
		return cli_usage_error(self, "--run-here, --end-here and --auto exclude each other");
	if (settings->automatic && !settings->lm.nlocks)
		return cli_usage_error(self, "--auto needs the guest's storage locks: --lock URI");
	rc = act(settings, LM_RESOLVE_SHOW);
	if (!rc && settings->automatic)
		return act(settings, LM_RESOLVE_AUTO);
	if (rc || (!settings->run_here && !settings->end_here))
		return rc;
	explain(what);
	if (!confirmed(settings))
		return CLI_EXIT_REFUSED;
	return act(settings, what);
}
