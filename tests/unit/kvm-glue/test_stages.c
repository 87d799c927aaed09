/* SPDX-License-Identifier: Apache-2.0 */
/* Pausing a real QEMU and coming back from every stage of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "cleanup.h"
#include "clock.h"
#include "qemu.h"
#include "qemu_rig.h"
#include "qmp.h"

#define LIMIT (5 * LM_NS_PER_S)

static struct rig_qemu src_qemu, dst_qemu;
static struct lm_vm *src, *dst;
static struct lm_error err;
static int cancel_fd = -1;

/* The channel of the device state: QEMU writes to .qemu, a thread moves it to .sink (-1: drops it). */
static struct channel {
	int qemu, near, sink;
	_Atomic bool hold; /* stop reading */
	_Atomic uint64_t bytes;
	pthread_t thread;
	bool open;
} ch;

static void *channel_read(void *arg)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };
	static char buf[65536];
	ssize_t n;

	(void)arg;
	for (;;) {
		while (ch.hold)
			nanosleep(&pause, NULL);
		n = recv(ch.near, buf, sizeof(buf), 0);
		if (n <= 0)
			break;
		ch.bytes += (uint64_t)n;
		if (ch.sink >= 0 && send(ch.sink, buf, (size_t)n, MSG_NOSIGNAL) != n)
			break;
	}
	shutdown(ch.near, SHUT_RDWR); /* a writer must not hang on it */
	return NULL;
}

static void channel_open(int sndbuf, int sink)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	if (sndbuf)
		setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof(sndbuf));
	ch.qemu = sv[0];
	ch.near = sv[1];
	ch.sink = sink;
	ch.hold = false;
	ch.bytes = 0;
	assert_int_equal(pthread_create(&ch.thread, NULL, channel_read, NULL), 0);
	ch.open = true;
}

static void channel_close(void)
{
	if (!ch.open)
		return;
	ch.hold = false;
	shutdown(ch.near, SHUT_RDWR);
	pthread_join(ch.thread, NULL);
	close(ch.qemu);
	close(ch.near);
	ch.open = false;
}

static int teardown(void **state)
{
	(void)state;
	channel_close();
	lm_vm_detach(src);
	lm_vm_detach(dst);
	src = dst = NULL;
	rig_end(&src_qemu);
	rig_end(&dst_qemu);
	lm_close_fd(&cancel_fd);
	return 0;
}

static void ok(int r)
{
	if (r)
		fail_msg("%d: %s", r, err.msg);
}

static void attach(const struct rig_qemu *q, enum lm_side side, struct lm_vm **ret)
{
	struct lm_qemu_options o = { .qmp = q->qmp, .side = side, .timeout_ns = LIMIT, .cancel_fd = cancel_fd };

	ok(lm_qemu_attach(&o, ret, &err));
}

/* What QEMU says to another client, after ours has let go. */
static void query(const struct rig_qemu *q, const char *command, struct json_object *args, struct json_object **ret)
{
	struct lm_qmp *qmp;

	ok(lm_qmp_connect(q->qmp, -1, lm_now_ns() + LIMIT, &qmp, &err));
	ok(lm_qmp_execute(qmp, command, args, lm_now_ns() + LIMIT, ret, &err));
	lm_qmp_close(qmp);
}

static void assert_status(const struct rig_qemu *q, const char *want)
{
	LM_AUTO_JS struct json_object *o = NULL;

	query(q, "query-status", NULL, &o);
	assert_string_equal(lm_js_text(o, "status"), want);
}

/* What a paused guest is called after a cancelled migration depends on QEMU's version. */
static void assert_paused(const struct rig_qemu *q)
{
	LM_AUTO_JS struct json_object *o = NULL;

	query(q, "query-status", NULL, &o);
	assert_false(lm_js_true(o, "running"));
	assert_string_not_equal(lm_js_text(o, "status"), "finish-migrate");
}

static void pause_wait(struct lm_vm *vm, struct lm_vm_times *times)
{
	int64_t deadline = lm_now_ns() + LIMIT;
	int r;

	do
		r = lm_vm_pause_wait(vm, 20, times, &err);
	while (r == -EAGAIN && lm_now_ns() < deadline);
	ok(r);
}

enum stage { NOTHING, STARTED, PAUSED, DEVICE, COMPLETED };

