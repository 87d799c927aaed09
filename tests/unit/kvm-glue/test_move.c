/* SPDX-License-Identifier: Apache-2.0 */
/* The device state of a real QEMU goes into another one; resolving what is in doubt. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "stage_rig.h"

static char disk[128], drive[256];

static void disk_make(void)
{
	int fd;

	snprintf(disk, sizeof(disk), "/var/tmp/lm-glue-disk-%d", (int)getpid());
	snprintf(drive, sizeof(drive), "file=%s,if=none,id=d,format=raw", disk);
	fd = open(disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	close(fd);
}

static void pair_start(const char *paused)
{
	disk_make();
	rig_start_good(&src_qemu, "-drive", drive, "-device", "virtio-blk-pci,drive=d", paused);
	rig_start_good(&dst_qemu, "-drive", drive, "-device", "virtio-blk-pci,drive=d", "-incoming", "defer");
	attach(&src_qemu, LM_SOURCE, &src);
	attach(&dst_qemu, LM_DEST, &dst);
}

/* Device state over, memory by a plain copy: enough for firmware that waits for a disk to boot from. */
static void move(void)
{
	struct lm_ram a = { 0 }, b = { 0 };
	struct lm_vm_times times;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	channel_open(0, sv[0]);
	ok(lm_vm_state_load(dst, sv[1], &rig_err));
	close(sv[1]);
	ok(lm_vm_pause_start(src, ch.qemu, &rig_err));
	paused_wait(src, &times);
	ok(lm_vm_regions(src, &a, &rig_err));
	ok(lm_vm_regions(dst, &b, &rig_err));
	ok(lm_ram_map(&a, false, &rig_err));
	ok(lm_ram_map(&b, true, &rig_err));
	memcpy(b.regions[0].host, a.regions[0].host, a.regions[0].size);
	lm_ram_fini(&a);
	lm_ram_fini(&b);
	ok(lm_vm_state_save(src, lm_now_ns() + LIMIT, &rig_err));
	ok(lm_vm_state_wait(dst, lm_now_ns() + LIMIT, &rig_err));
	close(sv[0]);
}

static void a_guest_moves_and_runs(void **state)
{
	char text[512];
	struct lm_vm_times times;
	int64_t t;

	(void)state;
	pair_start(NULL);
	move();
	t = lm_now_ns();
	ok(lm_vm_resume(dst, t + LIMIT, &times, &rig_err));
	print_message("resume at the destination: %.2f ms\n", (double)(lm_now_ns() - t) / 1e6);
	lm_vm_detach(src);
	src = NULL;
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "running");
	assert_status(&src_qemu, "postmigrate");
	ok(lm_resolve(src_qemu.qmp, LM_RESOLVE_SHOW, text, sizeof(text), &rig_err));
	assert_non_null(strstr(text, "in-doubt source"));
	unlink(disk);
}

/* Loaded and not started: it has no lock on the disk, the source takes the guest back. */
static void the_source_comes_back_while_the_destination_is_loaded(void **state)
{
	char text[512];
	struct lm_vm_times times;

	(void)state;
	pair_start(NULL);
	move();
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "paused");
	ok(lm_resolve(dst_qemu.qmp, LM_RESOLVE_SHOW, text, sizeof(text), &rig_err));
	assert_non_null(strstr(text, "loaded destination"));
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
	lm_vm_detach(src);
	src = NULL;
	assert_status(&src_qemu, "running");
	/* and now the disk is the source's: the destination cannot run */
	assert_true(lm_resolve(dst_qemu.qmp, LM_RESOLVE_RUN_HERE, text, sizeof(text), &rig_err) < 0);
	assert_non_null(strstr(rig_err.msg, "lock"));
	ok(lm_resolve(dst_qemu.qmp, LM_RESOLVE_END_HERE, text, sizeof(text), &rig_err));
	waitpid(dst_qemu.pid, NULL, 0);
	dst_qemu.pid = 0;
	unlink(disk);
}

static void in_doubt_is_resolved_by_hand(void **state)
{
	char text[512];

	(void)state;
	pair_start(NULL);
	move();
	lm_vm_detach(src);
	lm_vm_detach(dst);
	src = dst = NULL;
	ok(lm_resolve(dst_qemu.qmp, LM_RESOLVE_RUN_HERE, text, sizeof(text), &rig_err));
	assert_status(&dst_qemu, "running");
	ok(lm_resolve(src_qemu.qmp, LM_RESOLVE_END_HERE, text, sizeof(text), &rig_err));
	waitpid(src_qemu.pid, NULL, 0);
	src_qemu.pid = 0;
	unlink(disk);
}

static void the_guardian_runs_a_loaded_guest(void **state)
{
	(void)state;
	pair_start(NULL);
	assert_true(dst->ops->force(dst->guardian_fd, dst->pidfd, LM_FORCE_RUN, lm_now_ns() + LIMIT, &rig_err) < 0);
	assert_non_null(strstr(rig_err.msg, "no whole guest"));
	move();
	ok(dst->ops->force(dst->guardian_fd, dst->pidfd, LM_FORCE_RUN, lm_now_ns() + LIMIT, &rig_err));
	ok(dst->ops->force(dst->guardian_fd, dst->pidfd, LM_FORCE_RUN, lm_now_ns() + LIMIT, &rig_err));
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "running");
	unlink(disk);
}

static void the_guardian_ends_a_guest_that_must_not_run(void **state)
{
	(void)state;
	pair_start(NULL);
	move();
	kill(dst_qemu.pid, SIGSTOP); /* it does not even listen */
	ok(lm_vm_end(dst, lm_now_ns() + LM_NS_PER_S / 2, &rig_err));
	ok(lm_vm_end(dst, lm_now_ns() + LM_NS_PER_S / 2, &rig_err));
	unlink(disk);
}

static void a_destination_of_another_kind_fails_and_the_source_runs_on(void **state)
{
	struct lm_vm_times times;
	int sv[2];

	(void)state;
	rig_start_good(&src_qemu, "-device", "virtio-net-pci");
	rig_start_good(&dst_qemu, "-incoming", "defer");
	attach(&src_qemu, LM_SOURCE, &src);
	attach(&dst_qemu, LM_DEST, &dst);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	channel_open(0, sv[0]);
	ok(lm_vm_state_load(dst, sv[1], &rig_err));
	close(sv[1]);
	ok(lm_vm_pause_start(src, ch.qemu, &rig_err));
	if (!lm_vm_pause_wait(src, 1000, &times, &rig_err))
		lm_vm_state_save(src, lm_now_ns() + LIMIT, &rig_err);
	assert_true(lm_vm_state_wait(dst, lm_now_ns() + LIMIT, &rig_err) < 0);
	print_message("%s\n", rig_err.msg);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
	close(sv[0]);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, rig_teardown)
	const struct CMUnitTest tests[] = {
		T(a_guest_moves_and_runs),
		T(the_source_comes_back_while_the_destination_is_loaded),
		T(in_doubt_is_resolved_by_hand),
		T(the_guardian_runs_a_loaded_guest),
		T(the_guardian_ends_a_guest_that_must_not_run),
		T(a_destination_of_another_kind_fails_and_the_source_runs_on),
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
