/* SPDX-License-Identifier: Apache-2.0 */
/* A guest is saved to a file, and goes on from it in another QEMU as if nothing had been. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "rig.h"
#include "../guest/layout.h"

#define EXIT_REFUSED 2
#define EXIT_ABORTED 3
#define EXIT_INTERRUPTED 8

static const struct rig_config tcg = { .mb = 128, .append = "mb=64 rate=5000" };
static const struct rig_config small = { .mb = 64, .append = "mb=16 rate=2000" };
static const struct rig_config microvm = {
	.machine = "microvm", .accel = "kvm", .mb = 128, .append = "mb=64 rate=5000",
};

static struct rig_run *save(struct rig_vm *vm, const char *image, const struct rig_run_options *o)
{
	const char *const argv[] = { "save", "--json", "--qmp", vm->qmp, "--image", image, NULL };

	return rig_engine(vm->rig, "save", argv, o);
}

static struct rig_run *restore(struct rig_vm *vm, const char *image, const struct rig_run_options *o)
{
	const char *const argv[] = { "restore", "--json", "--qmp", vm->qmp, "--image", image, NULL };

	return rig_engine(vm->rig, "restore", argv, o);
}

static void assert_ends(struct rig_run *r, int code)
{
	int got = rig_run_wait(r, 3 * RIG_WAIT_MS);

	if (got != code)
		fail_msg("%s ended with %d (%s), %d was due", r->proc->name, got, rig_run_outcome(r), code);
}

static void assert_status(struct rig_vm *vm, const char *want)
{
	char status[32];

	rig_vm_status(vm, status);
	assert_string_equal(status, want);
}

static void image_path(struct rig *rig, char path[RIG_PATH_MAX])
{
	rig_path(rig, path, "image");
}

/* A guest that has run, in an image; its QEMU is still there, paused. */
static struct rig_vm *saved(struct rig *rig, const struct rig_config *config, char path[RIG_PATH_MAX],
			    const struct rig_run_options *o)
{
	struct rig_vm *a = rig_vm_start(rig, "A", config, RIG_RUNS);

	image_path(rig, path);
	rig_guest_wait_ready(a);
	rig_sleep_ms(200);
	assert_ends(save(a, path, o), 0);
	assert_status(a, "postmigrate");
	return a;
}

/* ---- it goes on ---- */

static void comes_back(struct rig *rig, const struct rig_config *config, const char *paging)
{
	struct rig_run_options o = { .args = { "--paging", paging, "--paused" } };
	char path[RIG_PATH_MAX], how[128];
	struct rig_vm *a = saved(rig, config, path, NULL), *b = rig_vm_start(rig, "B", config, RIG_WAITS);
	struct guest_beat before, after;

	rig_watch(a, b);
	rig_guest_beat(a, &before);
	assert_ends(restore(b, path, &o), 0);
	rig_assert_ram_equal(a, b);
	rig_qmp_do(b, "cont", NULL);
	rig_guest_assert_well(b);
	rig_guest_beat(b, &after);
	assert_true(after.beat > before.beat);
	assert_false(rig_guest_beats(a, 50));
	assert_false(rig_saw_two(a, b, how, sizeof(how)));
}

static void a_saved_guest_comes_back(struct rig *rig)
{
	comes_back(rig, &tcg, "eager");
}

static void a_saved_guest_comes_back_lazily(struct rig *rig)
{
	comes_back(rig, &tcg, "lazy");
}

static void a_saved_guest_of_two_nodes_comes_back(struct rig *rig)
{
	struct rig_config numa = tcg;

	numa.nodes = 2;
	comes_back(rig, &numa, "eager");
}

static void a_saved_guest_on_huge_pages_comes_back(struct rig *rig)
{
	struct rig_config huge = small;

	huge.hugepages = true;
	rig_hugepages(rig, 2 * 64 + 8);
	comes_back(rig, &huge, "eager");
}

static void a_saved_guest_on_huge_pages_comes_back_lazily(struct rig *rig)
{
	struct rig_config huge = small;

	huge.hugepages = true;
	rig_hugepages(rig, 2 * 64 + 8);
	comes_back(rig, &huge, "lazy");
}

static void a_saved_guest_under_kvm_comes_back(struct rig *rig)
{
	comes_back(rig, &microvm, "eager");
}

/* Not paused: the guest runs while its memory is read, and is checked by itself. */
static void a_lazy_guest_runs_before_its_memory_is_there(struct rig *rig)
{
	char path[RIG_PATH_MAX];
	struct rig_vm *b;
	struct rig_run *r;

	saved(rig, &tcg, path, NULL);
	b = rig_vm_start(rig, "B", &tcg, RIG_WAITS);
	r = restore(b, path, &(struct rig_run_options){ .args = { "--paging", "lazy" } });
	assert_ends(r, 0);
	assert_true(rig_summary_int(r, "postcopy.left_pages") >= 64 << 8);
	rig_guest_assert_well(b);
}

