/* SPDX-License-Identifier: Apache-2.0 */
/* With the guest paused at both ends, all of its RAM is equal, byte for byte. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"
#include "../guest/layout.h"

#define MIB (UINT64_C(1) << 20)

/* Leaves the guest paused on b. */
static void move_paused(struct rig_vm *a, struct rig_vm *b, const struct rig_run_options *send_options)
{
	struct rig_run *receive = rig_receive(b, &(struct rig_run_options){ .args = { "--paused" } });
	struct rig_run *send = rig_send(a, receive->address, send_options);

	assert_int_equal(rig_run_wait(send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_false(rig_vm_running(a));
	assert_false(rig_vm_running(b));
}

static void assert_equal_then_well(struct rig_vm *a, struct rig_vm *b)
{
	rig_assert_ram_equal(a, b);
	rig_qmp_do(b, "cont", NULL);
	rig_guest_assert_well(b);
}

static void ram_is_equal_with(struct rig *rig, const struct rig_run_options *send_options)
{
	const struct rig_config *config = rig_arg(rig);
	struct rig_vm *a = rig_vm_start(rig, "A", config, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", config, RIG_WAITS);

	rig_guest_wait_ready(a);
	move_paused(a, b, send_options);
	assert_equal_then_well(a, b);
}

static void ram_is_equal(struct rig *rig)
{
	ram_is_equal_with(rig, NULL);
}

static const struct rig_config small_pages = { .mb = 128, .append = "mb=96 rate=20000" };
static const struct rig_config two_backends = { .mb = 128, .nodes = 2, .append = "mb=96 rate=20000" };
static const struct rig_config with_dimm = {
	.mb = 128, .nodes = 2, .dimm_mb = 128, .append = "mb=96 rate=20000",
};
/* 2 GiB below the PCI hole, 3 above; 16 MiB in use on either side of it. */
static const struct rig_config above_4g = {
	.mb = 5120, .append = "start=2032 mb=32 rate=20000",
};
static const struct rig_config huge = { .mb = 64, .hugepages = true, .append = "mb=32 rate=5000" };
static const struct rig_config huge_backends = {
	.mb = 128, .nodes = 2, .hugepages = true, .append = "mb=96 rate=5000",
};

/* Whole huge pages are dirty again within milliseconds: pre-copy alone ends only with more downtime. */
static void ram_is_equal_on_hugetlbfs(struct rig *rig)
{
	const struct rig_config *config = rig_arg(rig);

	rig_hugepages(rig, 2 * config->mb);
	ram_is_equal_with(rig, &(struct rig_run_options){ .args = { "--max-downtime", "300ms" } });
}

static void the_guest_uses_ram_on_both_sides_of_the_pci_hole(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &above_4g, RIG_RUNS);
	struct guest_beat b;

	rig_guest_wait_ready(a);
	rig_guest_beat(a, &b);
	assert_int_equal(b.nsegments, 2);
	assert_int_equal(b.segment[1].gpa, UINT64_C(4) << 30);
}

static void holes_are_neither_sent_nor_made_real(struct rig *rig)
{
	static const struct rig_config half = { .mb = 512, .append = "mb=400 rate=1000 fill=half" };
	struct rig_vm *a = rig_vm_start(rig, "A", &half, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &half, RIG_WAITS);
	uint64_t before;

	rig_guest_wait_ready(a);
	before = rig_ram_allocated(a);
	assert_in_range(before, 200 * MIB, 240 * MIB);
	move_paused(a, b, NULL);
	assert_in_range(rig_ram_allocated(a), before - MIB, before + MIB);
	assert_in_range(rig_ram_allocated(b), 200 * MIB, before + MIB);
	assert_equal_then_well(a, b);
}

/* Old bytes at the destination, where the source has zeros or holes, must go. */
static void a_reused_file_at_the_destination_holds_no_old_data(struct rig *rig)
{
	static const struct rig_config config = { .mb = 128, .append = "mb=32 rate=1000" };
	struct rig_vm *a = rig_vm_start(rig, "A", &config, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &config, RIG_WAITS);

	rig_guest_wait_ready(a);
	rig_ram_fill(b, 0, 0, 128 * MIB, 0xa5);
	move_paused(a, b, NULL);
	assert_equal_then_well(a, b);
}

static const struct rig_config ballooned = {
	.mb = 160, .append = "mb=32 rate=1000", .extra = { "-device", "virtio-balloon-pci" },
};

static void wait_for_round(struct rig_run *send)
{
	if (!rig_run_event(send, "round", 2 * RIG_WAIT_MS))
		fail_msg("no round of pre-copy ended");
}

/*
 * The guest writes nothing beyond 48 MiB; there we put data before and punch it
 * out after it was sent.  QEMU itself never touched it: only the file tells.
 */
static void memory_discarded_after_it_was_sent_reads_as_zero(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &ballooned, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &ballooned, RIG_WAITS);
	struct rig_run *receive, *send;

	rig_guest_wait_ready(a);
	rig_ram_fill(a, 0, 64 * MIB, 32 * MIB, 0x5a);
	receive = rig_receive(b, &(struct rig_run_options){ .args = { "--paused" } });
	send = rig_send(a, receive->address,
			&(struct rig_run_options){ .fault = "round:sleep=1500" });
	wait_for_round(send);
	rig_ram_discard(a, 0, 64 * MIB, 16 * MIB);
	rig_ram_discard(a, 0, 90 * MIB, 4096);
	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_equal_then_well(a, b);
}

static void plug_memory(struct rig_vm *vm)
{
	char args[256], path[RIG_PATH_MAX];

	rig_path(vm->rig, path, "plugged");
	snprintf(args, sizeof(args), "{\"qom-type\":\"memory-backend-file\",\"id\":\"new\",\"size\":%d,"
		 "\"mem-path\":\"%s\",\"share\":true}", 128 << 20, path);
	rig_qmp_do(vm, "object-add", args);
	rig_qmp_do(vm, "device_add", "{\"driver\":\"pc-dimm\",\"id\":\"newdimm\",\"memdev\":\"new\"}");
}

/* The stage at which memory is plugged; the words that the engine must find for it, if it is the one to notice. */
struct plug {
	const char *stage, *words;
};

static const struct plug plug_in_precopy = { "round", "plugged" };
static const struct plug plug_at_the_last_moment = { "pausing", "" };

/* It is never moved without the new memory. */
static void plugged_memory_is_noticed(struct rig *rig)
{
	static const struct rig_config config = { .mb = 128, .may_plug = true, .append = "mb=64 rate=1000" };
	const struct plug *plug = rig_arg(rig);
	struct rig_vm *a = rig_vm_start(rig, "A", &config, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &config, RIG_WAITS);
	struct rig_run *receive, *send;
	char fault[64], how[128];

	rig_guest_wait_ready(a);
	snprintf(fault, sizeof(fault), "%s:sleep=1500", plug->stage);
	receive = rig_receive(b, NULL);
	send = rig_send(a, receive->address, &(struct rig_run_options){ .fault = fault });
	assert_non_null(rig_run_event_is(send, "stage", "name", plug->stage, RIG_WAIT_MS));
	plug_memory(a);
	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), 3);
	assert_int_not_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_non_null(strstr(json_object_to_json_string(rig_run_event(send, "completed", 0)), plug->words));
	assert_true(rig_vm_running(a));
	rig_guest_assert_well(a);
	if (rig_saw_two(a, b, how, sizeof(how)))
		fail_msg("%s", how);
}

