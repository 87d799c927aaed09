/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What scsi-pr has to do with the kernel's disks beyond the contract, in the lab (--with san): paths
 * that come and go, a guest that writes all the while, writes in flight, a target that hangs.
 *
 *   lock_sg [hangs | NAME]	"hangs" leaves the lab's target deadlocked, so it is run by itself
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "storage/scsi_pr.h"

#define SKIP 77
#define BLOCK 4096
#define OLD 0xaa
#define NEW 0xbb
#define SLOW_MS 400
#define LOOPBACK "/sys/kernel/config/target/loopback"
#define ok(call) do { struct lm_error err = { 0 }; int r_ = (call); if (r_) fail_msg("%d: %s", r_, err.msg); } while (0)

enum { A, B, C };

static char maps[2][64], second[3][64]; /* devices of the hosts: maps of the first unit, disks of the second */
static char plain[64];                  /* c's disk of the first unit */
static unsigned first_scsi_host;

static int64_t soon(void)
{
	return lm_now_ns() + 20 * LM_NS_PER_S;
}

static int __attribute__((format(printf, 1, 2))) shell(const char *fmt, ...)
{
	char command[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	return system(command);
}

static struct lm_lock *host(const char *name, const char *device, const char *options)
{
	struct lm_lock_params p = { .host = name, .deadline_ns = soon() };
	struct lm_lock *l = NULL;
	char uri[256];

	snprintf(uri, sizeof(uri), "scsi-pr:%s?%s", device, options);
	ok(lm_lock_open(uri, &p, &l, &err));
	return l;
}

static struct lm_scsi_path *path(struct lm_lock *l, const char *name)
{
	unsigned n;
	struct lm_scsi_path *const *paths = lm_scsi_pr_paths(l, &n);

	for (unsigned i = 0; i < n; i++)
		if (!name || !strcmp(paths[i]->name, name))
			return paths[i];
	return NULL;
}

static unsigned npaths(struct lm_lock *l)
{
	unsigned n;

	lm_scsi_pr_paths(l, &n);
	return n;
}

static int transfer(struct lm_scsi_path *p, bool write, uint8_t block[static 512])
{
	struct lm_scsi_cmd cmd = {
		.cdb = { write ? 0x2a : 0x28, [8] = 1 }, .cdb_len = 10,
		.direction = write ? LM_SCSI_DATA_OUT : LM_SCSI_DATA_IN, .data = block, .len = 512,
	};

	return lm_scsi_exec(p, &cmd, soon(), NULL);
}

/* 0: through all paths that the map has now, each by itself. */
static int write_all(struct lm_lock *l)
{
	uint8_t block[512] = { NEW };
	unsigned n;
	struct lm_scsi_path *const *paths = lm_scsi_pr_paths(l, &n);
	int r = 0;

	for (unsigned i = 0; !r && i < n; i++)
		r = transfer(paths[i], true, block);
	return r;
}

/* -1 with errno, as a guest's disk gets it. */
static ssize_t write_device(const char *device, uint8_t fill)
{
	void *block = NULL;
	int fd = open(device, O_WRONLY | O_DIRECT | O_CLOEXEC), code;
	ssize_t r;

	assert_false(posix_memalign(&block, BLOCK, BLOCK));
	memset(block, fill, BLOCK);
	r = pwrite(fd, block, BLOCK, 0);
	code = errno;
	close(fd);
	free(block);
	errno = code;
	return r;
}

static void refused(const char *device)
{
	assert_int_equal(write_device(device, OLD), -1);
	assert_int_equal(errno, EBADE); /* the kernel's word for RESERVATION CONFLICT */
}

static void offer(struct lm_lock *from, struct lm_lock *to, bool disks_idle, uint8_t note[static LM_LOCK_NOTE_SIZE])
{
	uint8_t announce[LM_LOCK_NOTE_SIZE], answer[LM_LOCK_NOTE_SIZE];

	ok(lm_lock_announce(from, announce, soon(), &err));
	ok(lm_lock_prepare(to, announce, answer, soon(), &err));
	ok(lm_lock_offer(from, answer, disks_idle, note, soon(), &err));
}

static void clear(const char *device)
{
	struct lm_scsi_path *paths[LM_SCSI_PATHS_MAX];
	unsigned n = 0;

	ok(lm_scsi_sg_paths(device, paths, &n, &err));
	ok(lm_scsi_connect(paths[0], soon(), &err));
	ok(lm_pr_out(paths[0], LM_PR_REGISTER_IGNORE, 0, 0, 0x7e57, false, soon(), &err));
	ok(lm_pr_out(paths[0], LM_PR_CLEAR, 0, 0x7e57, 0, false, soon(), &err));
	for (unsigned i = 0; i < n; i++)
		lm_scsi_close(paths[i]);
}

static int fresh(void **state)
{
	(void)state;
	unsetenv("LM_BREAK");
	clear(plain);
	clear(second[C]);
	return 0;
}

/* --- paths that come and go ---------------------------------------------------------- */

/* Host, channel, target and LUN of a disk. */
static void address(const char *disk, unsigned at[4])
{
	char link[128], target[256] = "";
	ssize_t n;

	snprintf(link, sizeof(link), "/sys/block/%s/device", disk);
	n = readlink(link, target, sizeof(target) - 1);
	assert_true(n > 0);
	assert_int_equal(sscanf(strrchr(target, '/') + 1, "%u:%u:%u:%u", &at[0], &at[1], &at[2], &at[3]), 4);
}

/* How many disks the map has below it. */
static unsigned slaves(const char *map)
{
	struct lm_scsi_path *paths[LM_SCSI_PATHS_MAX];
	unsigned n = 0;

	if (lm_scsi_sg_paths(map, paths, &n, NULL))
		return 0;
	for (unsigned i = 0; i < n; i++)
		lm_scsi_close(paths[i]);
	return n;
}

static void await_slaves(const char *map, unsigned n)
{
	int64_t deadline = lm_now_ns() + 40 * LM_NS_PER_S;

	while (slaves(map) != n && lm_now_ns() < deadline)
		usleep(50000);
	assert_int_equal(slaves(map), n);
}

/* Ways in which a path goes and comes back. */
struct way {
	const char *name;
	void (*remove)(const char *map, const char *disk, const unsigned at[4]);
	void (*add)(const char *map, const char *disk, const unsigned at[4]);
};

static void delete_disk(const char *map, const char *disk, const unsigned at[4])
{
	(void)at;
	assert_int_equal(shell("echo 1 >/sys/block/%s/device/delete", disk), 0);
	await_slaves(map, 1);
}

static void scan_disk(const char *map, const char *disk, const unsigned at[4])
{
	(void)disk;
	assert_int_equal(shell("echo '- - -' >/sys/class/scsi_host/host%u/scan", at[0]), 0);
	await_slaves(map, 2);
}

/* The target forgets the nexus's registration with the LUN, and a reservation that it holds. */
static void unlink_lun(const char *map, const char *disk, const unsigned at[4])
{
	(void)disk;
	assert_int_equal(shell("rm " LOOPBACK "/naa.600140500000000%u/tpgt_1/lun/lun_0/disk",
			       at[0] - first_scsi_host + 1), 0);
	await_slaves(map, 1);
}

static void link_lun(const char *map, const char *disk, const unsigned at[4])
{
	(void)disk;
	assert_int_equal(shell("ln -s /sys/kernel/config/target/core/fileio_0/disk1 " LOOPBACK
			       "/naa.600140500000000%u/tpgt_1/lun/lun_0/disk", at[0] - first_scsi_host + 1), 0);
	await_slaves(map, 2);
}

static void offline(const char *map, const char *disk, const unsigned at[4])
{
	(void)map, (void)at;
	assert_int_equal(shell("echo offline >/sys/block/%s/device/state", disk), 0);
}

static void online(const char *map, const char *disk, const unsigned at[4])
{
	(void)map, (void)at;
	assert_int_equal(shell("echo running >/sys/block/%s/device/state", disk), 0);
}

static void fail_path(const char *map, const char *disk, const unsigned at[4])
{
	(void)map, (void)at;
	assert_int_equal(shell("multipathd fail path %s >/dev/null", disk), 0);
}

static void reinstate_path(const char *map, const char *disk, const unsigned at[4])
{
	(void)map, (void)at;
	assert_int_equal(shell("multipathd reinstate path %s >/dev/null", disk), 0);
}

static const struct way ways[] = {
	{ "disk deleted", delete_disk, scan_disk },
	{ "LUN unlinked", unlink_lun, link_lun },
	{ "disk offline", offline, online },
	{ "path failed in the map", fail_path, reinstate_path },
};

enum moment { ACQUIRED, ANNOUNCED, OFFERED, TAKEN, MOMENTS };

struct pair {
	struct lm_lock *a, *b;
	uint8_t note[LM_LOCK_NOTE_SIZE];
};

/* Between two calls a path of the host goes; comes back before the next one, or only after all. */
static void go(const struct way *w, const char *map, bool back, bool *gone, char disk[LM_SCSI_PATH_NAME_MAX],
	       unsigned at[4])
{
	if (!*gone) {
		address(disk, at);
		w->remove(map, disk, at);
		*gone = true;
	}
	if (back) {
		w->add(map, disk, at);
		*gone = false;
	}
}

/* A reservation that went with its path cannot be taken; the source gets it again. */
static void take_or_reclaim(struct pair *t, const struct way *w)
{
	struct lm_error err = { 0 };
	int r = lm_lock_take(t->b, t->note, NULL, soon(), &err);

	if (r == -ESTALE && w->remove == unlink_lun) {
		ok(lm_lock_reclaim(t->a, true, soon(), &err));
		offer(t->a, t->b, true, t->note);
		ok(lm_lock_take(t->b, t->note, NULL, soon(), &err));
	} else if (r) {
		fail_msg("take: %d: %s", r, err.msg);
	}
}

static void one_walk(const struct way *w, unsigned side, enum moment when, bool back, unsigned nth)
{
	uint8_t announce[LM_LOCK_NOTE_SIZE], answer[LM_LOCK_NOTE_SIZE];
	struct pair t;
	unsigned n, at[4];
	bool gone = false;
	char disk[LM_SCSI_PATH_NAME_MAX];

	fresh(NULL);
	t.a = host("host-a", maps[A], "abort=no");
	t.b = host("host-b", maps[B], "abort=no");
	strcpy(disk, lm_scsi_pr_paths(side == A ? t.a : t.b, &n)[nth]->name);
	print_message("%s, host %c, path %s, moment %d, %s\n", w->name, 'a' + (int)side, disk, when,
		      back ? "back at once" : "back at the end");
	ok(lm_lock_acquire(t.a, soon(), &err));
	if (when == ACQUIRED)
		go(w, maps[side], back, &gone, disk, at);
	ok(lm_lock_announce(t.a, announce, soon(), &err));
	ok(lm_lock_prepare(t.b, announce, answer, soon(), &err));
	if (when == ANNOUNCED)
		go(w, maps[side], back, &gone, disk, at);
	ok(lm_lock_offer(t.a, answer, true, t.note, soon(), &err));
	if (when == OFFERED)
		go(w, maps[side], back, &gone, disk, at);
	take_or_reclaim(&t, w);
	refused(maps[A]);
	assert_int_equal(write_device(maps[B], NEW), BLOCK);
	if (when == TAKEN)
		go(w, maps[side], back, &gone, disk, at);
	if (gone)
		go(w, maps[side], true, &gone, disk, at);
	ok(lm_lock_acquire(t.b, soon(), &err)); /* whatever was added is registered now */
	assert_int_equal(npaths(t.b), 2);
	assert_int_equal(write_all(t.b), 0);
	refused(maps[A]);
	offer(t.b, t.a, true, t.note);
	ok(lm_lock_take(t.a, t.note, NULL, soon(), &err));
	assert_int_equal(npaths(t.a), 2);
	assert_int_equal(write_all(t.a), 0);
	refused(maps[B]);
	lm_lock_close(t.a);
	lm_lock_close(t.b);
}

static void paths_come_and_go_at_any_moment(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		for (unsigned when = 0; when < MOMENTS; when++)
			for (unsigned side = A; side <= B; side++)
				one_walk(&ways[i], side, when, when % 2 == side, when / 2);
}

/* The first path that is registered holds the reservation; a LUN that is mapped anew is a nexus without. */
static void a_path_that_was_added_is_registered_with_the_next_call(bool broken)
{
	struct lm_lock *a = host("host-a", maps[A], "abort=no");
	unsigned n, at[4];
	uint8_t note[LM_LOCK_NOTE_SIZE];
	char disk[LM_SCSI_PATH_NAME_MAX];

	ok(lm_lock_acquire(a, soon(), &err));
	strcpy(disk, lm_scsi_pr_paths(a, &n)[1]->name);
	address(disk, at);
	unlink_lun(maps[A], disk, at);
	link_lun(maps[A], disk, at);
	if (broken)
		setenv("LM_BREAK", "lock-look", 1);
	ok(lm_lock_announce(a, note, soon(), &err));
	unsetenv("LM_BREAK");
	if (broken) {
		struct lm_lock *seen = host("host-a", maps[A], "abort=no");

		assert_int_not_equal(write_all(seen), 0);
		ok(lm_lock_announce(a, note, soon(), &err));
		lm_lock_close(seen);
	}
	assert_int_equal(npaths(a), 2);
	assert_int_equal(write_all(a), 0);
	ok(lm_lock_release(a, soon(), &err));
	lm_lock_close(a);
}

static void an_added_path_is_registered(void **state)
{
	(void)state;
	a_path_that_was_added_is_registered_with_the_next_call(false);
}

static void without_looking_for_paths_it_is_not(void **state)
{
	(void)state;
	a_path_that_was_added_is_registered_with_the_next_call(true);
}

/* --- a guest that writes ------------------------------------------------------------- */

struct writer {
	atomic_bool stop;
	unsigned writes, errors;
};

static void *writer_main(void *opaque)
{
	struct writer *w = opaque;

	while (!atomic_load(&w->stop)) {
		w->errors += write_device(maps[A], NEW) != BLOCK;
		w->writes++;
	}
	return NULL;
}

/* How many writes fail while other processes of the same host take the lock again. */
static unsigned failed_writes(unsigned rounds)
{
	struct lm_lock *l = host("host-a", maps[A], "abort=no");
	struct writer w = { .stop = false };
	pthread_t thread;

	ok(lm_lock_acquire(l, soon(), &err));
	lm_lock_close(l);
	assert_int_equal(pthread_create(&thread, NULL, writer_main, &w), 0);
	for (unsigned i = 0; i < rounds; i++) {
		usleep(20000);
		l = host("host-a", maps[A], "abort=no"); /* as a new process would: it knows of no registration */
		ok(lm_lock_acquire(l, soon(), &err));
		lm_lock_close(l);
	}
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
	assert_true(w.writes > rounds);
	return w.errors;
}

static void acquiring_again_does_not_disturb_a_running_guest(void **state)
{
	(void)state;
	assert_int_equal(failed_writes(20), 0);
}

static void without_changing_the_keys_first_its_writes_fail(void **state)
{
	unsigned failed = 0;

	(void)state;
	setenv("LM_BREAK", "lock-rekey", 1);
	for (unsigned i = 0; !failed && i < 20; i++)
		failed = failed_writes(20);
	unsetenv("LM_BREAK");
	assert_int_not_equal(failed, 0);
}

/* --- writes in flight ---------------------------------------------------------------- */

static void writes_take(unsigned ms)
{
	assert_int_equal(shell("t=$(dmsetup table lab-slow | awk '{ print $1, $2, $3, $4, $5, 0, $4, $5, %u }') && "
			       "dmsetup reload lab-slow --table \"$t\" && dmsetup suspend lab-slow && "
			       "dmsetup resume lab-slow", ms), 0);
}

static void *old_write(void *opaque)
{
	(void)opaque;
	write_device(second[A], OLD);
	return NULL;
}

static uint8_t on_disk(struct lm_scsi_path *p)
{
	uint8_t block[512] = { 0 };

	assert_int_equal(transfer(p, false, block), 0);
	return block[0];
}

/* Whether what is on the disk still changes after take has returned. */
static bool lands_late(void)
{
	struct lm_lock *a, *b;
	uint8_t note[LM_LOCK_NOTE_SIZE], first;
	pthread_t thread;
	bool late;

	clear(second[C]);
	a = host("host-a", second[A], "abort=no");
	b = host("host-b", second[B], "abort=no");
	ok(lm_lock_acquire(a, soon(), &err));
	writes_take(0);
	assert_int_equal(write_device(second[A], NEW), BLOCK);
	writes_take(SLOW_MS);
	offer(a, b, false, note);
	assert_int_equal(pthread_create(&thread, NULL, old_write, NULL), 0);
	usleep(SLOW_MS * 1000 / 4);
	ok(lm_lock_take(b, note, NULL, soon(), &err));
	first = on_disk(path(b, NULL));
	pthread_join(thread, NULL);
	usleep(2 * SLOW_MS * 1000);
	late = on_disk(path(b, NULL)) != first;
	writes_take(0);
	lm_lock_close(a);
	lm_lock_close(b);
	return late;
}

static void writes_in_flight_never_land_after_take(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++)
		assert_false(lands_late());
}

