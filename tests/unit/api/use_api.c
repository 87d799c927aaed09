/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that uses nothing but the public header and the shared library, built
 * as strict C11 and, the same text, as C++17.
 */
#include <migrate_rdma.h>
#include <stdio.h>
#include <string.h>

static void on_check(void *opaque, const struct lm_check *check)
{
	(void)check;
	++*(unsigned *)opaque;
}

static int fail(const char *what)
{
	printf("FAIL: %s\n", what);
	return 1;
}

int main(void)
{
	struct lm_session *session = NULL;
	struct lm_options options;
	struct lm_error err;
	unsigned lines = 0;

	memset(&err, 0, sizeof(err));
	lm_options_default(&options);
	if (options.max_downtime_ns != 10 * 1000 * 1000)
		return fail("the default of max_downtime_ns is not 10 ms");
	options.qmp = "/nonexistent/qmp.sock";
	options.address = "127.0.0.1:1";
	if (lm_source_open(&options, &session, &err) >= 0 || session || !strstr(err.msg, options.qmp))
		return fail("a QMP socket that is not there was accepted, or not named in the error");
	if (options.postcopy != LM_POSTCOPY_AUTO || options.recover_timeout_ns != INT64_C(60000000000))
		return fail("the defaults of post-copy are not hybrid and a minute");
	if (lm_recover_open(&options, false, &session, &err) >= 0 || session || !strstr(err.msg, options.qmp))
		return fail("a post-copy behind a QMP socket that is not there was recovered, or that not said");
	if (lm_check_host(on_check, &lines) < 0 || lines < 5)
		return fail("lm_check_host() says nothing");
	if (!lm_transport_names()[0] || strcmp(lm_outcome_name(LM_OUTCOME_IN_DOUBT), "in-doubt") ||
	    strcmp(lm_outcome_name(LM_OUTCOME_INTERRUPTED), "interrupted"))
		return fail("names");
	lm_session_free(NULL);
	return 0;
}
