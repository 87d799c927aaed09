/* SPDX-License-Identifier: Apache-2.0 */
/* Guests, processes and sockets that the engine refuses, and with what words. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "attach_rig.h"

/* ---- memory ---- */

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

/* ---- source and destination ---- */

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
	attach_teardown(NULL);
	rig_start_good(&q, "-incoming", "defer");
	assert_attached(attach(LM_DEST));
}

/* ---- devices and processes ---- */

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
#define T(name) cmocka_unit_test_teardown(name, attach_teardown)
	const struct CMUnitTest tests[] = {
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
		T(sockets_that_are_none_are_explained),
		T(a_socket_whose_qemu_has_ended_is_explained),
		T(a_second_client_is_explained),
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
