/* SPDX-License-Identifier: Apache-2.0 */
/* The parser of /proc/PID/maps, and finding a file's mappings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "kvm-glue/maps.h"

#define DEV makedev(0, 0x1a)

static struct lm_maps maps;
static struct lm_maprun run;

static int parse(const char *text)
{
	lm_maps_fini(&maps);
	return lm_maps_parse(strdup(text), &maps);
}

static int teardown(void **state)
{
	(void)state;
	lm_maps_fini(&maps);
	return 0;
}

static void a_line_has_all_its_fields(void **state)
{
	struct lm_map m;
	char line[] = "7f0000000000-7f0000200000 rw-s 00001000 fd:1a 123456789012 /dev/shm/a guest (deleted)";

	(void)state;
	assert_true(lm_map_parse(line, &m));
	assert_true(m.start == 0x7f0000000000 && m.end == 0x7f0000200000);
	assert_int_equal(m.offset, 0x1000);
	assert_true(m.read && m.write && !m.exec && m.shared);
	assert_true(m.dev == makedev(0xfd, 0x1a));
	assert_true(m.ino == 123456789012);
	assert_string_equal(m.name, "/dev/shm/a guest (deleted)");
	assert_true(lm_map_name_is(&m, "/dev/shm/a guest"));
	assert_false(lm_map_name_is(&m, "/dev/shm/a"));
	assert_false(lm_map_name_is(&m, "/dev/shm/a guest2"));
}

static void a_mapping_without_a_file_has_no_name(void **state)
{
	struct lm_map m;
	char line[] = "7ffff7fc9000-7ffff7fcd000 r--p 00000000 00:00 0 ";

	(void)state;
	assert_true(lm_map_parse(line, &m));
	assert_string_equal(m.name, "");
	assert_false(m.shared);
	assert_int_equal(m.ino, 0);
}

static void what_is_no_line_is_refused(void **state)
{
	static const char *const bad[] = {
		"x", "7f00-7f00 rw-s 0 00:1a 7", "7f01-7f00 rw-s 0 00:1a 7", "7f00-7f01 rwxsp 0 00:1a 7",
		"7f00-7f01 rw 0 00:1a 7", "7f00-7f01 abcd 0 00:1a 7", "7f00-7f01 rw-s 0 00:1a", "7f00 7f01 rw-s 0 00:1a 7",
		"VmFlags: rd wr sh",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct lm_map m;
		char line[128];

		strcpy(line, bad[i]);
		assert_false(lm_map_parse(line, &m));
		assert_int_equal(parse(bad[i]), -EPROTO);
	}
}

static void an_empty_file_has_no_maps(void **state)
{
	(void)state;
	assert_int_equal(parse(""), 0);
	assert_int_equal(maps.n, 0);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0, 4096, &run), 0);
}

static void pieces_of_one_mapping_are_one(void **state)
{
	(void)state;
	assert_int_equal(parse("10000000-10200000 rw-s 00000000 00:1a 7 /ram\n"
			       "10200000-10400000 rw-s 00200000 00:1a 7 /ram\n"
			       "10400000-10500000 rw-s 00400000 00:1a 7 /ram\n"
			       "10500000-10600000 ---p 00000000 00:00 0 \n"), 0);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0, 0x500000, &run), 1);
	assert_int_equal(run.start, 0x10000000);
	assert_int_equal(run.size, 0x500000);
	assert_int_equal(run.offset, 0);
}

static void neighbours_that_do_not_continue_the_file_are_two(void **state)
{
	(void)state;
	/* the offset does not go on; the address does not; another file in between */
	assert_int_equal(parse("10000000-10200000 rw-s 00000000 00:1a 7 /ram\n"
			       "10200000-10400000 rw-s 00000000 00:1a 7 /ram\n"), 0);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0, 0x200000, &run), 2);
	assert_int_equal(parse("10000000-10200000 rw-s 00000000 00:1a 7 /ram\n"
			       "20200000-20400000 rw-s 00200000 00:1a 7 /ram\n"), 0);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0, 0x400000, &run), 2);
	assert_int_equal(parse("10000000-10200000 rw-s 00000000 00:1a 7 /ram\n"
			       "10200000-10400000 rw-s 00200000 00:1a 8 /other\n"
			       "10400000-10600000 rw-s 00400000 00:1a 7 /ram\n"), 0);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0, 0x600000, &run), 2);
}

static void other_files_private_and_read_only_mappings_do_not_count(void **state)
{
	(void)state;
	assert_int_equal(parse("10000000-10200000 rw-s 00000000 00:1b 7 /ram on another device\n"
			       "20000000-20200000 rw-s 00000000 00:1a 8 /another file\n"
			       "30000000-30200000 rw-p 00000000 00:1a 7 /ram\n"
			       "40000000-40200000 r--s 00000000 00:1a 7 /ram\n"), 0);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0, 0x200000, &run), 0);
}

static void two_backends_in_one_file_are_told_apart_by_their_offsets(void **state)
{
	(void)state;
	assert_int_equal(parse("10000000-10200000 rw-s 00000000 00:1a 7 /ram\n"
			       "20000000-20200000 rw-s 00200000 00:1a 7 /ram\n"), 0);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0x200000, 0x200000, &run), 1);
	assert_int_equal(run.start, 0x20000000);
	assert_int_equal(lm_maps_find(&maps, DEV, 7, 0, 0x200000, &run), 1);
	assert_int_equal(run.start, 0x10000000);
}

static void our_own_maps_are_understood(void **state)
{
	struct lm_error err = { 0 };
	size_t page = 4096;
	int fd = memfd_create("maps", MFD_CLOEXEC);
	struct stat st;
	uint8_t *p;

	(void)state;
	assert_int_equal(ftruncate(fd, (off_t)(8 * page)), 0);
	assert_int_equal(fstat(fd, &st), 0);
	p = mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_int_equal(madvise(p + 2 * page, 3 * page, MADV_DONTFORK), 0); /* splits it in three */
	assert_int_equal(lm_maps_read(getpid(), &maps, &err), 0);
	assert_int_equal(lm_maps_find(&maps, st.st_dev, st.st_ino, 0, 8 * page, &run), 1);
	assert_true(run.start == (uintptr_t)p && run.size == 8 * page);
	munmap(p, 8 * page);
	close(fd);
	assert_int_equal(lm_maps_read(0x3ffffe, &maps, &err), -ESRCH);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(a_line_has_all_its_fields),
		T(a_mapping_without_a_file_has_no_name),
		T(what_is_no_line_is_refused),
		T(an_empty_file_has_no_maps),
		T(pieces_of_one_mapping_are_one),
		T(neighbours_that_do_not_continue_the_file_are_two),
		T(other_files_private_and_read_only_mappings_do_not_count),
		T(two_backends_in_one_file_are_told_apart_by_their_offsets),
		T(our_own_maps_are_understood),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
