/* SPDX-License-Identifier: Apache-2.0 */
/* Progress lines, summaries, and text that came from elsewhere. */
#include <stdlib.h>
#include <string.h>
#include "unit.h"
#include "progress.h"
#include "summary.h"
#include "text.h"

static const struct lm_progress half = {
	.round = 2, .round_pages = 1000, .done_pages = 500, .bytes = UINT64_C(3) << 30, .bytes_per_s = 1 << 30,
};

static void progress_fits_the_width_whatever_it_is(void **state)
{
	char line[512];

	(void)state;
	for (unsigned width = 1; width < 300; width++) {
		size_t len = cli_progress_format(line, sizeof(line), width, &half, 75000000000);

		assert_true(len <= width);
		assert_int_equal(len, strlen(line));
		assert_null(strpbrk(line, "\r\n\033"));
	}
	assert_true(cli_progress_format(line, 10, 80, &half, 0) < 10);
}

static void progress_shows_what_there_is_room_for(void **state)
{
	char line[512];

	(void)state;
	cli_progress_format(line, sizeof(line), 79, &half, 75000000000);
	assert_non_null(strstr(line, "[####"));
	assert_string_equal(strstr(line, " 50%"), " 50%  3.00 GiB  1.00 GiB/s  1:15");
	cli_progress_format(line, sizeof(line), 24, &half, 75000000000);
	assert_string_equal(line, "round 2  50%  3.00 GiB");
	cli_progress_format(line, sizeof(line), 12, &half, 75000000000);
	assert_string_equal(line, "round 2  50%");
}

static void bar_of(uint64_t done, uint64_t all, char *line, size_t size)
{
	struct lm_progress p = { .done_pages = done, .round_pages = all };

	cli_progress_format(line, size, 60, &p, 0);
}

static void the_bar_is_never_more_than_full(void **state)
{
	char line[128];

	(void)state;
	bar_of(0, 1000, line, sizeof(line));
	assert_null(strchr(line, '#'));
	assert_non_null(strstr(line, "  0%"));
	bar_of(999, 1000, line, sizeof(line));
	assert_non_null(strstr(line, " 99%"));
	bar_of(1001, 1000, line, sizeof(line));
	assert_null(strchr(line, '-'));
	assert_non_null(strstr(line, "100%"));
	bar_of(0, 0, line, sizeof(line));
	assert_non_null(strstr(line, "100%"));
	bar_of(UINT64_MAX / 2, UINT64_MAX, line, sizeof(line));
	assert_non_null(strstr(line, " 50%"));
}

static char *blackout(const struct lm_blackout *b)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	cli_summary_blackout(b, f);
	fclose(f);
	return text;
}

static void the_blackout_is_the_sum_of_its_parts(void **state)
{
	const struct lm_blackout all = { .total_ns = 11200000, .stop_ns = 1100000, .last_scan_ns = 200000,
		.last_copy_ns = 400000, .device_state_ns = 8100000, .resume_ns = 1400000, .last_pages = 14 };
	const struct lm_blackout rest = { .total_ns = 11200000, .stop_ns = 1200000, .lock_ns = 3000000 };
	const struct lm_blackout none = { 0 };
	char *text = blackout(&all);

	(void)state;
	assert_non_null(strstr(text, "blackout 11.2 ms = stop 1.1 + last scan 0.2 + last copy 0.4 + "
			       "device state 8.1 + resume 1.4\n"));
	free(text);
	text = blackout(&rest);
	assert_non_null(strstr(text, "11.2 ms = stop 1.2 + locks 3.0 + other 7.0\n"));
	free(text);
	text = blackout(&none);
	assert_string_equal(text, "");
	free(text);
}

static char *verdict(enum cli_side side, enum lm_outcome outcome, uint64_t left_pages, bool postcopy)
{
	const struct cli_place place = { .peer = "peer:1", .qmp = "/q", .address = "h:7", .insecure = true,
					 .postcopy = postcopy };
	struct lm_summary s = { .postcopy = { .left_pages = left_pages, .missing_pages = left_pages }, .outcome = outcome, .error = { -5, LM_SCOPE_SESSION, "a reason" } };
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	cli_summary_verdict(side, &s, &place, f);
	fclose(f);
	return text;
}

