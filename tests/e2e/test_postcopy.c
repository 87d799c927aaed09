/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guests that write faster than the lanes carry: the switchover happens all the
 * same, and what is missing follows.  --max-bandwidth makes it certain.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"
#include "../guest/layout.h"

#define MIB (UINT64_C(1) << 20)

static const struct rig_config busy = { .mb = 128, .append = "mb=64 rate=100000" };
static const struct rig_config microvm = {
	.machine = "microvm", .accel = "kvm", .mb = 128, .append = "mb=64 rate=100000",
};
static const struct rig_config four_vcpus = {
	.mb = 128, .append = "mb=64 rate=max cpus=4", .extra = { "-smp", "4" },
};
static const struct rig_config microvm_two = {
	.machine = "microvm", .accel = "kvm", .mb = 128, .append = "mb=32 rate=max cpus=2", .extra = { "-smp", "2" },
};
static const struct rig_config microvm_eight = {
	.machine = "microvm", .accel = "kvm", .mb = 128, .append = "mb=32 rate=max cpus=8", .extra = { "-smp", "8" },
};
static const struct rig_config two_backends = { .mb = 128, .nodes = 2, .append = "mb=96 rate=100000" };
static const struct rig_config huge = { .mb = 128, .hugepages = true, .append = "mb=64 rate=20000" };
static const struct rig_config huge_four = {
	.mb = 128, .hugepages = true, .append = "mb=64 rate=max cpus=4", .extra = { "-smp", "4" },
};
static const struct rig_config half_empty = { .mb = 256, .append = "mb=192 rate=100000 fill=half" };

static const struct rig_run_options slow = { .args = { "--max-bandwidth", "64MiB/s" } };
/* A software KVM on a busy machine writes no more than 50 MiB/s. */
static const struct rig_run_options slower = { .args = { "--max-bandwidth", "16MiB/s" } };

static const struct rig_run_options *cap_for(const struct rig_config *config)
{
	return config->accel ? &slower : &slow;
}

struct move {
	struct rig_vm *a, *b;
	struct rig_run *receive, *send;
};

static void start(struct move *m, struct rig *rig, const struct rig_config *config,
		  const struct rig_run_options *receive, const struct rig_run_options *send)
{
	m->a = rig_vm_start(rig, "A", config, RIG_RUNS);
	m->b = rig_vm_start(rig, "B", config, RIG_WAITS);
	rig_guest_wait_ready(m->a);
	rig_watch(m->a, m->b);
	m->receive = rig_receive(m->b, receive);
	m->send = rig_send(m->a, m->receive->address, send);
}

