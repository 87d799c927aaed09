/* SPDX-License-Identifier: Apache-2.0 */
/* Real QEMUs whose memory comes when they touch it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "kvm-glue/inject.h"
#include "kvm-glue/qmp.h"
#include "stage_rig.h"
#include "kvm-glue/uffd_pager.h"
#include "../../lib/skip.h"

#define NPAGES (UINT64_C(64) << 20 >> LM_PAGE_SHIFT) /* RIG_MEM */

static struct lm_ram ram, source_ram;
static struct lm_pager *pager;
static const char *accel = "tcg";

/* Whoever touches a page gets it from the source, like post-copy. */
static struct {
	pthread_t thread;
	_Atomic bool on, failed;
	_Atomic unsigned faults;
	bool started;
	bool have[NPAGES];
} server;

static bool page_bring(uint64_t page)
{
	struct lm_error err;
	uint64_t at = page << LM_PAGE_SHIFT;

	if (!server.have[page] && source_ram.nregions)
		memcpy(ram.regions[0].host + at, source_ram.regions[0].host + at, LM_PAGE_SIZE);
	server.have[page] = true;
	return !lm_pager_place(pager, 0, page, 1, &err);
}

static void *serve(void *arg)
{
	struct pollfd p = { .fd = pager->fd, .events = POLLIN };
	struct lm_page_fault f[16];
	struct lm_error err;

	(void)arg;
	while (server.on) {
		int n;

		poll(&p, 1, 10);
		n = lm_pager_faults(pager, f, 16, &err);
		for (int i = 0; i < n; i++)
			server.failed |= !page_bring(f[i].page);
		server.failed |= n < 0;
		server.faults += n > 0 ? (unsigned)n : 0;
	}
	return NULL;
}

static void server_start(void)
{
	server.on = true;
	assert_int_equal(pthread_create(&server.thread, NULL, serve, NULL), 0);
	server.started = true;
}

static void server_stop(void)
{
	server.on = false;
	if (server.started)
		pthread_join(server.thread, NULL);
	server.started = false;
}

static int teardown(void **state)
{
	server_stop();
	memset(&server, 0, sizeof(server));
	lm_pager_close(pager);
	pager = NULL;
	lm_ram_fini(&ram);
	lm_ram_fini(&source_ram);
	return rig_teardown(state);
}

/* The device that makes them counts, too. */
static unsigned count_userfaultfds(void)
{
	char path[64], target[64];
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++) {
		ssize_t len;

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)dst_qemu.pid, fd);
		len = readlink(path, target, sizeof(target) - 1);
		target[len > 0 ? len : 0] = 0;
		n += strstr(target, "userfaultfd") != NULL;
	}
	return n;
}

static void dst_open(void)
{
	attach(&dst_qemu, LM_DEST, &dst);
	ok(lm_vm_regions(dst, &ram, &rig_err));
	ok(lm_ram_map(&ram, true, &rig_err));
	ok(lm_vm_pager(dst, &ram, &pager, &rig_err));
	ok(lm_pager_arm(pager, &rig_err));
}

static void dst_start(void)
{
	rig_start_good(&dst_qemu, "-S", "-incoming", "defer");
}

static void all_pages_are_placed_and_qemu_goes_on(void **state)
{
	(void)state;
	dst_start();
	dst_open();
	assert_int_equal(count_userfaultfds(), 1);
	ok(lm_pager_place(pager, 0, 0, NPAGES / 2, &rig_err));
	ok(lm_pager_release(pager, 0, NPAGES / 2, NPAGES / 2, &rig_err));
	ok(lm_pager_finish(pager, &rig_err));
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "inmigrate");
	assert_int_equal(count_userfaultfds(), 0);
}

/* userfaultfd(2) is refused to such a QEMU; a sandbox does not matter. */
static void a_qemu_without_privileges_waits_for_pages_too(void **state)
{
	(void)state;
	if (!rig_try(&dst_qemu, RIG_GOOD, "-S", "-incoming", "defer", "-runas", "nobody", "-sandbox",
		     "on,obsolete=deny,elevateprivileges=allow,spawn=deny,resourcecontrol=deny", NULL))
		skip_because("this QEMU does not start with -runas and -sandbox");
	dst_open();
	assert_int_equal(count_userfaultfds(), 1);
	ok(lm_pager_place(pager, 0, 0, NPAGES, &rig_err));
	ok(lm_pager_finish(pager, &rig_err));
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "inmigrate");
	assert_int_equal(count_userfaultfds(), 0);
}

static void a_source_has_no_pager(void **state)
{
	(void)state;
	rig_start_good(&src_qemu, "-S");
	attach(&src_qemu, LM_SOURCE, &src);
	ok(lm_vm_regions(src, &ram, &rig_err));
	assert_int_equal(lm_vm_pager(src, &ram, &pager, &rig_err), -EINVAL);
	assert_null(pager);
}

