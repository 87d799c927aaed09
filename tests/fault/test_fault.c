/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every process can die, and the network can go, at every stage: afterwards
 * exactly one guest runs, or none where the rule says so; never two.
 *
 * The scenarios are the product of what happens (enum blow) and where (stages[]);
 * what may come of it depends on where the stage lies with respect to COMMIT.
 *
 * The same again with storage locks: then the side that runs holds them, and no
 * person has to decide anything.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/migrate_rdma.h"
#include "rig.h"

#define MAX_PAUSE_MS	1500
#define SLACK_MS	2500 /* the guardian's grace, and a loaded machine */
#define SETTLE_MS	15000
#define ENGINE_MS	30000

enum { EXIT_IN_DOUBT = 6 }; /* migrate-rdma(1) */

enum blow {
	SOURCE_ENGINE_KILLED, DEST_ENGINE_KILLED, SOURCE_QEMU_KILLED, DEST_QEMU_KILLED,
	NETWORK_CUT, NETWORK_SILENT, STAGE_FAILS, STAGE_HANGS, BOTH_ENGINES_KILLED, BLOWS,
};

static const char *const blow_names[BLOWS] = {
	"source_engine_killed", "dest_engine_killed", "source_qemu_killed", "dest_qemu_killed",
	"network_cut", "network_silent", "stage_fails", "stage_hangs", "both_engines_killed",
};

/* Where a stage lies. */
enum phase {
	ALONE,  /* before the engines have met */
	BEFORE, /* before COMMIT */
	LOADS,  /* source: the destination has all of the guest, and may have said so before it is hit */
	ASKING, /* source: about to send COMMIT */
	SENT,   /* source: COMMIT is out, the answer is not read */
	TAKEN,  /* destination: COMMIT received, nothing done yet */
	BOUND,  /* destination: it will run the guest, come what may */
	RUNS,   /* destination: it runs, the source has not been told */
	DONE,   /* the source knows */
	PHASES,
};

struct stage {
	char side; /* 's' source, 'd' destination */
	const char *name;
	enum phase phase;
	bool locked; /* only with locks */
};

static const struct stage stages[] = {
	{ 's', "open", ALONE }, { 's', "hello", BEFORE }, { 's', "opened", BEFORE }, { 's', "armed", BEFORE },
	{ 's', "round", BEFORE }, { 's', "precopy", BEFORE }, { 's', "prepare", BEFORE },
	{ 's', "pausing", BEFORE }, { 's', "paused", BEFORE }, { 's', "last-copy", BEFORE },
	{ 's', "copied", BEFORE }, { 's', "saved", LOADS }, { 's', "loaded", LOADS },
	{ 's', "commit", ASKING }, { 's', "committed", SENT }, { 's', "done", DONE },
	{ 'd', "open", ALONE }, { 'd', "opened", BEFORE }, { 'd', "copy", BEFORE },
	{ 'd', "prepare", BEFORE }, { 'd', "prepared", BEFORE }, { 'd', "loading", BEFORE }, { 'd', "loaded", BEFORE },
	{ 'd', "commit", TAKEN }, { 'd', "fenced", BOUND }, { 'd', "resumed", RUNS },
	{ 'd', "done", DONE },
	{ 's', "announced", BEFORE, true }, { 's', "offering", BEFORE, true }, { 's', "offered", BEFORE, true },
	{ 's', "lock-offering", BEFORE, true }, { 's', "lock-offered", BEFORE, true },
	{ 'd', "taking", TAKEN, true }, { 'd', "lock-owning", TAKEN, true }, { 'd', "lock-owned", TAKEN, true },
	{ 'd', "taken", BOUND, true },
};
#define NSTAGES (sizeof(stages) / sizeof(*stages))

/* Where the guest may run afterwards. */
enum {
	A = 1,
	B = 2,
	DOUBT = 4, /* nowhere: paused at the source, which says that it is in doubt */
	LOST = 8,  /* nowhere: its QEMU was killed */
	NEVER = 0, /* no such scenario */
};