static void finish(struct move *m)
{
	assert_int_equal(rig_run_wait(m->send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(m->receive, RIG_WAIT_MS), 0);
	assert_true(rig_summary_int(m->send, "postcopy.left_pages") > 0);
	assert_int_equal(rig_summary_int(m->receive, "postcopy.missing_pages"), 0);
	assert_int_equal(rig_summary_int(m->receive, "postcopy.recoveries"), 0);
	print_message("left %lld pages, %lld faults, p50 %lld us, p99 %lld us, blackout %lld us\n",
		      (long long)rig_summary_int(m->receive, "postcopy.left_pages"),
		      (long long)rig_summary_int(m->receive, "postcopy.faults"),
		      (long long)rig_summary_int(m->receive, "postcopy.fault_p50_ns") / 1000,
		      (long long)rig_summary_int(m->receive, "postcopy.fault_p99_ns") / 1000,
		      (long long)rig_summary_int(m->send, "blackout.total_ns") / 1000);
}

static void assert_moved(struct move *m)
{
	char how[128], status[32];

	if (rig_saw_two(m->a, m->b, how, sizeof(how)))
		fail_msg("%s", how);
	rig_vm_status(m->a, status);
	assert_string_equal(status, "postmigrate");
	assert_true(rig_vm_running(m->b));
	rig_guest_assert_well(m->b);
}

static void a_busy_guest_moves(struct rig *rig)
{
	struct move m;

	start(&m, rig, rig_arg(rig), NULL, cap_for(rig_arg(rig)));
	assert_non_null(rig_run_event_is(m.send, "decision", "decision", "postcopy", 2 * RIG_WAIT_MS));
	finish(&m);
	assert_moved(&m);
}

static void a_busy_guest_on_huge_pages_moves(struct rig *rig)
{
	const struct rig_config *config = rig_arg(rig);
	struct move m;

	rig_hugepages(rig, 2 * config->mb);
	start(&m, rig, config, NULL, &slow);
	finish(&m);
	assert_moved(&m);
}

/* Paused at both ends, so that all of RAM can be compared. */
static void ram_is_equal(struct rig *rig)
{
	struct move m;

	start(&m, rig, rig_arg(rig), &(struct rig_run_options){ .args = { "--paused" } },
	      cap_for(rig_arg(rig)));
	finish(&m);
	assert_false(rig_vm_running(m.a));
	assert_false(rig_vm_running(m.b));
	rig_assert_ram_equal(m.a, m.b);
	rig_qmp_do(m.b, "cont", NULL);
	rig_guest_assert_well(m.b);
}

/* The guest is being paused after pre-copy: there is no way to post-copy any more, and nothing may be left out. */
static void asking_too_late_loses_nothing(struct rig *rig)
{
	static const struct rig_run_options late = {
		.args = { "--max-bandwidth", "64MiB/s", "--max-downtime", "4s", "--max-pause", "20s" },
		.fault = "pausing:run=kill -USR1 $PPID; sleep 0.2",
	};
	struct move m;

	start(&m, rig, &busy, &(struct rig_run_options){ .args = { "--paused" } }, &late);
	assert_int_equal(rig_run_wait(m.send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(m.receive, RIG_WAIT_MS), 0);
	assert_true(rig_summary_int(m.send, "blackout.last_pages") > 0);
	rig_assert_ram_equal(m.a, m.b);
}

static void no_descriptor_of_ours_stays_in_qemu(struct rig *rig)
{
	struct move m;
	unsigned before;

	m.b = rig_vm_start(rig, "probe", &busy, RIG_WAITS);
	before = rig_count_fds(m.b->pid);
	start(&m, rig, &busy, NULL, &slow);
	finish(&m);
	assert_true(rig_count_fds(m.b->pid) <= before + 1); /* what any QEMU that runs a guest has more */
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST_ARG("a_busy_guest_moves", a_busy_guest_moves, &busy),
		RIG_TEST_ARG("a_busy_guest_with_two_backends_moves", a_busy_guest_moves, &two_backends),
		RIG_TEST_ARG("a_busy_guest_that_is_half_empty_moves", a_busy_guest_moves, &half_empty),
		RIG_TEST_ARG("a_busy_guest_with_four_vcpus_moves", a_busy_guest_moves, &four_vcpus),
		RIG_TEST_ARG("a_busy_guest_under_kvm_moves", a_busy_guest_moves, &microvm),
		RIG_TEST_ARG("a_busy_guest_under_kvm_with_two_vcpus_moves", a_busy_guest_moves, &microvm_two),
		RIG_TEST_ARG("a_busy_guest_under_kvm_with_eight_vcpus_moves", a_busy_guest_moves, &microvm_eight),
		RIG_TEST_ARG("the_ram_under_kvm_with_eight_vcpus_is_equal", ram_is_equal, &microvm_eight),
		RIG_TEST_ARG("ram_is_equal", ram_is_equal, &busy),
		RIG_TEST_ARG("ram_is_equal_with_two_backends", ram_is_equal, &two_backends),
		RIG_TEST(asking_too_late_loses_nothing),
		RIG_TEST(no_descriptor_of_ours_stays_in_qemu),
		RIG_TEST_ARG("a_busy_guest_on_huge_pages_moves", a_busy_guest_on_huge_pages_moves, &huge),
		RIG_TEST_ARG("a_busy_guest_on_huge_pages_with_four_vcpus_moves", a_busy_guest_on_huge_pages_moves,
			     &huge_four),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
