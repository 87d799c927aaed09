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
#include "clock.h"
#include "lock_contract.h"
#include "rig.h"
#ifdef HAVE_LIBISCSI
#include "tgt.h"
#endif

#define ROUNDS 20
#define ENGINE_MS 40000
#define OUTSIDER 2 /* the third host */

static const struct world *world;
static const char *const hosts[] = { "host-a", "host-b", "host-c" };

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

/* ---- migrations between the two others ---- */

struct trip {
	struct rig *rig;
	char uri[LM_LOCK_URI_MAX];
	struct rig_config config;
	char disk[128], drive[200];
	struct rig_vm *vm;  /* where the guest is */
	unsigned host, n;   /* and whose it is; VMs made so far */
	struct rig_run *send, *receive;
	int send_code, receive_code;
};

/* What the guest has for a disk: beside the lease, or the file behind the LUN. */
static void disk_make(struct trip *t)
{
#ifdef HAVE_LIBISCSI
	if (world == &scsi_world)
		snprintf(t->disk, sizeof(t->disk), "%s", tgt_file());
#endif
	if (!*t->disk) {
		FILE *f;

		snprintf(t->disk, sizeof(t->disk), "%s/disk", rig_dir(t->rig));
		f = fopen(t->disk, "we");
		assert_non_null(f);
		assert_int_equal(ftruncate(fileno(f), 4 << 20), 0);
		fclose(f);
	}
	snprintf(t->drive, sizeof(t->drive), "file=%s,format=raw,if=none,id=d0,cache=none", t->disk);
}

static struct rig_vm *next_vm(struct trip *t, enum rig_role role)
{
	char name[8];

	snprintf(name, sizeof(name), "v%u", t->n++);
	return rig_vm_start(t->rig, name, &t->config, role);
}

static void trip_start(struct trip *t, struct rig *rig)
{
	memset(t, 0, sizeof(*t));
	t->rig = rig;
	world->fresh(t->uri);
	disk_make(t);
	t->config = (struct rig_config){ .mb = 64, .append = "mb=8 rate=1000",
					 .extra = { "-drive", t->drive, "-device", "virtio-blk-pci,drive=d0" } };
	t->vm = next_vm(t, RIG_RUNS);
	rig_guest_wait_ready(t->vm);
}

static void begin(struct trip *t, struct rig_vm *to, const char *source_fault, const char *dest_fault)
{
	struct rig_run_options at_source = { .fault = source_fault, .args = { "--host", hosts[t->host], "--lock", t->uri,
			"--peer-timeout", "2s", "--max-pause", "8s" } };
	struct rig_run_options at_dest = { .fault = dest_fault, .args = { "--host", hosts[!t->host], "--lock", t->uri,
			"--peer-timeout", "2s" } };

	world->enter(!t->host); /* the environment is the engine's */
	t->receive = rig_receive(to, &at_dest);
	world->enter(t->host);
	t->send = rig_send(t->vm, t->receive->address, &at_source);
}

/* They come to us when their engine has gone; the outsider and the backend's daemons are ours, too. */
static void guardians_end(void)
{
	int64_t limit = rig_now_ms() + ENGINE_MS;
	pid_t pid;

	while ((pid = rig_child_of(getpid(), "migrate-guard"))) {
		waitpid(pid, NULL, WNOHANG);
		if (rig_now_ms() > limit)
			fail_msg("a guardian does not end");
		rig_sleep_ms(10);
	}
}

static void end(struct trip *t)
{
	t->send_code = rig_run_wait(t->send, ENGINE_MS);
	t->receive_code = rig_run_wait(t->receive, ENGINE_MS);
	guardians_end();
}

static void assert_moved(const struct trip *t)
{
	if (t->send_code || t->receive_code)
		fail_msg("send ended with %d (%s), receive with %d (%s)", t->send_code, rig_run_outcome(t->send),
			 t->receive_code, rig_run_outcome(t->receive));
}

static void arrived(struct trip *t, struct rig_vm *to)
{
	rig_vm_end(t->vm);
	t->vm = to;
	t->host = !t->host;
}

