// SPDX-License-Identifier: Apache-2.0
/*
 * Does the test guest see what it is there to see?  It is booted under TCG and
 * KVM, its RAM is damaged from outside, and it must report each damage.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "content.h"
#include "layout.h"
#include "observe.h"
#include "tempdir.h"
#include "vm.h"

#define MIB		64u
#define SIZE		((size_t)MIB << 20)
#define WAIT_MS		8000
#define STOP_MS		300
#define STOP_MAX_MS	3000	/* a loaded machine resumes late */
#define ROUND_MS	1200	/* a CMOS second and more */

struct accel {
	const char *machine, *cpu;
	bool sees_stop;		/* does the guest's clock see stop/cont? */
	bool needed;		/* must it work, or may it be skipped? */
	const char *options;
	const char *smp;	/* NULL: one vCPU */
};

static const struct accel tcg = {
	.machine = "q35,accel=tcg", .cpu = "max", .sees_stop = true,
	.needed = true, .options = "mb=32 rate=20000",
};

static const struct accel kvm = {
	.machine = "microvm,accel=kvm,rtc=on", .cpu = "max", .sees_stop = true,
	.options = "mb=8 rate=2000",
};

static const struct accel four_tcg = {
	.machine = "q35,accel=tcg", .cpu = "max", .smp = "4", .needed = true,
	.options = "mb=8 rate=2000 cpus=4",
};
static const struct accel four_kvm = {
	.machine = "microvm,accel=kvm,rtc=on", .cpu = "max", .smp = "4",
	.options = "mb=8 rate=2000 cpus=4",
};

static const char *guest_elf;
static char dir[VM_PATH];

/* The guest of the current test and its RAM, mapped. */
static struct vm vm;
static uint8_t *ram;

#define BEAT ((volatile struct guest_beat *)(ram + GUEST_BEAT_GPA))

static void sleep_ms(unsigned int ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000l };

	nanosleep(&t, NULL);
}

static int map_ram(void)
{
	int fd = open(vm.ram, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return -1;
	ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return ram == MAP_FAILED ? -1 : 0;
}

static int boot(const struct accel *a)
{
	const char *more[] = { "-kernel", guest_elf, "-append", a->options,
			       "-smp", a->smp ? a->smp : "1", NULL };
	struct vm_config config = {
		.dir = dir, .name = "guest", .mib = MIB,
		.machine = a->machine, .cpu = a->cpu, .more = more,
	};

	if (vm_start(&vm, &config))
		return -1;
	if (vm_wait_log(&vm, "READY", WAIT_MS)) {
		fprintf(stderr, "the guest was not ready in %d ms\n", WAIT_MS);
		return -1;
	}
	return map_ram();
}

static void shut_down(void)
{
	if (ram && ram != MAP_FAILED)
		munmap(ram, SIZE);
	ram = NULL;
	vm_end(&vm);
}

/* Whether KVM can be used is found out once, by trying. */
static int boot_or_skip(const struct accel *a)
{
	static bool kvm_failed;

	if (!a->needed && access("/dev/kvm", R_OK | W_OK)) {
		print_message("SKIP REASON: /dev/kvm cannot be opened\n");
		return 1;
	}
	if (!a->needed && kvm_failed) {
		print_message("SKIP REASON: KVM did not work before\n");
		return 1;
	}
	if (!boot(a))
		return 0;
	shut_down();
	if (a->needed)
		return -1;
	kvm_failed = true;
	print_message("SKIP REASON: the guest did not boot under KVM\n");
	return 1;
}

#define BOOT(a) do { \
	int r = boot_or_skip(a); \
	if (r > 0) \
		skip(); \
	assert_int_equal(r, 0); \
} while (0)

/* Waits until *word is at least limit. */
static bool reaches(const volatile uint64_t *word, uint64_t limit)
{
	for (int i = 0; i < WAIT_MS; i++) {
		if (*word >= limit)
			return true;
		sleep_ms(1);
	}
	return false;
}

/* Shows the guest's words when they are not the expected ones. */
static bool log_has(const char *text)
{
	char *log;

	if (!vm_wait_log(&vm, text, 2000))
		return true;
	log = vm_read_log(&vm);
	print_error("no \"%s\" in:\n%s\n", text, log);
	free(log);
	return false;
}

