/* SPDX-License-Identifier: Apache-2.0 */
/* Regions and their holes, on memfds. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "unit.h"
#include "engine/base/pageset.h"

#define HUGE (UINT64_C(2) << 20)

static struct lm_ram ram_new(uint64_t size, uint64_t file_offset, unsigned memfd_flags)
{
	struct lm_ram ram = { .nregions = 1, .regions = calloc(1, sizeof(*ram.regions)) };
	struct lm_region *r = &ram.regions[0];

	strcpy(r->name, "ram0");
	r->size = size;
	r->page_size = memfd_flags & MFD_HUGETLB ? HUGE : LM_PAGE_SIZE;
	r->file_offset = file_offset;
	r->fd = memfd_create("region", MFD_CLOEXEC | memfd_flags);
	assert_true(r->fd >= 0);
	assert_int_equal(ftruncate(r->fd, (off_t)(size + file_offset)), 0);
	return ram;
}

static uint64_t blocks(const struct lm_region *r)
{
	struct stat st;

	assert_int_equal(fstat(r->fd, &st), 0);
	return (uint64_t)st.st_blocks;
}

static void write_at(const struct lm_region *r, uint64_t page)
{
	assert_int_equal(pwrite(r->fd, "x", 1, (off_t)(r->file_offset + page * LM_PAGE_SIZE + 17)), 1);
}

static void assert_existing(const struct lm_region *r, uint64_t first, uint64_t n, const uint64_t *want,
			    unsigned nwant)
{
	struct lm_error err = { 0 };
	struct lm_bitmap b;
	uint64_t before = blocks(r);

	lm_bitmap_init(&b, lm_region_npages(r));
	assert_ok(lm_region_existing(r, first, n, &b, &err), err);
	for (unsigned i = 0; i < nwant; i++)
		if (!lm_bitmap_test(&b, want[i]))
			fail_msg("page %llu was not found", (unsigned long long)want[i]);
	assert_int_equal(lm_bitmap_count(&b), nwant);
	assert_int_equal(blocks(r), before);
	lm_bitmap_fini(&b);
}

static void a_file_without_data_has_no_pages(void **state)
{
	struct lm_ram ram = ram_new(64 * LM_PAGE_SIZE, 0, 0);

	(void)state;
	assert_existing(&ram.regions[0], 0, 64, NULL, 0);
	assert_int_equal(blocks(&ram.regions[0]), 0);
	lm_ram_fini(&ram);
}

static void pages_with_data_are_found_and_nothing_is_allocated(void **state)
{
	static const uint64_t pages[] = { 0, 1, 2, 63, 64, 200, 255 };
	struct lm_ram ram = ram_new(256 * LM_PAGE_SIZE, 0, 0);

	(void)state;
	for (unsigned i = 0; i < 7; i++)
		write_at(&ram.regions[0], pages[i]);
	assert_existing(&ram.regions[0], 0, 256, pages, 7);
	lm_ram_fini(&ram);
}

static void a_part_of_a_region_is_looked_at_alone(void **state)
{
	static const uint64_t inside[] = { 10, 19 };
	struct lm_ram ram = ram_new(64 * LM_PAGE_SIZE, 0, 0);

	(void)state;
	for (uint64_t i = 9; i < 12; i += 2)
		write_at(&ram.regions[0], i);
	write_at(&ram.regions[0], 10);
	write_at(&ram.regions[0], 19);
	write_at(&ram.regions[0], 20);
	assert_existing(&ram.regions[0], 10, 1, inside, 1);
	assert_existing(&ram.regions[0], 12, 7, NULL, 0);
	assert_existing(&ram.regions[0], 19, 1, &inside[1], 1);
	assert_existing(&ram.regions[0], 5, 0, NULL, 0);
	lm_ram_fini(&ram);
}

static void a_region_inside_a_file_counts_from_its_own_start(void **state)
{
	static const uint64_t pages[] = { 0, 31 };
	struct lm_ram ram = ram_new(32 * LM_PAGE_SIZE, 3 * LM_PAGE_SIZE, 0);
	struct lm_region *r = &ram.regions[0];

	(void)state;
	/* Data before and after the region is not the region's. */
	assert_int_equal(ftruncate(r->fd, 100 * (off_t)LM_PAGE_SIZE), 0);
	assert_int_equal(pwrite(r->fd, "a", 1, 0), 1);
	assert_int_equal(pwrite(r->fd, "b", 1, 50 * (off_t)LM_PAGE_SIZE), 1);
	write_at(r, 0);
	write_at(r, 31);
	assert_existing(r, 0, 32, pages, 2);
	lm_ram_fini(&ram);
}