static const int allowed[BLOWS][PHASES] = {
	/*                         ALONE  BEFORE    LOADS      ASKING     SENT       TAKEN      BOUND  RUNS  DONE */
	[SOURCE_ENGINE_KILLED] = { A,     A,        A,         A | DOUBT, B,         B,         B,     B,    B },
	[DEST_ENGINE_KILLED] =   { A,     A,        A,         A | DOUBT, B | DOUBT, B | DOUBT, B,     B,    B },
	[SOURCE_QEMU_KILLED] =   { LOST,  B | LOST, B | LOST,  B | LOST,  B,         B,         B,     B,    B },
	[DEST_QEMU_KILLED] =     { A,     A,        A,         A | DOUBT, A | DOUBT | LOST, A | DOUBT | LOST,
				   A | DOUBT | LOST, DOUBT | LOST, LOST },
	[NETWORK_CUT] =          { NEVER, A,        A,         A | DOUBT, B | DOUBT, B,         B,     B,    B },
	[NETWORK_SILENT] =       { NEVER, A,        A | DOUBT, DOUBT,     B | DOUBT, B,         B,     B,    B },
	[STAGE_FAILS] =          { A,     A,        A,         A | DOUBT, B | DOUBT, A | DOUBT, A | B | DOUBT, B, B },
	[STAGE_HANGS] =          { A | B, A | B,    A | B,     A | B,     B,         B,         B,     B,    B },
};

struct scenario {
	enum blow blow;
	const struct stage *stage;
	bool locked;       /* with two storage locks */
	const char *fault; /* at the stage's side, instead of what the blow does */
};

static const struct rig_config guest = { .mb = 64, .append = "mb=16 rate=2000" };

/* One migration that is hit. */
struct hit {
	struct rig_vm *a, *b;
	struct rig_run *send, *receive;
	int send_code, receive_code;
	char pid_file[2][RIG_PATH_MAX]; /* of the engines: source, destination */
	char locks[2][RIG_PATH_MAX + 32];
};

/*
 * Engines are killed by number; the command may run before the rig has written it
 * down.  A process takes a while to die, with its sockets open: wait for that.
 */
static void kill_engine_command(char *text, size_t size, const char *file)
{
	snprintf(text, size, "run=n=0; while [ ! -s %s ] && [ $n -lt 500 ]; do sleep 0.02; n=$((n + 1)); "
		 "done; p=`cat %s`; kill -9 $p; while grep -qs 'State:.[^ZX]' /proc/$p/status; do sleep 0.01; "
		 "done; sleep 0.1", file, file);
}

static void make_action(const struct hit *h, const struct scenario *s, struct rig_relay *relay, char *text,
			size_t size)
{
	switch (s->blow) {
	case SOURCE_ENGINE_KILLED:
	case DEST_ENGINE_KILLED:
		if ((s->stage->side == 's') == (s->blow == SOURCE_ENGINE_KILLED))
			snprintf(text, size, "kill");
		else
			kill_engine_command(text, size, h->pid_file[s->blow == DEST_ENGINE_KILLED]);
		break;
	case SOURCE_QEMU_KILLED:
		snprintf(text, size, "run=kill -9 %d; sleep 0.1", h->a->pid);
		break;
	case DEST_QEMU_KILLED:
		snprintf(text, size, "run=kill -9 %d; sleep 0.1", h->b->pid);
		break;
	case NETWORK_CUT:
		snprintf(text, size, "run=%s; sleep 0.1", rig_relay_cut_command(relay));
		break;
	case NETWORK_SILENT:
		snprintf(text, size, "run=%s", rig_relay_silence_command(relay));
		break;
	case STAGE_FAILS:
		snprintf(text, size, "error");
		break;
	case BOTH_ENGINES_KILLED:
		kill_engine_command(text, size, h->pid_file[s->stage->side == 's']);
		snprintf(text + strlen(text), size - strlen(text), ",%s:kill", s->stage->name);
		break;
	default:
		snprintf(text, size, "sleep=%d", 2 * MAX_PAUSE_MS + SLACK_MS);
	}
}

