/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real guests whose disk is guarded by a real lock: test_handover BACKEND PATTERN,
 * one test per process.
 *
 * Source, destination and a third host are processes of one machine with names of
 * their own.  The third host tries to get at the storage all the time.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "trip.h"
#ifdef HAVE_LIBISCSI
#include "tgt.h"
#endif

#define ROUNDS 20
#define OUTSIDER 2 /* the third host */

/* ---- a host without the lock ---- */

struct outsider {
	pid_t pid;
	struct { _Atomic uint64_t tries, writes, locks; _Atomic bool stop; char how[256]; } *seen; /* shared */
};

static void try_once(struct outsider *o, struct lm_lock *l)
{
	struct lm_error err = { 0 };

	o->seen->tries++;
	if (world->write && !world->write(l)) {
		o->seen->writes++;
		snprintf(o->seen->how, sizeof(o->seen->how), "the storage took a write");
	}
	if (lm_lock_acquire(l, lm_deadline_after(2 * LM_NS_PER_S), &err))
		return;
	o->seen->locks++;
	snprintf(o->seen->how, sizeof(o->seen->how), "the lock was acquired, epoch %" PRIu64, l->epoch);
}

static void outsider_main(struct outsider *o, const char *uri)
{
	struct lm_lock_params p = { .host = hosts[OUTSIDER], .deadline_ns = lm_deadline_after(10 * LM_NS_PER_S) };
	struct lm_lock *l;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	world->enter(OUTSIDER);
	if (lm_lock_open(uri, &p, &l, NULL))
		_exit(1);
	while (!o->seen->stop)
		try_once(o, l);
	lm_lock_close(l);
	_exit(0);
}