static void a_punched_page_is_a_hole_again(void **state)
{
	static const uint64_t left[] = { 4, 6 };
	struct lm_ram ram = ram_new(16 * LM_PAGE_SIZE, 0, 0);

	(void)state;
	for (uint64_t i = 4; i < 7; i++)
		write_at(&ram.regions[0], i);
	assert_int_equal(fallocate(ram.regions[0].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   5 * (off_t)LM_PAGE_SIZE, (off_t)LM_PAGE_SIZE), 0);
	assert_existing(&ram.regions[0], 0, 16, left, 2);
	lm_ram_fini(&ram);
}

static void a_descriptor_that_cannot_seek_is_an_error(void **state)
{
	struct lm_region r = { .name = "pipe", .size = LM_PAGE_SIZE, .page_size = LM_PAGE_SIZE };
	struct lm_error err = { 0 };
	struct lm_bitmap b;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	r.fd = fds[0];
	lm_bitmap_init(&b, 1);
	assert_fails(lm_region_existing(&r, 0, 1, &b, &err), -ESPIPE, err);
	lm_bitmap_fini(&b);
	close(fds[0]);
	close(fds[1]);
}

static void a_mapping_shows_the_file_from_its_offset(void **state)
{
	struct lm_ram ram = ram_new(8 * LM_PAGE_SIZE, 2 * LM_PAGE_SIZE, 0);
	struct lm_error err = { 0 };

	(void)state;
	write_at(&ram.regions[0], 5);
	assert_ok(lm_ram_map(&ram, true, &err), err);
	assert_int_equal(ram.regions[0].host[5 * LM_PAGE_SIZE + 17], 'x');
	ram.regions[0].host[0] = 'y';
	char c = 0;
	assert_int_equal(pread(ram.regions[0].fd, &c, 1, 2 * (off_t)LM_PAGE_SIZE), 1);
	assert_int_equal(c, 'y');
	assert_int_equal(lm_ram_size(&ram), 8 * LM_PAGE_SIZE);
	lm_ram_fini(&ram);
}

static void a_file_that_cannot_be_mapped_is_named(void **state)
{
	struct lm_ram ram = ram_new(LM_PAGE_SIZE, 0, 0);
	struct lm_error err = { 0 };

	(void)state;
	close(ram.regions[0].fd);
	ram.regions[0].fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_fails(lm_ram_map(&ram, true, &err), -EACCES, err);
	assert_non_null(strstr(err.msg, "ram0"));
	lm_ram_fini(&ram);
}

/* ---- zeros ---- */

static uint64_t bit(unsigned i)
{
	return UINT64_C(1) << i;
}

static void zeros_are_found_and_no_hole_is_filled(void **state)
{
	struct lm_ram ram = ram_new(128 * LM_PAGE_SIZE, 3 * LM_PAGE_SIZE, 0);
	struct lm_region *r = &ram.regions[0];
	struct lm_error err = { 0 };
	uint64_t before;

	(void)state;
	assert_ok(lm_ram_map(&ram, true, &err), err);
	memset(r->host + 30 * LM_PAGE_SIZE, 0, 2 * LM_PAGE_SIZE); /* there, and zero */
	r->host[31 * LM_PAGE_SIZE - 1] = 1;
	write_at(r, 35); /* there, and not mapped */
	write_at(r, 93);
	before = blocks(r);
	assert_true(lm_region_zeros(r, 30 * LM_PAGE_SIZE, 64) == ~(bit(0) | bit(5) | bit(63)));
	assert_true(lm_region_zeros(r, 31 * LM_PAGE_SIZE, 1) == 1);
	assert_true(lm_region_zeros(r, 93 * LM_PAGE_SIZE, 1) == 0);
	assert_true(lm_region_zeros(r, 94 * LM_PAGE_SIZE, 34) == bit(34) - 1);
	assert_int_equal(blocks(r), before);
	lm_ram_fini(&ram);
}

static void zeros_of_huge_pages_are_found_and_no_hole_is_filled(void **state)
{
	struct lm_ram ram = ram_new(2 * HUGE, 0, MFD_HUGETLB);
	struct lm_region *r = &ram.regions[0];
	struct lm_error err = { 0 };
	uint8_t *page;

	(void)state;
	page = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (page == MAP_FAILED) {
		lm_ram_fini(&ram);
		print_message("skipped: no huge pages to be had (vm.nr_hugepages)\n");
		skip();
	}
	page[LM_PAGE_SIZE * 3 + 5] = 1; /* by another mapping: ours has not seen it */
	munmap(page, HUGE);
	assert_ok(lm_ram_map(&ram, false, &err), err);
	assert_true(lm_region_zeros(r, 0, 64) == ~bit(3));
	assert_true(lm_region_zeros(r, HUGE, 64) == UINT64_MAX);
	assert_int_equal(blocks(r), HUGE / 512);
	lm_ram_fini(&ram);
}