static void bring_to(enum stage stage)
{
	struct lm_vm_times times;

	if (stage == NOTHING)
		return;
	channel_open(stage == DEVICE ? 4608 : 0, -1);
	ok(lm_vm_pause_start(src, ch.qemu, &err));
	if (stage == STARTED)
		return;
	pause_wait(src, &times);
	if (stage == DEVICE) {
		ch.hold = true; /* QEMU's main loop now hangs in a write */
		assert_int_equal(lm_vm_state_save(src, lm_now_ns() + 200 * LM_NS_PER_MS, &err), -ETIMEDOUT);
	} else if (stage == COMPLETED) {
		ok(lm_vm_state_save(src, lm_now_ns() + LIMIT, &err));
	}
}

static void start_source(const char *paused)
{
	rig_start_good(&src_qemu, "-vga", "std", "-device", "virtio-net-pci", paused);
	attach(&src_qemu, LM_SOURCE, &src);
}

/* ---- undo, from every stage ---- */

static void undo_from(enum stage stage)
{
	struct lm_vm_times times = { 0 };
	int64_t before, ns;

	start_source(NULL);
	bring_to(stage);
	before = lm_now_ns();
	ok(lm_vm_resume(src, before + LIMIT, &times, &err));
	ns = lm_now_ns() - before;
	print_message("resume from stage %d: %.2f ms\n", stage, (double)ns / 1e6);
	assert_true(ns < LM_NS_PER_S);
	/* once more, as good as new; QEMU refuses a migration of a guest that it thinks has left */
	channel_close();
	bring_to(PAUSED);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	lm_vm_detach(src);
	src = NULL;
	assert_status(&src_qemu, "running");
}

static void undo_of_nothing(void **state)
{
	(void)state;
	undo_from(NOTHING);
}

static void undo_right_after_the_start(void **state)
{
	(void)state;
	undo_from(STARTED);
}

static void undo_of_a_pause(void **state)
{
	(void)state;
	undo_from(PAUSED);
}

static void undo_while_the_state_is_stuck_in_the_socket(void **state)
{
	(void)state;
	undo_from(DEVICE);
}

static void undo_after_the_state_has_left(void **state)
{
	(void)state;
	undo_from(COMPLETED);
}

/* The same by the guardian's way, on a connection in a bad state. */
static void rescue_from(enum stage stage, const char *paused, enum lm_rescue what)
{
	static const char half[] = "{\"execute\": \"query-status\", \"arguments\": {\"x\": \"unfinished ";

	start_source(paused);
	bring_to(stage);
	if (stage == DEVICE)
		channel_close(); /* the engine is dead */
	assert_int_equal(write(src->rescue_fd, half, sizeof(half) - 1), sizeof(half) - 1);
	ok(src->ops->rescue(src->rescue_fd, src->pidfd, what, lm_now_ns() + LIMIT, &err));
	ok(src->ops->rescue(src->rescue_fd, src->pidfd, what, lm_now_ns() + LIMIT, &err));
	channel_close();
	lm_vm_detach(src);
	src = NULL;
	if (paused)
		assert_paused(&src_qemu);
	else
		assert_status(&src_qemu, "running");
	rig_end(&src_qemu);
}

static void rescue_runs_a_guest_that_ran(void **state)
{
	(void)state;
	for (enum stage s = NOTHING; s <= COMPLETED; s++)
		rescue_from(s, NULL, LM_RESCUE_UNDO_RUN);
}

static void rescue_leaves_a_paused_guest_paused(void **state)
{
	(void)state;
	for (enum stage s = NOTHING; s <= COMPLETED; s++)
		rescue_from(s, "-S", LM_RESCUE_UNDO);
}

/* ---- guests that are paused ---- */

static void a_paused_guest_stays_paused(void **state)
{
	struct lm_vm_times times = { 0 };

	(void)state;
	start_source("-S");
	bring_to(PAUSED);
	ok(lm_vm_pause_wait(src, 0, &times, &err));
	assert_true(times.stopped_ns > 0);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	lm_vm_detach(src);
	src = NULL;
	assert_paused(&src_qemu);
}

/* By somebody else, through a monitor of his own, after we attached. */
static void a_guest_that_is_paused_meanwhile_stays_paused(void **state)
{
	struct lm_vm_times times = { 0 };
	char second[160], path[128];
	struct rig_qemu other;

	(void)state;
	snprintf(path, sizeof(path), "/dev/shm/lm-glue-second-%d", (int)getpid());
	snprintf(second, sizeof(second), "unix:%s,server=on,wait=off", path);
	rig_start_good(&src_qemu, "-qmp", second);
	other = src_qemu;
	strcpy(other.qmp, path);
	attach(&src_qemu, LM_SOURCE, &src);
	assert_true(src->info.running);
	query(&other, "stop", NULL, NULL);
	bring_to(PAUSED);
	assert_false(src->info.running);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	assert_paused(&other);
	unlink(path);
}

