/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "unit.h"
#include "launch.h"

#define MAX_WORDS 16

static int rewrite(const char *line, const char *qmp, char *joined, size_t size, struct lm_error *err)
{
	char copy[512], *words[MAX_WORDS + 1], **all = NULL, *save = NULL;
	int n = 0, rc;

	snprintf(copy, sizeof(copy), "%s", line);
	for (char *w = strtok_r(copy, " ", &save); w && n < MAX_WORDS; w = strtok_r(NULL, " ", &save))
		words[n++] = w;
	words[n] = NULL;
	memset(err, 0, sizeof(*err));
	rc = cli_launch_words(words, qmp, &all, err);
	*joined = 0;
	for (int i = 0; !rc && all[i]; i++)
		snprintf(joined + strlen(joined), size - strlen(joined), "%s%s", i ? " " : "", all[i]);
	free(all);
	return rc;
}

static void assert_becomes(const char *line, const char *want)
{
	struct lm_error err;
	char got[1024];

	assert_int_equal(rewrite(line, "/d/q", got, sizeof(got), &err), 0);
	assert_string_equal(got, want);
}

static void what_a_destination_needs_is_added(void **state)
{
	(void)state;
	assert_becomes("qemu", "qemu -incoming defer -S -qmp unix:/d/q,server=on,wait=off");
	assert_becomes("qemu -m 1G -qmp stdio",
		       "qemu -m 1G -qmp stdio -incoming defer -S -qmp unix:/d/q,server=on,wait=off");
}

static void what_is_there_is_not_added_twice(void **state)
{
	(void)state;
	assert_becomes("qemu -S -m 1G", "qemu -S -m 1G -incoming defer -qmp unix:/d/q,server=on,wait=off");
	assert_becomes("qemu --incoming defer --S", "qemu --incoming defer --S -qmp unix:/d/q,server=on,wait=off");
}

static void a_comma_in_the_path_is_doubled(void **state)
{
	struct lm_error err;
	char got[1024];

	(void)state;
	assert_int_equal(rewrite("qemu", "/a,b/,q", got, sizeof(got), &err), 0);
	assert_non_null(strstr(got, "unix:/a,,b/,,q,server=on"));
}

static void what_does_not_go_together_is_refused(void **state)
{
	static const struct { const char *line, *hint; } bad[] = {
		{ "", "program" },
		{ "-m 1G", "'-m'" },
		{ "qemu -incoming tcp:0:4444", "'-incoming defer' is added" },
		{ "qemu -incoming", "leave it out" },
		{ "qemu --incoming exec:cat", "leave it out" },
		{ "qemu -daemonize", "-daemonize" },
		{ "qemu --daemonize", "leave it out" },
		{ "qemu -preconfig", "-preconfig" },
		{ "qemu -loadvm s", "-loadvm" },
		{ "qemu -snapshot", "-snapshot" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct lm_error err;
		char got[1024];
		int rc = rewrite(bad[i].line, "/d/q", got, sizeof(got), &err);

		if (rc != -EINVAL || !strstr(err.msg, bad[i].hint))
			fail_msg("'%s': %d, \"%s\"", bad[i].line, rc, err.msg);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_a_destination_needs_is_added),
		cmocka_unit_test(what_is_there_is_not_added_twice),
		cmocka_unit_test(a_comma_in_the_path_is_doubled),
		cmocka_unit_test(what_does_not_go_together_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
