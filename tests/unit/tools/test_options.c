/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include "unit.h"
#include "options.h"

#define MAX_WORDS 32

/* Parses a line split at blanks; the words live as long as the program. */
static int parse(const char *line, struct cli_settings *settings, struct lm_error *err)
{
	static char copy[512];
	static char *argv[MAX_WORDS + 1];
	char *save = NULL;
	int argc = 0;

	snprintf(copy, sizeof(copy), "%s", line);
	for (char *w = strtok_r(copy, " ", &save); w && argc < MAX_WORDS; w = strtok_r(NULL, " ", &save))
		argv[argc++] = w;
	argv[argc] = NULL;
	memset(err, 0, sizeof(*err));
	cli_settings_init(settings);
	return cli_options_parse(cli_subcommand_find(argv[0]), argc, argv, settings, err);
}

static void parse_ok(const char *line, struct cli_settings *settings)
{
	struct lm_error err;

	if (parse(line, settings, &err))
		fail_msg("'%s': %s", line, err.msg);
}

static void without_options_there_are_the_engines_defaults(void **state)
{
	struct cli_settings s;
	struct lm_options defaults;

	(void)state;
	lm_options_default(&defaults);
	parse_ok("send --qmp q --to h:1", &s);
	assert_int_equal(s.lm.max_downtime_ns, defaults.max_downtime_ns);
	assert_int_equal(s.lm.max_downtime_ns, 10000000);
	assert_int_equal(s.lm.max_bandwidth_bytes_per_s, 0);
	assert_int_equal(s.lm.max_pause_ns, defaults.max_pause_ns);
	assert_int_equal(s.lm.on_stall, LM_STALL_WAIT);
	assert_string_equal(s.lm.transport, "auto");
	assert_false(s.lm.insecure || s.json || s.quiet || s.quit_source || s.lm.verify);
}

static void every_option_of_send_arrives(void **state)
{
	struct cli_settings s;

	(void)state;
	parse_ok("send --qmp /q --to [::1]:44 --max-downtime 3ms --max-bandwidth 8Mbit/s --lanes 3 --pid 77", &s);
	assert_string_equal(s.lm.qmp, "/q");
	assert_string_equal(s.lm.address, "[::1]:44");
	assert_int_equal(s.lm.max_downtime_ns, 3000000);
	assert_int_equal(s.lm.max_bandwidth_bytes_per_s, 1000000);
	assert_int_equal(s.lm.lanes, 3);
	assert_int_equal(s.lm.pid, 77);
	parse_ok("send --qmp=q --to=h:1 --timeout 9s --on-stall=abort --max-pause 2s --peer-timeout 4s", &s);
	assert_int_equal(s.lm.timeout_ns, 9000000000);
	assert_int_equal(s.lm.on_stall, LM_STALL_ABORT);
	assert_int_equal(s.lm.max_pause_ns, 2000000000);
	assert_int_equal(s.lm.peer_timeout_ns, 4000000000);
	parse_ok("send --qmp q --to h:1 --transport tcp --json -q -vv -v --insecure --verify --quit-source", &s);
	assert_string_equal(s.lm.transport, "tcp");
	assert_true(s.json && s.quiet && s.lm.insecure && s.lm.verify && s.quit_source);
	assert_int_equal(s.verbose, 3);
	parse_ok("send --qmp q --to h:1 --on-stall force --timeout none --max-bandwidth none", &s);
	assert_int_equal(s.lm.on_stall, LM_STALL_FORCE);
	assert_int_equal(s.lm.timeout_ns, 0);
	assert_int_equal(s.lm.max_bandwidth_bytes_per_s, 0);
}

static void post_copy_is_hybrid_unless_something_else_is_said(void **state)
{
	struct cli_settings s;

	(void)state;
	parse_ok("send --qmp q --to h:1", &s);
	assert_int_equal(s.lm.postcopy, LM_POSTCOPY_AUTO);
	assert_true(!s.lm.postcopy_after_rounds && !s.lm.postcopy_after_ns);
	assert_int_equal(s.lm.recover_timeout_ns, 60000000000);
	parse_ok("send --qmp q --to h:1 --postcopy=never --recover-timeout 0", &s);
	assert_int_equal(s.lm.postcopy, LM_POSTCOPY_NEVER);
	assert_int_equal(s.lm.recover_timeout_ns, 0);
	parse_ok("send --qmp q --to h:1 --postcopy now --recover-timeout 0s", &s);
	assert_int_equal(s.lm.postcopy, LM_POSTCOPY_NOW);
	assert_int_equal(s.lm.recover_timeout_ns, 0);
	parse_ok("send --qmp q --to h:1 --postcopy-after 3", &s);
	assert_int_equal(s.lm.postcopy_after_rounds, 3);
	assert_int_equal(s.lm.postcopy_after_ns, 0);
	parse_ok("send --qmp q --to h:1 --postcopy-after 2min --postcopy-after 7 --recover-timeout 5min", &s);
	assert_int_equal(s.lm.postcopy_after_rounds, 7);
	assert_int_equal(s.lm.postcopy_after_ns, 120000000000);
	assert_int_equal(s.lm.recover_timeout_ns, 300000000000);
	parse_ok("receive --listen h:1 --qmp q --postcopy never --recover-timeout 1s", &s);
	assert_int_equal(s.lm.postcopy, LM_POSTCOPY_NEVER);
	assert_int_equal(s.lm.recover_timeout_ns, 1000000000);
}