static void without_abort_or_reset_they_do(void **state)
{
	bool late = false;

	(void)state;
	setenv("LM_BREAK", "lock-abort", 1);
	for (unsigned i = 0; !late && i < 4; i++)
		late = lands_late();
	unsetenv("LM_BREAK");
	assert_true(late);
}

/* --- a target that hangs ------------------------------------------------------------- */

/* LIO says that it has PREEMPT AND ABORT; its loop deadlocks in it, with all commands that follow. */
static void a_target_that_hangs_costs_no_more_than_the_deadline(void **state)
{
	struct lm_lock *a = host("host-a", second[A], "abort=auto"), *b = host("host-b", second[B], "abort=auto");
	uint8_t note[LM_LOCK_NOTE_SIZE];
	struct lm_error err = { 0 };
	int64_t begin;
	int r;

	(void)state;
	ok(lm_lock_acquire(a, soon(), &err));
	offer(a, b, false, note);
	begin = lm_now_ns();
	r = lm_lock_take(b, note, NULL, begin + 4 * LM_NS_PER_S, &err);
	print_message("take: %d: %s (%s), after %lld ms\n", r, err.msg, b->remark,
		      (long long)(lm_now_ns() - begin) / 1000000);
	assert_int_not_equal(r, 0);
	assert_true(lm_now_ns() - begin < 6 * LM_NS_PER_S);
	if (!strstr(b->remark, "abort=no"))
		fail_msg("it was not said what to do: '%s'", b->remark);
	begin = lm_now_ns();
	lm_lock_close(b);
	lm_lock_close(a);
	assert_true(lm_now_ns() - begin < 6 * LM_NS_PER_S);
}

