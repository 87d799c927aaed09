/* SPDX-License-Identifier: Apache-2.0 */
/* Which guests are refused, and with what words; RAM of a real QEMU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "kvm-glue/qemu_priv.h"
#include "qemu_rig.h"
#include "../../lib/skip.h"

static struct rig_qemu q;
static struct lm_error err;
static struct lm_vm *vm;

static int attach_pid(enum lm_side side, pid_t pid)
{
	struct lm_qemu_options o = { .qmp = q.qmp, .pid = pid, .side = side, .timeout_ns = LM_NS_PER_S * 5,
				     .cancel_fd = -1 };

	memset(&err, 0, sizeof(err));
	return lm_qemu_attach(&o, &vm, &err);
}

static int attach(enum lm_side side)
{
	return attach_pid(side, 0);
}

static void assert_attached(int r)
{
	if (r)
		fail_msg("refused: %s", err.msg);
	assert_non_null(vm);
}

static void assert_refused(int r, const char *words)
{
	if (!r)
		fail_msg("accepted, wanted: %s", words);
	if (!strstr(err.msg, words))
		fail_msg("\"%s\" does not say \"%s\"", err.msg, words);
}

static int teardown(void **state)
{
	(void)state;
	lm_vm_detach(vm);
	vm = NULL;
	rig_end(&q);
	return 0;
}

/* ---- guests that are fine ---- */

static void a_shared_file_is_accepted(void **state)
{
	struct lm_ram ram = { 0 };
	struct stat st;

	(void)state;
	rig_start_good(&q, "-smp", "3");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(vm->info.vcpus, 3);
	assert_true(vm->info.running);
	assert_memory_equal(vm->info.machine, "pc-q35-", 7);
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_int_equal(ram.nregions, 1);
	assert_string_equal(ram.regions[0].name, "ram0");
	assert_int_equal(ram.regions[0].size, 64 << 20);
	assert_int_equal(ram.regions[0].page_size, 4096);
	assert_int_equal(stat(q.ram, &st), 0);
	assert_int_equal(ram.regions[0].ino, st.st_ino);
	assert_false(ram.may_discard);
	assert_int_equal(lm_ram_map(&ram, false, &err), 0);
	lm_ram_fini(&ram);
}

static bool ram_is(const struct lm_ram *ram)
{
	bool same = true;

	assert_int_equal(lm_vm_ram_is(vm, ram, &same, &err), 0);
	return same;
}

static void memory_that_is_plugged_or_changed_is_seen(void **state)
{
	struct lm_ram ram = { 0 };
	struct lm_region *r, before;

	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_true(ram_is(&ram));
	r = &ram.regions[0];
	before = *r;
	r->size += LM_PAGE_SIZE;
	assert_false(ram_is(&ram));
	*r = before;
	r->vm_addr += LM_PAGE_SIZE;
	assert_false(ram_is(&ram));
	*r = before;
	r->ino++;
	assert_false(ram_is(&ram));
	*r = before;
	r->name[0] = 'x';
	assert_false(ram_is(&ram));
	*r = before;
	assert_int_equal(qemu_ask(qemu_of(vm), "object-add", json_tokener_parse("{\"qom-type\": \"memory-backend-ram\", "
				  "\"id\": \"more\", \"size\": 4194304}"), NULL, &err), 0);
	assert_false(ram_is(&ram));
	assert_int_equal(qemu_ask(qemu_of(vm), "object-del", lm_js_strings("id", "more", NULL), NULL, &err), 0);
	assert_true(ram_is(&ram));
	lm_ram_fini(&ram);
}

static void a_paused_guest_is_accepted(void **state)
{
	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE));
	assert_false(vm->info.running);
}

static void microvm_is_accepted(void **state)
{
	(void)state;
	rig_start(&q, "-M", "microvm,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-object", RIG_RAM, "-S", NULL);
	assert_attached(attach(LM_SOURCE));
}