static void write_pid(const char *path, const struct rig_run *r)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	fprintf(f, "%d\n", r->proc->pid);
	fclose(f);
}

/* Both engines run here, as hosts of two names with a directory that they share. */
static void add_locks(struct hit *h, struct rig *rig, struct rig_run_options *o, const char *host)
{
	const char *const words[] = { "--host", host, "--lock", h->locks[0], "--lock", h->locks[1] };
	unsigned n = 0;

	for (unsigned i = 0; i < 2; i++)
		snprintf(h->locks[i], sizeof(h->locks[i]), "lease:%s/%u.lease?local=yes", rig_dir(rig), i);
	while (o->args[n])
		n++;
	memcpy(&o->args[n], words, sizeof(words));
}

static struct hit strike(struct rig *rig, const struct scenario *s, const char *breaks)
{
	struct hit h = {
		.a = rig_vm_start(rig, "A", &guest, RIG_RUNS),
		.b = rig_vm_start(rig, "B", &guest, RIG_WAITS),
	};
	struct rig_run_options at_source = { .breaks = breaks, .args = { "--max-pause", "1500ms",
									 "--peer-timeout", "1s",
									 "--recover-timeout", "1s" } };
	struct rig_run_options at_dest = { .breaks = breaks, .args = { "--peer-timeout", "1s",
									     "--recover-timeout", "1s",
									     "--postcopy", "never" } };
	struct rig_relay *relay = rig_relay_start(rig);
	char action[512], fault[600];

	if (s->locked) {
		add_locks(&h, rig, &at_source, "host-a");
		add_locks(&h, rig, &at_dest, "host-b");
	}
	rig_path(rig, h.pid_file[0], "send.pid");
	rig_path(rig, h.pid_file[1], "receive.pid");
	make_action(&h, s, relay, action, sizeof(action));
	snprintf(fault, sizeof(fault), "%s:%s", s->stage->name, action);
	if (s->fault)
		snprintf(fault, sizeof(fault), "%s", s->fault);
	*(s->stage->side == 's' ? &at_source.fault : &at_dest.fault) = fault;
	rig_guest_wait_ready(h.a);
	rig_watch(h.a, h.b);
	h.receive = rig_receive(h.b, &at_dest);
	write_pid(h.pid_file[1], h.receive);
	rig_relay_to(relay, h.receive->address[0] ? h.receive->address : "127.0.0.1:1");
	h.send = rig_send(h.a, rig_relay_address(relay), &at_source);
	write_pid(h.pid_file[0], h.send);
	h.send_code = rig_run_wait(h.send, ENGINE_MS);
	if (s->stage->phase == ALONE)
		rig_proc_kill(h.receive->proc, SIGINT); /* nobody came: it would wait for ever */
	h.receive_code = rig_run_wait(h.receive, ENGINE_MS);
	return h;
}

static int where_it_runs(const struct hit *h)
{
	return (rig_vm_running(h->a) ? A : 0) | (rig_vm_running(h->b) ? B : 0);
}

/* The engines have ended; so must their guardians, and what they decided is final. */
static int settle(struct rig *rig, const struct hit *h)
{
	int where;

	if (!rig_orphans_gone(rig, SETTLE_MS))
		fail_msg("a guardian does not end");
	where = where_it_runs(h);
	if (where)
		return where;
	return rig_vm_alive(h->a) && h->send_code ? DOUBT : LOST; /* 0: it had moved before it was lost */
}

static const char *name_of(int where)
{
	return where == A ? "on the source" : where == B ? "on the destination" :
	       where == (A | B) ? "on BOTH" : where == DOUBT ? "nowhere (paused)" : "nowhere (lost)";
}

