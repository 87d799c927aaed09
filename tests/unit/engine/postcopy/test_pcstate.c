/* SPDX-License-Identifier: Apache-2.0 */
/* The file that outlives an engine: who may open it, what is believed of it, and that its bits survive. */
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "unit.h"
#include "engine/postcopy/state.h"

static struct lm_error err;
static char runtime[] = "/tmp/migrate-rdma-unit-XXXXXX";
static struct lm_region regions[2] = {
	{ .name = "ram0", .size = 1000 * LM_PAGE_SIZE, .page_size = LM_PAGE_SIZE, .vm_addr = 0x10000, .fd = -1 },
	{ .name = "ram1", .size = 4u << 20, .page_size = 2u << 20, .vm_addr = 0x7000000, .file_offset = 4096, .fd = -1 },
};
static const struct lm_ram ram = { .regions = regions, .nregions = 2 };

static int32_t me(void)
{
	return (int32_t)getpid();
}

static void create(struct lm_pcstate *st, enum lm_side side)
{
	assert_ok(lm_pcstate_create(st, side, me(), &ram, &err), err);
	st->head->nlanes = 2;
}

/* A state of this process as its VM, closed again. */
static void leave_behind(enum lm_side side, char path[static 128])
{
	struct lm_pcstate st;

	create(&st, side);
	memcpy(path, st.path, 128);
	lm_pcstate_close(&st);
}

static int try_open(enum lm_side side)
{
	struct lm_pcstate st;
	int r;

	lm_err_clear(&err);
	r = lm_pcstate_open(&st, side, me(), &err);
	lm_pcstate_close(&st);
	assert_int_equal(r, err.code);
	assert_true(!r || err.msg[0]);
	return r;
}

static void what_was_written_is_found(void **state)
{
	struct lm_pcstate st;
	struct lm_ram found;

	(void)state;
	create(&st, LM_DEST);
	assert_int_equal(lm_bitmap_count(&st.whole[0]), 1000);
	assert_int_equal(lm_bitmap_count(&st.whole[1]), 1024);
	lm_bitmap_clear_range(&st.whole[0], 999, 1);
	lm_bitmap_clear_range(&st.whole[1], 0, 512);
	memcpy(st.head->secret, "0123456789abcdef", LM_TOKEN_SIZE);
	lm_pcstate_close(&st);
	assert_ok(lm_pcstate_open(&st, LM_DEST, me(), &err), err);
	assert_int_equal(lm_bitmap_count(&st.whole[0]), 999);
	assert_int_equal(lm_bitmap_count(&st.whole[1]), 512);
	assert_memory_equal(st.head->secret, "0123456789abcdef", LM_TOKEN_SIZE);
	assert_ok(lm_pcstate_ram(&st, &found, &err), err);
	assert_int_equal(found.nregions, 2);
	assert_string_equal(found.regions[1].name, "ram1");
	assert_int_equal(found.regions[1].vm_addr, 0x7000000);
	assert_int_equal(found.regions[1].file_offset, 4096);
	assert_int_equal(found.regions[1].page_size, 2u << 20);
	assert_int_equal(found.regions[1].fd, -1);
	lm_ram_fini(&found);
	lm_pcstate_remove(&st);
	assert_int_equal(try_open(LM_DEST), -ENOENT);
}

static void the_sides_have_files_of_their_own(void **state)
{
	struct lm_pcstate a, b;

	(void)state;
	create(&a, LM_SOURCE);
	create(&b, LM_DEST);
	assert_string_not_equal(a.path, b.path);
	lm_pcstate_remove(&b);
	assert_int_equal(try_open(LM_DEST), -ENOENT);
	lm_pcstate_close(&a);
	assert_int_equal(try_open(LM_SOURCE), 0);
	assert_ok(lm_pcstate_open(&a, LM_SOURCE, me(), &err), err);
	assert_int_equal(a.size, (sizeof(*a.head) + LM_PAGE_SIZE - 1) / LM_PAGE_SIZE * LM_PAGE_SIZE);
	assert_null(a.whole[0].words);
	lm_pcstate_remove(&a);
}

static void a_zeroed_one_can_be_closed_and_removed(void **state)
{
	struct lm_pcstate st = { 0 };

	(void)state;
	lm_pcstate_close(&st);
	lm_pcstate_remove(&st);
	assert_int_equal(fcntl(0, F_GETFD), fcntl(0, F_GETFD)); /* descriptor 0 is not taken for its own */
	assert_true(fcntl(0, F_GETFD) >= 0);
}

