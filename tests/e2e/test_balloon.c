/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A balloon that a real kernel blows up while its memory is being copied: what
 * was sent and then given back must read as zero at the destination.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "linux.h"

#define MIB (UINT64_C(1) << 20)

static int64_t balloon_bytes(struct rig_vm *vm)
{
	struct json_object *r = rig_qmp(vm, "query-balloon", NULL), *actual;
	int64_t bytes = json_object_object_get_ex(r, "actual", &actual) ? json_object_get_int64(actual) : -1;

	json_object_put(r);
	return bytes;
}

static void set_balloon(struct rig_vm *vm, unsigned mb)
{
	int64_t end = rig_now_ms() + RIG_WAIT_MS;
	char args[64];

	snprintf(args, sizeof(args), "{\"value\":%llu}", (unsigned long long)mb << 20);
	rig_qmp_do(vm, "balloon", args);
	while (balloon_bytes(vm) != (int64_t)mb << 20) {
		if (rig_now_ms() > end)
			fail_msg("the guest's balloon does not move");
		rig_sleep_ms(20);
	}
}

static void memory_given_back_during_the_move_reads_as_zero(struct rig *rig)
{
	struct rig_run *receive, *send;
	char initrd[RIG_PATH_MAX];
	struct rig_vm *a, *b;
	struct rig_config c;
	uint64_t before;

	linux_prepare_or_skip(rig, initrd);
	c = linux_config(initrd, LINUX_APPEND "wl.mb=32 wl.rate=500", (const char *[]){
		"-device", "virtio-balloon-pci", NULL });
	a = rig_vm_start(rig, "A", &c, RIG_RUNS);
	b = rig_vm_start(rig, "B", &c, RIG_WAITS);
	assert_true(rig_guest_wait_log(a, "tick 2 ", LINUX_BOOT_MS));
	before = rig_ram_allocated(a);
	receive = rig_receive(b, &(struct rig_run_options){ .args = { "--paused" } });
	send = rig_send(a, receive->address, &(struct rig_run_options){ .fault = "round:sleep=3000" });
	assert_non_null(rig_run_event(send, "round", RIG_WAIT_MS));
	set_balloon(a, 112);
	assert_true(before > rig_ram_allocated(a) + MIB);
	print_message("the balloon took %lld MiB that were in use\n",
		      (long long)(before - rig_ram_allocated(a)) >> 20);
	assert_int_equal(rig_run_wait(send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	rig_assert_ram_equal(a, b);
	rig_qmp_do(b, "cont", NULL);
	set_balloon(b, 256);
	assert_true(rig_guest_wait_log(b, "tick", RIG_WAIT_MS));
	assert_int_equal(rig_guest_number(b, "tick", " bad="), 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(memory_given_back_during_the_move_reads_as_zero),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
