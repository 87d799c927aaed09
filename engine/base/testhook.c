/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "testhook.h"

/*
 * Copies item number n of a comma-separated list into buf (commas may not occur
 * inside a `run=` command: use a script).  Returns false past the end.
 */
static bool list_item(const char *list, unsigned n, char *buf, size_t size)
{
	size_t len;

	while (list && n--) {
		list = strchr(list, ',');
		list = list ? list + 1 : NULL;
	}
	if (!list)
		return false;
	len = strcspn(list, ",");
	if (len >= size)
		len = size - 1;
	memcpy(buf, list, len);
	buf[len] = 0;
	return true;
}

static int fault_act(const char *stage, const char *action, struct lm_error *err)
{
	if (!strcmp(action, "kill"))
		kill(getpid(), SIGKILL);
	else if (!strncmp(action, "sleep=", 6)) {
		long ms = atol(action + 6);
		struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

		nanosleep(&t, NULL);
	} else if (!strncmp(action, "run=", 4)) {
		if (system(action + 4) == -1)
			return lm_err(err, -EIO, LM_SCOPE_SESSION, "fault at %s: command failed", stage);
	} else if (!strcmp(action, "error"))
		return lm_err(err, -EIO, LM_SCOPE_SESSION, "injected error at stage %s", stage);
	else
		abort(); /* a test that injects nothing must not pass */
	return 0;
}

int lm_fault_point(const char *stage, struct lm_error *err)
{
	const char *list = getenv("LM_FAULT");
	size_t len = strlen(stage);
	char item[512];

	for (unsigned n = 0; list_item(list, n, item, sizeof(item)); n++) {
		if (!strncmp(item, stage, len) && item[len] == ':') {
			int r = fault_act(stage, item + len + 1, err);

			if (r)
				return r;
		}
	}
	return 0;
}

bool lm_broken(const char *rule)
{
	const char *list = getenv("LM_BREAK");
	char item[64];

	for (unsigned n = 0; list_item(list, n, item, sizeof(item)); n++)
		if (!strcmp(item, rule))
			return true;
	return false;
}

const char *lm_test_setting(const char *name)
{
	return getenv(name);
}