static void recover_tells_its_sides_apart(void **state)
{
	struct cli_settings s;

	(void)state;
	parse_ok("recover --qmp q --listen h:1 --recover-timeout 5s", &s);
	assert_string_equal(s.listen, "h:1");
	assert_null(s.to);
	parse_ok("recover --pid 7 --to h:2 --json", &s);
	assert_string_equal(s.to, "h:2");
	assert_null(s.listen);
	assert_int_equal(s.lm.pid, 7);
	parse_ok("postcopy --pid 7", &s);
	assert_int_equal(s.lm.pid, 7);
}

/* What the tables cannot say: the subcommands do, and do nothing else then. */
static void locks_keep_their_order(void **state)
{
	char line[400] = "send --qmp q --to h:1 --host me";
	struct cli_settings s;
	struct lm_error err;

	(void)state;
	parse_ok("receive --listen h:1 --qmp q --lock scsi-pr:/dev/x --lock lease:/b", &s);
	assert_int_equal(s.lm.nlocks, 2);
	assert_string_equal(s.lm.locks[0], "scsi-pr:/dev/x");
	assert_string_equal(s.lm.locks[1], "lease:/b");
	assert_null(s.lm.lock_host);
	for (unsigned i = 0; i <= LM_LOCKS_MAX; i++)
		snprintf(line + strlen(line), sizeof(line) - strlen(line), " --lock=lease:/%u", i);
	assert_int_equal(parse(line, &s, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "at most 16"));
	assert_string_equal(s.lm.lock_host, "me");
}

static void what_excludes_each_other_is_refused(void **state)
{
	static const char *const lines[] = {
		"send --qmp q --to h:1 --postcopy never --postcopy-after 3",
		"send --qmp q --to h:1 --postcopy now --postcopy-after 3s",
		"recover --qmp q", "recover --to h:1", "recover --qmp q --pid 7 --to h:1",
		"recover --qmp q --to h:1 --listen h:1", "recover --pid 7 --to h:1 --quit-source",
		"recover --qmp q --listen h:1 --quit-source",
		"postcopy", "postcopy --qmp q --pid 7",
		"resolve --qmp q --auto", "resolve --qmp q --auto --run-here --lock lease:/x",
		"resolve --qmp q --end-here --run-here",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		struct cli_settings s;
		const struct cli_subcommand *sub;
		char name[16];

		sscanf(lines[i], "%15s", name);
		sub = cli_subcommand_find(name);
		parse_ok(lines[i], &s);
		if (sub->run(sub, &s) != CLI_EXIT_USAGE)
			fail_msg("'%s' was accepted", lines[i]);
	}
}

static void the_words_after_the_dashes_are_the_command(void **state)
{
	struct cli_settings s;

	(void)state;
	parse_ok("receive --listen 1.2.3.4:0 --paused -- qemu --paused -m 1G", &s);
	assert_true(s.lm.start_paused);
	assert_string_equal(s.words[0], "qemu");
	assert_string_equal(s.words[1], "--paused");
	assert_null(s.words[4]);
	parse_ok("receive --listen 1.2.3.4:0 --qmp q", &s);
	assert_null(s.words[0]);
}

