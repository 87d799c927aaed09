/* SPDX-License-Identifier: Apache-2.0 */
/* Images: what was written is read, and nothing that is not whole is believed. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "unit.h"
#include "engine/image/image.h"

#define PAGES0 1000 /* the last chunk is not a whole one */
#define PAGES1 128
#define STATE_BYTES 10000

static struct lm_error err;
static char dir[] = "/tmp/migrate-rdma-unit-XXXXXX", path[128], saving[160];
static struct lm_region regions[2] = {
	{ .name = "ram0", .size = PAGES0 * LM_PAGE_SIZE, .page_size = LM_PAGE_SIZE },
	{ .name = "ram1", .size = PAGES1 * LM_PAGE_SIZE, .page_size = LM_PAGE_SIZE },
};
static struct lm_region other_regions[2];
static struct lm_ram ram = { .regions = regions, .nregions = 2 }, other = { .regions = other_regions, .nregions = 2 };
static struct lm_bitmap existing[2];
static uint8_t device_state[STATE_BYTES];
static const struct lm_image_head about = {
	.running = true, .nlocks = 1, .host = "node", .info = { .machine = "pc-q35-7.2", .vmm = "qemu", .vcpus = 2 },
	.guest_name = "vm", .guest_uuid = "uuid",
};
static const struct lm_image_lock lock = { .uri = "lease:/x", .id = { 7 }, .epoch = 42 };

static void make_region(struct lm_region *r, bool fill, uint64_t seed)
{
	r->fd = memfd_create("ram", MFD_CLOEXEC);
	assert_return_code(ftruncate(r->fd, (off_t)r->size), errno);
	r->host = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_true(r->host != MAP_FAILED);
	/* A third of the pages has content, some are there and zero, the rest are holes. */
	for (uint64_t i = 0; fill && i < lm_region_npages(r); i++) {
		uint64_t x = unit_random(&seed) % 6;

		if (x < 2)
			memset(r->host + i * LM_PAGE_SIZE + x * 100, (int)(i % 255 + 1), 64);
		else if (x == 2)
			memset(r->host + i * LM_PAGE_SIZE, 0, 64);
	}
}

static int make(void **state)
{
	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/image", dir);
	snprintf(saving, sizeof(saving), "%s.saving", path);
	for (unsigned i = 0; i < 2; i++) {
		other_regions[i] = regions[i];
		make_region(&regions[i], true, 1 + i);
		make_region(&other_regions[i], false, 0);
		assert_int_equal(lm_bitmap_init(&existing[i], lm_region_npages(&regions[i])), 0);
		assert_ok(lm_region_existing(&regions[i], 0, existing[i].nbits, &existing[i], &err), err);
	}
	for (unsigned i = 0; i < STATE_BYTES; i++)
		device_state[i] = (uint8_t)(i * 7);
	return 0;
}

static int unmake(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		munmap(regions[i].host, regions[i].size);
		munmap(other_regions[i].host, other_regions[i].size);
		close(regions[i].fd);
		close(other_regions[i].fd);
		lm_bitmap_fini(&existing[i]);
	}
	unlink(path);
	unlink(saving);
	return rmdir(dir);
}

static int write_ram(struct lm_image_writer *w)
{
	uint64_t bytes, total = 0;
	int r = 0;

	for (unsigned i = 0; i < 2; i++) {
		uint64_t n = lm_image_chunks_of(regions[i].size);

		for (uint64_t c = 0; !r && c < n; c += LM_IMAGE_GROUP) {
			r = lm_image_write_chunks(w, i, c, n - c < LM_IMAGE_GROUP ? (unsigned)(n - c) : LM_IMAGE_GROUP,
						  existing[i].words + c, &bytes, &err);
			total += bytes;
		}
	}
	if (!r)
		assert_int_equal(total, atomic_load(&w->stored_pages) * LM_PAGE_SIZE);
	return r;
}

static int finish(struct lm_image_writer *w)
{
	struct lm_image_head head = about;

	return lm_image_finish(w, &head, &lock, device_state, STATE_BYTES, LM_IMAGE_FRESH, &err);
}