static void one_that_is_left_over_is_made_anew(void **state)
{
	struct lm_pcstate st;
	char path[128];

	(void)state;
	create(&st, LM_DEST);
	memcpy(path, st.path, sizeof(path));
	lm_bitmap_clear_range(&st.whole[0], 0, 1000);
	lm_pcstate_close(&st);
	assert_int_equal(truncate(path, 3u << 20), 0); /* and it was longer */
	create(&st, LM_DEST);
	assert_int_equal(lm_bitmap_count(&st.whole[0]), 1000);
	lm_pcstate_close(&st);
	assert_int_equal(try_open(LM_DEST), 0);
	unlink(path);
}

/* ---- what is not believed ---- */

struct head_patch {
	size_t offset, len;
	const void *value;
	int want;
};

#define FIELD(name) offsetof(struct lm_pcstate_head, name), sizeof(((struct lm_pcstate_head *)0)->name)

static void a_head_that_cannot_be_right_is_refused(void **state)
{
	static const uint64_t zero, one = 1, big = UINT64_MAX, odd = 4097, past = 1u << 20, huge = UINT64_C(1) << 62,
				    inside_head = 8, half_page = 2048, too_many = LM_REGIONS_MAX + 1, lanes = LM_LANES_MAX;
	static const struct head_patch patches[] = {
		{ FIELD(magic), "LMPOSTD", -EBADMSG },
		{ FIELD(version), &too_many, -EBADMSG },
		{ FIELD(version), &zero, -EBADMSG },
		{ FIELD(head_size), &one, -EBADMSG },
		{ FIELD(side), &zero, -EBADMSG },
		{ FIELD(vm_pid), &one, -EBADMSG },
		{ FIELD(vm_start), &one, -ESRCH },  /* the pid is used again */
		{ FIELD(vm_start), &zero, -ESRCH },
		{ FIELD(nregions), &zero, -EBADMSG },
		{ FIELD(nregions), &one, -EBADMSG },
		{ FIELD(nregions), &too_many, -EBADMSG },
		{ FIELD(nregions), &big, -EBADMSG },
		{ FIELD(nlanes), &zero, -EBADMSG },
		{ FIELD(nlanes), &lanes, -EBADMSG },
		{ FIELD(regions[0].size), &zero, -EBADMSG },
		{ FIELD(regions[0].size), &huge, -EBADMSG },
		{ FIELD(regions[0].size), &big, -EBADMSG },
		{ FIELD(regions[0].page_size), &zero, -EBADMSG },
		{ FIELD(regions[0].page_size), &half_page, -EBADMSG },
		{ FIELD(regions[0].page_size), &odd, -EBADMSG },
		{ FIELD(regions[0].bitmap), &odd, -EBADMSG },
		{ FIELD(regions[0].bitmap), &past, -EBADMSG },
		{ FIELD(regions[0].bitmap), &zero, -EBADMSG },
		{ FIELD(regions[0].bitmap), &inside_head, -EBADMSG },
		{ FIELD(regions[1].bitmap), &big, -EBADMSG },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(patches) / sizeof(patches[0]); i++) {
		const struct head_patch *p = &patches[i];
		char path[128];
		int fd, r;

		leave_behind(LM_DEST, path);
		fd = open(path, O_RDWR);
		assert_int_equal(pwrite(fd, p->value, p->len, (off_t)p->offset), p->len);
		close(fd);
		r = try_open(LM_DEST);
		if (r != p->want)
			fail_msg("patch %u at %zu: %d", i, p->offset, r);
		unlink(path);
	}
}

/* The last words of a bitmap, moved behind the end of the file. */
static void a_bitmap_that_ends_outside_of_the_file_is_refused(void **state)
{
	struct lm_pcstate st;
	char path[128];

	(void)state;
	create(&st, LM_DEST);
	memcpy(path, st.path, sizeof(path));
	st.head->regions[1].bitmap = st.size - 8;
	lm_pcstate_close(&st);
	assert_int_equal(try_open(LM_DEST), -EBADMSG);
	unlink(path);
}

static void a_file_of_any_other_length_is_refused(void **state)
{
	struct stat sb;
	char path[128];

	(void)state;
	leave_behind(LM_DEST, path);
	assert_int_equal(stat(path, &sb), 0);
	for (int i = 0; i < 4; i++) {
		const off_t sizes[] = { 0, (off_t)sizeof(struct lm_pcstate_head) - 1, sb.st_size - 8, sb.st_size + 8 };
		int r;

		unlink(path);
		leave_behind(LM_DEST, path);
		assert_int_equal(truncate(path, sizes[i]), 0);
		r = try_open(LM_DEST);
		assert_true(r == -EIO || r == -EBADMSG);
	}
	unlink(path);
}