/* Their own sum over all RAM, made inside the blackout, must agree as well. */
static void verify_finds_nothing_to_complain_about(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &two_backends, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &two_backends, RIG_WAITS);

	rig_guest_wait_ready(a);
	move_paused(a, b, &(struct rig_run_options){ .args = { "--verify" } });
	assert_equal_then_well(a, b);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST_ARG("ram_is_equal_with_4k_pages", ram_is_equal, &small_pages),
		RIG_TEST_ARG("ram_is_equal_with_two_backends", ram_is_equal, &two_backends),
		RIG_TEST_ARG("ram_is_equal_with_a_dimm", ram_is_equal, &with_dimm),
		RIG_TEST_ARG("ram_is_equal_above_4g", ram_is_equal, &above_4g),
		RIG_TEST(the_guest_uses_ram_on_both_sides_of_the_pci_hole),
		RIG_TEST(holes_are_neither_sent_nor_made_real),
		RIG_TEST(a_reused_file_at_the_destination_holds_no_old_data),
		RIG_TEST(memory_discarded_after_it_was_sent_reads_as_zero),
		RIG_TEST_ARG("memory_plugged_in_precopy_is_noticed", plugged_memory_is_noticed, &plug_in_precopy),
		RIG_TEST_ARG("memory_plugged_at_the_last_moment_is_noticed", plugged_memory_is_noticed,
			     &plug_at_the_last_moment),
		RIG_TEST(verify_finds_nothing_to_complain_about),
		RIG_TEST_ARG("huge_ram_is_equal", ram_is_equal_on_hugetlbfs, &huge),
		RIG_TEST_ARG("huge_ram_is_equal_with_two_backends", ram_is_equal_on_hugetlbfs, &huge_backends),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