static void save(void)
{
	struct lm_image_writer w;

	assert_ok(lm_image_create(&w, path, &ram, &err), err);
	lm_image_reserve(&w, PAGES0 + PAGES1);
	assert_ok(write_ram(&w), err);
	assert_ok(finish(&w), err);
	assert_ok(lm_image_sync(&w, &err), err);
	assert_ok(lm_image_rename(&w, &err), err);
	assert_ok(lm_image_sync_dir(&w, &err), err);
	lm_image_writer_close(&w);
	assert_int_equal(access(saving, F_OK), -1);
}

static int load(const struct lm_image *img)
{
	int r = 0;

	for (unsigned i = 0; i < 2; i++) {
		uint64_t n = lm_image_chunks_of(regions[i].size);

		memset(other_regions[i].host, 0, other_regions[i].size);
		for (uint64_t c = 0; !r && c < n; c += LM_IMAGE_GROUP)
			r = lm_image_read_chunks(img, &other, i, c, n - c < LM_IMAGE_GROUP ? (unsigned)(n - c) : LM_IMAGE_GROUP,
						 &err);
	}
	return r;
}

static void what_was_written_is_read(void **state)
{
	uint8_t *buf = aligned_alloc(LM_IMAGE_BLOCK, LM_IMAGE_CHUNK_BYTES), *device;
	struct lm_image img;
	struct stat st;

	(void)state;
	save();
	assert_ok(lm_image_open(&img, path, false, &err), err);
	assert_int_equal(img.mark, LM_IMAGE_FRESH);
	assert_string_equal(img.head.info.machine, "pc-q35-7.2");
	assert_string_equal(img.head.guest_name, "vm");
	assert_true(img.head.running);
	assert_string_equal(img.locks[0].uri, "lease:/x");
	assert_int_equal(img.locks[0].epoch, 42);
	assert_int_equal(img.locks[0].id[0], 7);
	assert_ok(lm_image_check_vm(&img, &about.info, &ram, &err), err);
	assert_ok(load(&img), err);
	for (unsigned i = 0; i < 2; i++)
		assert_memory_equal(regions[i].host, other_regions[i].host, regions[i].size);
	assert_ok(lm_image_read_chunk(&img, 0, 15, buf, &err), err);
	assert_memory_equal(buf, regions[0].host + 15 * LM_IMAGE_CHUNK_BYTES, regions[0].size - 15 * LM_IMAGE_CHUNK_BYTES);
	assert_ok(lm_image_read_state(&img, &device, &err), err);
	assert_memory_equal(device, device_state, STATE_BYTES);
	/* Zeros are not in it: a third of the pages, and a little. */
	assert_return_code(stat(path, &st), errno);
	assert_true((uint64_t)st.st_size < (PAGES0 + PAGES1) * LM_PAGE_SIZE / 2);
	free(device);
	free(buf);
	lm_image_close(&img);
}

static void a_mark_is_kept_and_belongs_to_one(void **state)
{
	static const uint8_t mine[LM_IMAGE_ID_SIZE] = { 1 }, yours[LM_IMAGE_ID_SIZE] = { 2 };
	struct lm_image img, second;

	(void)state;
	save();
	assert_ok(lm_image_open(&img, path, true, &err), err);
	assert_fails(lm_image_open(&second, path, true, &err), -EBUSY, err);
	assert_false(lm_image_marked_by(path, mine));
	assert_ok(lm_image_set_mark(&img, LM_IMAGE_USED, mine, &err), err);
	assert_true(lm_image_marked_by(path, mine));
	assert_false(lm_image_marked_by(path, yours));
	assert_true(lm_image_is(path, img.head.id));
	lm_image_close(&img);
	assert_ok(lm_image_open(&img, path, true, &err), err);
	assert_int_equal(img.mark, LM_IMAGE_USED);
	assert_int_equal(img.uses, 1);
	lm_image_close(&img);
}

static void flip(uint64_t offset, int by)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t b;

	assert_int_equal(pread(fd, &b, 1, (off_t)offset), 1);
	b ^= (uint8_t)by;
	assert_int_equal(pwrite(fd, &b, 1, (off_t)offset), 1);
	close(fd);
}

