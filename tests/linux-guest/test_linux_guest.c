// SPDX-License-Identifier: Apache-2.0
/*
 * Does the Linux guest do what it is there to do?  It reads the slow disk into
 * memory it does not touch, and finds what is wrong there when asked.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "linuxvm.h"
#include "pattern.h"
#include "tempdir.h"

#define MIB		256u
#define SIZE		((size_t)MIB << 20)
#define BOOT_MS		45000
#define WAIT_MS		20000
#define WORKLOAD	"wl.mb=16 wl.rate=500 wl.reads=4 wl.pages=8 wl.pool=16"

static struct linux_programs programs;
static char dir[VM_PATH];
static struct slowdisk disk;
static struct vm vm;

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

static void boot(const char *const *disk_options, const char *aio)
{
	struct linux_config config = {
		.dir = dir, .name = "linux", .mib = MIB, .workload = WORKLOAD,
		.aio = aio,
	};
	long long t = now_ms();

	assert_int_equal(slowdisk_start(&disk, &programs, dir, "linux",
					disk_options), 0);
	config.disk = disk.file;
	assert_int_equal(linux_start(&vm, &programs, &config), 0);
	if (vm_wait_log(&vm, "READY mb=", BOOT_MS)) {
		char *log = vm_read_log(&vm);

		print_error("the guest did not boot: %s\n", log);
		free(log);
		fail();
	}
	print_message("booted in %lld ms\n", now_ms() - t);
}

static long long ask(const char *command, const char *line, const char *name)
{
	long long value = -1;

	assert_int_equal(linux_command(&vm, command), 0);
	for (int i = 0; i < WAIT_MS / 20 && value < 0; i++) {
		value = linux_number(&vm, line, name);
		if (value < 0)
			usleep(20000);
	}
	return value;
}

static void reads_and_dirties(const char *aio)
{
	static const char *const options[] = { "--delay-ms", "50", NULL };

	boot(options, aio);
	assert_int_equal(vm_wait_log(&vm, "tick 3 ", WAIT_MS), 0);
	assert_true(ask("report", "HOLE slots=", " under_way=") >= 2);
	assert_true(linux_number(&vm, "HOLE slots=", " done=") > 0);
	assert_true(ask("check", "HOLE checked=", "HOLE checked=") > 0);
	assert_int_equal(linux_number(&vm, "HOLE checked=", " bad="), 0);
	assert_int_equal(linux_number(&vm, "HOLE checked=", " failed="), 0);
	assert_int_equal(linux_number(&vm, "tick ", " bad="), 0);
	assert_true(linux_number(&vm, "tick ", " writes=") > 0);
}

static void works_with_threads(void **state)
{
	(void)state;
	reads_and_dirties("threads");
}

static void works_with_native(void **state)
{
	(void)state;
	reads_and_dirties("native");
}

static void finds_a_wrong_block(void **state)
{
	static const char *const options[] = {
		"--delay-ms", "20", "--wrong-block", "9", NULL,
	};

	(void)state;
	boot(options, NULL);
	assert_int_equal(vm_wait_log(&vm, "tick 3 ", WAIT_MS), 0);
	assert_true(ask("check", "HOLE checked=", "HOLE checked=") > 9);
	assert_int_equal(linux_number(&vm, "HOLE checked=", " bad="), 1);
	assert_int_equal(linux_number(&vm, "HOLE bad", " block="), 9);
}

/* Where block `number` lies in guest RAM, by its content; NULL: nowhere. */
static uint64_t *find_block(uint8_t *ram, uint64_t number)
{
	uint64_t first = pattern_word(number, 0);

	for (size_t at = 0; at < SIZE; at += PATTERN_BLOCK) {
		uint64_t *w = (uint64_t *)(ram + at);

		if (*w == first && pattern_ok(w, number))
			return w;
	}
	return NULL;
}

/* What a migration that misses DMA leaves behind: the page as it was before. */
static void finds_a_page_that_dma_did_not_reach(void **state)
{
	static const char *const options[] = { "--delay-ms", "20", NULL };
	uint64_t *page;
	uint8_t *ram;
	int fd;

	(void)state;
	boot(options, NULL);
	assert_int_equal(vm_wait_log(&vm, "tick 3 ", WAIT_MS), 0);
	fd = open(vm.ram, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	assert_ptr_not_equal(ram, MAP_FAILED);
	page = find_block(ram, 17);
	if (page)
		memset(page, 0xa5, PATTERN_BLOCK);
	munmap(ram, SIZE);
	assert_non_null(page);
	assert_true(ask("check", "HOLE checked=", "HOLE checked=") > 17);
	assert_int_equal(linux_number(&vm, "HOLE checked=", " bad="), 1);
	assert_int_equal(vm_wait_log(&vm, "kind=never-written", 1000), 0);
}

static int teardown(void **state)
{
	(void)state;
	vm_end(&vm);
	slowdisk_stop(&disk);
	return 0;
}

static const char *reason_to_skip(void)
{
	if (!vm_program())
		return "QEMU is not installed";
	if (access("/dev/fuse", R_OK | W_OK))
		return "/dev/fuse cannot be opened";
	if (geteuid())
		return "mounting slowfs needs root";
	if (linux_prepare(&programs))
		return "no kernel or initramfs, see above";
	return NULL;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(works_with_threads, teardown),
		cmocka_unit_test_teardown(works_with_native, teardown),
		cmocka_unit_test_teardown(finds_a_wrong_block, teardown),
		cmocka_unit_test_teardown(finds_a_page_that_dma_did_not_reach,
					  teardown),
	};
	const char *reason;
	int failed;

	if (argc != 5) {
		fprintf(stderr, "usage: test WORKLOAD SLOWFS PREPARE OUTDIR\n");
		return 2;
	}
	programs = (struct linux_programs){ argv[1], argv[2], argv[3], argv[4] };
	reason = reason_to_skip();
	if (reason) {
		fprintf(stderr, "SKIP: %s\n", reason);
		return 77;
	}
	if (tempdir_make(dir, sizeof(dir)))
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	tempdir_remove(dir);
	return failed;
}
