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

static void memory_given_back_during_the_move_reads_as_zero(struct rig *rig)
{
	struct rig_run *receive, *send;
	char initrd[RIG_PATH_MAX], fault[LINUX_FAULT_MAX];
	struct rig_vm *a, *b;
	struct rig_config c;
	uint64_t before;

	linux_prepare_or_skip(rig, initrd);
	c = linux_config(initrd, LINUX_APPEND "wl.mb=32 wl.rate=500 wl.used=96", (const char *[]){
		"-device", "virtio-balloon-pci", NULL });
	a = rig_vm_start(rig, "A", &c, RIG_RUNS);
	b = rig_vm_start(rig, "B", &c, RIG_WAITS);
	assert_true(rig_guest_wait_log(a, "tick 2 ", LINUX_BOOT_MS));
	before = rig_ram_allocated(a);
	linux_wait_at_round(rig, fault);
	receive = rig_receive(b, &(struct rig_run_options){ .args = { "--paused" } });
	send = rig_send(a, receive->address, &(struct rig_run_options){ .fault = fault });
	assert_non_null(rig_run_event(send, "round", RIG_WAIT_MS));
	linux_set_balloon(a, 112);
	linux_go_on(rig);
	assert_true(before > rig_ram_allocated(a) + MIB);
	print_message("the balloon took %lld MiB that were in use\n",
		      (long long)(before - rig_ram_allocated(a)) >> 20);
	assert_int_equal(rig_run_wait(send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	rig_assert_ram_equal(a, b);
	rig_qmp_do(b, "cont", NULL);
	linux_set_balloon(b, 256);
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