static void outsider_start(struct outsider *o, const char *uri)
{
	o->seen = mmap(NULL, sizeof(*o->seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(o->seen != MAP_FAILED);
	o->pid = fork();
	if (!o->pid)
		outsider_main(o, uri);
}

/* It must have tried, and never got through. */
static void outsider_end(struct outsider *o, uint64_t min_tries)
{
	int status;

	o->seen->stop = true;
	assert_int_equal(waitpid(o->pid, &status, 0), o->pid);
	assert_int_equal(status, 0);
	print_message("a third host tried %" PRIu64 " times\n", o->seen->tries);
	if (o->seen->writes || o->seen->locks)
		fail_msg("a host without the lock: %" PRIu64 " writes, %" PRIu64 " locks: %s", o->seen->writes,
			 o->seen->locks, o->seen->how);
	assert_true(o->seen->tries >= min_tries);
	munmap(o->seen, sizeof(*o->seen));
}

static void there_and_back_a_third_host_never_gets_at_the_storage(struct rig *rig)
{
	struct outsider o;
	struct trip t;
	int r;

	trip_start(&t, rig);
	trip_ask(&t, 0, LM_LOCK_ACQUIRE, &r);
	assert_int_equal(r, 0);
	outsider_start(&o, t.uri);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct rig_vm *to = trip_next_vm(&t, RIG_WAITS);

		trip_begin(&t, to, NULL, NULL);
		trip_end(&t);
		trip_assert_moved(&t);
		assert_true(rig_summary_int(t.send, "blackout.lock_ns") > 0);
		trip_arrived(&t, to);
	}
	outsider_end(&o, ROUNDS);
	trip_assert_here(&t);
	/* No engine is left: it is QEMU that shows that the holder lives. */
	if (world->sees_life)
		assert_true(trip_ask(&t, t.host, LM_LOCK_SHOW, &r).in_use);
	rig_guest_assert_well(t.vm);
}

/* ---- faults: the guest is at exactly one host afterwards, with the lock ---- */

static void strike(struct trip *t, const char *source_fault, const char *dest_fault, struct rig_vm **ret_to)
{
	*ret_to = trip_next_vm(t, RIG_WAITS);
	trip_begin(t, *ret_to, source_fault, dest_fault);
}

static void settle(struct trip *t, struct rig_vm *to)
{
	trip_end(t);
	assert_false(rig_vm_running(t->vm) && rig_vm_running(to));
	if (rig_vm_running(to))
		trip_arrived(t, to);
	trip_assert_here(t);
	rig_guest_assert_well(t->vm);
}

static void killed_engines_leave_one_owner(struct rig *rig)
{
	enum { EITHER = 2 }; /* the source and the destination's guardian: the first that asks */
	static const struct { const char *source, *dest; unsigned host; } kills[] = {
		{ "offering:kill", NULL, 0 }, { "offered:kill", NULL, 0 }, { "commit:kill", NULL, 0 },
		{ NULL, "commit:kill", 0 }, { NULL, "taking:kill", EITHER }, { NULL, "taken:kill", 1 },
		{ "committed:kill", NULL, 1 }, { "committed:kill", "taken:kill", 1 },
	};

	for (unsigned i = 0; i < sizeof(kills) / sizeof(kills[0]); i++) {
		struct rig_vm *to;
		struct trip t;

		trip_start(&t, rig);
		strike(&t, kills[i].source, kills[i].dest, &to);
		settle(&t, to);
		if (kills[i].host != EITHER && t.host != kills[i].host)
			fail_msg("kill %u: the guest is at %s", i, hosts[t.host]);
		rig_vm_end(t.vm);
		if (to != t.vm)
			rig_vm_end(to);
	}
}

/* A destination that sleeps before it takes: the source takes the lock back, and it comes too late. */
static void a_slow_destination_loses_to_the_source(struct rig *rig)
{
	struct outsider o;
	struct rig_vm *to;
	struct trip t;
	int r;

	trip_start(&t, rig);
	trip_ask(&t, 0, LM_LOCK_ACQUIRE, &r);
	assert_int_equal(r, 0);
	outsider_start(&o, t.uri);
	strike(&t, NULL, "taking:sleep=4000", &to);
	settle(&t, to);
	assert_int_equal(t.host, 0);
	outsider_end(&o, 1);
}

/* The disk is QEMU's only when it runs the guest: nothing is locked, so nothing is written, before the take. */
static void the_destination_leaves_the_disk_alone_until_it_has_the_lock(struct rig *rig)
{
	char fault[400], before[RIG_PATH_MAX], after[RIG_PATH_MAX], *text;
	struct rig_vm *to;
	struct stat st;
	struct trip t;

	trip_start(&t, rig);
	assert_int_equal(stat(t.disk, &st), 0);
	rig_path(rig, before, "before");
	rig_path(rig, after, "after");
	snprintf(fault, sizeof(fault), "taking:run=grep -c ':%lu ' /proc/locks >%s,resumed:run=grep -c ':%lu ' /proc/locks >%s",
		 (unsigned long)st.st_ino, before, (unsigned long)st.st_ino, after);
	strike(&t, NULL, fault, &to);
	settle(&t, to);
	assert_int_equal(t.host, 1);
	text = rig_read_file(before);
	assert_string_equal(text, "0\n");
	free(text);
	text = rig_read_file(after);
	assert_true(atoi(text) > 0);
	free(text);
}

/* ---- nobody is left to decide: the lock is ---- */

static int resolve(const struct trip *t, struct rig_vm *vm, unsigned host, const char *what)
{
	const char *const argv[] = { "resolve", "--qmp", vm->qmp, what, "--yes", "--host", hosts[host], "--lock", t->uri, NULL };

	world->enter(host);
	return rig_run_wait(rig_engine(t->rig, "resolve", argv, NULL), ENGINE_MS);
}

static void a_source_without_engine_and_guardian_is_resolved(struct rig *rig)
{
	struct rig_vm *to;
	struct trip t;

	trip_start(&t, rig);
	t.breaks = "guardian";
	strike(&t, "offered:kill", NULL, &to);
	trip_end(&t);
	assert_false(rig_vm_running(t.vm));
	assert_int_equal(resolve(&t, t.vm, 0, "--end-here"), 2); /* the guest is nowhere else */
	assert_int_equal(resolve(&t, t.vm, 0, "--auto"), 0);
	trip_assert_here(&t);
	rig_guest_assert_well(t.vm);
}

static void a_destination_without_engine_and_guardian_is_resolved(struct rig *rig)
{
	struct rig_vm *to, *from;
	struct trip t;

	trip_start(&t, rig);
	t.breaks = "guardian";
	strike(&t, NULL, "taken:kill", &to);
	trip_end(&t);
	assert_int_equal(t.send_code, 6);
	assert_false(rig_vm_running(t.vm) || rig_vm_running(to));
	assert_int_equal(resolve(&t, t.vm, 0, "--auto"), 2);
	assert_int_equal(resolve(&t, t.vm, 0, "--run-here"), 2);
	assert_false(rig_vm_running(t.vm));
	assert_int_equal(resolve(&t, to, 1, "--auto"), 0);
	assert_true(rig_vm_running(to));
	from = t.vm;
	assert_int_equal(resolve(&t, from, 0, "--end-here"), 0);
	assert_true(rig_proc_ended(from->proc, RIG_WAIT_MS));
	trip_arrived(&t, to);
	trip_assert_here(&t);
	rig_guest_assert_well(to);
}

static void a_guest_whose_lock_another_host_has_stays_as_it_is(struct rig *rig)
{
	struct rig_vm *to;
	struct trip t;
	int r;

	trip_start(&t, rig);
	trip_ask(&t, OUTSIDER, LM_LOCK_ACQUIRE, &r);
	assert_int_equal(r, 0);
	strike(&t, NULL, NULL, &to);
	assert_int_equal(rig_run_wait(t.send, ENGINE_MS), 2);
	rig_proc_kill(t.receive->proc, SIGINT);
	rig_run_wait(t.receive, ENGINE_MS);
	assert_true(rig_vm_running(t.vm));
	assert_int_equal(rig_longest_pause_us(t.vm), 0);
}

/* Teeth: an abort that does not take the lock back leaves a guest that the other host may outrun. */
static void without_reclaiming_the_source_runs_a_guest_that_is_offered(struct rig *rig)
{
	struct rig_vm *to;
	struct trip t;
	int r;

	if (!world->names_next)
		rig_skip(rig, "this storage does not show an offer");
	trip_start(&t, rig);
	t.breaks = "lock-reclaim";
	strike(&t, "offered:error", NULL, &to);
	trip_end(&t);
	assert_true(rig_vm_running(t.vm));
	assert_int_equal(trip_ask(&t, 0, LM_LOCK_SHOW, &r).state, LM_LOCK_IN_HANDOVER);
}

static void a_guest_that_is_not_whole_takes_no_lock(struct rig *rig)
{
	struct lm_lock_info info;
	struct rig_vm *to;
	struct trip t;
	int r;

	trip_start(&t, rig);
	to = trip_next_vm(&t, RIG_WAITS);
	trip_ask(&t, 0, LM_LOCK_ACQUIRE, &r);
	trip_ask(&t, 0, LM_LOCK_RELEASE, &r);
	assert_int_equal(r, 0);
	assert_int_equal(resolve(&t, to, 1, "--run-here"), 3);
	assert_int_equal(resolve(&t, to, 1, "--auto"), 0); /* says how it is */
	info = trip_ask(&t, 0, LM_LOCK_SHOW, &r);
	assert_int_equal(info.state, LM_LOCK_FREE);
}

/* ---- post-copy ---- */

static void in_post_copy_the_lock_decides_as_well(struct rig *rig)
{
	static const struct { const char *dest; unsigned host; } cases[] = {
		{ NULL, 1 }, { "taking:error", 0 }, { "taken:error", 0 }, { "taking:sleep=4000", 0 },
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct rig_vm *to;
		struct trip t;

		trip_start(&t, rig);
		t.postcopy = true;
		strike(&t, NULL, cases[i].dest, &to);
		settle(&t, to);
		if (t.host != cases[i].host)
			fail_msg("case %u: the guest is at %s", i, hosts[t.host]);
		rig_vm_end(t.vm);
		if (to != t.vm)
			rig_vm_end(to);
	}
}

#ifdef HAVE_LIBISCSI
static void wait_stage(struct rig_run *r, const char *name)
{
	assert_non_null(rig_run_event_is(r, "stage", "name", name, RIG_WAIT_MS));
}

static bool is_scsi(struct rig *rig)
{
	if (world != &scsi_world)
		rig_skip(rig, "a test of iSCSI paths");
	return true;
}

static void a_path_that_dies_in_the_hand_over_is_done_without(struct rig *rig)
{
	struct rig_vm *to;
	struct trip t;

	is_scsi(rig);
	for (unsigned i = 0; i < 2; i++) {
		trip_start(&t, rig);
		strike(&t, i ? NULL : "offering:sleep=700", i ? "taking:sleep=700" : NULL, &to);
		wait_stage(i ? t.receive : t.send, i ? "taking" : "offering");
		tgt_portal(1, false);
		settle(&t, to);
		assert_int_equal(t.host, 1);
		tgt_portal(1, true);
		rig_vm_end(t.vm);
	}
}

/* No persistence through power loss here: the reservation is gone, and with it what was offered. */
static void a_target_that_restarts_leaves_one_owner(struct rig *rig)
{
	struct rig_vm *to;
	struct trip t;

	is_scsi(rig);
	trip_start(&t, rig);
	strike(&t, NULL, "taking:sleep=1500", &to);
	wait_stage(t.receive, "taking");
	tgt_kill();
	assert_true(tgt_again());
	settle(&t, to);
	assert_int_equal(t.host, 0);
}

/* New sessions begin with unit attentions, on every path. */
static void unit_attentions_do_not_disturb(struct rig *rig)
{
	struct rig_vm *to;
	struct trip t;

	is_scsi(rig);
	trip_start(&t, rig);
	strike(&t, "offering:sleep=1000", NULL, &to);
	wait_stage(t.send, "offering");
	for (unsigned i = 0; i < 2; i++) {
		tgt_portal(i, false);
		tgt_portal(i, true);
	}
	settle(&t, to);
}
#endif

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(there_and_back_a_third_host_never_gets_at_the_storage),
		RIG_TEST(killed_engines_leave_one_owner),
		RIG_TEST(a_slow_destination_loses_to_the_source),
		RIG_TEST(the_destination_leaves_the_disk_alone_until_it_has_the_lock),
		RIG_TEST(a_source_without_engine_and_guardian_is_resolved),
		RIG_TEST(a_destination_without_engine_and_guardian_is_resolved),
		RIG_TEST(a_guest_whose_lock_another_host_has_stays_as_it_is),
		RIG_TEST(without_reclaiming_the_source_runs_a_guest_that_is_offered),
		RIG_TEST(a_guest_that_is_not_whole_takes_no_lock),
		RIG_TEST(in_post_copy_the_lock_decides_as_well),
#ifdef HAVE_LIBISCSI
		RIG_TEST(a_path_that_dies_in_the_hand_over_is_done_without),
		RIG_TEST(a_target_that_restarts_leaves_one_owner),
		RIG_TEST(unit_attentions_do_not_disturb),
#endif
	};

	return trip_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