static void assert_place(const struct hit *h, const struct scenario *s, int where)
{
	int may = allowed[s->blow][s->stage->phase];

	if (!(where & may) || where == (A | B))
		fail_msg("the guest runs %s; send ended with %d (%s), receive with %d (%s)", name_of(where),
			 h->send_code, rig_run_outcome(h->send), h->receive_code, rig_run_outcome(h->receive));
	if (where == DOUBT && h->send_code >= 0 && h->send_code != EXIT_IN_DOUBT)
		fail_msg("the guest is paused at the source, but send ended with %d (%s) and not in doubt",
			 h->send_code, rig_run_outcome(h->send));
	if (where == A && h->send_code == EXIT_IN_DOUBT)
		fail_msg("the guest runs on the source, but send says that it is in doubt");
	if (where == A && !h->send_code)
		fail_msg("the guest runs on the source, but send ended well");
}

static void assert_never_two(const struct hit *h)
{
	char how[128];

	if (rig_saw_two(h->a, h->b, how, sizeof(how)))
		fail_msg("%s", how);
}

static void assert_short_pause(const struct hit *h)
{
	int64_t ms = rig_longest_pause_us(h->a) / 1000;

	if (ms > MAX_PAUSE_MS + SLACK_MS)
		fail_msg("the guest was paused for %" PRId64 " ms, allowed were %d", ms, MAX_PAUSE_MS);
}

/* The same engine, the same guest, a fresh destination: it must go as if nothing had been. */
static void retry(struct rig *rig, struct hit *h)
{
	struct rig_vm *c = rig_vm_start(rig, "C", &guest, RIG_WAITS);
	char how[128];

	rig_watch(h->a, c);
	rig_migrate(h->a, c, NULL);
	assert_true(rig_vm_running(c));
	assert_false(rig_vm_running(h->a));
	if (rig_saw_two(h->a, c, how, sizeof(how)))
		fail_msg("in the retry: %s", how);
	rig_guest_assert_well(c);
}

/* --- with storage locks ----------------------------------------------------- */

static struct lm_lock_info look(const char *uri, const char *host)
{
	struct lm_lock_info info;
	struct lm_error err;

	if (lm_lock_run(uri, host, LM_LOCK_SHOW, 0, &info, &err))
		fail_msg("%s", err.msg);
	return info;
}

/* The host that runs the guest holds its locks; no other host gets them. */
static void assert_locks(const struct hit *h, int where)
{
	for (unsigned i = 0; i < 2; i++) {
		struct lm_lock_info info = look(h->locks[i], where == A ? "host-a" : "host-b"), other;
		struct lm_error err;

		if (info.state != LM_LOCK_HELD_HERE)
			fail_msg("the guest runs %s, but lock %u is %s: %s", name_of(where), i,
				 lm_lock_state_name(info.state), info.text);
		assert_int_equal(lm_lock_run(h->locks[i], where == A ? "host-b" : "host-a", LM_LOCK_ACQUIRE, 0, &other, &err),
				 -EBUSY);
	}
}

static int resolve_auto(const struct hit *h, struct rig_vm *vm, const char *host)
{
	const char *const argv[] = { "resolve", "--qmp", vm->qmp, "--auto", "--host", host, "--lock", h->locks[0], "--lock",
				     h->locks[1], NULL };

	return rig_run_wait(rig_engine(vm->rig, "resolve", argv, NULL), ENGINE_MS);
}

/* The guardian is hit in the same place as its engine, or storage was away: the locks still know. */
static int resolve_anywhere(const struct hit *h)
{
	int rc = resolve_auto(h, h->a, "host-a");

	if (rc == 2)
		rc = resolve_auto(h, h->b, "host-b");
	assert_int_equal(rc, 0);
	return where_it_runs(h);
}