static void somebody_elses_cancel_is_noticed(void **state)
{
	struct lm_vm_times times = { 0 };
	char second[160], path[128];
	struct rig_qemu other;

	(void)state;
	snprintf(path, sizeof(path), "/dev/shm/lm-glue-second-%d", (int)getpid());
	snprintf(second, sizeof(second), "unix:%s,server=on,wait=off", path);
	rig_start_good(&src_qemu, "-qmp", second);
	other = src_qemu;
	strcpy(other.qmp, path);
	attach(&src_qemu, LM_SOURCE, &src);
	bring_to(PAUSED);
	query(&other, "migrate_cancel", NULL, NULL);
	assert_true(lm_vm_state_save(src, lm_now_ns() + LIMIT, &err) < 0);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	assert_status(&other, "running");
	unlink(path);
}

/* ---- times, cancel, death, settings ---- */

static void the_pause_is_dated_by_qemu(void **state)
{
	struct lm_vm_times stop, run;
	int64_t before = lm_clock_ns(CLOCK_REALTIME), start, wait_ns;

	(void)state;
	start_source(NULL);
	channel_open(0, -1);
	start = lm_now_ns();
	ok(lm_vm_pause_start(src, ch.qemu, &err));
	pause_wait(src, &stop);
	wait_ns = lm_now_ns() - start;
	assert_in_range(stop.stopped_ns, before, lm_clock_ns(CLOCK_REALTIME));
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &run, &err));
	assert_true(run.stopped_ns > stop.stopped_ns);
	print_message("pause_start to pause_wait %.2f ms, stopped for %.2f ms\n", (double)wait_ns / 1e6,
		      (double)(run.stopped_ns - stop.stopped_ns) / 1e6);
}

static void a_cancel_ends_the_wait(void **state)
{
	struct lm_vm_times times;

	(void)state;
	cancel_fd = eventfd(0, EFD_CLOEXEC);
	start_source(NULL);
	channel_open(4608, -1);
	ch.hold = true; /* QEMU cannot get to its pause */
	ok(lm_vm_pause_start(src, ch.qemu, &err));
	assert_int_equal(lm_vm_pause_wait(src, 50, &times, &err), -EAGAIN);
	assert_int_equal(eventfd_write(cancel_fd, 1), 0);
	assert_int_equal(lm_vm_pause_wait(src, 5000, &times, &err), -ECANCELED);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
}

static void the_death_of_qemu_is_an_error_of_the_vm(void **state)
{
	struct lm_vm_times times;

	(void)state;
	start_source(NULL);
	bring_to(PAUSED);
	kill(src_qemu.pid, SIGKILL);
	assert_true(lm_vm_state_save(src, lm_now_ns() + LIMIT, &err) < 0);
	assert_int_equal(err.scope, LM_SCOPE_VM);
	assert_true(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err) < 0);
	assert_int_equal(err.scope, LM_SCOPE_VM);
}

static void a_broken_channel_fails_the_save_not_the_guest(void **state)
{
	struct lm_vm_times times;

	(void)state;
	start_source(NULL);
	bring_to(PAUSED);
	shutdown(ch.near, SHUT_RDWR);
	assert_true(lm_vm_state_save(src, lm_now_ns() + LIMIT, &err) < 0);
	assert_int_equal(err.scope, LM_SCOPE_SESSION);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	lm_vm_detach(src);
	src = NULL;
	assert_status(&src_qemu, "running");
}

static void settings_are_put_back(void **state)
{
	LM_AUTO_JS struct json_object *caps0 = NULL;
	LM_AUTO_JS struct json_object *caps1 = NULL;
	LM_AUTO_JS struct json_object *params0 = NULL;
	LM_AUTO_JS struct json_object *params1 = NULL;
	struct lm_vm_times times;

	(void)state;
	rig_start_good(&src_qemu, "-S");
	query(&src_qemu, "query-migrate-capabilities", NULL, &caps0);
	query(&src_qemu, "query-migrate-parameters", NULL, &params0);
	attach(&src_qemu, LM_SOURCE, &src);
	bring_to(PAUSED);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	lm_vm_detach(src);
	src = NULL;
	query(&src_qemu, "query-migrate-capabilities", NULL, &caps1);
	query(&src_qemu, "query-migrate-parameters", NULL, &params1);
	assert_true(json_object_equal(caps0, caps1));
	assert_true(json_object_equal(params0, params1));
}