static void the_state_of_another_vm_is_not_taken(void **state)
{
	char path[128], other[160];

	(void)state;
	leave_behind(LM_DEST, path);
	snprintf(other, sizeof(other), "%s/migrate-rdma/postcopy-destination-1", runtime);
	assert_int_equal(rename(path, other), 0);
	{
		struct lm_pcstate st;

		assert_int_equal(lm_pcstate_open(&st, LM_DEST, 1, &err), -EBADMSG);
		lm_pcstate_close(&st);
	}
	unlink(other);
}

static void a_symlink_in_its_place_is_not_followed(void **state)
{
	struct lm_pcstate st;
	char path[128], target[128];
	struct stat sb;

	(void)state;
	leave_behind(LM_DEST, path);
	unlink(path);
	snprintf(target, sizeof(target), "%s/target", runtime);
	close(open(target, O_CREAT | O_WRONLY, 0600));
	assert_int_equal(symlink(target, path), 0);
	assert_int_equal(lm_pcstate_create(&st, LM_DEST, me(), &ram, &err), -ELOOP);
	lm_pcstate_close(&st);
	assert_int_equal(try_open(LM_DEST), -ELOOP);
	assert_int_equal(stat(target, &sb), 0);
	assert_int_equal(sb.st_size, 0);
	unlink(path);
	unlink(target);
}

static void a_directory_that_others_can_write_to_is_not_used(void **state)
{
	struct lm_pcstate st;
	char dir[128], path[128];

	(void)state;
	leave_behind(LM_DEST, path);
	snprintf(dir, sizeof(dir), "%s/migrate-rdma", runtime);
	for (unsigned mode = 0720; mode; mode = mode == 0720 ? 0702 : 0) {
		assert_int_equal(chmod(dir, mode), 0);
		assert_int_equal(try_open(LM_DEST), -EACCES);
		assert_int_equal(lm_pcstate_create(&st, LM_DEST, me(), &ram, &err), -EACCES);
		assert_non_null(strstr(err.msg, "XDG_RUNTIME_DIR"));
		lm_pcstate_close(&st);
	}
	assert_int_equal(chmod(dir, 0700), 0);
	unlink(path);
	/* Nor is a link to a directory, wherever it leads. */
	assert_int_equal(rmdir(dir), 0);
	assert_int_equal(symlink("/tmp", dir), 0);
	assert_int_equal(lm_pcstate_create(&st, LM_DEST, me(), &ram, &err), -EACCES);
	lm_pcstate_close(&st);
	unlink(dir);
}

/* ---- other engines ---- */