static void the_sandbox_is_no_obstacle(void **state)
{
	struct lm_ram ram = { 0 };
	struct lm_dirty *d = NULL;

	(void)state;
	rig_start_good(&q, "-S", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	if (lm_vm_tracker(vm, &ram, &d, &err) || lm_dirty_start(d, &err))
		fail_msg("%s", err.msg);
	lm_dirty_close(d);
	lm_ram_fini(&ram);
}

static void a_qemu_without_privileges_can_be_tracked(void **state)
{
	struct lm_ram ram = { 0 };
	struct lm_dirty *d = NULL;

	(void)state;
	if (geteuid())
		skip_because("needs root");
	/* the option has a new name since QEMU 9.0 and lost the old one in 10.0 */
	if (!rig_try(&q, RIG_GOOD, "-S", "-run-with", "user=nobody", NULL)) {
		rig_end(&q);
		rig_start_good(&q, "-S", "-runas", "nobody");
	}
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	if (lm_vm_tracker(vm, &ram, &d, &err) || lm_dirty_start(d, &err))
		fail_msg("%s", err.msg);
	lm_dirty_close(d);
	lm_ram_fini(&ram);
}

static void an_unlinked_file_is_found(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE)); /* it talks when it has made the file */
	assert_int_equal(unlink(q.ram), 0);
	lm_vm_detach(vm);
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	lm_ram_fini(&ram);
}

static void a_file_made_in_a_folder_is_found(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-object",
		  "memory-backend-file,id=ram0,size=" RIG_MEM ",mem-path=/dev/shm,share=on", "-S", NULL);
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	lm_ram_fini(&ram);
}

static void a_chroot_is_no_obstacle(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	if (geteuid())
		skip_because("needs root");
	if (!rig_try(&q, RIG_GOOD, "-S", "-run-with", "chroot=/usr", NULL)) {
		rig_end(&q);
		rig_start_good(&q, "-S", "-chroot", "/usr");
	}
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	lm_ram_fini(&ram);
}

static void numa_nodes_are_regions_in_the_order_of_their_names(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg", "-m", "128M", "-smp", "2", "-S",
		  "-object", "memory-backend-file,id=zz,size=64M,mem-path=/dev/shm,share=on",
		  "-object", "memory-backend-file,id=aa,size=64M,mem-path=/dev/shm,share=on",
		  "-numa", "node,memdev=zz", "-numa", "node,memdev=aa", NULL);
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_int_equal(ram.nregions, 2);
	assert_string_equal(ram.regions[0].name, "aa");
	assert_string_equal(ram.regions[1].name, "zz");
	assert_int_not_equal(ram.regions[0].vm_addr, ram.regions[1].vm_addr);
	lm_ram_fini(&ram);
}

static void a_balloon_may_discard(void **state)
{
	struct lm_ram ram = { 0 };

	(void)state;
	rig_start_good(&q, "-S", "-device", "virtio-balloon-pci");
	assert_attached(attach(LM_SOURCE));
	assert_int_equal(lm_vm_regions(vm, &ram, &err), 0);
	assert_true(ram.may_discard);
	lm_ram_fini(&ram);
}

/* ---- guests that are refused ---- */

static void private_memory_is_refused(void **state)
{
	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-S", "-object",
		  "memory-backend-file,id=ram0,size=" RIG_MEM ",mem-path=@RAM", NULL);
	assert_refused(attach(LM_SOURCE), "add share=on to -object memory-backend-file,id=ram0");
}

static void plain_memory_is_refused(void **state)
{
	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg", "-m", RIG_MEM, "-S", NULL);
	assert_refused(attach(LM_SOURCE), "-object memory-backend-file,id=ram0,size=64M");
}

static void anonymous_memory_is_refused(void **state)
{
	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-S", "-object",
		  "memory-backend-ram,id=ram0,size=" RIG_MEM ",share=on", NULL);
	assert_refused(attach(LM_SOURCE), "of type memory-backend-ram");
}

static void a_memfd_is_refused(void **state)
{
	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-S", "-object",
		  "memory-backend-memfd,id=ram0,size=" RIG_MEM ",share=on", NULL);
	assert_refused(attach(LM_SOURCE), "since QEMU 8.1 x-ignore-shared skips named files only");
}

static void no_memory_is_refused(void **state)
{
	(void)state;
	rig_start(&q, "-M", "none", "-S", NULL);
	assert_refused(attach(LM_SOURCE), "memory-backend-file");
}

static void memory_on_a_disk_is_refused(void **state)
{
	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-S", "-object",
		  "memory-backend-file,id=ram0,size=" RIG_MEM ",mem-path=/var/tmp,share=on", NULL);
	assert_refused(attach(LM_SOURCE), "neither on tmpfs nor on hugetlbfs");
}