static void regions_can_be_read_in_every_stage(void **state)
{
	struct lm_ram a = { 0 }, b = { 0 };
	struct lm_vm_times times;

	(void)state;
	start_source(NULL);
	ok(lm_vm_regions(src, &a, &err));
	channel_open(0, -1);
	ok(lm_vm_pause_start(src, ch.qemu, &err));
	ok(lm_vm_regions(src, &b, &err));
	assert_true(lm_ram_same(&a, &b));
	lm_ram_fini(&b);
	pause_wait(src, &times);
	ok(lm_vm_regions(src, &b, &err));
	assert_true(lm_ram_same(&a, &b));
	lm_ram_fini(&b);
	lm_ram_fini(&a);
}

static void drain_returns(void **state)
{
	int64_t t, sum = 0;

	(void)state;
	start_source(NULL);
	for (int i = 0; i < 20; i++) {
		t = lm_now_ns();
		ok(lm_vm_drain(src, t + LIMIT, &err));
		sum += lm_now_ns() - t;
	}
	print_message("drain: %.3f ms\n", (double)sum / 20e6);
}

/* ---- the whole way ---- */

static char disk[128], drive[256];

static void disk_make(void)
{
	int fd;

	snprintf(disk, sizeof(disk), "/var/tmp/lm-glue-disk-%d", (int)getpid());
	snprintf(drive, sizeof(drive), "file=%s,if=none,id=d,format=raw", disk);
	fd = open(disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	close(fd);
}

static void pair_start(const char *paused)
{
	disk_make();
	rig_start_good(&src_qemu, "-drive", drive, "-device", "virtio-blk-pci,drive=d", paused);
	rig_start_good(&dst_qemu, "-drive", drive, "-device", "virtio-blk-pci,drive=d", "-incoming", "defer");
	attach(&src_qemu, LM_SOURCE, &src);
	attach(&dst_qemu, LM_DEST, &dst);
}

/* Device state over, memory by a plain copy: enough for firmware that waits for a disk to boot from. */
static void move(void)
{
	struct lm_ram a = { 0 }, b = { 0 };
	struct lm_vm_times times;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	channel_open(0, sv[0]);
	ok(lm_vm_state_load(dst, sv[1], &err));
	close(sv[1]);
	ok(lm_vm_pause_start(src, ch.qemu, &err));
	pause_wait(src, &times);
	ok(lm_vm_regions(src, &a, &err));
	ok(lm_vm_regions(dst, &b, &err));
	ok(lm_ram_map(&a, false, &err));
	ok(lm_ram_map(&b, true, &err));
	memcpy(b.regions[0].host, a.regions[0].host, a.regions[0].size);
	lm_ram_fini(&a);
	lm_ram_fini(&b);
	ok(lm_vm_state_save(src, lm_now_ns() + LIMIT, &err));
	ok(lm_vm_state_wait(dst, lm_now_ns() + LIMIT, &err));
	close(sv[0]);
}

static void a_guest_moves_and_runs(void **state)
{
	char text[512];
	struct lm_vm_times times;
	int64_t t;

	(void)state;
	pair_start(NULL);
	move();
	t = lm_now_ns();
	ok(lm_vm_resume(dst, t + LIMIT, &times, &err));
	print_message("resume at the destination: %.2f ms\n", (double)(lm_now_ns() - t) / 1e6);
	lm_vm_detach(src);
	src = NULL;
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "running");
	assert_status(&src_qemu, "postmigrate");
	ok(lm_resolve(src_qemu.qmp, LM_RESOLVE_SHOW, text, sizeof(text), &err));
	assert_non_null(strstr(text, "in-doubt source"));
	unlink(disk);
}

/* Loaded and not started: it has no lock on the disk, the source takes the guest back. */
static void the_source_comes_back_while_the_destination_is_loaded(void **state)
{
	char text[512];
	struct lm_vm_times times;

	(void)state;
	pair_start(NULL);
	move();
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "paused");
	ok(lm_resolve(dst_qemu.qmp, LM_RESOLVE_SHOW, text, sizeof(text), &err));
	assert_non_null(strstr(text, "loaded destination"));
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	lm_vm_detach(src);
	src = NULL;
	assert_status(&src_qemu, "running");
	/* and now the disk is the source's: the destination cannot run */
	assert_true(lm_resolve(dst_qemu.qmp, LM_RESOLVE_RUN_HERE, text, sizeof(text), &err) < 0);
	assert_non_null(strstr(err.msg, "lock"));
	ok(lm_resolve(dst_qemu.qmp, LM_RESOLVE_END_HERE, text, sizeof(text), &err));
	waitpid(dst_qemu.pid, NULL, 0);
	dst_qemu.pid = 0;
	unlink(disk);
}