/* Exactly one side runs, and nobody had to be asked. */
static void survives_with_locks(struct rig *rig)
{
	const struct scenario *s = rig_arg(rig);
	struct hit h = strike(rig, s, NULL);
	int where = settle(rig, &h);

	assert_never_two(&h);
	if (where == LOST && (s->blow == SOURCE_QEMU_KILLED || s->blow == DEST_QEMU_KILLED)) {
		assert_true(allowed[s->blow][s->stage->phase] & LOST);
		return;
	}
	/* Told to run, and then dead: what it wrote is in the world, and the lock keeps the source from going on. */
	if (where == DOUBT && s->blow == DEST_QEMU_KILLED && allowed[s->blow][s->stage->phase] & DOUBT) {
		assert_int_equal(h.send_code, EXIT_IN_DOUBT);
		assert_int_equal(resolve_auto(&h, h.a, "host-a"), 2);
		return;
	}
	if (where == DOUBT && !strncmp(s->stage->name, "lock-", 5))
		where = resolve_anywhere(&h);
	if (where != A && where != B)
		fail_msg("the guest runs %s; send ended with %d (%s), receive with %d (%s)", name_of(where), h.send_code,
			 rig_run_outcome(h.send), h.receive_code, rig_run_outcome(h.receive));
	if (s->stage->phase < ASKING && s->blow != SOURCE_QEMU_KILLED)
		assert_int_equal(where, s->blow == STAGE_HANGS ? where : A);
	if (where == A && !h.send_code)
		fail_msg("the guest runs on the source, but send ended well");
	if (s->stage->phase > ALONE || where == B)
		assert_locks(&h, where);
	rig_guest_assert_well(where == A ? h.a : h.b);
	if (where == B && rig_vm_alive(h.a)) /* the source may ask, too, and is told no */
		assert_int_equal(resolve_auto(&h, h.a, "host-a"), 2);
	assert_never_two(&h);
}

static void survives(struct rig *rig)
{
	const struct scenario *s = rig_arg(rig);
	struct hit h = strike(rig, s, NULL);
	int where = settle(rig, &h);

	assert_never_two(&h);
	assert_place(&h, s, where);
	if (where == B) {
		rig_guest_assert_well(h.b);
	} else if (where == A) {
		assert_short_pause(&h);
		rig_guest_assert_well(h.a);
		rig_vm_end(h.b);
		retry(rig, &h);
	}
}

/* --- in doubt: a person decides -------------------------------------------- */

static void resolve(struct rig_vm *vm, const char *what)
{
	const char *const argv[] = { "resolve", "--qmp", vm->qmp, what, "--yes", NULL };

	assert_int_equal(rig_run_wait(rig_engine(vm->rig, "resolve", argv, NULL), ENGINE_MS), 0);
}

static const struct scenario answer_lost = { NETWORK_CUT, &(struct stage){ 'd', "resumed", RUNS } };
static const struct scenario commit_lost = { NETWORK_SILENT, &(struct stage){ 's', "commit", ASKING } };

static void in_doubt_with_the_guest_on_the_destination_ends_the_source(struct rig *rig)
{
	struct hit h = strike(rig, &answer_lost, NULL);

	assert_int_equal(settle(rig, &h), B);
	assert_int_equal(h.send_code, EXIT_IN_DOUBT);
	resolve(h.a, "--end-here");
	assert_true(rig_proc_ended(h.a->proc, RIG_WAIT_MS));
	rig_guest_assert_well(h.b);
}

static void in_doubt_with_the_destination_gone_runs_on_the_source(struct rig *rig)
{
	struct hit h = strike(rig, &commit_lost, NULL);

	assert_int_equal(settle(rig, &h), DOUBT);
	assert_int_equal(h.send_code, EXIT_IN_DOUBT);
	rig_vm_end(h.b);
	resolve(h.a, "--run-here");
	assert_true(rig_vm_running(h.a));
	rig_guest_assert_well(h.a);
	retry(rig, &h);
}

/* --- without the rule the same tests must fail ------------------------------ */

static const struct scenario killed_while_paused = { SOURCE_ENGINE_KILLED, &(struct stage){ 's', "paused", BEFORE } };
static const struct scenario fails_when_loaded = { STAGE_FAILS, &(struct stage){ 's', "loaded", LOADS } };

static void without_a_guardian_nobody_undoes_the_pause(struct rig *rig)
{
	struct hit h = strike(rig, &killed_while_paused, "guardian");

	rig_orphans_gone(rig, SETTLE_MS);
	rig_sleep_ms(1000);
	assert_int_equal(where_it_runs(&h), 0);
	assert_true(rig_vm_alive(h.a));
}

static void without_commit_two_guests_run_and_are_seen(struct rig *rig)
{
	struct hit h = strike(rig, &fails_when_loaded, "commit");
	char how[128];

	assert_true(rig_saw_two(h.a, h.b, how, sizeof(how)));
}