/* What is wrong on the line, and what the message must say about it. */
static void bad_input_is_answered_with_what_to_write(void **state)
{
	static const struct { const char *line, *hint; } bad[] = {
		{ "send --to h:1", "--qmp SOCKET is missing" },
		{ "send --qmp q", "--to ADDRESS:PORT is missing" },
		{ "receive --qmp q", "--listen ADDRESS:PORT is missing" },
		{ "send --max-downtime 10", "10ms" },
		{ "send --max-bandwidth 10", "10MiB/s" },
		{ "send --max-downtime none", "such as 10ms" },
		{ "send --lanes 0", "from 1 to 64" },
		{ "send --lanes 65", "from 1 to 64" },
		{ "send --lanes -1", "from 1 to 64" },
		{ "send --lanes 2x", "from 1 to 64" },
		{ "send --pid 99999999999", "not a number" },
		{ "send --on-stall never", "wait, force, abort" },
		{ "send --transport carrier-pigeon", "migrate-rdma transports" },
		{ "send --to 192.0.2.7", "ADDRESS:PORT" },
		{ "send --to :4444", "ADDRESS:PORT" },
		{ "send --to [::1]", "ADDRESS:PORT" },
		{ "send --to 2001:db8::7:4444", "[2001:db8::7]:4444" },
		{ "send --to [::1]4444", "ADDRESS:PORT" },
		{ "send --to [::1]x:1", "[ADDRESS]:PORT" },
		{ "send --to host:http", "port number" },
		{ "send --to host:70000", "port number" },
		{ "send --max-downtim", "needs an argument" },
		{ "send --max-dowmtime 3ms", "did you mean --max-downtime?" },
		{ "send --frobnicate", "no option --frobnicate" },
		{ "send -x", "no option -x" },
		{ "send -vx", "no option -x" },
		{ "send --json=yes", "--json takes no argument" },
		{ "send --qmp", "--qmp needs an argument" },
		{ "send --qmp=", "path is empty" },
		{ "send --qmp q --to h:1 now", "'now' is one word too many" },
		{ "receive --listen h:1 qemu -m 1G", "goes after --" },
		{ "receive --listen h:1 --", "missing after --" },
		{ "help send receive", "one word too many" },
		{ "help --completion fish", "bash, zsh" },
		{ "send --postcopy later", "auto, never, now" },
		{ "receive --postcopy now", "auto, never" },
		{ "send --postcopy-after 0", "from 1 to" },
		{ "send --postcopy-after 3x", "neither a number of rounds" },
		{ "send --postcopy-after -3", "neither a number of rounds" },
		{ "send --postcopy-after=", "neither a number of rounds" },
		{ "send --recover-timeout 10", "10s" },
		{ "send --recover-timeout none", "such as 10ms" },
		{ "recover --qmp q --to h", "ADDRESS:PORT" },
		{ "postcopy --qmp q now", "one word too many" },
		{ "version --json", "no option --json" },
		{ "send --lock /dev/sda", "must begin with lease:, scsi-pr:, sanlock:" },
		{ "send --lock lease", "must begin with" },
		{ "receive --lock lease:/a --lock lease:/b --lock lease:/a", "'lease:/a' is given twice" },
		{ "send --host=", "it is empty" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct cli_settings s;
		struct lm_error err;
		int rc = parse(bad[i].line, &s, &err);

		if (rc != -EINVAL || err.code != -EINVAL || !strstr(err.msg, bad[i].hint))
			fail_msg("'%s': %d, \"%s\"", bad[i].line, rc, err.msg);
	}
}

static void help_is_given_though_something_is_missing(void **state)
{
	struct cli_settings s;

	(void)state;
	parse_ok("send --help", &s);
	assert_true(s.help);
	parse_ok("receive -h", &s);
	assert_true(s.help);
}

static bool names_differ(const struct cli_option *table)
{
	for (const struct cli_option *a = table; a->name; a++) {
		for (const struct cli_option *b = a + 1; b->name; b++) {
			if (!strcmp(a->name, b->name) || (a->letter && a->letter == b->letter))
				return false;
		}
	}
	return true;
}

static void every_table_is_sound(void **state)
{
	(void)state;
	for (const struct cli_subcommand *s = subcommands; s->name; s++) {
		assert_non_null(s->summary);
		assert_non_null(s->run);
		assert_true(names_differ(s->options));
		for (const struct cli_option *o = s->options; o->name; o++) {
			assert_non_null(o->help);
			assert_true(!o->argument == (o->kind == CLI_FLAG || o->kind == CLI_COUNT));
			assert_true(!o->choices == (o->kind != CLI_CHOICE));
			assert_true(!o->max == (o->kind != CLI_NUMBER && o->kind != CLI_AFTER));
			assert_true(o->offset < sizeof(struct cli_settings));
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_options_there_are_the_engines_defaults),
		cmocka_unit_test(every_option_of_send_arrives),
		cmocka_unit_test(post_copy_is_hybrid_unless_something_else_is_said),
		cmocka_unit_test(recover_tells_its_sides_apart),
		cmocka_unit_test(locks_keep_their_order),
		cmocka_unit_test(what_excludes_each_other_is_refused),
		cmocka_unit_test(the_words_after_the_dashes_are_the_command),
		cmocka_unit_test(bad_input_is_answered_with_what_to_write),
		cmocka_unit_test(help_is_given_though_something_is_missing),
		cmocka_unit_test(every_table_is_sound),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
