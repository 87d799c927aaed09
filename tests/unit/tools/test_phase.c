/* SPDX-License-Identifier: Apache-2.0 */
/* What somebody who wants to cancel, or to switch over, is told, and when. */
#include <string.h>
#include "unit.h"
#include "phase.h"

#define S INT64_C(1000000000)

static void stage(struct cli_phase *p, enum cli_side side, const char *name, int64_t now)
{
	struct lm_event e = { .type = LM_EVENT_STAGE };

	e.u.stage.name = name;
	cli_phase_event(p, side, &e, now);
}

static void missing(struct cli_phase *p, uint64_t pages, int64_t now)
{
	struct lm_event e = { .type = LM_EVENT_POSTCOPY };

	e.u.postcopy.missing_pages = pages;
	cli_phase_event(p, CLI_SIDE_SEND, &e, now);
}

static void assert_answer(const struct cli_phase *p, enum cli_side side, enum cli_ask ask, enum lm_postcopy postcopy,
			  int64_t now, const char *hint)
{
	const struct lm_options options = { .postcopy = postcopy };
	char text[256];

	if (!strstr(cli_phase_answer(p, side, ask, &options, now, text, sizeof(text)), hint))
		fail_msg("\"%s\" says nothing of \"%s\"", text, hint);
	assert_true(strlen(text) < sizeof(text) - 1);
}

static void cancel_is_possible_until_the_destination_was_told(void **state)
{
	struct cli_phase p;

	(void)state;
	cli_phase_init(&p, false);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, S, "goes on on the source");
	stage(&p, CLI_SIDE_SEND, "commit", S); /* the last look before it */
	assert_false(p.committed);
	stage(&p, CLI_SIDE_SEND, "committed", S);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, S, "told to run the guest");
	cli_phase_init(&p, false);
	stage(&p, CLI_SIDE_RECEIVE, "commit", S);
	assert_answer(&p, CLI_SIDE_RECEIVE, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, S, "cannot be cancelled any more");
}

static void in_post_copy_only_a_search_ends(void **state)
{
	struct cli_phase p;

	(void)state;
	cli_phase_init(&p, false);
	stage(&p, CLI_SIDE_SEND, "committed", 10 * S);
	stage(&p, CLI_SIDE_SEND, "postcopy", 10 * S);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, 11 * S, "needs both hosts");
	missing(&p, 2560, 12 * S);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, 13 * S, "(10.0 MiB are missing)");
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, 20 * S, "migrate-rdma recover");
	stage(&p, CLI_SIDE_SEND, "recovered", 21 * S);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, 22 * S, "needs both hosts");
	stage(&p, CLI_SIDE_SEND, "whole", 23 * S);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, 30 * S, "every page is there");
}

static void one_that_recovers_begins_with_a_search(void **state)
{
	struct cli_phase p;

	(void)state;
	cli_phase_init(&p, true);
	stage(&p, CLI_SIDE_RECEIVE, "open", 10 * S);
	stage(&p, CLI_SIDE_RECEIVE, "postcopy", 10 * S);
	assert_answer(&p, CLI_SIDE_RECEIVE, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, 10 * S, "no longer tries to reach it");
	stage(&p, CLI_SIDE_RECEIVE, "recovered", 11 * S);
	assert_answer(&p, CLI_SIDE_RECEIVE, CLI_ASK_CANCEL, LM_POSTCOPY_AUTO, 11 * S, "needs both hosts");
}

static void who_asks_for_post_copy_learns_what_comes_of_it(void **state)
{
	struct cli_phase p;

	(void)state;
	cli_phase_init(&p, false);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_POSTCOPY, LM_POSTCOPY_AUTO, S, "switching over as soon");
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_POSTCOPY, LM_POSTCOPY_NEVER, S, "never refuses it");
	assert_answer(&p, CLI_SIDE_RECEIVE, CLI_ASK_POSTCOPY, LM_POSTCOPY_AUTO, S, "up to the source");
	stage(&p, CLI_SIDE_SEND, "committed", S);
	assert_answer(&p, CLI_SIDE_SEND, CLI_ASK_POSTCOPY, LM_POSTCOPY_AUTO, S, "already");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cancel_is_possible_until_the_destination_was_told),
		cmocka_unit_test(in_post_copy_only_a_search_ends),
		cmocka_unit_test(one_that_recovers_begins_with_a_search),
		cmocka_unit_test(who_asks_for_post_copy_learns_what_comes_of_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
