/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rig: real QEMUs and real engines for one cmocka test.
 *
 * A test is a function that takes a struct rig.  Everything it starts or makes
 * (processes, files, mounts, threads) belongs to the rig and is gone when the
 * test ends, however it ends: by teardown, and where the test program itself
 * dies, by PR_SET_PDEATHSIG and by the next run, which sweeps what it finds.
 *
 * Functions that return nothing fail the test when they fail; they are for the
 * test's own thread only.  Times are in milliseconds where the name says so.
 */
#ifndef TEST_RIG_H
#define TEST_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdarg.h>
#include <setjmp.h>
#include <sys/types.h>
#include <cmocka.h>
#include <json-c/json.h>

#define RIG_PATH_MAX	108	/* a socket's path has no room for more */
#define RIG_RAM_MAX	4
#define RIG_ARGS_MAX	24
#define RIG_WAIT_MS	20000	/* for what should take no time at all */

struct rig;

/* --- tests ------------------------------------------------------------- */

typedef void rig_fn(struct rig *rig);

struct rig_test {
	rig_fn *fn;
	const void *arg; /* rig_arg() */
};

int rig_setup(void **state);
void rig_body(void **state);
int rig_teardown(void **state);

#define RIG_TEST(f) RIG_TEST_ARG(#f, f, NULL)
#define RIG_TEST_ARG(name, f, arg) \
	{ name, rig_body, rig_setup, rig_teardown, &(struct rig_test){ f, arg } }

/*
 * Runs the tests whose names match one of the patterns in argv (all without
 * one).  Returns the exit code: 77 when every test was skipped.
 */
int rig_main(int argc, char **argv, const struct CMUnitTest *tests, size_t ntests);
/*
 * The same for a program whose tests from number `fixed` on are the rows of a matrix: of those only a sample runs
 * when LM_SAMPLE says so (sample.h), but `always` (names, NULL at the end) in any case.
 */
int rig_main_matrix(int argc, char **argv, const struct CMUnitTest *tests, size_t ntests, size_t fixed,
		    const char *const *always);