static void memory_that_was_never_touched_is_not_in_the_image(struct rig *rig)
{
	struct rig_config big = small;
	char path[RIG_PATH_MAX];
	struct rig_vm *b;
	struct stat st;

	big.mb = 512;
	saved(rig, &big, path, NULL);
	assert_return_code(stat(path, &st), errno);
	assert_true(st.st_size < 64 << 20);
	b = rig_vm_start(rig, "B", &big, RIG_WAITS);
	assert_ends(restore(b, path, NULL), 0);
	rig_guest_assert_well(b);
	assert_true(rig_ram_allocated(b) < 64 << 20);
}

/* A destination's file that was used before: what is zero in the image is zero there. */
static void old_memory_does_not_shine_through(struct rig *rig, const char *paging)
{
	struct rig_run_options o = { .args = { "--paging", paging, "--paused" } };
	char path[RIG_PATH_MAX];
	struct rig_vm *a = saved(rig, &small, path, NULL), *b = rig_vm_start(rig, "B", &small, RIG_WAITS);

	rig_ram_fill(b, 0, 0, 64 << 20, 0xa5);
	assert_ends(restore(b, path, &o), 0);
	rig_assert_ram_equal(a, b);
}

static void old_memory_does_not_shine_through_eager(struct rig *rig)
{
	old_memory_does_not_shine_through(rig, "eager");
}

static void old_memory_does_not_shine_through_lazy(struct rig *rig)
{
	old_memory_does_not_shine_through(rig, "lazy");
}

static void a_guest_that_was_paused_comes_back_paused(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &small, RIG_RUNS), *b;
	char path[RIG_PATH_MAX];

	image_path(rig, path);
	rig_guest_wait_ready(a);
	rig_qmp_do(a, "stop", NULL);
	assert_ends(save(a, path, NULL), 0);
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	assert_ends(restore(b, path, NULL), 0);
	assert_false(rig_vm_running(b));
	rig_qmp_do(b, "cont", NULL);
	rig_guest_assert_well(b);
}

/* ---- once ---- */

static void an_image_is_restored_once(struct rig *rig)
{
	char path[RIG_PATH_MAX];
	struct rig_vm *b, *c;
	struct rig_run *r;

	saved(rig, &small, path, NULL);
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	assert_ends(restore(b, path, NULL), 0);
	rig_vm_end(b);
	c = rig_vm_start(rig, "C", &small, RIG_WAITS);
	r = restore(c, path, NULL);
	assert_ends(r, EXIT_REFUSED);
	assert_true(rig_log_has(r->proc, "--again"));
	assert_status(c, "inmigrate");
	assert_ends(restore(c, path, &(struct rig_run_options){ .args = { "--again" } }), 0);
	rig_guest_assert_well(c);
}

static void without_the_mark_an_image_runs_twice(struct rig *rig)
{
	struct rig_run_options o = { .breaks = "mark" };
	char path[RIG_PATH_MAX], how[128];
	struct rig_vm *b, *c;

	saved(rig, &small, path, NULL);
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	c = rig_vm_start(rig, "C", &small, RIG_WAITS);
	rig_watch(b, c);
	assert_ends(restore(b, path, &o), 0);
	assert_ends(restore(c, path, &o), 0);
	assert_true(rig_guest_beats(b, RIG_WAIT_MS) && rig_guest_beats(c, RIG_WAIT_MS));
	assert_true(rig_saw_two(b, c, how, sizeof(how)));
}

static void two_restores_at_a_time_exclude_each_other(struct rig *rig)
{
	char path[RIG_PATH_MAX];
	struct rig_vm *b, *c;
	struct rig_run *first, *second;

	saved(rig, &small, path, NULL);
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	c = rig_vm_start(rig, "C", &small, RIG_WAITS);
	first = restore(b, path, &(struct rig_run_options){ .fault = "commit:sleep=1500" });
	assert_non_null(rig_run_event_is(first, "stage", "name", "filled", RIG_WAIT_MS));
	second = restore(c, path, NULL);
	assert_ends(second, EXIT_REFUSED);
	assert_ends(first, 0);
	rig_guest_assert_well(b);
}

/* ---- what is wrong is found ---- */

static void flip(const char *path, off_t offset)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t b;

	assert_int_equal(pread(fd, &b, 1, offset), 1);
	b ^= 1;
	assert_int_equal(pwrite(fd, &b, 1, offset), 1);
	close(fd);
}