/* Every byte that means something: of head, mark, index, state and last block. */
static void a_changed_byte_is_found(void **state)
{
	struct lm_image img;
	struct lm_image_head h;

	(void)state;
	save();
	assert_ok(lm_image_open(&img, path, false, &err), err);
	h = img.head;
	lm_image_close(&img);
	for (uint64_t i = 0; i < sizeof(struct lm_image_wire_head); i++) {
		flip(i, 1);
		assert_true(lm_image_open(&img, path, false, &err) < 0);
		flip(i, 1);
	}
	for (uint64_t i = 0; i < sizeof(struct lm_image_wire_mark); i += 3) {
		flip(LM_IMAGE_BLOCK + i, 4);
		assert_fails(lm_image_open(&img, path, false, &err), -EUCLEAN, err);
		flip(LM_IMAGE_BLOCK + i, 4);
	}
	for (uint64_t i = 0; i < h.index_bytes; i += 97) {
		flip(h.index_offset + i, 1);
		assert_fails(lm_image_open(&img, path, false, &err), -EUCLEAN, err);
		flip(h.index_offset + i, 1);
	}
	flip(h.file_size - LM_IMAGE_BLOCK + 10, 1);
	assert_fails(lm_image_open(&img, path, false, &err), -EUCLEAN, err);
	flip(h.file_size - LM_IMAGE_BLOCK + 10, 1);
	flip(h.state_offset + 77, 1);
	assert_ok(lm_image_open(&img, path, false, &err), err);
	assert_fails(lm_image_read_state(&img, &(uint8_t *){ NULL }, &err), -EUCLEAN, err);
	lm_image_close(&img);
}

static void a_changed_page_is_found(void **state)
{
	uint8_t *buf = aligned_alloc(LM_IMAGE_BLOCK, LM_IMAGE_CHUNK_BYTES);
	struct lm_image img;
	uint64_t at;

	(void)state;
	save();
	assert_ok(lm_image_open(&img, path, false, &err), err);
	at = lm_le64_get(img.chunks[3].offset);
	flip(at + 4095, 0x80);
	assert_fails(load(&img), -EBADMSG, err);
	assert_fails(lm_image_read_chunk(&img, 0, 3, buf, &err), -EBADMSG, err);
	assert_ok(lm_image_read_chunk(&img, 0, 4, buf, &err), err);
	lm_image_close(&img);
	free(buf);
}

static void what_was_cut_is_refused(void **state)
{
	struct lm_image img;
	struct stat st;

	(void)state;
	save();
	assert_return_code(stat(path, &st), errno);
	for (off_t size = st.st_size - 1; size >= 0; size -= size > 20000 ? 19997 : 499) {
		assert_return_code(truncate(path, size), errno);
		assert_true(lm_image_open(&img, path, false, &err) < 0 && err.msg[0]);
	}
}

static void another_format_is_said_to_be_one(void **state)
{
	struct lm_image_wire_head w;
	struct lm_image_head h = about;

	(void)state;
	lm_image_put_head(&h, &w);
	w.version = w.compat = lm_le32(9);
	assert_fails(lm_image_get_head(&w, &h, &err), -EPROTONOSUPPORT, err);
	assert_non_null(strstr(err.msg, "format 9"));
	w.magic[0] = 'X';
	assert_fails(lm_image_get_head(&w, &h, &err), -EMEDIUMTYPE, err);
}

static void another_guest_is_refused(void **state)
{
	struct lm_vm_info info = about.info;
	struct lm_image img;

	(void)state;
	save();
	assert_ok(lm_image_open(&img, path, false, &err), err);
	info.vcpus = 3;
	assert_fails(lm_image_check_vm(&img, &info, &ram, &err), -EINVAL, err);
	info = about.info;
	strcpy(info.machine, "pc");
	assert_fails(lm_image_check_vm(&img, &info, &ram, &err), -EINVAL, err);
	ram.nregions = 1;
	assert_fails(lm_image_check_vm(&img, &about.info, &ram, &err), -EINVAL, err);
	ram.nregions = 2;
	regions[1].size += LM_PAGE_SIZE;
	assert_fails(lm_image_check_vm(&img, &about.info, &ram, &err), -EINVAL, err);
	regions[1].size -= LM_PAGE_SIZE;
	lm_image_close(&img);
}