static uint64_t *page_at(uint64_t page)
{
	uint64_t gpa = BEAT->segment[0].gpa + page * GUEST_PAGE_SIZE;

	return (uint64_t *)(ram + gpa);
}

static volatile uint32_t *version_of(uint64_t page)
{
	return (uint32_t *)(ram + BEAT->version_table) + page;
}

static void freeze(void)
{
	assert_int_equal(vm_qmp(&vm, "stop"), 0);
}

static void go_on(void)
{
	assert_int_equal(vm_qmp(&vm, "cont"), 0);
}

static void command(uint64_t op, uint64_t arg)
{
	BEAT->cmd_op = op;
	BEAT->cmd_arg = arg;
	BEAT->cmd_seq++;
	assert_true(reaches(&BEAT->cmd_ack, BEAT->cmd_seq));
}

/* No vCPU is in the middle of a page: one that is stopped there leaves page and table different. */
static void freeze_at_rest(void)
{
	command(GUEST_CMD_RATE, 0);
	sleep_ms(50);	/* until every vCPU has heard it */
	freeze();
}

static void runs_well(void **state)
{
	char *log;

	BOOT(*state);
	assert_true(reaches(&BEAT->passes, 2));
	assert_true(log_has("tick 3 "));
	assert_true(reaches(&BEAT->beat, 1000));
	assert_int_equal(BEAT->bad, 0);
	freeze_at_rest();
	for (uint64_t p = 0; p < BEAT->pages; p++)
		assert_true(content_page_ok(page_at(p), p, *version_of(p)));
	log = vm_read_log(&vm);
	assert_null(strstr(log, "BAD"));
	assert_non_null(strstr(log, " bad=0 gap_us="));
	free(log);
}

static void obeys_rate(void **state)
{
	uint64_t before;

	BOOT(*state);
	command(GUEST_CMD_RATE, 0);
	sleep_ms(50);	/* until every vCPU has heard it */
	before = BEAT->writes;
	sleep_ms(200);
	assert_int_equal(BEAT->writes, before);
	assert_int_equal(BEAT->rate, 0);
	command(GUEST_CMD_RATE, GUEST_RATE_MAX);
	assert_true(reaches(&BEAT->writes, before + 1000));
}

static void finds_one_changed_bit(void **state)
{
	BOOT(*state);
	assert_true(reaches(&BEAT->passes, 1));
	page_at(77)[300] ^= 1ull << 40;	/* of the body */
	assert_true(reaches(&BEAT->bad, 1));
	assert_true(log_has("BAD page=77 "));
	assert_int_equal(BEAT->bad_page, 77);
	/* Counted once: the guest repairs the page. */
	assert_true(reaches(&BEAT->passes, BEAT->passes + 2));
	assert_int_equal(BEAT->bad, 1);
}

/* In the slice of the last vCPU. */
static void finds_one_changed_bit_at_the_end(void **state)
{
	uint64_t page;

	BOOT(*state);
	assert_true(reaches(&BEAT->passes, 1));
	page = BEAT->pages - 1;
	page_at(page)[300] ^= 1ull << 40;
	assert_true(reaches(&BEAT->bad, 1));
	assert_true(log_has("BAD page=2047 "));
	assert_int_equal(BEAT->bad_page, page);
	assert_true(reaches(&BEAT->passes, BEAT->passes + 2));
	assert_int_equal(BEAT->bad, 1);
}

static void finds_a_zeroed_page(void **state)
{
	BOOT(*state);
	command(GUEST_CMD_RATE, 0);
	sleep_ms(50);	/* until every vCPU has heard it */
	memset(page_at(5), 0, GUEST_PAGE_SIZE);
	assert_true(reaches(&BEAT->bad, 1));
	assert_true(log_has("BAD page=5 want="));
	assert_true(log_has("kind=zero"));
}