static void a_source_that_waits_for_a_guest_is_refused(void **state)
{
	(void)state;
	rig_start_good(&q, "-S", "-incoming", "defer");
	assert_refused(attach(LM_SOURCE), "it can only be a destination");
}

static void a_destination_that_does_not_wait_is_refused(void **state)
{
	(void)state;
	rig_start_good(&q, "-S");
	assert_refused(attach(LM_DEST), "-incoming defer -S");
}

static void a_destination_that_waits_for_its_own_migration_is_refused(void **state)
{
	(void)state;
	rig_start_good(&q, "-S", "-incoming", "tcp:127.0.0.1:0");
	assert_refused(attach(LM_DEST), "use -incoming defer instead");
}

static void a_destination_is_accepted_with_and_without_s(void **state)
{
	(void)state;
	rig_start_good(&q, "-S", "-incoming", "defer");
	assert_attached(attach(LM_DEST));
	teardown(NULL);
	rig_start_good(&q, "-incoming", "defer");
	assert_attached(attach(LM_DEST));
}

static void a_device_that_forbids_migration_is_refused(void **state)
{
	(void)state;
	rig_start_good(&q, "-S", "-drive", "if=none,id=d,driver=null-co,size=1M,read-zeroes=on", "-device",
		       "nvme,serial=1,drive=d");
	assert_refused(attach(LM_SOURCE), "non-migratable device");
}

/* Another process writes to guest RAM, as a vhost-user backend does. */
static void another_process_with_the_memory_is_refused(void **state)
{
	int fd, p[2];
	char words[64], c;
	pid_t other;

	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE));
	lm_vm_detach(vm);
	vm = NULL;
	fd = open(q.ram, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pipe(p), 0);
	other = fork();
	if (!other) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ||
		    write(p[1], "k", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	assert_int_equal(read(p[0], &c, 1), 1);
	snprintf(words, sizeof(words), "process %d (", (int)other);
	assert_refused(attach(LM_SOURCE), words);
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
	assert_attached(attach(LM_SOURCE));
	close(fd);
	close(p[0]);
	close(p[1]);
}

static void the_wrong_process_is_refused(void **state)
{
	(void)state;
	rig_start_good(&q, "-S");
	assert_refused(attach_pid(LM_SOURCE, getpid()), "give the process id of QEMU with --pid");
	assert_refused(attach_pid(LM_SOURCE, 0x3ffffe), "cannot open process");
	assert_attached(attach_pid(LM_SOURCE, q.pid));
}

static void a_debugger_is_refused(void **state)
{
	(void)state;
	rig_start_good(&q, "-S");
	assert_int_equal(ptrace(PTRACE_SEIZE, q.pid, NULL, NULL), 0);
	assert_refused(attach(LM_SOURCE), "QEMU is traced by process");
}

static int check_fails;
static char check_text[512];

static void check_note(void *opaque, const struct lm_check *c)
{
	(void)opaque;
	if (c->status != LM_CHECK_FAIL)
		return;
	check_fails++;
	snprintf(check_text, sizeof(check_text), "%s: %s; %.300s", c->name, c->found, c->advice);
}

static void the_reason_is_the_same_in_the_check(void **state)
{
	(void)state;
	rig_start(&q, "-M", "q35,accel=tcg,memory-backend=ram0", "-m", RIG_MEM, "-S", "-object",
		  "memory-backend-file,id=ram0,size=" RIG_MEM ",mem-path=/var/tmp,share=on", NULL);
	check_fails = 0;
	assert_int_equal(lm_check_guest(q.qmp, 0, check_note, NULL, &err), 1);
	assert_int_equal(check_fails, 1);
	assert_true(attach(LM_SOURCE) < 0);
	assert_memory_equal(err.msg, check_text, strlen(check_text));
}

static struct lm_check locked;

static void locked_note(void *opaque, const struct lm_check *c)
{
	(void)opaque;
	if (!strcmp(c->name, "locked memory"))
		locked = *c;
}

