/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include "unit.h"
#include "units.h"

struct sample {
	const char *text;
	uint64_t value; /* 0: refused */
	const char *hint; /* in the message, when refused */
};

static void times_are_read_with_their_unit(void **state)
{
	static const struct sample samples[] = {
		{ "10ms", 10000000, NULL },      { "1.5s", 1500000000, NULL },
		{ "500us", 500000, NULL },       { "7ns", 7, NULL },
		{ "2min", 120000000000, NULL },  { "1h", 3600000000000, NULL },
		{ "0.25ms", 250000, NULL },      { "10 ms", 10000000, NULL },
		{ "10MS", 10000000, NULL },      { "10", 0, "10ms" },
		{ "1.5", 0, "1.5s" },            { "0", 0, "0s" },
		{ "", 0, "such as 10ms" },       { "ms", 0, "such as 10ms" },
		{ "-1ms", 0, "not a time" },     { "+1ms", 0, "not a time" },
		{ "1e3ms", 0, "not a time" },    { "0x10ms", 0, "not a time" },
		{ "1.ms", 0, "not a time" },     { ".5ms", 0, "not a time" },
		{ "1.2.3ms", 0, "not a time" },  { "inf", 0, "not a time" },
		{ "1m", 0, "min" },              { "0ms", 0, "too short" },
		{ "0.1ns", 0, "too short" },     { "9999999999h", 0, "too long" },
		{ "99999999999999999999999999s", 0, "not a time" },
		{ "1ms1ms", 0, "not a time" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(samples) / sizeof(samples[0]); i++) {
		const struct sample *s = &samples[i];
		char why[256] = "";
		int64_t ns = -1;
		int rc = cli_time_parse(s->text, &ns, why, sizeof(why));

		if (rc != (s->value ? 0 : -EINVAL) || (s->value && ns != (int64_t)s->value) ||
		    (s->hint && !strstr(why, s->hint)))
			fail_msg("'%s': %d, %lld, \"%s\"", s->text, rc, (long long)ns, why);
	}
}

static void rates_are_read_with_their_unit(void **state)
{
	static const struct sample samples[] = {
		{ "1KiB/s", 1024, NULL },              { "500MiB/s", 524288000, NULL },
		{ "2GiB/s", 2147483648, NULL },        { "1.5GiB/s", 1610612736, NULL },
		{ "800kbit/s", 100000, NULL },         { "100Mbit/s", 12500000, NULL },
		{ "2.5Gbit/s", 312500000, NULL },      { "10mib/s", 10485760, NULL },
		{ "500", 0, "500MiB/s" },              { "500M", 0, "such as 500MiB/s" },
		{ "500Mb/s", 0, "such as 500MiB/s" },  { "500MB/s", 0, "such as 500MiB/s" },
		{ "0MiB/s", 0, "too low" },            { "99999999999GiB/s", 0, "too high" },
		{ "-5MiB/s", 0, "not a rate" },        { "", 0, "not a rate" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(samples) / sizeof(samples[0]); i++) {
		const struct sample *s = &samples[i];
		char why[256] = "";
		uint64_t rate = 0;
		int rc = cli_rate_parse(s->text, &rate, why, sizeof(why));

		if (rc != (s->value ? 0 : -EINVAL) || (s->value && rate != s->value) ||
		    (s->hint && !strstr(why, s->hint)))
			fail_msg("'%s': %d, %llu, \"%s\"", s->text, rc, (unsigned long long)rate, why);
	}
}

static void a_default_is_shown_as_it_would_be_written(void **state)
{
	static const int64_t times[] = { 1, 1500, 10000000, 1500000000, 5000000000, 60000000000, 3600000000000 };
	char text[64], why[256];

	(void)state;
	for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		int64_t back = 0;

		cli_time_default(times[i], text, sizeof(text));
		assert_int_equal(cli_time_parse(text, &back, why, sizeof(why)), 0);
		assert_int_equal(back, times[i]);
	}
	cli_time_default(10000000, text, sizeof(text));
	assert_string_equal(text, "10ms");
	cli_time_default(0, text, sizeof(text));
	assert_string_equal(text, "none");
	cli_rate_default(0, text, sizeof(text));
	assert_string_equal(text, "none");
	cli_rate_default(64 << 20, text, sizeof(text));
	assert_string_equal(text, "64MiB/s");
}

static void numbers_for_people_have_three_digits_or_so(void **state)
{
	char text[64];

	(void)state;
	assert_string_equal(cli_time_format(340, text, sizeof(text)), "0 us");
	assert_string_equal(cli_time_format(34000, text, sizeof(text)), "34 us");
	assert_string_equal(cli_time_format(1234567, text, sizeof(text)), "1.23 ms");
	assert_string_equal(cli_time_format(11200000, text, sizeof(text)), "11.2 ms");
	assert_string_equal(cli_time_format(2310000000, text, sizeof(text)), "2.31 s");
	assert_string_equal(cli_time_format(185000000000, text, sizeof(text)), "3 min 05 s");
	assert_string_equal(cli_time_format(-1, text, sizeof(text)), "?");
	assert_string_equal(cli_bytes_format(0, text, sizeof(text)), "0 bytes");
	assert_string_equal(cli_bytes_format(1023, text, sizeof(text)), "1023 bytes");
	assert_string_equal(cli_bytes_format(1024, text, sizeof(text)), "1.00 KiB");
	assert_string_equal(cli_bytes_format(UINT64_C(1) << 30, text, sizeof(text)), "1.00 GiB");
	assert_string_equal(cli_bytes_format(UINT64_MAX, text, sizeof(text)), "16384 PiB");
	assert_string_equal(cli_rate_format(100 << 20, text, sizeof(text)), "100 MiB/s");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(times_are_read_with_their_unit),
		cmocka_unit_test(rates_are_read_with_their_unit),
		cmocka_unit_test(a_default_is_shown_as_it_would_be_written),
		cmocka_unit_test(numbers_for_people_have_three_digits_or_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