static void finds_swapped_pages(void **state)
{
	uint8_t page[GUEST_PAGE_SIZE];

	BOOT(*state);
	freeze_at_rest();
	memcpy(page, page_at(8), sizeof(page));
	memcpy(page_at(8), page_at(9), sizeof(page));
	memcpy(page_at(9), page, sizeof(page));
	go_on();
	assert_true(reaches(&BEAT->bad, 2));
}

/* Saves page p and lets the guest write it anew; it is stopped then. */
static void save_and_outdate(uint64_t p, uint8_t *page, uint32_t *version)
{
	freeze_at_rest();
	memcpy(page, page_at(p), GUEST_PAGE_SIZE);
	*version = *version_of(p);
	go_on();
	command(GUEST_CMD_RATE, GUEST_RATE_MAX);
	for (int i = 0; i < WAIT_MS && *version_of(p) == *version; i++)
		sleep_ms(1);
	command(GUEST_CMD_RATE, 0);
	sleep_ms(50);	/* until every vCPU has heard it */
	assert_true(*version_of(p) > *version);
	freeze();
}

static void finds_a_stale_page(void **state)
{
	uint8_t page[GUEST_PAGE_SIZE];
	uint32_t version;

	BOOT(*state);
	save_and_outdate(40, page, &version);
	memcpy(page_at(40), page, sizeof(page));
	go_on();
	assert_true(reaches(&BEAT->bad, 1));
	assert_true(log_has("kind=stale"));
	assert_int_equal(BEAT->bad_page, 40);
	assert_int_equal(BEAT->bad_got, version);
	assert_true(BEAT->bad_want > version);
}

static void finds_a_torn_page(void **state)
{
	uint8_t page[GUEST_PAGE_SIZE];
	uint32_t version;

	BOOT(*state);
	save_and_outdate(41, page, &version);
	memcpy(page_at(41), page, 64);	/* one line of it is old */
	go_on();
	assert_true(reaches(&BEAT->bad, 1));
	assert_true(log_has("kind=torn"));
	assert_int_equal(BEAT->bad_page, 41);
}

/* The page agrees with its entry of the table, but not with the sum. */
static void finds_page_and_table_stale(void **state)
{
	uint8_t page[GUEST_PAGE_SIZE];
	uint32_t version;

	BOOT(*state);
	save_and_outdate(42, page, &version);
	memcpy(page_at(42), page, sizeof(page));
	*version_of(42) = version;
	go_on();
	assert_true(reaches(&BEAT->bad, 1));
	assert_true(log_has("kind=table"));
}

/*
 * All RAM agrees with itself, but not with the CPU.  The guest writes nothing
 * at either moment: in the middle of a write its stack would be old too, and
 * it would find something bad, but not surely this.
 */
static void finds_all_ram_stale(void **state)
{
	uint8_t *copy = malloc(SIZE);

	assert_non_null(copy);
	BOOT(*state);
	freeze_at_rest();
	memcpy(copy, ram, SIZE);
	go_on();
	command(GUEST_CMD_RATE, GUEST_RATE_MAX);
	assert_true(reaches(&BEAT->writes, BEAT->writes + 100));
	freeze_at_rest();
	memcpy(ram, copy, SIZE);
	free(copy);
	go_on();
	assert_true(reaches(&BEAT->bad, 1));
	assert_true(log_has("kind=register"));
}

static void stop_once(void)
{
	freeze();
	sleep_ms(STOP_MS);
	go_on();
	sleep_ms(ROUND_MS);
}

/*
 * On a loaded machine the guest may come late to the end of a CMOS second and
 * take the loss for smaller than it was, so it has some more stops to see.
 */
static bool guest_sees_stop(void)
{
	uint64_t enough = STOP_MS / 3 * 1000000ull; /* a frozen clock would show none of it */

	for (int i = 0; i < 5 && BEAT->max_gap_ns < enough; i++)
		stop_once();
	return BEAT->max_gap_ns >= enough;
}

/*
 * Two seconds of the CMOS clock must go by before the guest can tell, and one
 * must end after the stop.
 */