/* Without the capability, and with a limit of so many bytes; in a process of its own, which cannot go back. */
static int check_limited(rlim_t limit)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2];

	if (setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){ limit, limit }))
		return limit > 8 << 20 ? 0 : 1; /* in a container nobody may raise it */
	if (syscall(SYS_capget, &h, d))
		return 1;
	d[CAP_IPC_LOCK / 32].effective &= ~(1u << (CAP_IPC_LOCK % 32));
	if (syscall(SYS_capset, &h, d) || lm_check_guest(q.qmp, 0, locked_note, NULL, &err))
		return 2;
	if (limit == RLIM_INFINITY)
		return locked.status == LM_CHECK_OK ? 0 : 3;
	if (limit >= UINT64_C(1) << 30)
		return locked.status == LM_CHECK_OK && strstr(locked.found, "at most 1024 MiB") ? 0 : 4;
	return locked.status == LM_CHECK_WARN && strstr(locked.found, "at most 8 MiB") && strstr(locked.advice, "ulimit -l") &&
	       strstr(locked.advice, "LimitMEMLOCK") && strstr(locked.advice, "--pin odp") ? 0 : 5;
}

static void the_memlock_limit_is_held_against_the_size_of_the_guest(void **state)
{
	static const rlim_t limits[] = { RLIM_INFINITY, UINT64_C(1) << 30, 8 << 20 };

	(void)state;
	rig_start_good(&q, "-S");
	for (unsigned i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		pid_t pid = fork();
		int status = 0;

		if (!pid)
			_exit(check_limited(limits[i]));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static void a_host_check_finishes(void **state)
{
	(void)state;
	check_fails = 0;
	assert_int_equal(lm_check_host(check_note, NULL), check_fails);
}

/* ---- sockets ---- */

static void sockets_that_are_none_are_explained(void **state)
{
	(void)state;
	strcpy(q.qmp, "/dev/shm/lm-glue-no-such-socket");
	assert_refused(attach(LM_SOURCE), "start QEMU with -qmp unix:");
	strcpy(q.qmp, "/etc/passwd");
	assert_refused(attach(LM_SOURCE), "is not a socket");
	q.qmp[0] = 0;
	assert_refused(attach(LM_SOURCE), "no path of a QMP socket");
}

static void a_socket_whose_qemu_has_ended_is_explained(void **state)
{
	(void)state;
	rig_start_good(&q, "-S");
	kill(q.pid, SIGKILL);
	waitpid(q.pid, NULL, 0);
	q.pid = 0;
	assert_refused(attach(LM_SOURCE), "has ended");
}

static void a_second_client_is_explained(void **state)
{
	struct lm_qemu_options o = { .qmp = q.qmp, .side = LM_SOURCE, .timeout_ns = LM_NS_PER_S / 5, .cancel_fd = -1 };
	struct lm_vm *second = NULL;

	(void)state;
	rig_start_good(&q, "-S");
	assert_attached(attach(LM_SOURCE));
	assert_refused(lm_qemu_attach(&o, &second, &err), "another client is connected");
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(a_shared_file_is_accepted),
		T(memory_that_is_plugged_or_changed_is_seen),
		T(a_paused_guest_is_accepted),
		T(microvm_is_accepted),
		T(the_sandbox_is_no_obstacle),
		T(a_qemu_without_privileges_can_be_tracked),
		T(an_unlinked_file_is_found),
		T(a_file_made_in_a_folder_is_found),
		T(a_chroot_is_no_obstacle),
		T(numa_nodes_are_regions_in_the_order_of_their_names),
		T(a_balloon_may_discard),
		T(private_memory_is_refused),
		T(plain_memory_is_refused),
		T(anonymous_memory_is_refused),
		T(a_memfd_is_refused),
		T(no_memory_is_refused),
		T(memory_on_a_disk_is_refused),
		T(a_source_that_waits_for_a_guest_is_refused),
		T(a_destination_that_does_not_wait_is_refused),
		T(a_destination_that_waits_for_its_own_migration_is_refused),
		T(a_destination_is_accepted_with_and_without_s),
		T(a_device_that_forbids_migration_is_refused),
		T(another_process_with_the_memory_is_refused),
		T(the_wrong_process_is_refused),
		T(a_debugger_is_refused),
		T(the_reason_is_the_same_in_the_check),
		T(the_memlock_limit_is_held_against_the_size_of_the_guest),
		T(a_host_check_finishes),
		T(sockets_that_are_none_are_explained),
		T(a_socket_whose_qemu_has_ended_is_explained),
		T(a_second_client_is_explained),
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
