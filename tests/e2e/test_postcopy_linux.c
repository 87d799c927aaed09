/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy of a real kernel with several vCPUs: threads that touch random pages at
 * full speed, a disk that reads into and writes out of pages which are still missing,
 * a balloon.  The guest checks what it reads; a kernel that got a wrong page dies.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "linux.h"

#define MIB (UINT64_C(1) << 20)
#define CHECK_MS 60000
/* What an engine may need besides guest RAM, whatever the guest does; 2 MiB were seen. */
#define ENGINE_BYTES (8 * MIB)

static const char *const smp4[] = { "-smp", "4", NULL };
static const char *const smp8[] = { "-smp", "8", NULL };

struct move {
	struct rig_vm *a, *b;
	struct rig_run *receive, *send;
	uint64_t peak_bytes; /* of the destination's engine */
};

struct way {
	const char *const *smp;
	const char *append;
	bool paused;
	const char *after; /* of pre-copy; NULL: at once */
};

static void boot(struct move *m, struct rig *rig, const char *append, const char *const *devices, const char *ready)
{
	char initrd[RIG_PATH_MAX];
	struct rig_config c;

	linux_prepare_or_skip(rig, initrd);
	*m = (struct move){ 0 };
	c = linux_config(initrd, append, devices);
	m->a = linux_boot(rig, "A", &c, ready);
	m->b = rig_vm_start(rig, "B", &c, RIG_WAITS);
}

static void start(struct move *m, const char *after, bool paused)
{
	struct rig_run_options receive = { .args = { paused ? "--paused" : NULL } };
	struct rig_run_options now = { .args = { "--postcopy", "now", "--max-bandwidth", "64MiB/s" } };
	struct rig_run_options later = { .args = { "--max-bandwidth", "64MiB/s", "--postcopy-after", after } };

	m->receive = rig_receive(m->b, &receive);
	m->send = rig_send(m->a, m->receive->address, after ? &later : &now);
}

static void watch_memory(struct move *m)
{
	int64_t end = rig_now_ms() + 3 * RIG_WAIT_MS;

	while (!rig_proc_ended(m->receive->proc, 20) && rig_now_ms() < end) {
		uint64_t bytes = rig_anon_bytes(m->receive->proc->pid);

		if (bytes > m->peak_bytes)
			m->peak_bytes = bytes;
	}
}

