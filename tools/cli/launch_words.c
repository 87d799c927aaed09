/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of the destination's QEMU. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "launch.h"
#include "options.h"

struct banned {
	const char *name;
	const char *why;
};

static const struct banned banned[] = {
	{ "daemonize", "leave it out: QEMU is started in a session of its own and goes on by itself" },
	{ "preconfig", "leave it out: QEMU must be ready for the guest at once" },
	{ "loadvm", "leave it out: the guest's state comes from the source" },
	{ "snapshot", "leave it out: the disks must be the ones that the source wrote to" },
	{ NULL, NULL },
};

/* The name of an option as QEMU reads it, with one dash or two; NULL: not an option. */
static const char *option_name(const char *word)
{
	if (word[0] != '-' || !word[1])
		return NULL;
	return word + (word[1] == '-' ? 2 : 1);
}

static int check_word(const char *word, const char *next, bool *has_incoming, bool *has_stop,
		      struct lm_error *err)
{
	const char *name = option_name(word);

	if (!name)
		return 0;
	for (const struct banned *b = banned; b->name; b++) {
		if (!strcmp(name, b->name))
			return cli_invalid(err, "%s in the QEMU command: %s", word, b->why);
	}
	if (!strcmp(name, "S"))
		*has_stop = true;
	if (strcmp(name, "incoming"))
		return 0;
	if (!next || strcmp(next, "defer"))
		return cli_invalid(err, "%s %s in the QEMU command: leave it out, '-incoming defer' is added",
				   word, next ? next : "");
	*has_incoming = true;
	return 0;
}

/* A comma in the value of a QEMU option is written twice. */
static void qmp_value(char *to, const char *path)
{
	to = stpcpy(to, "unix:");
	for (; *path; path++) {
		if (*path == ',')
			*to++ = ',';
		*to++ = *path;
	}
	strcpy(to, ",server=on,wait=off");
}

int cli_launch_words(char *const *words, const char *qmp, char ***ret, struct lm_error *err)
{
	static char incoming[] = "-incoming", defer[] = "defer", stop[] = "-S", monitor[] = "-qmp";
	bool has_incoming = false, has_stop = false;
	size_t n = 0, i;
	char **all, *value;
	int rc;

	if (!words[0] || words[0][0] == '-')
		return cli_invalid(err, "the first word after -- is not a program but %s%s%s",
				   words[0] ? "'" : "", words[0] ? words[0] : "missing", words[0] ? "'" : "");
	for (i = 1; words[i]; i++) {
		rc = check_word(words[i], words[i + 1], &has_incoming, &has_stop, err);
		if (rc)
			return rc;
	}
	all = malloc((i + 6) * sizeof(*all) + 2 * strlen(qmp) + 64);
	if (!all)
		return -ENOMEM;
	value = (char *)(all + i + 6);
	for (; words[n]; n++)
		all[n] = words[n];
	if (!has_incoming) {
		all[n++] = incoming;
		all[n++] = defer;
	}
	if (!has_stop)
		all[n++] = stop;
	all[n++] = monitor;
	all[n++] = value;
	all[n] = NULL;
	qmp_value(value, qmp);
	*ret = all;
	return 0;
}