static void a_damaged_page_is_found_before_the_guest_runs(struct rig *rig)
{
	char path[RIG_PATH_MAX];
	struct rig_vm *b;
	struct rig_run *r;

	saved(rig, &small, path, NULL);
	flip(path, 8192 + 100 * 4096);
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	r = restore(b, path, NULL);
	assert_ends(r, EXIT_ABORTED);
	assert_true(rig_log_has(r->proc, "checksum"));
	flip(path, 8192 + 100 * 4096);
	assert_ends(restore(b, path, NULL), 0); /* nothing was lost, and this QEMU is as good as new */
	rig_guest_assert_well(b);
}

/* The page stays hidden: the guest waits for it, and goes on when the image is whole again. */
static void a_damaged_page_never_comes_to_light(struct rig *rig)
{
	struct rig_run_options lazy = { .args = { "--paging", "lazy" } }, again = { .args = { "--resume" } };
	char path[RIG_PATH_MAX];
	struct rig_vm *b;
	struct rig_run *r;

	saved(rig, &tcg, path, NULL);
	for (unsigned i = 0; i < 8; i++)
		flip(path, 8192 + (off_t)(1 + i) * 7 * 256 * 4096 + 5);
	b = rig_vm_start(rig, "B", &tcg, RIG_WAITS);
	r = restore(b, path, &lazy);
	assert_ends(r, EXIT_INTERRUPTED);
	assert_true(rig_log_has(r->proc, "checksum"));
	for (unsigned i = 0; i < 8; i++)
		flip(path, 8192 + (off_t)(1 + i) * 7 * 256 * 4096 + 5);
	assert_ends(restore(b, path, &again), 0);
	rig_guest_assert_well(b);
}

static void refused(struct rig_vm *vm, const char *path, const char *why)
{
	struct rig_run *r = restore(vm, path, NULL);

	assert_ends(r, EXIT_REFUSED);
	if (!rig_log_has(r->proc, why))
		fail_msg("restore did not say \"%s\"", why);
	assert_status(vm, "inmigrate");
}

static void what_does_not_fit_is_refused(struct rig *rig)
{
	struct rig_config other = small;
	char path[RIG_PATH_MAX];
	struct rig_vm *b;
	struct stat st;

	saved(rig, &small, path, NULL);
	other.mb = 128;
	b = rig_vm_start(rig, "B", &other, RIG_WAITS);
	refused(b, path, "bytes in the image");
	rig_vm_end(b);
	other = small;
	other.machine = "pc";
	b = rig_vm_start(rig, "B2", &other, RIG_WAITS);
	refused(b, path, "machine types differ");
	rig_vm_end(b);
	b = rig_vm_start(rig, "B3", &small, RIG_WAITS);
	refused(b, "/proc/self/status", "no image");
	flip(path, 8); /* version */
	refused(b, path, path);
	flip(path, 8);
	assert_return_code(stat(path, &st), errno);
	assert_return_code(truncate(path, st.st_size - 4096), errno);
	refused(b, path, "not whole");
}

/* ---- no room ---- */

static void assert_runs_on(struct rig_vm *a)
{
	assert_true(rig_vm_running(a));
	rig_guest_assert_well(a);
}

static void a_full_disk_leaves_the_guest_and_the_old_image(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &small, RIG_RUNS), *b;
	char folder[RIG_PATH_MAX], path[RIG_PATH_MAX], saving[RIG_PATH_MAX], old[RIG_PATH_MAX], text[64];
	struct rig_run *r;
	int fd;

	rig_private_mounts(rig);
	rig_path(rig, folder, "small");
	rig_path(rig, path, "small/image");
	rig_path(rig, saving, "small/image.saving");
	rig_path(rig, old, "elsewhere");
	assert_return_code(mkdir(folder, 0700), errno);
	assert_return_code(mount("tmpfs", folder, "tmpfs", 0, "size=4m"), errno);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "the old one", 11), 11);
	close(fd);
	rig_guest_wait_ready(a);
	r = save(a, path, NULL);
	assert_ends(r, EXIT_ABORTED);
	assert_true(rig_log_has(r->proc, "make room"));
	assert_runs_on(a);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(read(fd, text, sizeof(text)), 11);
	close(fd);
	assert_memory_equal(text, "the old one", 11);
	assert_int_equal(access(saving, F_OK), -1);
	/* With room it goes. */
	assert_ends(save(a, old, NULL), 0);
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	assert_ends(restore(b, old, NULL), 0);
	rig_guest_assert_well(b);
	umount2(folder, MNT_DETACH);
}

/* ramfs knows no O_DIRECT. */
static void a_file_system_without_o_direct_is_said_and_used(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &small, RIG_RUNS), *b;
	char folder[RIG_PATH_MAX], path[RIG_PATH_MAX];
	struct rig_run *r;

	rig_private_mounts(rig);
	rig_path(rig, folder, "ramfs");
	rig_path(rig, path, "ramfs/image");
	assert_return_code(mkdir(folder, 0700), errno);
	assert_return_code(mount("ramfs", folder, "ramfs", 0, NULL), errno);
	rig_guest_wait_ready(a);
	r = save(a, path, NULL);
	assert_ends(r, 0);
	assert_non_null(rig_run_event_is(r, "log", "level", "warning", 0));
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	assert_ends(restore(b, path, NULL), 0);
	rig_guest_assert_well(b);
	umount2(folder, MNT_DETACH);
}

