/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command migrate-rdma: subcommands, their options, and exit codes.
 *
 * subcommands[] and each subcommand's option table are the only place where a
 * name is written: parsing, --help, and the shell completions come from them.
 * Everything here is a user of migrate_rdma.h and of nothing else of the engine.
 */
#ifndef CLI_H
#define CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "migrate_rdma.h"

/* Documented in migrate-rdma(1): never renumber. */
enum cli_exit {
	CLI_EXIT_OK = 0,        /* completed */
	CLI_EXIT_USAGE = 1,     /* the command line is wrong */
	CLI_EXIT_REFUSED = 2,   /* nothing was touched */
	CLI_EXIT_ABORTED = 3,   /* given up; the guest is on the source */
	CLI_EXIT_CANCELLED = 4,
	CLI_EXIT_STALLED = 5,
	CLI_EXIT_IN_DOUBT = 6,
	CLI_EXIT_VM_LOST = 7,
	CLI_EXIT_INTERRUPTED = 8, /* post-copy without its peer: recover */
};

enum cli_shell { CLI_SHELL_NONE, CLI_SHELL_BASH, CLI_SHELL_ZSH };

#define CLI_RAILS_MAX 10

struct cli_subcommand;

/* What the command line said; filled by cli_options_parse(). */
struct cli_settings {
	struct lm_options lm;
	const struct cli_subcommand *subcommands; /* all that there are, for help; ends with a NULL name */
	bool help, json, quiet;
	unsigned verbose;
	bool quit_source;
	bool run_here, end_here, automatic, yes;
	const char *listen, *to; /* recover: one of them; the others say it in lm.address */
	bool recovering;         /* the guest has been switched over before we came */
	int paging;              /* restore: 1: lazy */
	bool resume;             /* restore: one that was interrupted */
	int completion;        /* enum cli_shell */
	const char *rails[CLI_RAILS_MAX]; /* lm.rails */
	const char *locks[LM_LOCKS_MAX];  /* lm.locks */
	char *const *words;    /* what follows the options, NULL-ended */
};

/* What an option's argument is, and so what type lies at .offset. */
enum cli_kind {
	CLI_FLAG,      /* bool; no argument */
	CLI_COUNT,     /* unsigned; no argument, may be repeated */
	CLI_NUMBER,    /* uint32_t, 1..max */
	CLI_TIME,      /* int64_t nanoseconds, at least 1 */
	CLI_TIMEOUT,   /* the same; "none" is 0 */
	CLI_TIME_OR_0,  /* the same; "0" is 0 */
	CLI_AFTER,     /* struct lm_options: 1..max is postcopy_after_rounds, a time postcopy_after_ns */
	CLI_RATE,      /* uint64_t bytes per second; "none" is 0 */
	CLI_PATH,      /* const char * */
	CLI_WORD,      /* const char *, not empty, not the name of a file */
	CLI_ADDRESS,   /* const char *, "HOST:PORT" */
	CLI_CHOICE,    /* int: index in choices */
	CLI_TRANSPORT, /* const char *: "auto" or one of lm_transport_names() */
	CLI_RAIL,      /* struct lm_options: one more of its rails; may be repeated */
	CLI_LOCK,      /* struct lm_options: one more of its locks; may be repeated */
};

struct cli_option {
	const char *name;           /* without the dashes; NULL ends a table */
	char letter;                /* 0: none */
	enum cli_kind kind;
	bool required;
	const char *argument;       /* its name in --help; NULL: takes none */
	size_t offset;              /* in struct cli_settings */
	uint32_t max;               /* CLI_NUMBER, CLI_AFTER */
	const char *const *choices; /* CLI_CHOICE, NULL-ended; an empty word is not offered */
	const char *help;           /* one line or two; the default is added by itself */
};

/* What may follow the options. */
enum cli_rest { CLI_REST_NONE, CLI_REST_SUBCOMMAND, CLI_REST_COMMAND, CLI_REST_LOCK };

struct cli_subcommand {
	const char *name;
	const char *summary;        /* one line */
	const struct cli_option *options;
	enum cli_rest rest;
	int (*run)(const struct cli_subcommand *self, struct cli_settings *settings);
};

extern const struct cli_subcommand subcommands[]; /* ends with a NULL name */

const struct cli_subcommand *cli_subcommand_find(const char *name);

/* subcommands, each in a file of its own */
int cli_quick(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_save(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_restore(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_send(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_receive(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_check(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_postcopy(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_recover(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_resolve(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_lock(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_transports(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_version(const struct cli_subcommand *self, struct cli_settings *settings);
int cli_help(const struct cli_subcommand *self, struct cli_settings *settings);

/* The whole command; main() without the process. */
int cli_main(int argc, char *argv[]);

/* usage.c: says what is wrong and where help is; returns CLI_EXIT_USAGE. */
int cli_usage_error(const struct cli_subcommand *self, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* usage.c: fills err and returns -EINVAL. */
int cli_invalid(struct lm_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* help.c */
void cli_help_overview(const struct cli_subcommand *all, FILE *to);
void cli_help_subcommand(const struct cli_subcommand *sub, FILE *to);

/* completion.c */
void cli_completion(const struct cli_subcommand *all, enum cli_shell shell, FILE *to);

#endif