const void *rig_arg(const struct rig *rig);
const char *rig_dir(const struct rig *rig);
void rig_skip(struct rig *rig, const char *why) __attribute__((noreturn));
int64_t rig_now_ms(void);
int64_t rig_realtime_us(void);
void rig_sleep_ms(int ms);
void rig_path(const struct rig *rig, char path[RIG_PATH_MAX], const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* --- processes --------------------------------------------------------- */

struct rig_proc {
	struct rig_proc *next;
	pid_t pid;
	int pidfd;
	int status;  /* exit code, or -signal; valid when ended */
	bool ended;
	char name[24];
	char log[RIG_PATH_MAX]; /* its stderr, and its stdout where nobody reads it */
};

/* argv[0] is looked up in PATH; env: NULL-terminated NAME=VALUE, may be NULL; stdout_fd -1: the log. */
struct rig_proc *rig_spawn(struct rig *rig, const char *name, const char *const *argv,
			   const char *const *env, int stdout_fd);
bool rig_proc_ended(struct rig_proc *p, int timeout_ms);
void rig_proc_kill(struct rig_proc *p, int sig);
void rig_proc_end(struct rig_proc *p); /* SIGKILL, and reap */
unsigned rig_count_fds(pid_t pid);
uint64_t rig_anon_bytes(pid_t pid); /* resident anonymous memory: guest RAM does not count */
pid_t rig_child_of(pid_t pid, const char *comm); /* 0: none */
/* Processes that outlived the engine that made them (guardians) come to us: false when some are still there. */
bool rig_orphans_gone(struct rig *rig, int timeout_ms);
/* Whether the file that p writes its stderr to holds the text. */
bool rig_log_has(const struct rig_proc *p, const char *text);
char *rig_read_file(const char *path); /* NULL or the caller's */

/* --- guests ------------------------------------------------------------ */

enum rig_backing {
	RIG_SHARED_FILE,	/* memory-backend-file,share=on */
	RIG_PRIVATE_FILE,	/* memory-backend-file,share=off */
	RIG_MEMFD,		/* memory-backend-memfd,share=on */
	RIG_NO_BACKEND,		/* -m alone */
};

/* What is on both sides of a migration.  Zeroes are sensible. */
struct rig_config {
	const char *machine;	/* "q35" */
	const char *accel;	/* "tcg"; "kvm" skips the test where KVM cannot be used */
	const char *cpu;	/* "max" */
	unsigned mb;		/* 64 */
	unsigned nodes;		/* NUMA nodes with a backend each, over which mb is split */
	unsigned dimm_mb;	/* a pc-dimm of its own backend, plugged from the start */
	bool may_plug;		/* room for a pc-dimm plugged later */
	bool hugepages;		/* 2 MiB pages of hugetlbfs */
	enum rig_backing backing;
	const char *kernel;	/* the test guest */
	const char *append;	/* its command line */
	bool console;		/* its serial line takes input, too: rig_guest_type() */
	const char *extra[RIG_ARGS_MAX];
};

struct rig_file {
	char id[16];
	char path[RIG_PATH_MAX];
	uint64_t size;
	int fd; /* -1: there is none */
};

struct rig_qmp;

struct rig_vm {
	struct rig_vm *next;
	struct rig *rig;
	char name[16];
	struct rig_proc *proc;	/* NULL: started by an engine */
	pid_t pid;
	char qmp[RIG_PATH_MAX];		/* for the engine */
	char own_qmp[RIG_PATH_MAX];	/* for the rig: a QMP socket serves one client at a time */
	char serial[RIG_PATH_MAX];		/* file with what the guest said */
	char console[RIG_PATH_MAX];
	struct rig_qmp *q;
	struct rig_file ram[RIG_RAM_MAX];
	unsigned nram;
};

enum rig_role { RIG_RUNS, RIG_WAITS /* -incoming defer -S */, RIG_STOPPED /* -S */ };

struct rig_vm *rig_vm_start(struct rig *rig, const char *name, const struct rig_config *config,
			    enum rig_role role);
/* The command line instead, for an engine that starts it; rig_vm_found() when it runs. */
struct rig_vm *rig_vm_plan(struct rig *rig, const char *name, const struct rig_config *config,
			   enum rig_role role, const char *argv[], size_t size);
void rig_vm_found(struct rig_vm *vm);
void rig_vm_kill(struct rig_vm *vm);
/* The same, and forget it: its files are gone too. */
void rig_vm_end(struct rig_vm *vm);
bool rig_vm_alive(struct rig_vm *vm);

/* Runs a command; the caller's answer.  arguments: JSON or NULL. */
struct json_object *rig_qmp(struct rig_vm *vm, const char *command, const char *arguments);
void rig_qmp_do(struct rig_vm *vm, const char *command, const char *arguments);
bool rig_vm_wait_event(struct rig_vm *vm, const char *event, int timeout_ms);
/* query-status: "running", "paused", "postmigrate", ... or "dead". */
void rig_vm_status(struct rig_vm *vm, char status[32]);
bool rig_vm_running(struct rig_vm *vm);
/* Every capability and parameter of QEMU's migration, to see that they were put back. */
char *rig_vm_migration_settings(struct rig_vm *vm);

/* --- what the test guest says ------------------------------------------ */

struct guest_beat;
void rig_guest_beat(const struct rig_vm *vm, struct guest_beat *ret);
void rig_guest_wait_ready(struct rig_vm *vm);
bool rig_guest_beats(const struct rig_vm *vm, int timeout_ms); /* the heartbeat moves */
/* Fails unless the guest runs here, has checked all its memory since, and found no bad page. */
void rig_guest_assert_well(struct rig_vm *vm);
bool rig_guest_log_has(const struct rig_vm *vm, const char *text);
bool rig_guest_wait_log(struct rig_vm *vm, const char *text, int timeout_ms);
void rig_guest_type(const struct rig_vm *vm, const char *line);
/* The number after `name` in the last line that has `line` in it; -1: there is none. */
long long rig_guest_number(const struct rig_vm *vm, const char *line, const char *name);

/* --- RAM --------------------------------------------------------------- */

/* Both guests stopped: fails unless every byte is equal.  Holes are zeros; allocates nothing. */
void rig_assert_ram_equal(const struct rig_vm *a, const struct rig_vm *b);
bool rig_ram_equal(const struct rig_vm *a, const struct rig_vm *b, char *where, size_t size);
uint64_t rig_ram_allocated(const struct rig_vm *vm); /* bytes of its files that are no holes */
/* What a balloon does: the pages are given back and read as zero. */
void rig_ram_discard(const struct rig_vm *vm, unsigned file, uint64_t offset, uint64_t len);
void rig_ram_fill(const struct rig_vm *vm, unsigned file, uint64_t offset, uint64_t len, int byte);

/* What is mounted from now on is seen by this test only, and gone with it.  Needs root. */
void rig_private_mounts(struct rig *rig);
/* hugetlbfs in this process's own mount namespace; skips the test where that is impossible. */
const char *rig_hugepages(struct rig *rig, unsigned mb);

/* --- engines ----------------------------------------------------------- */

struct rig_run {
	struct rig_run *next;
	struct rig_proc *proc;
	int out;
	char *buf;
	size_t len, size;
	bool json;                  /* what it says is to be JSON; else it is not looked at */
	struct json_object *events; /* array: all that it has said */
	char address[80];           /* receive: where it listens */
};

/* Arguments after the ones that the rig gives; all NULL-terminated by zero. */
struct rig_run_options {
	const char *fault;	/* LM_FAULT */
	const char *breaks;	/* LM_BREAK */
	const char *transport_fault; /* LM_TRANSPORT_FAULT */
	const char *args[RIG_ARGS_MAX];
};

struct rig_run *rig_engine(struct rig *rig, const char *name, const char *const *argv,
			   const struct rig_run_options *o);
/* Returns when it listens (or has ended: address empty). */
struct rig_run *rig_receive(struct rig_vm *vm, const struct rig_run_options *o);
struct rig_run *rig_receive_on(struct rig_vm *vm, const char *listen, const struct rig_run_options *o);
struct rig_run *rig_send(struct rig_vm *vm, const char *to, const struct rig_run_options *o);
/* The first event of this type, whether said already or to come; NULL: not in time.  Borrowed. */
struct json_object *rig_run_event(struct rig_run *r, const char *type, int timeout_ms);
/* The same where a member has this value: ("stage", "name", "opened"). */
struct json_object *rig_run_event_is(struct rig_run *r, const char *type, const char *member,
				     const char *value, int timeout_ms);
/* Exit code, -signal; fails the test when it does not end in time. */
int rig_run_wait(struct rig_run *r, int timeout_ms);
const char *rig_run_outcome(struct rig_run *r); /* of its last event, "" without one */
int64_t rig_summary_int(struct rig_run *r, const char *path); /* "blackout.total_ns" */
/* Runs a guest from a to b; both must succeed. */
void rig_migrate(struct rig_vm *a, struct rig_vm *b, const struct rig_run_options *send_options);

/* --- the network between two engines ----------------------------------- */

struct rig_relay;
struct rig_relay *rig_relay_start(struct rig *rig);
void rig_relay_to(struct rig_relay *r, const char *to); /* before the first connection */
const char *rig_relay_address(const struct rig_relay *r);
/* Shell command that cuts every connection and returns when it is done. */
const char *rig_relay_cut_command(const struct rig_relay *r);
/* The same, but nothing is closed: a network that swallows everything. */
const char *rig_relay_silence_command(const struct rig_relay *r);
void rig_relay_cut(struct rig_relay *r);
void rig_relay_silence(struct rig_relay *r);
/* After either: connections come through again, at the same address. */
void rig_relay_mend(struct rig_relay *r);
/* What clients said on their first connection, up to 4 MiB.  Borrowed; when nothing moves any more. */
const uint8_t *rig_relay_said(const struct rig_relay *r, size_t *ret_len);

/* --- the rule of one running guest -------------------------------------- */

/* Watch two guests' heartbeats until the test ends. */
void rig_watch(struct rig_vm *a, struct rig_vm *b);
/* Whether both ever ran at a time, by their heartbeats or by their STOP and RESUME events. */
bool rig_saw_two(struct rig_vm *a, struct rig_vm *b, char *how, size_t size);
int64_t rig_longest_pause_us(struct rig_vm *vm); /* from a STOP to the next RESUME */

#endif