static void in_doubt_is_resolved_by_hand(void **state)
{
	char text[512];

	(void)state;
	pair_start(NULL);
	move();
	lm_vm_detach(src);
	lm_vm_detach(dst);
	src = dst = NULL;
	ok(lm_resolve(dst_qemu.qmp, LM_RESOLVE_RUN_HERE, text, sizeof(text), &err));
	assert_status(&dst_qemu, "running");
	ok(lm_resolve(src_qemu.qmp, LM_RESOLVE_END_HERE, text, sizeof(text), &err));
	waitpid(src_qemu.pid, NULL, 0);
	src_qemu.pid = 0;
	unlink(disk);
}

static void the_guardian_runs_a_loaded_guest(void **state)
{
	(void)state;
	pair_start(NULL);
	assert_true(dst->ops->rescue(dst->rescue_fd, dst->pidfd, LM_RESCUE_RUN, lm_now_ns() + LIMIT, &err) < 0);
	assert_non_null(strstr(err.msg, "no whole guest"));
	move();
	ok(dst->ops->rescue(dst->rescue_fd, dst->pidfd, LM_RESCUE_RUN, lm_now_ns() + LIMIT, &err));
	ok(dst->ops->rescue(dst->rescue_fd, dst->pidfd, LM_RESCUE_RUN, lm_now_ns() + LIMIT, &err));
	lm_vm_detach(dst);
	dst = NULL;
	assert_status(&dst_qemu, "running");
	unlink(disk);
}

static void the_guardian_ends_a_guest_that_must_not_run(void **state)
{
	(void)state;
	pair_start(NULL);
	move();
	kill(dst_qemu.pid, SIGSTOP); /* it does not even listen */
	ok(lm_vm_end(dst, lm_now_ns() + LM_NS_PER_S / 2, &err));
	ok(lm_vm_end(dst, lm_now_ns() + LM_NS_PER_S / 2, &err));
	unlink(disk);
}

static void a_destination_of_another_kind_fails_and_the_source_runs_on(void **state)
{
	struct lm_vm_times times;
	int sv[2];

	(void)state;
	rig_start_good(&src_qemu, "-device", "virtio-net-pci");
	rig_start_good(&dst_qemu, "-incoming", "defer");
	attach(&src_qemu, LM_SOURCE, &src);
	attach(&dst_qemu, LM_DEST, &dst);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	channel_open(0, sv[0]);
	ok(lm_vm_state_load(dst, sv[1], &err));
	close(sv[1]);
	ok(lm_vm_pause_start(src, ch.qemu, &err));
	if (!lm_vm_pause_wait(src, 1000, &times, &err))
		lm_vm_state_save(src, lm_now_ns() + LIMIT, &err);
	assert_true(lm_vm_state_wait(dst, lm_now_ns() + LIMIT, &err) < 0);
	print_message("%s\n", err.msg);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &err));
	close(sv[0]);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(undo_of_nothing),
		T(undo_right_after_the_start),
		T(undo_of_a_pause),
		T(undo_while_the_state_is_stuck_in_the_socket),
		T(undo_after_the_state_has_left),
		T(rescue_runs_a_guest_that_ran),
		T(rescue_leaves_a_paused_guest_paused),
		T(a_paused_guest_stays_paused),
		T(a_guest_that_is_paused_meanwhile_stays_paused),
		T(somebody_elses_cancel_is_noticed),
		T(the_pause_is_dated_by_qemu),
		T(a_cancel_ends_the_wait),
		T(the_death_of_qemu_is_an_error_of_the_vm),
		T(a_broken_channel_fails_the_save_not_the_guest),
		T(settings_are_put_back),
		T(regions_can_be_read_in_every_stage),
		T(drain_returns),
		T(a_guest_moves_and_runs),
		T(the_source_comes_back_while_the_destination_is_loaded),
		T(in_doubt_is_resolved_by_hand),
		T(the_guardian_runs_a_loaded_guest),
		T(the_guardian_ends_a_guest_that_must_not_run),
		T(a_destination_of_another_kind_fails_and_the_source_runs_on),
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
