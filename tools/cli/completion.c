/* SPDX-License-Identifier: Apache-2.0 */
/* Completions for bash and zsh, written from the tables. */
#include <string.h>
#include "cli.h"

/* The words that an option's argument can be, with a space between; "" if free. */
static void choices(const struct cli_option *o, char *buf, size_t size)
{
	const char *const *c = o->kind == CLI_TRANSPORT ? lm_transport_names() : o->choices;
	size_t len;

	snprintf(buf, size, "%s", o->kind == CLI_TRANSPORT ? "auto" : "");
	for (; c && *c; c++) {
		len = strlen(buf);
		snprintf(buf + len, size - len, "%s%s", len && **c ? " " : "", *c);
	}
}

static void bash_words(const struct cli_subcommand *sub, FILE *to)
{
	fprintf(to, "\t%s) words='", sub->name);
	for (const struct cli_option *o = sub->options; o->name; o++) {
		if (o->letter)
			fprintf(to, "-%c ", o->letter);
		fprintf(to, "--%s%s", o->name, o[1].name ? " " : "");
	}
	fprintf(to, "' ;;\n");
}

/* What to offer as the argument of an option; names mean the same in every subcommand. */
static void bash_argument(const struct cli_subcommand *sub, const struct cli_option *o, FILE *to)
{
	char words[256];

	choices(o, words, sizeof(words));
	fprintf(to, "\t%s:--%s) ", sub->name, o->name);
	if (o->kind == CLI_PATH)
		fprintf(to, "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")");
	else if (*words)
		fprintf(to, "mapfile -t COMPREPLY < <(compgen -W '%s' -- \"$cur\")", words);
	else
		fprintf(to, "COMPREPLY=()");
	fprintf(to, "; return ;;\n");
}

static void bash(const struct cli_subcommand *all, FILE *to)
{
	fprintf(to, "# bash completion for migrate-rdma, made by 'migrate-rdma help --completion bash'\n"
		"_migrate_rdma()\n{\n"
		"\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words i\n"
		"\tlocal sub=${COMP_WORDS[1]}\n\n"
		"\tfor ((i = 2; i < COMP_CWORD; i++)); do\n"
		"\t\tif [[ $sub == receive && ${COMP_WORDS[i]} == -- ]]; then\n"
		"\t\t\tmapfile -t COMPREPLY < <(compgen -c -f -- \"$cur\")\n"
		"\t\t\treturn\n\t\tfi\n\tdone\n"
		"\tcase $sub:$prev in\n");
	for (const struct cli_subcommand *s = all; s->name; s++) {
		for (const struct cli_option *o = s->options; o->name; o++) {
			if (o->argument)
				bash_argument(s, o, to);
		}
	}
	fprintf(to, "\tesac\n\tcase $sub in\n");
	for (const struct cli_subcommand *s = all; s->name; s++)
		bash_words(s, to);
	fprintf(to, "\t*) words= ;;\n\tesac\n"
		"\tif ((COMP_CWORD == 1)) || { [[ $sub == help && $cur != -* ]]; }; then\n\t\twords='");
	for (const struct cli_subcommand *s = all; s->name; s++)
		fprintf(to, "%s%s", s->name, s[1].name ? " " : "");
	fprintf(to, "'\n\tfi\n\tmapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n}\n"
		"complete -F _migrate_rdma migrate-rdma\n");
}

/* Inside '...[HERE]...': brackets, colons and quotes would end it. */
static void zsh_text(const char *text, FILE *to)
{
	for (; *text; text++) {
		if (*text == '\'')
			fputs("'\\''", to);
		else if (strchr("[]:\\", *text))
			fprintf(to, "\\%c", *text);
		else
			fputc(*text, to);
	}
}

static void zsh_spec(const struct cli_option *o, const char *dashes, const char *name, FILE *to)
{
	char words[256];

	fprintf(to, "\t\t\t'%s%s%s[", o->kind == CLI_COUNT ? "*" : "", dashes, name);
	zsh_text(o->help, to);
	fputc(']', to);
	choices(o, words, sizeof(words));
	if (o->argument) {
		fputc(':', to);
		zsh_text(o->argument, to);
		if (o->kind == CLI_PATH)
			fputs(":_files", to);
		else if (*words)
			fprintf(to, ":(%s)", words);
		else
			fputs(": ", to);
	}
	fputs("' \\\n", to);
}

static void zsh_subcommand(const struct cli_subcommand *s, FILE *to)
{
	fprintf(to, "\t%s)\n\t\t_arguments -s -S \\\n", s->name);
	for (const struct cli_option *o = s->options; o->name; o++) {
		char one[2] = { o->letter, 0 };

		if (o->letter)
			zsh_spec(o, "-", one, to);
		zsh_spec(o, "--", o->name, to);
	}
	switch (s->rest) {
	case CLI_REST_COMMAND:
		fputs("\t\t\t'*::QEMU:_normal'\n", to);
		break;
	case CLI_REST_SUBCOMMAND:
		fputs("\t\t\t':subcommand:_migrate_rdma_subcommands'\n", to);
		break;
	default:
		fputs("\t\t\t&& return\n", to);
	}
	fputs("\t\t;;\n", to);
}

static void zsh(const struct cli_subcommand *all, FILE *to)
{
	fputs("#compdef migrate-rdma\n# made by 'migrate-rdma help --completion zsh'\n"
	      "_migrate_rdma_subcommands()\n{\n\tlocal -a subs=(\n", to);
	for (const struct cli_subcommand *s = all; s->name; s++)
		fprintf(to, "\t\t'%s:%s'\n", s->name, s->summary);
	fputs("\t)\n\t_describe subcommand subs\n}\n\n"
	      "_migrate_rdma()\n{\n\tif ((CURRENT == 2)); then\n\t\t_migrate_rdma_subcommands\n"
	      "\t\treturn\n\tfi\n\tshift words\n\t((CURRENT--))\n\tcase $words[1] in\n", to);
	for (const struct cli_subcommand *s = all; s->name; s++)
		zsh_subcommand(s, to);
	fputs("\tesac\n}\n\n_migrate_rdma \"$@\"\n", to);
}

void cli_completion(const struct cli_subcommand *all, enum cli_shell shell, FILE *to)
{
	if (shell == CLI_SHELL_BASH)
		bash(all, to);
	else
		zsh(all, to);
}
