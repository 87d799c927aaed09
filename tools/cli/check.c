/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "json.h"
#include "text.h"

struct lines {
	const struct cli_settings *settings;
	const char *about; /* "host" or "guest" */
	bool colour;
};

static bool wants_colour(void)
{
	const char *term = getenv("TERM"), *no = getenv("NO_COLOR");

	return isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") && !(no && *no);
}

static void human(const struct lines *l, const struct lm_check *c)
{
	static const struct { const char *word, *colour; } looks[] = {
		[LM_CHECK_OK] = { "OK", "\033[32m" },
		[LM_CHECK_WARN] = { "WARN", "\033[33m" },
		[LM_CHECK_FAIL] = { "FAIL", "\033[31m" },
		[LM_CHECK_ABSENT] = { "absent", "\033[2m" },
	};
	const char *colour = l->colour ? looks[c->status & 3].colour : "";
	char found[sizeof(c->found)], advice[sizeof(c->advice)];

	printf("%s%-6s%s  %-26s %s\n", colour, looks[c->status & 3].word, l->colour ? "\033[0m" : "",
	       c->name, cli_text_clean(c->found, found, sizeof(found)));
	if (*c->advice)
		printf("%8s%-26s -> %s\n", "", "", cli_text_clean(c->advice, advice, sizeof(advice)));
}

static void line(void *opaque, const struct lm_check *c)
{
	const struct lines *l = opaque;

	if (l->settings->json)
		cli_json_check(c, l->about, stdout);
	else if (!l->settings->quiet || c->status == LM_CHECK_FAIL)
		human(l, c);
}

static enum cli_exit conclude(const struct cli_settings *s, int failed, const struct lm_error *err)
{
	const char *what = s->lm.qmp ? "this guest" : "this host";

	if (s->json)
		cli_json_checked(failed, err, stdout);
	if (err->code)
		fprintf(stderr, "migrate-rdma check: the guest could not be asked: %s\n", err->msg);
	else if (!s->json && !s->quiet)
		printf(failed ? "\n%s cannot take part in a migration: %d thing%s to be changed (FAIL)\n" :
		       "\n%s can take part in a migration\n", what, failed, failed == 1 ? " has" : "s have");
	if (err->code)
		return CLI_EXIT_ABORTED;
	return failed ? CLI_EXIT_REFUSED : CLI_EXIT_OK;
}

int cli_check(const struct cli_subcommand *self, struct cli_settings *settings)
{
	struct lines lines = { settings, "host", wants_colour() };
	struct lm_error err = { 0 };
	int failed, rc;

	if (settings->lm.pid && !settings->lm.qmp)
		return cli_usage_error(self, "--pid goes with --qmp");
	failed = lm_check_host(line, &lines);
	if (settings->lm.qmp) {
		lines.about = "guest";
		rc = lm_check_guest(settings->lm.qmp, settings->lm.pid, line, &lines, &err);
		if (rc >= 0) {
			failed += rc;
			err.code = 0; /* err counts only when the call failed */
		} else if (!err.code) {
			err.code = rc;
		}
	}
	return conclude(settings, failed, &err);
}