static void move(void)
{
	struct lm_vm_times times;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	channel_open(0, sv[0]);
	ok(lm_vm_state_load(dst, sv[1], &rig_err));
	close(sv[1]);
	ok(lm_vm_pause_start(src, ch.qemu, &rig_err));
	paused_wait(src, &times);
	ok(lm_vm_regions(src, &source_ram, &rig_err));
	ok(lm_ram_map(&source_ram, false, &rig_err));
	server_start();
	ok(lm_vm_state_save(src, lm_now_ns() + LIMIT, &rig_err));
	ok(lm_vm_state_wait(dst, lm_now_ns() + LIMIT, &rig_err));
	channel_close();
	close(sv[0]);
	ok(lm_vm_resume(dst, lm_now_ns() + LIMIT, &times, &rig_err));
}

static void start_with(struct rig_qemu *q, const char *more, const char *value)
{
	char machine[64];

	snprintf(machine, sizeof(machine), "q35,accel=%s,memory-backend=ram0", accel);
	rig_start(q, "-M", machine, "-m", RIG_MEM, "-object", RIG_RAM, "-device", "virtio-net-pci", more, value, NULL);
}

static void a_guest_runs_before_its_memory_is_there(void **state)
{
	const struct timespec a_while = { .tv_nsec = 300 * LM_NS_PER_MS };
	unsigned loading;

	(void)state;
	start_with(&src_qemu, NULL, NULL);
	start_with(&dst_qemu, "-incoming", "defer");
	nanosleep(&a_while, NULL);
	attach(&src_qemu, LM_SOURCE, &src);
	dst_open();
	move();
	loading = server.faults;
	nanosleep(&a_while, NULL);
	server_stop();
	assert_false(server.failed);
	assert_true(server.faults > 0);
	print_message("%s: %u faults while the devices were loaded, %u in all\n", accel, loading, server.faults);
	for (uint64_t page = 0; page < NPAGES; page++)
		assert_true(page_bring(page));
	ok(lm_pager_finish(pager, &rig_err));
	lm_vm_detach(src);
	lm_vm_detach(dst);
	src = dst = NULL;
	assert_status(&dst_qemu, "running");
	assert_status(&src_qemu, "postmigrate");
}

static void the_same_with_kvm(void **state)
{
	if (access("/dev/kvm", R_OK | W_OK))
		skip_because("no /dev/kvm");
	accel = "kvm";
	a_guest_runs_before_its_memory_is_there(state);
}

/* Makes QEMU's main thread read guest memory. */
static void *main_loop_touch(void *arg)
{
	struct lm_error err;
	bool *answered = arg;
	struct lm_qmp *qmp;
	int r = lm_qmp_connect(dst_qemu.qmp, -1, lm_now_ns() + LIMIT, &qmp, &err);

	if (r)
		return NULL;
	r = lm_qmp_execute(qmp, "human-monitor-command", lm_js_strings("command-line", "xp /1xw 0x100000", NULL),
			   lm_now_ns() + LIMIT, NULL, &err);
	lm_qmp_close(qmp);
	*answered = !r;
	return NULL;
}

/* QMP does not answer then, and nobody needs it to. */
static void a_new_engine_takes_over_while_qemus_main_loop_waits(void **state)
{
	struct lm_inject_call call = { .nr = SYS_getpid };
	struct lm_page_fault f;
	struct lm_region region;
	struct lm_ram described = { &region, 1, false };
	bool answered = false;
	pthread_t thread;
	int vm_fd, n = 0;

	(void)state;
	dst_start();
	dst_open();
	vm_fd = pager->vm_fd;
	region = ram.regions[0];
	region.fd = -1;
	region.host = NULL;
	lm_vm_detach(dst);
	dst = NULL;
	assert_int_equal(pthread_create(&thread, NULL, main_loop_touch, &answered), 0);
	while (!n)
		n = lm_pager_faults(pager, &f, 1, &rig_err);
	assert_int_equal(n, 1);
	assert_int_equal(f.page, 0x100);
	assert_int_equal(f.tid, dst_qemu.pid);
	lm_pager_close(pager);
	pager = NULL;

	ok(lm_qemu_ram_reopen(dst_qemu.pid, &described, true, &rig_err));
	ok(lm_uffd_pager_reopen(dst_qemu.pid, &described, vm_fd, &pager, &rig_err));
	ok(lm_inject(dst_qemu.pid, &call, 1, NULL, &rig_err));
	assert_int_equal(call.ret, dst_qemu.pid);
	ok(lm_pager_wake(pager, &rig_err));
	ok(lm_pager_place(pager, 0, 0, NPAGES, &rig_err));
	pthread_join(thread, NULL);
	assert_true(answered);
	ok(lm_pager_finish(pager, &rig_err));
	lm_pager_close(pager);
	pager = NULL;
	close(region.fd);
	assert_status(&dst_qemu, "inmigrate");
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(all_pages_are_placed_and_qemu_goes_on),
		T(a_qemu_without_privileges_waits_for_pages_too),
		T(a_source_has_no_pager),
		T(a_guest_runs_before_its_memory_is_there),
		T(the_same_with_kvm),
		T(a_new_engine_takes_over_while_qemus_main_loop_waits),
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
