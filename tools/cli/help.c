/* SPDX-License-Identifier: Apache-2.0 */
/* The subcommand help, and what --help prints: all of it from the tables. */
#include <string.h>
#include "options.h"

#define COLUMN 30  /* where explanations begin */
#define WIDTH  80

/* What follows the name of an option: " TIME", or nothing. */
static int option_words(const struct cli_option *o, char *buf, size_t size)
{
	return snprintf(buf, size, "--%s%s%s", o->name, o->argument ? " " : "",
			o->argument ? o->argument : "");
}

/* Words from text until the column is full; at the left margin a new line begins. */
static void wrapped(FILE *to, const char *text, size_t column)
{
	size_t at = column;

	while (*text) {
		size_t len = strcspn(text, " ");

		if (at > column && at + 1 + len > WIDTH) {
			fprintf(to, "\n%*s", (int)column, "");
			at = column;
		} else if (at > column) {
			fputc(' ', to);
			at++;
		}
		fwrite(text, 1, len, to);
		at += len;
		text += len + strspn(text + len, " ");
	}
	fputc('\n', to);
}

static void print_option(FILE *to, const struct cli_option *o)
{
	char words[64], text[512], value[64];
	int len = option_words(o, words, sizeof(words));

	if (o->letter)
		fprintf(to, "  -%c, %s", o->letter, words);
	else
		fprintf(to, "      %s", words);
	len += 6;
	if (len + 1 >= COLUMN)
		fprintf(to, "\n%*s", COLUMN, "");
	else
		fprintf(to, "%*s", COLUMN - len, "");
	if (cli_option_default(o, value, sizeof(value)))
		snprintf(text, sizeof(text), "%s (default %s)", o->help, value);
	else
		snprintf(text, sizeof(text), "%s", o->help);
	wrapped(to, text, COLUMN);
}

static const char *rest_words(enum cli_rest rest)
{
	switch (rest) {
	case CLI_REST_COMMAND:
		return " [-- QEMU ARGUMENT...]";
	case CLI_REST_SUBCOMMAND:
		return " [SUBCOMMAND]";
	case CLI_REST_LOCK:
		return " show|acquire|release|break URI";
	default:
		return "";
	}
}

void cli_help_subcommand(const struct cli_subcommand *sub, FILE *to)
{
	char words[64];

	fprintf(to, "usage: migrate-rdma %s", sub->name);
	for (const struct cli_option *o = sub->options; o->name; o++) {
		option_words(o, words, sizeof(words));
		if (o->required)
			fprintf(to, " %s", words);
	}
	fprintf(to, " [OPTION...]%s\n\n", rest_words(sub->rest));
	fprintf(to, "migrate-rdma %s: %s\n\n", sub->name, sub->summary);
	for (const struct cli_option *o = sub->options; o->name; o++)
		print_option(to, o);
	if (sub->rest == CLI_REST_COMMAND)
		wrapped(to, "\nAfter --: the command of the destination's QEMU, with the options that the "
			"source's QEMU has. It is started with '-incoming defer', '-S' and a QMP socket added, "
			"and goes on when the guest has arrived.", 0);
	fprintf(to, "\nmigrate-rdma(1) explains all of it.\n");
}

void cli_help_overview(const struct cli_subcommand *all, FILE *to)
{
	fprintf(to, "usage: migrate-rdma SUBCOMMAND [OPTION...]\n\n"
		"Move a running QEMU guest from one host to another.\n\n");
	for (const struct cli_subcommand *s = all; s->name; s++)
		fprintf(to, "  %-12s%s\n", s->name, s->summary);
	fprintf(to, "\nOn the destination:  migrate-rdma receive --listen ADDRESS:PORT -- QEMU ARGUMENT...\n"
		"On the source:       migrate-rdma send --qmp SOCKET --to ADDRESS:PORT\n\n"
		"'migrate-rdma SUBCOMMAND --help' lists its options; migrate-rdma(1) explains them.\n");
}

static const struct cli_subcommand *find(const struct cli_subcommand *all, const char *name)
{
	while (all->name && strcmp(all->name, name))
		all++;
	return all->name ? all : NULL;
}

int cli_help(const struct cli_subcommand *self, struct cli_settings *settings)
{
	const char *name = settings->words[0];
	const struct cli_subcommand *sub = name ? find(settings->subcommands, name) : NULL;

	if (settings->completion) {
		cli_completion(settings->subcommands, (enum cli_shell)settings->completion, stdout);
		return CLI_EXIT_OK;
	}
	if (name && !sub)
		return cli_usage_error(self, "there is no subcommand '%s'", name);
	if (sub)
		cli_help_subcommand(sub, stdout);
	else
		cli_help_overview(settings->subcommands, stdout);
	return CLI_EXIT_OK;
}