static void stop_is_seen(void **state)
{
	const struct accel *a = *state;
	struct observer_result r;
	struct observer *o;

	BOOT(a);
	sleep_ms(2 * ROUND_MS);
	o = observer_start(vm.ram, NULL);
	assert_non_null(o);
	sleep_ms(100);
	stop_once();
	observer_stop(o, &r);
	print_message("stopped %d ms: observer %.1f ms (coarseness %.1f), "
		      "guest %.1f ms\n", STOP_MS, r.max_gap_ns / 1e6,
		      r.max_sample_ns / 1e6, BEAT->max_gap_ns / 1e6);
	assert_true(r.max_gap_ns >= STOP_MS * 1000000ll);
	assert_true(r.max_gap_ns < STOP_MAX_MS * 1000000ll);
	assert_int_equal(r.t_first_b, 0);
	if (a->sees_stop)
		assert_true(guest_sees_stop());
}

/* --- the observer by itself, on two files --- */

struct mover {
	int a, b;
	uint64_t beat;
};

static void put_beat(int fd, uint64_t beat)
{
	uint64_t head[2] = { GUEST_BEAT_MAGIC, beat };

	assert_int_equal(pwrite(fd, head, sizeof(head), GUEST_BEAT_GPA),
			 sizeof(head));
}

static void run_on(struct mover *m, int fd, int turns, int copy_to)
{
	while (turns--) {
		put_beat(fd, ++m->beat);
		if (copy_to >= 0)
			put_beat(copy_to, m->beat);
		sleep_ms(1);
	}
}

static int open_file(const char *name, char *path, size_t size)
{
	int fd;

	snprintf(path, size, "%s/%s", dir, name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	return fd;
}

static void observer_tells_copies_from_running(void **state)
{
	char path_a[VM_PATH + 8], path_b[VM_PATH + 8];
	struct mover m = { .beat = 100 };
	struct observer_result r;
	struct observer *o;

	(void)state;
	m.a = open_file("a", path_a, sizeof(path_a));
	m.b = open_file("b", path_b, sizeof(path_b));
	put_beat(m.a, m.beat);
	o = observer_start(path_a, path_b);
	assert_non_null(o);
	run_on(&m, m.a, 50, m.b);	/* A runs, B is a copy */
	assert_false(observer_saw_b(o));
	sleep_ms(60);
	put_beat(m.b, m.beat);		/* the last copy while both stand */
	sleep_ms(60);
	run_on(&m, m.b, 50, -1);	/* B runs */
	assert_true(observer_saw_b(o));
	observer_stop(o, &r);
	close(m.a);
	close(m.b);
	assert_true(r.blackout_ns >= 120000000 && r.blackout_ns < 1000000000);
	assert_true(r.max_gap_ns >= 120000000 && r.max_gap_ns < 1000000000);
	assert_true(r.beat_b == 200 && r.beat_a == 150);
}

static int teardown(void **state)
{
	(void)state;
	shut_down();
	return 0;
}

#define CASE(f, accel) \
	{ #f "." #accel, f, NULL, teardown, (void *)&(accel) }

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(observer_tells_copies_from_running),
		CASE(runs_well, tcg),
		CASE(obeys_rate, tcg),
		CASE(finds_one_changed_bit, tcg),
		CASE(finds_a_zeroed_page, tcg),
		CASE(finds_swapped_pages, tcg),
		CASE(finds_a_stale_page, tcg),
		CASE(finds_a_torn_page, tcg),
		CASE(finds_page_and_table_stale, tcg),
		CASE(finds_all_ram_stale, tcg),
		CASE(stop_is_seen, tcg),
		CASE(runs_well, four_tcg),
		CASE(obeys_rate, four_tcg),
		CASE(finds_one_changed_bit_at_the_end, four_tcg),
		CASE(runs_well, four_kvm),
		CASE(runs_well, kvm),
		CASE(finds_a_stale_page, kvm),
		CASE(stop_is_seen, kvm),
	};
	int failed;

	if (argc != 2 || !vm_program()) {
		fprintf(stderr, "%s\n", argc != 2 ? "usage: test GUEST_ELF" :
			"SKIP: QEMU is not installed");
		return argc != 2 ? 2 : 77;
	}
	guest_elf = argv[1];
	if (tempdir_make(dir, sizeof(dir)))
		return 1;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	tempdir_remove(dir);
	return failed;
}
