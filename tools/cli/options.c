/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <string.h>
#include "option_value.h"
#include "options.h"
#include "units.h"

#define MAX_OPTIONS 40

void cli_settings_init(struct cli_settings *ret)
{
	*ret = (struct cli_settings){ 0 };
	lm_options_default(&ret->lm);
}

/* How many first letters two words share: enough to guess what was meant. */
static size_t common_prefix(const char *a, const char *b)
{
	size_t n = 0;

	while (a[n] && a[n] == b[n])
		n++;
	return n;
}

static int unknown_option(const struct cli_subcommand *sub, const char *word, struct lm_error *err)
{
	const char *guess = NULL;
	size_t best = 2;

	for (const struct cli_option *o = sub->options; o->name && !strncmp(word, "--", 2); o++) {
		size_t n = common_prefix(o->name, word + 2);

		if (n > best) {
			best = n;
			guess = o->name;
		}
	}
	if (guess)
		return cli_invalid(err, "no option %s; did you mean --%s?", word, guess);
	return cli_invalid(err, "no option %s", word);
}

/* Long options have values above any letter, so that a letter is found as itself. */
static size_t fill_getopt(const struct cli_option *table, struct option *longs, char *shorts)
{
	size_t n = 0;

	*shorts++ = '+'; /* stop at the first word that is no option */
	*shorts++ = ':'; /* tell a missing argument from an unknown option */
	for (; table[n].name && n < MAX_OPTIONS; n++) {
		longs[n] = (struct option){
			.name = table[n].name,
			.has_arg = table[n].argument ? required_argument : no_argument,
			.val = 256 + (int)n,
		};
		if (table[n].letter)
			*shorts++ = table[n].letter;
	}
	longs[n] = (struct option){ 0 };
	*shorts = 0;
	return n;
}

static const struct cli_option *by_letter(const struct cli_option *table, int letter)
{
	for (; table->name; table++) {
		if (table->letter && table->letter == letter)
			return table;
	}
	return NULL;
}

static int missing(const struct cli_subcommand *sub, const bool *seen, struct lm_error *err)
{
	for (size_t i = 0; sub->options[i].name; i++) {
		const struct cli_option *o = &sub->options[i];

		if (o->required && !seen[i])
			return cli_invalid(err, "--%s %s is missing", o->name, o->argument);
	}
	return 0;
}

static int rest(const struct cli_subcommand *sub, int argc, char *argv[],
		struct cli_settings *settings, struct lm_error *err)
{
	bool dashes = optind > 1 && !strcmp(argv[optind - 1], "--");

	settings->words = argv + optind;
	if (optind == argc)
		return dashes && sub->rest == CLI_REST_COMMAND ?
		       cli_invalid(err, "the QEMU command is missing after --") : 0;
	if (sub->rest == CLI_REST_NONE || (sub->rest == CLI_REST_SUBCOMMAND && argc - optind > 1))
		return cli_invalid(err, "'%s' is one word too many", argv[argc - 1]);
	if (sub->rest == CLI_REST_LOCK && argc - optind > 2)
		return cli_invalid(err, "'%s' is one word too many", argv[argc - 1]);
	if (sub->rest == CLI_REST_COMMAND && !dashes)
		return cli_invalid(err, "'%s' is not an option; the QEMU command goes after --", argv[optind]);
	return 0;
}

/* What getopt made of the next word; its index in the table is *at. */
static int one_option(const struct cli_subcommand *sub, int c, char *argv[], size_t *at,
		      struct lm_error *err)
{
	char word[3] = { '-', (char)optopt, 0 };
	const struct cli_option *o = c < 256 ? by_letter(sub->options, c) : &sub->options[c - 256];

	if (c == ':')
		return cli_invalid(err, "%s needs an argument", argv[optind - 1]);
	if (c == '?' && optopt >= 256)
		return cli_invalid(err, "--%s takes no argument", sub->options[optopt - 256].name);
	if (c == '?' || !o)
		return unknown_option(sub, c == '?' && optopt ? word : argv[optind - 1], err);
	*at = (size_t)(o - sub->options);
	return 0;
}

int cli_options_parse(const struct cli_subcommand *sub, int argc, char *argv[],
		      struct cli_settings *settings, struct lm_error *err)
{
	struct option longs[MAX_OPTIONS + 1];
	char shorts[MAX_OPTIONS + 3];
	bool seen[MAX_OPTIONS] = { false };
	size_t i = 0;
	int c, rc;

	fill_getopt(sub->options, longs, shorts);
	optind = 0; /* glibc: start afresh */
	opterr = 0;
	while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
		rc = one_option(sub, c, argv, &i, err);
		if (!rc)
			rc = cli_option_value(&sub->options[i], optarg, settings, err);
		if (rc)
			return rc;
		seen[i] = true;
	}
	if (settings->help)
		return 0;
	rc = rest(sub, argc, argv, settings, err);
	return rc ? rc : missing(sub, seen, err);
}

bool cli_option_default(const struct cli_option *option, char *buf, size_t size)
{
	struct cli_settings settings;
	const void *at = (const char *)&settings + option->offset;

	cli_settings_init(&settings);
	switch (option->kind) {
	case CLI_TIME:
	case CLI_TIMEOUT:
	case CLI_TIME_OR_0:
		cli_time_default(*(const int64_t *)at, buf, size);
		return true;
	case CLI_RATE:
		cli_rate_default(*(const uint64_t *)at, buf, size);
		return true;
	case CLI_TRANSPORT:
		snprintf(buf, size, "%s", *(const char *const *)at);
		return true;
	case CLI_CHOICE:
		snprintf(buf, size, "%s", option->choices[*(const int *)at]);
		return *buf;
	default:
		return false;
	}
}