static void without_room_the_old_image_stays(void **state)
{
	struct rlimit old, small;
	struct lm_image_writer w;
	struct lm_image img;
	int r;

	(void)state;
	save();
	assert_return_code(getrlimit(RLIMIT_FSIZE, &old), errno);
	small = old;
	small.rlim_cur = 100 * LM_PAGE_SIZE;
	assert_ok(lm_image_create(&w, path, &ram, &err), err);
	assert_return_code(setrlimit(RLIMIT_FSIZE, &small), errno);
	r = write_ram(&w);
	assert_return_code(setrlimit(RLIMIT_FSIZE, &old), errno);
	assert_int_equal(r, -EFBIG);
	assert_ok(lm_image_abandon(&w, &err), err);
	lm_image_writer_close(&w);
	assert_int_equal(access(saving, F_OK), -1);
	assert_ok(lm_image_open(&img, path, false, &err), err);
	lm_image_close(&img);
}

static void two_saves_do_not_mix(void **state)
{
	struct lm_image_writer a, b;

	(void)state;
	assert_ok(lm_image_create(&a, path, &ram, &err), err);
	assert_fails(lm_image_create(&b, path, &ram, &err), -EBUSY, err);
	assert_ok(lm_image_abandon(&b, &err), err);
	lm_image_writer_close(&b);
	assert_int_equal(access(saving, F_OK), 0); /* it is a's */
	/* The one that was killed has left this. */
	lm_image_writer_close(&a);
	assert_ok(lm_image_create(&b, path, &ram, &err), err);
	assert_ok(lm_image_abandon(&b, &err), err);
	lm_image_writer_close(&b);
}

static void what_was_given_up_late_never_runs(void **state)
{
	struct lm_image_writer w;
	struct lm_image img;

	(void)state;
	assert_ok(lm_image_create(&w, path, &ram, &err), err);
	assert_ok(write_ram(&w), err);
	assert_ok(finish(&w), err);
	assert_ok(lm_image_rename(&w, &err), err);
	assert_ok(lm_image_abandon(&w, &err), err);
	lm_image_writer_close(&w);
	assert_ok(lm_image_open(&img, path, false, &err), err);
	assert_int_equal(img.mark, LM_IMAGE_VOID);
	lm_image_close(&img);
}

static void runs_of_a_mask(void **state)
{
	unsigned at = 0, first, n;

	(void)state;
	assert_true(lm_image_mask_run(UINT64_MAX, &at, &first, &n));
	assert_true(first == 0 && n == 64);
	assert_false(lm_image_mask_run(UINT64_MAX, &at, &first, &n));
	at = 0;
	assert_true(lm_image_mask_run(UINT64_C(0x8000000000000006), &at, &first, &n));
	assert_true(first == 1 && n == 2);
	assert_true(lm_image_mask_run(UINT64_C(0x8000000000000006), &at, &first, &n));
	assert_true(first == 63 && n == 1);
	assert_false(lm_image_mask_run(UINT64_C(0x8000000000000006), &at, &first, &n));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(runs_of_a_mask),
		cmocka_unit_test(what_was_written_is_read),
		cmocka_unit_test(a_mark_is_kept_and_belongs_to_one),
		cmocka_unit_test(a_changed_byte_is_found),
		cmocka_unit_test(a_changed_page_is_found),
		cmocka_unit_test(what_was_cut_is_refused),
		cmocka_unit_test(another_format_is_said_to_be_one),
		cmocka_unit_test(another_guest_is_refused),
		cmocka_unit_test(without_room_the_old_image_stays),
		cmocka_unit_test(two_saves_do_not_mix),
		cmocka_unit_test(what_was_given_up_late_never_runs),
	};

	return cmocka_run_group_tests(tests, make, unmake);
}