static void a_save_that_is_cancelled_leaves_the_guest_running(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &small, RIG_RUNS);
	char path[RIG_PATH_MAX];
	struct rig_run *r;

	image_path(rig, path);
	rig_guest_wait_ready(a);
	r = save(a, path, &(struct rig_run_options){ .fault = "synced:sleep=1000" });
	assert_non_null(rig_run_event_is(r, "stage", "name", "synced", RIG_WAIT_MS));
	rig_proc_kill(r->proc, SIGINT);
	assert_ends(r, 4);
	assert_runs_on(a);
	assert_int_equal(access(path, F_OK), -1);
	assert_ends(save(a, path, NULL), 0);
}

/* Nothing but the clock ends it: the disk takes as long as it takes. */
static void a_save_that_takes_too_long_leaves_the_guest_running(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &small, RIG_RUNS);
	char path[RIG_PATH_MAX];
	struct rig_run *r;

	image_path(rig, path);
	rig_guest_wait_ready(a);
	r = save(a, path, &(struct rig_run_options){ .fault = "paused:sleep=1500", .args = { "--timeout", "1s" } });
	assert_ends(r, EXIT_ABORTED);
	assert_runs_on(a);
	assert_int_equal(access(path, F_OK), -1);
}

/* A lazy guest whose engine is gone: `recover` is for another kind, and another image is not its own. */
static void a_lazy_guest_goes_on_from_its_own_image_only(struct rig *rig)
{
	struct rig_run_options lazy = { .fault = "postcopy:kill", .args = { "--paging", "lazy" } };
	struct rig_run_options again = { .args = { "--resume" } };
	char path[RIG_PATH_MAX], other[RIG_PATH_MAX];
	struct rig_vm *b, *c;
	struct rig_run *r;

	saved(rig, &small, path, NULL);
	rig_path(rig, other, "other");
	c = rig_vm_start(rig, "C", &small, RIG_RUNS);
	rig_guest_wait_ready(c);
	assert_ends(save(c, other, NULL), 0);
	b = rig_vm_start(rig, "B", &small, RIG_WAITS);
	rig_run_wait(restore(b, path, &lazy), 3 * RIG_WAIT_MS);
	{
		const char *const argv[] = { "recover", "--json", "--qmp", b->qmp, "--listen", "127.0.0.1:0", NULL };

		r = rig_engine(rig, "recover", argv, NULL);
	}
	assert_true(rig_run_wait(r, 3 * RIG_WAIT_MS) == EXIT_REFUSED && rig_log_has(r->proc, "--resume"));
	r = restore(b, other, &again);
	assert_true(rig_run_wait(r, 3 * RIG_WAIT_MS) == EXIT_REFUSED && rig_log_has(r->proc, "is not the image"));
	assert_ends(restore(b, path, &again), 0);
	rig_guest_assert_well(b);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(a_saved_guest_comes_back),
		RIG_TEST(a_saved_guest_comes_back_lazily),
		RIG_TEST(a_saved_guest_of_two_nodes_comes_back),
		RIG_TEST(a_saved_guest_on_huge_pages_comes_back),
		RIG_TEST(a_saved_guest_on_huge_pages_comes_back_lazily),
		RIG_TEST(a_saved_guest_under_kvm_comes_back),
		RIG_TEST(a_lazy_guest_runs_before_its_memory_is_there),
		RIG_TEST(memory_that_was_never_touched_is_not_in_the_image),
		RIG_TEST(old_memory_does_not_shine_through_eager),
		RIG_TEST(old_memory_does_not_shine_through_lazy),
		RIG_TEST(a_guest_that_was_paused_comes_back_paused),
		RIG_TEST(an_image_is_restored_once),
		RIG_TEST(without_the_mark_an_image_runs_twice),
		RIG_TEST(two_restores_at_a_time_exclude_each_other),
		RIG_TEST(a_damaged_page_is_found_before_the_guest_runs),
		RIG_TEST(a_damaged_page_never_comes_to_light),
		RIG_TEST(what_does_not_fit_is_refused),
		RIG_TEST(a_full_disk_leaves_the_guest_and_the_old_image),
		RIG_TEST(a_file_system_without_o_direct_is_said_and_used),
		RIG_TEST(a_save_that_is_cancelled_leaves_the_guest_running),
		RIG_TEST(a_save_that_takes_too_long_leaves_the_guest_running),
		RIG_TEST(a_lazy_guest_goes_on_from_its_own_image_only),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