static void other_memory_is_not_the_same(void **state)
{
	struct lm_region a = { .name = "x", .size = 1 << 20, .page_size = 4096, .vm_addr = 1, .dev = 2, .ino = 3 };
	struct lm_region b = a;
	struct lm_ram ra = { .regions = &a, .nregions = 1 }, rb = { .regions = &b, .nregions = 1 };

	(void)state;
	assert_true(lm_ram_same(&ra, &rb));
#define differs(field, value)                        \
	do {                                         \
		b = a;                               \
		b.field = value;                     \
		assert_false(lm_ram_same(&ra, &rb)); \
	} while (0)
	differs(name[0], 'y');
	differs(size, 2 << 20);
	differs(page_size, 2 << 20);
	differs(vm_addr, 9);
	differs(dev, 9);
	differs(ino, 9);
	differs(file_offset, 4096);
#undef differs
	b = a;
	rb.nregions = 0;
	assert_false(lm_ram_same(&ra, &rb));
}

static void a_zeroed_ram_can_be_finished(void **state)
{
	struct lm_ram ram = { 0 };
	struct lm_pageset set = { 0 };

	(void)state;
	lm_ram_fini(&ram);
	lm_pageset_fini(&set);
}

static void a_page_set_counts_over_all_regions(void **state)
{
	struct lm_region regions[2] = { { .size = 65 * LM_PAGE_SIZE }, { .size = LM_PAGE_SIZE } };
	struct lm_ram ram = { .regions = regions, .nregions = 2 };
	struct lm_pageset a, b;

	(void)state;
	assert_int_equal(lm_pageset_init(&a, &ram), 0);
	assert_int_equal(lm_pageset_init(&b, &ram), 0);
	lm_bitmap_set(&a.maps[0], 64);
	lm_bitmap_set(&b.maps[1], 0);
	lm_pageset_or(&a, &b);
	assert_int_equal(lm_pageset_count(&a), 2);
	lm_pageset_clear_all(&a);
	assert_int_equal(lm_pageset_count(&a), 0);
	assert_int_equal(lm_pageset_count(&b), 1);
	lm_pageset_fini(&a);
	lm_pageset_fini(&b);
}

/* Needs two free huge pages. */
static void untouched_huge_pages_are_holes(void **state)
{
	struct lm_error err = { 0 };
	struct lm_bitmap b;
	struct lm_ram ram;
	int fd = memfd_create("probe", MFD_CLOEXEC | MFD_HUGETLB);
	void *p = MAP_FAILED;

	(void)state;
	if (fd >= 0 && !ftruncate(fd, (off_t)(4 * HUGE)))
		p = mmap(NULL, 4 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED) {
		print_message("skipped: no four free huge pages (/proc/sys/vm/nr_hugepages)\n");
		skip();
	}
	munmap(p, 4 * HUGE);
	ram = ram_new(4 * HUGE, 0, MFD_HUGETLB);
	assert_ok(lm_ram_map(&ram, true, &err), err);
	ram.regions[0].host[HUGE] = 1;
	lm_bitmap_init(&b, 4 * 512);
	assert_ok(lm_region_existing(&ram.regions[0], 0, b.nbits, &b, &err), err);
	assert_int_equal(lm_bitmap_count_range(&b, 512, 512), 512);
	assert_int_equal(lm_bitmap_count(&b), 512);
	assert_int_equal(blocks(&ram.regions[0]), HUGE / 512);
	lm_bitmap_fini(&b);
	lm_ram_fini(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_file_without_data_has_no_pages),
		cmocka_unit_test(pages_with_data_are_found_and_nothing_is_allocated),
		cmocka_unit_test(a_part_of_a_region_is_looked_at_alone),
		cmocka_unit_test(a_region_inside_a_file_counts_from_its_own_start),
		cmocka_unit_test(a_punched_page_is_a_hole_again),
		cmocka_unit_test(a_descriptor_that_cannot_seek_is_an_error),
		cmocka_unit_test(a_mapping_shows_the_file_from_its_offset),
		cmocka_unit_test(a_file_that_cannot_be_mapped_is_named),
		cmocka_unit_test(zeros_are_found_and_no_hole_is_filled),
		cmocka_unit_test(zeros_of_huge_pages_are_found_and_no_hole_is_filled),
		cmocka_unit_test(other_memory_is_not_the_same),
		cmocka_unit_test(a_zeroed_ram_can_be_finished),
		cmocka_unit_test(a_page_set_counts_over_all_regions),
		cmocka_unit_test(untouched_huge_pages_are_holes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
