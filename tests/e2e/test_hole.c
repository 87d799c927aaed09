/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The DMA hole: a Linux guest reads a slow disk with O_DIRECT while it moves.
 * The device puts the data into pages that it pinned before; nothing but the
 * engine's drain between scan and copy makes sure that they are not lost.  The
 * same run without the drain must lose some, or the test has no teeth.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "linux.h"

#define CHECK_MS	60000
#define TRIES		3

#define WORKLOAD "wl.mb=16 wl.rate=200 wl.reads=6 wl.pages=8 wl.pool=64 wl.disk=/dev/vda"

/* Bad pages after one move with the disk busy all the while. */
static long long move(struct rig *rig, const char *initrd, const char *breaks)
{
	char disk[RIG_PATH_MAX], drive[256];
	struct rig_run *receive, *send;
	struct rig_vm *a, *b;
	struct rig_config c;
	long long bad;

	linux_slow_disk(rig, disk);
	snprintf(drive, sizeof(drive), "file=%s,if=none,id=d0,format=raw,cache=none,aio=threads", disk);
	c = linux_config(initrd, LINUX_APPEND WORKLOAD, (const char *[]){
		"-drive", drive, "-device", "virtio-blk-pci,drive=d0", NULL });
	a = rig_vm_start(rig, "A", &c, RIG_RUNS);
	b = rig_vm_start(rig, "B", &c, RIG_WAITS);
	assert_true(rig_guest_wait_log(a, "READY", LINUX_BOOT_MS));
	rig_sleep_ms(500);
	receive = rig_receive(b, NULL);
	send = rig_send(a, receive->address, &(struct rig_run_options){ .breaks = breaks });
	assert_int_equal(rig_run_wait(send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_true(rig_guest_wait_log(b, "tick", RIG_WAIT_MS));
	assert_false(rig_guest_log_has(a, "pool used up"));
	rig_guest_type(b, "check");
	assert_true(rig_guest_wait_log(b, "HOLE checked=", CHECK_MS));
	assert_true(rig_guest_number(b, "HOLE checked=", "checked=") > 100);
	assert_int_equal(rig_guest_number(b, "HOLE checked=", "failed="), 0);
	assert_int_equal(rig_guest_number(b, "tick", " bad="), 0);
	bad = rig_guest_number(b, "HOLE checked=", " bad=");
	print_message("HOLE checked=%lld bad=%lld\n", rig_guest_number(b, "HOLE checked=", "checked="), bad);
	rig_vm_end(a);
	rig_vm_end(b);
	return bad;
}

static void what_the_disk_writes_during_the_move_is_not_lost(struct rig *rig)
{
	char initrd[RIG_PATH_MAX];

	linux_prepare_or_skip(rig, initrd);
	rig_private_mounts(rig);
	assert_int_equal(move(rig, initrd, NULL), 0);
}

static void without_the_drain_it_is_lost(struct rig *rig)
{
	char initrd[RIG_PATH_MAX];

	linux_prepare_or_skip(rig, initrd);
	rig_private_mounts(rig);
	for (int i = 0; i < TRIES; i++) {
		if (move(rig, initrd, "drain") > 0)
			return;
	}
	fail_msg("the test does not find what the drain prevents");
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(what_the_disk_writes_during_the_move_is_not_lost),
		RIG_TEST(without_the_drain_it_is_lost),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