/* --------------------------------------------------------------------------- */

#define FIXED_TESTS 4

/* Some blows take long to be noticed, and what they show is shown at a few stages. */
static bool is_worth_it(enum blow blow, const struct stage *s)
{
	static const char *const silent[] = { "s:round", "s:paused", "s:copied", "s:saved", "s:commit", "s:committed",
					      "d:copy", "d:commit", "d:resumed", NULL };
	static const char *const hangs[] = { "s:paused", "s:copied", "s:loaded", "s:commit", "d:loading",
					     "d:loaded", "d:commit", NULL };
	const char *const *list = blow == NETWORK_SILENT ? silent : blow == STAGE_HANGS ? hangs : NULL;
	char name[32];

	if (!allowed[blow][s->phase] || s->locked)
		return false;
	if (s->phase == ALONE && s->side == 'd' && blow == SOURCE_ENGINE_KILLED)
		return false; /* there is none yet */
	if (s->phase == ALONE && s->side == 'd' && blow == SOURCE_QEMU_KILLED)
		return false;
	snprintf(name, sizeof(name), "%c:%s", s->side, s->name);
	for (; list && *list; list++) {
		if (!strcmp(*list, name))
			return true;
	}
	return !list;
}

/* What comes before the guest is paused is as without locks; the rest is not. */
static bool is_worth_a_lock(enum blow blow, const struct stage *s)
{
	static const char *const early[] = { "open", "hello", "opened", "armed", "round", "precopy", "copy", NULL };

	for (const char *const *e = early; *e; e++)
		if (!strcmp(*e, s->name))
			return false;
	return blow == BOTH_ENGINES_KILLED || s->locked || is_worth_it(blow, s);
}

static size_t add_scenarios(struct CMUnitTest *tests, size_t n)
{
	static struct scenario scenarios[2 * BLOWS * NSTAGES];
	static struct rig_test rig_tests[2 * BLOWS * NSTAGES];
	static char names[2 * BLOWS * NSTAGES][64];
	size_t at = 0;

	for (unsigned j = 0; j < 2 * BLOWS; j++) {
		enum blow blow = j % BLOWS;
		bool locked = j / BLOWS;

		for (size_t i = 0; i < NSTAGES; i++) {
			if (!(locked ? is_worth_a_lock(blow, &stages[i]) : is_worth_it(blow, &stages[i])))
				continue;
			scenarios[at] = (struct scenario){ blow, &stages[i], .locked = locked };
			rig_tests[at] = (struct rig_test){ locked ? survives_with_locks : survives, &scenarios[at] };
			snprintf(names[at], sizeof(names[at]), "%s%s_at_%s_%s", locked ? "locked_" : "", blow_names[blow],
				 stages[i].side == 's' ? "source" : "dest", stages[i].name);
			tests[n++] = (struct CMUnitTest){ names[at], rig_body, rig_setup, rig_teardown,
							  &rig_tests[at] };
			at++;
		}
	}
	return n;
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[2 * BLOWS * NSTAGES + FIXED_TESTS] = {
		RIG_TEST(without_a_guardian_nobody_undoes_the_pause),
		RIG_TEST(without_commit_two_guests_run_and_are_seen),
		RIG_TEST(in_doubt_with_the_guest_on_the_destination_ends_the_source),
		RIG_TEST(in_doubt_with_the_destination_gone_runs_on_the_source),
	};

	/* Rows that found a fault once; they run in every sample. */
	static const char *const always[] = {
		"dest_qemu_killed_at_dest_fenced",      /* the source resumed a guest that may have run */
		"dest_qemu_killed_at_dest_resumed",
		"source_engine_killed_at_source_pausing", /* a cancel between stop and pre-switchover got lost */
		"network_silent_at_source_paused",      /* --max-pause did not reach every message */
		NULL,
	};

	return rig_main_matrix(argc, argv, tests, add_scenarios(tests, FIXED_TESTS), FIXED_TESTS, always);
}
