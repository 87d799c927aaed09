/* SPDX-License-Identifier: Apache-2.0 */
/* The tables: every subcommand and every option that there is. */
#include <string.h>
#include "cli.h"

#define AT(member) offsetof(struct cli_settings, member)

#define OPTION_HELP \
	{ .name = "help", .letter = 'h', .kind = CLI_FLAG, .offset = AT(help), \
	  .help = "show this" }
#define OPTION_END { .name = NULL }

#define OPTION_QMP(is_required, text) \
	{ .name = "qmp", .kind = CLI_PATH, .required = is_required, .argument = "SOCKET", \
	  .offset = AT(lm.qmp), .help = text }
#define OPTION_PID \
	{ .name = "pid", .kind = CLI_NUMBER, .argument = "PID", .offset = AT(lm.pid), .max = INT32_MAX, \
	  .help = "process of QEMU; needed when a manager opened its QMP socket" }
#define OPTION_JSON \
	{ .name = "json", .kind = CLI_FLAG, .offset = AT(json), \
	  .help = "one JSON event per line on standard output" }
#define OPTION_QUIET \
	{ .name = "quiet", .letter = 'q', .kind = CLI_FLAG, .offset = AT(quiet), .help = "print only errors" }
#define OPTION_VERBOSE \
	{ .name = "verbose", .letter = 'v', .kind = CLI_COUNT, .offset = AT(verbose), \
	  .help = "say more; twice: say all" }
#define OPTION_TIMEOUT(text) \
	{ .name = "timeout", .kind = CLI_TIMEOUT, .argument = "TIME", .offset = AT(lm.timeout_ns), \
	  .help = text }
#define OPTION_PEER_TIMEOUT \
	{ .name = "peer-timeout", .kind = CLI_TIME, .argument = "TIME", .offset = AT(lm.peer_timeout_ns), \
	  .help = "regard the other host as lost when nothing came from it for this long" }
#define OPTION_RECOVER_TIMEOUT \
	{ .name = "recover-timeout", .kind = CLI_TIME_OR_0, .argument = "TIME", \
	  .offset = AT(lm.recover_timeout_ns), \
	  .help = "in post-copy, try to reach a lost host for this long, then end as interrupted; 0: do not try" }
#define OPTION_QEMU_PID \
	{ .name = "pid", .kind = CLI_NUMBER, .argument = "PID", .offset = AT(lm.pid), .max = INT32_MAX, \
	  .help = "process of the guest's QEMU on this host, instead of --qmp" }
#define OPTION_QUIT_SOURCE \
	{ .name = "quit-source", .kind = CLI_FLAG, .offset = AT(quit_source), \
	  .help = "end the QEMU of this host after the guest has moved" }
#define OPTION_INSECURE \
	{ .name = "insecure", .kind = CLI_FLAG, .offset = AT(lm.insecure), \
	  .help = "allow a network that others can reach: nothing is encrypted or authenticated yet" }

#define OPTION_RAIL \
	{ .name = "rail", .kind = CLI_RAIL, .argument = "DEV[:PORT[:GID]]", .offset = AT(lm), \
	  .help = "use this RDMA device (may be repeated); default: all that reach the other host" }
#define OPTION_PIN \
	{ .name = "pin", .kind = CLI_CHOICE, .argument = "HOW", .offset = AT(lm.pin), .choices = pin, \
	  .help = "how the guest's memory is registered with RDMA devices: auto, all, chunk, or odp" }

#define OPTION_IMAGE(text) \
	{ .name = "image", .kind = CLI_PATH, .required = true, .argument = "PATH", .offset = AT(lm.image), .help = text }
#define OPTION_THREADS \
	{ .name = "lanes", .kind = CLI_NUMBER, .argument = "N", .offset = AT(lm.lanes), .max = 63, \
	  .help = "threads that read or write the image; default: 4" }
#define OPTION_LOCK(text) \
	{ .name = "lock", .kind = CLI_LOCK, .argument = "URI", .offset = AT(lm), .help = text }
#define OPTION_HOST \
	{ .name = "host", .kind = CLI_WORD, .argument = "NAME", .offset = AT(lm.lock_host), \
	  .help = "this host's name in the lock; default: made of the node's name and its machine-id" }

