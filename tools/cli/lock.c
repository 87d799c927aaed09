/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "json.h"
#include "text.h"

static const struct verb {
	const char *name;
	enum lm_lock_what what;
} verbs[] = {
	{ "show", LM_LOCK_SHOW },
	{ "acquire", LM_LOCK_ACQUIRE },
	{ "release", LM_LOCK_RELEASE },
	{ "break", LM_LOCK_BREAK },
};

static const struct verb *verb_find(const char *name)
{
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

static void print_info(const char *uri, struct lm_lock_info *info)
{
	char clean[1024], *save = NULL;

	printf("%s: %s\n", cli_text_clean(uri, clean, sizeof(clean)), lm_lock_state_name(info->state));
	for (char *l = strtok_r(info->text, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
		printf("  %s\n", cli_text_clean(l, clean, sizeof(clean)));
}

static int run(const struct cli_settings *s, const char *uri, enum lm_lock_what what, bool say)
{
	struct lm_lock_info info = { 0 };
	struct lm_error err = { 0 };
	char clean[LM_ERROR_MSG_MAX];
	int r = lm_lock_run(uri, s->lm.lock_host, what, s->lm.timeout_ns, &info, &err);

	if (s->json && say)
		cli_json_lock(uri, &info, &err, stdout);
	else if (!r && say && !s->quiet)
		print_info(uri, &info);
	if (!r)
		return CLI_EXIT_OK;
	fflush(stdout);
	fprintf(stderr, "migrate-rdma lock: %s\n", cli_text_clean(err.msg, clean, sizeof(clean)));
	return r == -EBUSY || r == -EPERM ? CLI_EXIT_REFUSED : CLI_EXIT_ABORTED;
}

static bool confirmed(const struct cli_settings *s)
{
	char answer[16];

	if (s->yes)
		return true;
	if (!isatty(STDIN_FILENO)) {
		fprintf(stderr, "migrate-rdma lock: nothing done: standard input is no terminal, so no confirmation can be asked "
		        "for; --yes gives it\n");
		return false;
	}
	fprintf(stderr, "Write 'yes' to do it: ");
	if (fgets(answer, sizeof(answer), stdin) && !strcmp(answer, "yes\n"))
		return true;
	fprintf(stderr, "Nothing done.\n");
	return false;
}

/* Print the lock's state, then what will be done, then ask. */
static int break_it(const struct cli_settings *s, const char *uri)
{
	int rc = run(s, uri, LM_LOCK_SHOW, !s->json);

	if (rc)
		return rc;
	fprintf(stderr, "This will make the lock free, whoever holds it now. If that host can still write to the\n"
		"disks, two hosts will, and destroy them. Do it only when the holder is switched off or cut off\n"
		"from the storage, and its guest is known to run nowhere.\n");
	return confirmed(s) ? run(s, uri, LM_LOCK_BREAK, true) : CLI_EXIT_REFUSED;
}

int cli_lock(const struct cli_subcommand *self, struct cli_settings *settings)
{
	const char *verb = settings->words[0], *uri = verb ? settings->words[1] : NULL;
	const struct verb *v = verb ? verb_find(verb) : NULL;

	if (!verb || !uri)
		return cli_usage_error(self, "write show, acquire, release or break, and the URI of a lock");
	if (!v)
		return cli_usage_error(self, "'%s' is not one of: show, acquire, release, break", verb);
	if (v->what == LM_LOCK_BREAK)
		return break_it(settings, uri);
	return run(settings, uri, v->what, true);
}