static void every_end_says_where_the_guest_is(void **state)
{
	static const struct { enum lm_outcome outcome; int code; const char *send, *receive; } ends[] = {
		{ LM_OUTCOME_COMPLETED, 0, "has moved to peer:1", "on this host, paused" },
		{ LM_OUTCOME_REFUSED, 2, "as it was", "Nothing was touched" },
		{ LM_OUTCOME_ABORTED, 3, "on this host as before", "on the source as before" },
		{ LM_OUTCOME_NONE, 3, "on this host as before", "on the source as before" },
		{ LM_OUTCOME_CANCELLED, 4, "on this host as before", "on the source as before" },
		{ LM_OUTCOME_STALLED, 5, "--on-stall force", "on the source as before" },
		{ LM_OUTCOME_IN_DOUBT, 6, "resolve --qmp /q --run-here", "resolve --qmp /q --end-here" },
		{ LM_OUTCOME_VM_LOST, 7, "has ended", "has ended" },
		{ LM_OUTCOME_INTERRUPTED, 8, "recover --qmp /q --to h:7 --insecure",
		  "recover --qmp /q --listen h:7 --insecure" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		char *send = verdict(CLI_SIDE_SEND, ends[i].outcome, 0, false);
		char *receive = verdict(CLI_SIDE_RECEIVE, ends[i].outcome, 0, false);

		assert_non_null(strstr(send, ends[i].send));
		assert_non_null(strstr(receive, ends[i].receive));
		assert_true(!strstr(send, "a reason") == (ends[i].outcome == LM_OUTCOME_COMPLETED));
		assert_int_equal(cli_exit_code(ends[i].outcome), ends[i].code);
		free(send);
		free(receive);
	}
}

static void nobody_is_told_to_end_what_post_copy_needs(void **state)
{
	static const enum lm_outcome ends[] = { LM_OUTCOME_INTERRUPTED, LM_OUTCOME_ABORTED, LM_OUTCOME_IN_DOUBT };

	(void)state;
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		char *send = verdict(CLI_SIDE_SEND, ends[i], 1000, true);

		assert_null(strstr(send, "--end-here"));
		assert_null(strstr(send, "as before"));
		assert_true(strstr(send, "o not end") || strstr(send, "loses the guest"));
		free(send);
	}
}

static const struct lm_postcopy_stats half_missing = {
	.used = true, .left_pages = 6400, .missing_pages = 3200, .bytes = 13107200, .faults = 340,
	.fault_p50_ns = 90000, .fault_p99_ns = 400000, .fault_max_ns = 1200000, .waited_ns = 30000000,
	.duration_ns = 500000000, .recoveries = 2,
};

static void post_copy_has_a_line_of_its_own(void **state)
{
	char line[512];
	struct lm_postcopy_stats none = { .used = true };

	(void)state;
	for (unsigned width = 1; width < 300; width++) {
		assert_true(cli_progress_postcopy(line, sizeof(line), width, &half_missing, 75000000000) <= width);
		assert_null(strpbrk(line, "\r\n\033"));
	}
	cli_progress_postcopy(line, sizeof(line), 200, &half_missing, 75000000000);
	assert_string_equal(strstr(line, " 50%"), " 50%  12.5 MiB missing  340 faults  p50 90 us  p99 0.40 ms"
			    "  max 1.20 ms  waited 30.0 ms  1:15");
	assert_non_null(strstr(line, "post-copy [####"));
	cli_progress_postcopy(line, sizeof(line), 40, &half_missing, 75000000000);
	assert_string_equal(line, "post-copy  50%  12.5 MiB missing");
	cli_progress_postcopy(line, sizeof(line), 79, &none, 0);
	assert_string_equal(strstr(line, "100%"), "100%  0 bytes missing  0 faults  0:00");
}

static void the_summary_says_what_post_copy_cost(void **state)
{
	struct lm_postcopy_stats stats = half_missing;
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	(void)state;
	assert_non_null(f);
	cli_summary_postcopy(&stats, f);
	stats.faults = 0;
	cli_summary_postcopy(&stats, f);
	stats.used = false;
	cli_summary_postcopy(&stats, f);
	fclose(f);
	assert_string_equal(text,
		"  post-copy    25.0 MiB left behind at the switchover, 12.5 MiB fetched in 500.0 ms\n"
		"               340 faults: median 90 us, 99 % within 0.40 ms, longest 1.20 ms;\n"
		"               the guest's threads waited 30.0 ms in all\n"
		"               the other host was lost and found again 2 times\n"
		"  post-copy    25.0 MiB left behind at the switchover, 12.5 MiB fetched in 500.0 ms\n"
		"               the guest never waited for a page\n"
		"               the other host was lost and found again 2 times\n");
	free(text);
}

static void text_from_elsewhere_cannot_command_a_terminal(void **state)
{
	static const struct { const char *in, *out; } samples[] = {
		{ "plain", "plain" },
		{ "a\nb\tc", "a b c" },
		{ "\033[2J\007\r", "?[2J??" },
		{ "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\x84", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\x84" },
		{ "\xc2\x9b" "31m", "?31m" },          /* CSI as one character */
		{ "\xc0\xaf \xe0\x80\xaf", "?" "? ??" "?" }, /* too long for what they say */
		{ "\xed\xa0\x80", "??" "?" },             /* a surrogate */
		{ "\xf5\x80\x80\x80", "??" "??" },        /* beyond Unicode */
		{ "cut \xe2\x82", "cut ?" "?" },
	};
	char out[64];

	(void)state;
	for (size_t i = 0; i < sizeof(samples) / sizeof(samples[0]); i++)
		assert_string_equal(cli_text_clean(samples[i].in, out, sizeof(out)), samples[i].out);
	assert_string_equal(cli_text_clean("abc\xe2\x82\xac", out, 6), "abc");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(progress_fits_the_width_whatever_it_is),
		cmocka_unit_test(progress_shows_what_there_is_room_for),
		cmocka_unit_test(the_bar_is_never_more_than_full),
		cmocka_unit_test(the_blackout_is_the_sum_of_its_parts),
		cmocka_unit_test(every_end_says_where_the_guest_is),
		cmocka_unit_test(nobody_is_told_to_end_what_post_copy_needs),
		cmocka_unit_test(post_copy_has_a_line_of_its_own),
		cmocka_unit_test(the_summary_says_what_post_copy_cost),
		cmocka_unit_test(text_from_elsewhere_cannot_command_a_terminal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