static bool in_the_lab(void)
{
	const char *a = getenv("LAB_DISK"), *b = getenv("LAB_B_DISK"), *c = getenv("LAB_C_DISK"), *two = getenv("LAB_SECOND");
	unsigned at[4];

	if (!a || !b || !c || !two)
		return false;
	snprintf(maps[A], sizeof(maps[A]), "%s", a);
	snprintf(maps[B], sizeof(maps[B]), "%s", b);
	snprintf(plain, sizeof(plain), "%s", c);
	if (sscanf(two, "%63[^,],%63[^,],%63[^,]", second[A], second[B], second[C]) != 3)
		return false;
	address(strrchr(second[A], '/') + 1, at); /* of the first path */
	first_scsi_host = at[0];
	return true;
}

int main(int argc, char *argv[])
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(acquiring_again_does_not_disturb_a_running_guest, fresh),
		cmocka_unit_test_setup(without_changing_the_keys_first_its_writes_fail, fresh),
		cmocka_unit_test_setup(writes_in_flight_never_land_after_take, fresh),
		cmocka_unit_test_setup(without_abort_or_reset_they_do, fresh),
		cmocka_unit_test_setup(an_added_path_is_registered, fresh),
		cmocka_unit_test_setup(without_looking_for_paths_it_is_not, fresh),
		cmocka_unit_test_setup(paths_come_and_go_at_any_moment, fresh),
	};
	const struct CMUnitTest hangs[] = {
		cmocka_unit_test_setup(a_target_that_hangs_costs_no_more_than_the_deadline, fresh),
	};

	if (!in_the_lab()) {
		printf("skipped: needs the lab: tools/lab/run --with san\n");
		return SKIP;
	}
	if (argc > 1 && !strcmp(argv[1], "hangs"))
		return cmocka_run_group_tests(hangs, NULL, NULL);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