struct ask {
	const char *host, *uri;
	unsigned index;
	enum lm_lock_what what;
	struct lm_lock_info info;
	int r;
};

/* In a process of that host: sanlock's library remembers whose daemon it talked to first. */
static struct lm_lock_info ask(const struct trip *t, unsigned host, enum lm_lock_what what, int *ret)
{
	struct ask *a = mmap(NULL, sizeof(*a), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct lm_lock_info info;
	pid_t pid;
	int status;

	assert_true(a != MAP_FAILED);
	pid = fork();
	if (!pid) {
		struct lm_error err;

		world->enter(host);
		a->r = lm_lock_run(t->uri, hosts[host], what, 0, &a->info, &err);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	info = a->info;
	*ret = a->r;
	munmap(a, sizeof(*a));
	return info;
}

/* The guest runs where it is said to, and that host holds the lock. */
static void assert_here(const struct trip *t)
{
	int r;
	struct lm_lock_info info = ask(t, t->host, LM_LOCK_SHOW, &r);

	assert_int_equal(r, 0);
	if (info.state != LM_LOCK_HELD_HERE)
		fail_msg("the guest is at %s, but the lock is %s: %s", hosts[t->host], lm_lock_state_name(info.state),
			 info.text);
	assert_true(rig_vm_running(t->vm));
	ask(t, !t->host, LM_LOCK_ACQUIRE, &r);
	assert_int_equal(r, -EBUSY);
}

static void there_and_back_a_third_host_never_gets_at_the_storage(struct rig *rig)
{
	struct outsider o;
	struct trip t;
	int r;

	trip_start(&t, rig);
	ask(&t, 0, LM_LOCK_ACQUIRE, &r);
	assert_int_equal(r, 0);
	outsider_start(&o, t.uri);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct rig_vm *to = next_vm(&t, RIG_WAITS);

		begin(&t, to, NULL, NULL);
		end(&t);
		assert_moved(&t);
		assert_true(rig_summary_int(t.send, "blackout.lock_ns") > 0);
		arrived(&t, to);
	}
	outsider_end(&o, ROUNDS);
	assert_here(&t);
	rig_guest_assert_well(t.vm);
}

/* ---- faults: the guest is at exactly one host afterwards, with the lock ---- */

static void strike(struct trip *t, const char *source_fault, const char *dest_fault, struct rig_vm **ret_to)
{
	*ret_to = next_vm(t, RIG_WAITS);
	begin(t, *ret_to, source_fault, dest_fault);
}

static void settle(struct trip *t, struct rig_vm *to)
{
	end(t);
	assert_false(rig_vm_running(t->vm) && rig_vm_running(to));
	if (rig_vm_running(to))
		arrived(t, to);
	assert_here(t);
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
	ask(&t, 0, LM_LOCK_ACQUIRE, &r);
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

static const struct world *world_find(const char *name)
{
	const struct world *all[] = {
		&lease_world,
#ifdef HAVE_LIBISCSI
		&scsi_world,
#endif
#ifdef HAVE_SANLOCK
		&sanlock_world,
#endif
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(all[i]->name, name))
			return all[i];
	return NULL;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(there_and_back_a_third_host_never_gets_at_the_storage),
		RIG_TEST(killed_engines_leave_one_owner),
		RIG_TEST(a_slow_destination_loses_to_the_source),
		RIG_TEST(the_destination_leaves_the_disk_alone_until_it_has_the_lock),
#ifdef HAVE_LIBISCSI
		RIG_TEST(a_path_that_dies_in_the_hand_over_is_done_without),
		RIG_TEST(a_target_that_restarts_leaves_one_owner),
		RIG_TEST(unit_attentions_do_not_disturb),
#endif
	};
	char why[256] = "no such backend here";
	int rc;

	world = argc > 1 ? world_find(argv[1]) : NULL;
	if (!world || !world->start(why, sizeof(why))) {
		printf("SKIP: %s\n", why);
		if (world)
			world->stop();
		return 77;
	}
	argv[1] = argv[0];
	rc = rig_main(argc - 1, argv + 1, tests, sizeof(tests) / sizeof(tests[0]));
	world->stop();
	return rc;
}