/* A child that has the state until it is told to end; *ret_pipe: close it to end the child. */
static pid_t child_with(void (*work)(int ready), int *ret_pipe)
{
	int ready[2], stop[2];
	char c;
	pid_t pid;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	assert_int_equal(pipe2(stop, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		close(stop[1]);
		work(ready[1]);
		if (read(stop[0], &c, 1) < 0)
			_exit(1);
		_exit(0);
	}
	close(ready[1]);
	close(stop[0]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	*ret_pipe = stop[1];
	return pid;
}

static void say_ready(int fd)
{
	if (write(fd, "r", 1) != 1)
		_exit(1);
}

static struct lm_pcstate childs;

static void hold_and_mark(int ready)
{
	if (lm_pcstate_create(&childs, LM_DEST, (int32_t)getppid(), &ram, &err))
		_exit(1);
	childs.head->nlanes = 2;
	lm_bitmap_clear_range(&childs.whole[0], 0, 1000);
	lm_bitmap_set_range(&childs.whole[0], 100, 50);
	say_ready(ready);
}

static void the_bits_of_an_engine_that_was_killed_are_there(void **state)
{
	struct lm_pcstate st;
	int stop;
	pid_t pid = child_with(hold_and_mark, &stop);

	(void)state;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(stop);
	assert_ok(lm_pcstate_open(&st, LM_DEST, me(), &err), err);
	assert_int_equal(lm_bitmap_count(&st.whole[0]), 50);
	assert_true(lm_bitmap_test(&st.whole[0], 149));
	assert_int_equal(st.head->engine_pid, me());
	lm_pcstate_remove(&st);
}

static void an_engine_that_lives_is_not_robbed(void **state)
{
	struct lm_pcstate st;
	int stop;
	pid_t pid;

	(void)state;
	lm_pcstate_wait_ns = 100 * LM_NS_PER_MS;
	pid = child_with(hold_and_mark, &stop);
	assert_int_equal(try_open(LM_DEST), -EBUSY);
	assert_non_null(strstr(err.msg, "locked"));
	assert_int_equal(lm_pcstate_create(&st, LM_DEST, me(), &ram, &err), -EBUSY);
	lm_pcstate_remove(&st); /* not ours to remove */
	close(stop);
	waitpid(pid, NULL, 0);
	assert_ok(lm_pcstate_open(&st, LM_DEST, me(), &err), err);
	assert_int_equal(lm_bitmap_count(&st.whole[0]), 50);
	lm_pcstate_remove(&st);
}

static void hold_without_lock(int ready)
{
	hold_and_mark(ready);
	flock(childs.fd, LOCK_UN);
}

/* Its lock is gone, but its devices may still write. */
static void an_engine_that_dies_slowly_is_waited_for(void **state)
{
	struct lm_pcstate st;
	int stop;
	pid_t pid;

	(void)state;
	lm_pcstate_wait_ns = 100 * LM_NS_PER_MS;
	pid = child_with(hold_without_lock, &stop);
	assert_int_equal(try_open(LM_DEST), -EBUSY);
	assert_non_null(strstr(err.msg, "still takes care"));
	close(stop); /* it ends, and stays a zombie: that counts as ended */
	lm_pcstate_wait_ns = 5 * LM_NS_PER_S;
	assert_ok(lm_pcstate_open(&st, LM_DEST, me(), &err), err);
	waitpid(pid, NULL, 0);
	lm_pcstate_remove(&st);
}

static void hold_then_remove(int ready)
{
	hold_and_mark(ready);
	unit_sleep_ms(200);
	lm_pcstate_remove(&childs);
}

/* Waiting for the lock of an engine that is about to be done finds nothing, and not a file without a name. */
static void a_state_that_is_removed_while_one_waits_for_it_is_gone(void **state)
{
	struct lm_pcstate st;
	int stop;
	pid_t pid;

	(void)state;
	lm_pcstate_wait_ns = 5 * LM_NS_PER_S;
	pid = child_with(hold_then_remove, &stop);
	assert_int_equal(try_open(LM_DEST), -ENOENT);
	close(stop);
	waitpid(pid, NULL, 0);
	/* And who makes one makes one that can be found. */
	pid = child_with(hold_then_remove, &stop);
	create(&st, LM_DEST);
	lm_pcstate_close(&st);
	assert_int_equal(try_open(LM_DEST), 0);
	close(stop);
	waitpid(pid, NULL, 0);
	assert_ok(lm_pcstate_open(&st, LM_DEST, me(), &err), err);
	lm_pcstate_remove(&st);
}

static void the_vm_that_has_ended_has_nothing_to_recover(void **state)
{
	struct lm_pcstate st;
	pid_t pid = fork();

	(void)state;
	if (!pid) {
		pause();
		_exit(0);
	}
	assert_ok(lm_pcstate_create(&st, LM_SOURCE, (int32_t)pid, &ram, &err), err);
	st.head->nlanes = 1;
	lm_pcstate_close(&st);
	assert_ok(lm_pcstate_open(&st, LM_SOURCE, (int32_t)pid, &err), err);
	lm_pcstate_close(&st);
	kill(pid, SIGKILL);
	unit_sleep_ms(50);
	assert_int_equal(lm_pcstate_open(&st, LM_SOURCE, (int32_t)pid, &err), -ESRCH); /* a zombie */
	unlink(st.path);
	lm_pcstate_close(&st);
	waitpid(pid, NULL, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_written_is_found),
		cmocka_unit_test(the_sides_have_files_of_their_own),
		cmocka_unit_test(a_zeroed_one_can_be_closed_and_removed),
		cmocka_unit_test(one_that_is_left_over_is_made_anew),
		cmocka_unit_test(a_head_that_cannot_be_right_is_refused),
		cmocka_unit_test(a_bitmap_that_ends_outside_of_the_file_is_refused),
		cmocka_unit_test(a_file_of_any_other_length_is_refused),
		cmocka_unit_test(the_state_of_another_vm_is_not_taken),
		cmocka_unit_test(a_symlink_in_its_place_is_not_followed),
		cmocka_unit_test(a_directory_that_others_can_write_to_is_not_used),
		cmocka_unit_test(the_bits_of_an_engine_that_was_killed_are_there),
		cmocka_unit_test(an_engine_that_lives_is_not_robbed),
		cmocka_unit_test(an_engine_that_dies_slowly_is_waited_for),
		cmocka_unit_test(a_state_that_is_removed_while_one_waits_for_it_is_gone),
		cmocka_unit_test(the_vm_that_has_ended_has_nothing_to_recover),
	};
	char dir[64];
	int r;

	assert_non_null(mkdtemp(runtime));
	setenv("XDG_RUNTIME_DIR", runtime, 1);
	r = cmocka_run_group_tests_name("pcstate", tests, NULL, NULL);
	snprintf(dir, sizeof(dir), "%s/migrate-rdma", runtime);
	rmdir(dir);
	rmdir(runtime);
	return r;
}