/* By the values of enum lm_on_stall, enum lm_postcopy, enum lm_pin and enum cli_shell. */
static const char *const on_stall[] = {
	[LM_STALL_WAIT] = "wait", [LM_STALL_FORCE] = "force", [LM_STALL_ABORT] = "abort", NULL,
};
static const char *const postcopy[] = {
	[LM_POSTCOPY_AUTO] = "auto", [LM_POSTCOPY_NEVER] = "never", [LM_POSTCOPY_NOW] = "now", NULL,
};
static const char *const postcopy_allowed[] = { /* a destination can only refuse it */
	[LM_POSTCOPY_AUTO] = "auto", [LM_POSTCOPY_NEVER] = "never", NULL,
};
static const char *const paging[] = { "eager", "lazy", NULL };
static const char *const pin[] = {
	[LM_PIN_AUTO] = "auto", [LM_PIN_ALL] = "all", [LM_PIN_CHUNK] = "chunk", [LM_PIN_ODP] = "odp", NULL,
};
static const char *const shells[] = {
	[CLI_SHELL_NONE] = "", [CLI_SHELL_BASH] = "bash", [CLI_SHELL_ZSH] = "zsh", NULL,
};

static const struct cli_option send_options[] = {
	OPTION_QMP(true, "QMP socket of the running guest"),
	{ .name = "to", .kind = CLI_ADDRESS, .required = true, .argument = "ADDRESS:PORT",
	  .offset = AT(lm.address), .help = "where 'migrate-rdma receive' listens" },
	{ .name = "max-downtime", .kind = CLI_TIME, .argument = "TIME", .offset = AT(lm.max_downtime_ns),
	  .help = "stop the guest only when the last scan and copy are predicted to take no longer than this" },
	{ .name = "max-bandwidth", .kind = CLI_RATE, .argument = "RATE",
	  .offset = AT(lm.max_bandwidth_bytes_per_s), .help = "send no faster" },
	{ .name = "lanes", .kind = CLI_NUMBER, .argument = "N", .offset = AT(lm.lanes), .max = 64,
	  .help = "connections (and threads) that carry pages; default: by the number of CPUs" },
	{ .name = "transport", .kind = CLI_TRANSPORT, .argument = "NAME", .offset = AT(lm.transport),
	  .help = "what carries the pages: auto, or one that 'transports' lists" },
	OPTION_RAIL,
	OPTION_PIN,
	OPTION_TIMEOUT("give up when the guest has not been stopped by then"),
	{ .name = "on-stall", .kind = CLI_CHOICE, .argument = "WHAT", .offset = AT(lm.on_stall),
	  .choices = on_stall,
	  .help = "when the guest writes faster than its pages can be sent: wait, force the switchover, or abort" },
	{ .name = "postcopy", .kind = CLI_CHOICE, .argument = "WHEN", .offset = AT(lm.postcopy),
	  .choices = postcopy,
	  .help = "switch over while pages are missing: auto (when another round gains too little), never, or now. "
	          "From then until the last page has arrived the guest needs both hosts: losing one loses the guest" },
	{ .name = "postcopy-after", .kind = CLI_AFTER, .argument = "N|TIME", .offset = AT(lm), .max = 1000000,
	  .help = "with auto: switch over at the latest after N rounds, or after this time" },
	OPTION_RECOVER_TIMEOUT,
	{ .name = "max-pause", .kind = CLI_TIME, .argument = "TIME", .offset = AT(lm.max_pause_ns),
	  .help = "let the guest go on here when it has stood still for this long and has not moved" },
	OPTION_PEER_TIMEOUT,
	OPTION_LOCK("hand this storage lock over with the guest; may be repeated, in the same order as for 'receive'"),
	OPTION_HOST,
	OPTION_QUIT_SOURCE,
	{ .name = "verify", .kind = CLI_FLAG, .offset = AT(lm.verify),
	  .help = "compare a hash of all RAM while the guest is stopped (long!)" },
	OPTION_INSECURE,
	OPTION_PID,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_VERBOSE,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option receive_options[] = {
	{ .name = "listen", .kind = CLI_ADDRESS, .required = true, .argument = "ADDRESS:PORT",
	  .offset = AT(lm.address), .help = "where to wait for 'migrate-rdma send'; port 0: any free one" },
	OPTION_QMP(false, "QMP socket of the waiting QEMU; with --: where to make it"),
	{ .name = "lanes", .kind = CLI_NUMBER, .argument = "N", .offset = AT(lm.lanes), .max = 64,
	  .help = "accept at most so many connections for pages" },
	OPTION_RAIL,
	OPTION_PIN,
	OPTION_TIMEOUT("give up when no source has come by then"),
	OPTION_PEER_TIMEOUT,
	{ .name = "postcopy", .kind = CLI_CHOICE, .argument = "WHEN", .offset = AT(lm.postcopy),
	  .choices = postcopy_allowed,
	  .help = "never: refuse to run the guest while pages are missing. "
	          "Until the last one has arrived the guest needs both hosts: losing one loses the guest. auto: the source decides" },
	OPTION_RECOVER_TIMEOUT,
	{ .name = "paused", .kind = CLI_FLAG, .offset = AT(lm.start_paused),
	  .help = "leave the guest paused when it has arrived" },
	OPTION_LOCK("take this storage lock before the guest runs; may be repeated, in the same order as for 'send'"),
	OPTION_HOST,
	OPTION_INSECURE,
	OPTION_PID,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_VERBOSE,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option save_options[] = {
	OPTION_QMP(true, "QMP socket of the running guest"),
	OPTION_IMAGE("file to write; an older one of this name is replaced once the new one is complete"),
	OPTION_THREADS,
	OPTION_TIMEOUT("give up when the guest is not saved by then; it goes on"),
	OPTION_LOCK("release this storage lock when the guest is saved; may be repeated"),
	OPTION_HOST,
	{ .name = "quit", .kind = CLI_FLAG, .offset = AT(quit_source),
	  .help = "end the QEMU of this host after the guest is saved" },
	OPTION_PID,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_VERBOSE,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option quick_options[] = {
	OPTION_QMP(true, "QMP socket of the running guest"),
	OPTION_IMAGE("file on shared storage to write; an older one of this name is replaced"),
	{ .name = "to", .kind = CLI_ADDRESS, .required = true, .argument = "ADDRESS:PORT",
	  .offset = AT(lm.address), .help = "where 'migrate-rdma restore --listen' waits" },
	OPTION_THREADS,
	OPTION_TIMEOUT("give up when the guest has not been restored by then; it goes on here"),
	OPTION_PEER_TIMEOUT,
	OPTION_LOCK("hand this storage lock over with the guest; may be repeated, in the same order as for 'restore'"),
	OPTION_HOST,
	OPTION_QUIT_SOURCE,
	OPTION_INSECURE,
	OPTION_PID,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_VERBOSE,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option restore_options[] = {
	OPTION_IMAGE("file that 'migrate-rdma save' has written"),
	OPTION_QMP(false, "QMP socket of the waiting QEMU; with --: where to make it"),
	{ .name = "paging", .kind = CLI_CHOICE, .argument = "HOW", .offset = AT(paging), .choices = paging,
	  .help = "eager: read all memory, then run the guest; lazy: run it at once, and read first what it touches" },
	{ .name = "listen", .kind = CLI_ADDRESS, .argument = "ADDRESS:PORT", .offset = AT(lm.address),
	  .help = "wait here for 'migrate-rdma quick', which writes the image" },
	OPTION_TIMEOUT("with --listen: give up when no source has come by then"),
	OPTION_PEER_TIMEOUT,
	OPTION_INSECURE,
	{ .name = "resume", .kind = CLI_FLAG, .offset = AT(resume),
	  .help = "go on with a lazy restore that ended early" },
	{ .name = "again", .kind = CLI_FLAG, .offset = AT(lm.again),
	  .help = "restore even if the image was restored before, or its guest went on: its disks must be as they were" },
	OPTION_THREADS,
	OPTION_LOCK("take this storage lock before the guest runs; may be repeated, in the same order as for 'save'"),
	OPTION_HOST,
	{ .name = "force-locks", .kind = CLI_FLAG, .offset = AT(lm.force_locks),
	  .help = "restore even if somebody has held the locks since the save, or if they are other locks" },
	{ .name = "paused", .kind = CLI_FLAG, .offset = AT(lm.start_paused),
	  .help = "leave the guest paused when it is restored" },
	OPTION_PID,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_VERBOSE,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option postcopy_options[] = {
	OPTION_QMP(false, "QMP socket of the guest that 'send' is moving; nothing connects to it"),
	OPTION_QEMU_PID,
	OPTION_QUIET,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option recover_options[] = {
	OPTION_QMP(false, "QMP socket of the guest's QEMU on this host"),
	OPTION_QEMU_PID,
	{ .name = "listen", .kind = CLI_ADDRESS, .argument = "ADDRESS:PORT", .offset = AT(listen),
	  .help = "on the destination: where to wait for the source" },
	{ .name = "to", .kind = CLI_ADDRESS, .argument = "ADDRESS:PORT", .offset = AT(to),
	  .help = "on the source: where 'migrate-rdma recover' listens" },
	OPTION_RECOVER_TIMEOUT,
	OPTION_PEER_TIMEOUT,
	OPTION_LOCK("a storage lock of the guest; may be repeated; the destination acquires it, the source may not hold it"),
	OPTION_HOST,
	OPTION_QUIT_SOURCE,
	OPTION_INSECURE,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_VERBOSE,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option check_options[] = {
	OPTION_QMP(false, "check this guest, too"),
	OPTION_PID,
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option resolve_options[] = {
	OPTION_QMP(true, "QMP socket of the guest's QEMU on this host"),
	{ .name = "run-here", .kind = CLI_FLAG, .offset = AT(run_here),
	  .help = "run the guest on this host: it is known not to run on the other" },
	{ .name = "end-here", .kind = CLI_FLAG, .offset = AT(end_here),
	  .help = "end the QEMU of this host: the guest is known to run on the other" },
	{ .name = "auto", .kind = CLI_FLAG, .offset = AT(automatic),
	  .help = "with --lock: run the guest here if this host can acquire all locks, else do nothing; no confirmation" },
	OPTION_LOCK("a storage lock of the guest; may be repeated, in the same order as for 'send'"),
	OPTION_HOST,
	{ .name = "yes", .letter = 'y', .kind = CLI_FLAG, .offset = AT(yes), .help = "do not ask" },
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option lock_options[] = {
	OPTION_HOST,
	OPTION_TIMEOUT("give up after this time; none: 10s"),
	{ .name = "yes", .letter = 'y', .kind = CLI_FLAG, .offset = AT(yes), .help = "break: do not ask" },
	OPTION_JSON,
	OPTION_QUIET,
	OPTION_HELP,
	OPTION_END,
};

static const struct cli_option transports_options[] = { OPTION_JSON, OPTION_HELP, OPTION_END };
static const struct cli_option version_options[] = { OPTION_HELP, OPTION_END };

static const struct cli_option help_options[] = {
	{ .name = "completion", .kind = CLI_CHOICE, .argument = "SHELL", .offset = AT(completion),
	  .choices = shells, .help = "print the completions for bash or zsh" },
	OPTION_HELP,
	OPTION_END,
};

const struct cli_subcommand subcommands[] = {
	{ .name = "send", .summary = "move a running guest from this host to another",
	  .options = send_options, .run = cli_send },
	{ .name = "receive", .summary = "wait for a guest and run it on this host",
	  .options = receive_options, .rest = CLI_REST_COMMAND, .run = cli_receive },
	{ .name = "save", .summary = "stop a guest and write it to an image",
	  .options = save_options, .run = cli_save },
	{ .name = "quick", .summary = "move a guest to another host through an image, in one go",
	  .options = quick_options, .run = cli_quick },
	{ .name = "restore", .summary = "run the guest of an image on this host",
	  .options = restore_options, .rest = CLI_REST_COMMAND, .run = cli_restore },
	{ .name = "postcopy", .summary = "make a running 'send' switch over to post-copy now",
	  .options = postcopy_options, .run = cli_postcopy },
	{ .name = "recover", .summary = "go on with a post-copy that was interrupted",
	  .options = recover_options, .run = cli_recover },
	{ .name = "check", .summary = "show whether this host and a guest can take part",
	  .options = check_options, .run = cli_check },
	{ .name = "resolve", .summary = "decide where the guest runs after a migration that ended in doubt",
	  .options = resolve_options, .run = cli_resolve },
	{ .name = "lock", .summary = "show, acquire, release or break a storage lock",
	  .options = lock_options, .rest = CLI_REST_LOCK, .run = cli_lock },
	{ .name = "transports", .summary = "list what can carry pages in this build",
	  .options = transports_options, .run = cli_transports },
	{ .name = "version", .summary = "print the version", .options = version_options, .run = cli_version },
	{ .name = "help", .summary = "explain a subcommand", .options = help_options,
	  .rest = CLI_REST_SUBCOMMAND, .run = cli_help },
	{ .name = NULL },
};

const struct cli_subcommand *cli_subcommand_find(const char *name)
{
	for (const struct cli_subcommand *s = subcommands; s->name; s++) {
		if (!strcmp(s->name, name))
			return s;
	}
	return NULL;
}