static void finish(struct move *m)
{
	watch_memory(m);
	assert_int_equal(rig_run_wait(m->receive, RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(m->send, RIG_WAIT_MS), 0);
	assert_true(rig_summary_int(m->receive, "postcopy.left_pages") > 0);
	assert_int_equal(rig_summary_int(m->receive, "postcopy.missing_pages"), 0);
	assert_int_equal(rig_summary_int(m->receive, "postcopy.recoveries"), 0);
	print_message("left %lld pages, %lld faults, p50 %lld us, p99 %lld us, max %lld us, blackout %lld us; "
		      "%lld ms; engine %llu KiB\n",
		      (long long)rig_summary_int(m->receive, "postcopy.left_pages"),
		      (long long)rig_summary_int(m->receive, "postcopy.faults"),
		      (long long)rig_summary_int(m->receive, "postcopy.fault_p50_ns") / 1000,
		      (long long)rig_summary_int(m->receive, "postcopy.fault_p99_ns") / 1000,
		      (long long)rig_summary_int(m->receive, "postcopy.fault_max_ns") / 1000,
		      (long long)rig_summary_int(m->send, "blackout.total_ns") / 1000,
		      (long long)rig_summary_int(m->receive, "postcopy.duration_ns") / 1000000,
		      (unsigned long long)m->peak_bytes >> 10);
	assert_true(m->peak_bytes > 0 && m->peak_bytes < ENGINE_BYTES);
}

static void assert_kernel_well(const struct rig_vm *vm)
{
	static const char *const words[] = { "BAD", "FAILED", "failed:", "BUG:", "Oops", "panic", "rcu:", "blocked for",
					     "I/O error" };

	for (unsigned i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (rig_guest_log_has(vm, words[i])) {
			char *log = rig_read_file(vm->serial);

			print_message("%s\n", log);
			free(log);
			fail_msg("the guest on %s says \"%s\"", vm->name, words[i]);
		}
}

/* Every thread has checked all that it can reach twice since the call. */
static void assert_storm_well(struct rig_vm *vm)
{
	int64_t end = rig_now_ms() + CHECK_MS;
	long long from, now;

	assert_true(rig_guest_wait_log(vm, "storm ", RIG_WAIT_MS));
	for (from = now = rig_guest_number(vm, "storm ", "passes="); now < from + 2;
	     now = rig_guest_number(vm, "storm ", "passes=")) {
		assert_kernel_well(vm);
		if (rig_now_ms() > end || !rig_vm_alive(vm))
			fail_msg("the guest stands still at %lld passes", now);
		rig_sleep_ms(50);
	}
	assert_int_equal(rig_guest_number(vm, "storm ", "bad="), 0);
	assert_kernel_well(vm);
}

static void a_storm_of_touches_moves(struct rig *rig)
{
	const struct way *w = rig_arg(rig);
	struct move m;

	boot(&m, rig, w->append, w->smp, "storm 2 ");
	start(&m, w->after, w->paused);
	finish(&m);
	assert_kernel_well(m.a);
	assert_false(rig_vm_running(m.a));
	if (w->paused) {
		rig_assert_ram_equal(m.a, m.b);
		rig_qmp_do(m.b, "cont", NULL);
	} else {
		assert_true(rig_summary_int(m.receive, "postcopy.faults") > 0);
	}
	assert_storm_well(m.b);
}

/* ---- a disk ---- */

#define DISK_LOAD "wl.mb=0 wl.reads=4 wl.pages=8 wl.pool=48 wl.disk=/dev/vda wl.writes=2"

static void assert_disk_well(struct rig_vm *vm)
{
	int64_t end = rig_now_ms() + CHECK_MS;

	/* Each page of the writers' pool has gone out again here. */
	rig_guest_type(vm, "writes");
	assert_true(rig_guest_wait_log(vm, "WRITES done=", RIG_WAIT_MS));
	for (long long from = rig_guest_number(vm, "WRITES done=", "rounds="), now = from; now < from + 2;
	     now = rig_guest_number(vm, "WRITES done=", "rounds=")) {
		if (rig_now_ms() > end)
			fail_msg("the disk stands still");
		rig_guest_type(vm, "writes");
	}
	assert_int_equal(rig_guest_number(vm, "WRITES done=", "failed="), 0);
	rig_guest_type(vm, "check");
	assert_true(rig_guest_wait_log(vm, "HOLE checked=", CHECK_MS));
	print_message("HOLE checked=%lld bad=%lld, %lld pages written\n",
		      rig_guest_number(vm, "HOLE checked=", "checked="), rig_guest_number(vm, "HOLE checked=", " bad="),
		      rig_guest_number(vm, "WRITES done=", "done="));
	assert_true(rig_guest_number(vm, "HOLE checked=", "checked=") > 100);
	assert_int_equal(rig_guest_number(vm, "HOLE checked=", "failed="), 0);
	assert_int_equal(rig_guest_number(vm, "HOLE checked=", " bad="), 0);
	assert_kernel_well(vm);
}

/*
 * The device is busy on both sides of the switchover: on the destination it reads the
 * disk into pages that are missing, and writes it from pages that are missing, which
 * nobody else touches.
 */
static void a_busy_disk_moves(struct rig *rig)
{
	const struct way *w = rig_arg(rig);
	char disk[RIG_PATH_MAX], drive[256];
	struct rig_proc *slowfs;
	struct move m;

	rig_private_mounts(rig);
	slowfs = linux_slow_disk(rig, disk);
	snprintf(drive, sizeof(drive), "file=%s,if=none,id=d0,format=raw,cache=none,aio=threads", disk);
	boot(&m, rig, w->append, (const char *[]){ "-smp", "2", "-drive", drive, "-device",
						   "virtio-blk-pci,drive=d0", NULL }, "READY");
	rig_sleep_ms(500);
	start(&m, w->after, false);
	finish(&m);
	assert_kernel_well(m.a);
	assert_false(rig_guest_log_has(m.a, "pool used up"));
	assert_disk_well(m.b);
	assert_false(rig_log_has(slowfs, "something else"));
}

/* ---- a balloon ---- */

static const char *const balloon[] = { "-smp", "2", "-device", "virtio-balloon-pci", NULL };
/* The kernel gives free memory back by itself, too. */
static const char *const reporting[] = { "-smp", "2", "-device", "virtio-balloon-pci,free-page-reporting=on", NULL };

/*
 * Memory that the destination holds already, from the first pass, and that the guest
 * then gives back: it must be zero at the destination, whether it was left behind or not.
 */
static void memory_given_back_before_the_switchover_is_zero(struct rig *rig)
{
	char fault[LINUX_FAULT_MAX];
	struct move m;

	linux_wait_at_round(rig, fault);
	boot(&m, rig, LINUX_APPEND "wl.mb=0 wl.threads=2 wl.storm=32 wl.used=96", balloon, "storm 2 ");
	m.receive = rig_receive(m.b, &(struct rig_run_options){ .args = { "--paused" } });
	m.send = rig_send(m.a, m.receive->address, &(struct rig_run_options){
		.fault = fault, .args = { "--postcopy-after", "1", "--max-bandwidth", "128MiB/s" } });
	assert_non_null(rig_run_event(m.send, "round", RIG_WAIT_MS));
	linux_set_balloon(m.a, 144);
	linux_go_on(rig);
	finish(&m);
	rig_assert_ram_equal(m.a, m.b);
	print_message("of 256 MiB: source %llu MiB, destination %llu MiB\n",
		      (unsigned long long)rig_ram_allocated(m.a) >> 20, (unsigned long long)rig_ram_allocated(m.b) >> 20);
	assert_true(rig_ram_allocated(m.b) < rig_ram_allocated(m.a) + 8 * MIB);
	rig_qmp_do(m.b, "cont", NULL);
	linux_set_balloon(m.b, 256);
	assert_storm_well(m.b);
}

/* The balloon is blown up and let down while pages are missing: what was given back never comes back. */
static void memory_given_back_in_post_copy_stays_away(struct rig *rig)
{
	struct move m;

	boot(&m, rig, LINUX_APPEND "wl.mb=0 wl.threads=2 wl.storm=32 wl.used=160", reporting, "storm 2 ");
	m.receive = rig_receive(m.b, NULL);
	m.send = rig_send(m.a, m.receive->address, &(struct rig_run_options){
		.args = { "--postcopy", "now", "--max-bandwidth", "12MiB/s" } });
	assert_non_null(rig_run_event_is(m.receive, "stage", "name", "postcopy", RIG_WAIT_MS));
	linux_set_balloon(m.b, 192);
	linux_set_balloon(m.b, 224);
	assert_null(rig_run_event(m.receive, "completed", 0));
	linux_set_balloon(m.b, 192);
	finish(&m);
	print_message("of 256 MiB, 192 for the guest: destination %llu MiB\n",
		      (unsigned long long)rig_ram_allocated(m.b) >> 20);
	linux_set_balloon(m.b, 256);
	assert_storm_well(m.b);
}

#define STORM LINUX_APPEND "wl.mb=0 wl.threads=4 wl.storm=64"
#define STORM8 LINUX_APPEND "wl.mb=0 wl.threads=8 wl.storm=64"

static const struct way four_now = { .smp = smp4, .append = STORM };
static const struct way four_hybrid = { .smp = smp4, .append = STORM, .after = "2" };
static const struct way eight_now = { .smp = smp8, .append = STORM8 };
static const struct way four_paused = { .smp = smp4, .append = STORM, .after = "2", .paused = true };
static const struct way disk_now = { .append = LINUX_APPEND DISK_LOAD };
static const struct way disk_hybrid = { .append = LINUX_APPEND DISK_LOAD, .after = "1s" };

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST_ARG("four_vcpus_move_at_once", a_storm_of_touches_moves, &four_now),
		RIG_TEST_ARG("four_vcpus_move_after_two_rounds", a_storm_of_touches_moves, &four_hybrid),
		RIG_TEST_ARG("eight_vcpus_move_at_once", a_storm_of_touches_moves, &eight_now),
		RIG_TEST_ARG("ram_of_four_vcpus_is_equal", a_storm_of_touches_moves, &four_paused),
		RIG_TEST_ARG("a_busy_disk_moves_at_once", a_busy_disk_moves, &disk_now),
		RIG_TEST_ARG("a_busy_disk_moves_after_a_second", a_busy_disk_moves, &disk_hybrid),
		RIG_TEST(memory_given_back_before_the_switchover_is_zero),
		RIG_TEST(memory_given_back_in_post_copy_stays_away),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
