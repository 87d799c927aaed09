/* SPDX-License-Identifier: Apache-2.0 */
/* Pausing a real QEMU and coming back from every stage of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "stage_rig.h"

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
	ok(lm_vm_resume(src, before + LIMIT, &times, &rig_err));
	ns = lm_now_ns() - before;
	print_message("resume from stage %d: %.2f ms\n", stage, (double)ns / 1e6);
	assert_true(ns < LM_NS_PER_S);
	/* once more, as good as new; QEMU refuses a migration of a guest that it thinks has left */
	channel_close();
	bring_to(PAUSED);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
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
static void force_from(enum stage stage, const char *paused, enum lm_force what)
{
	static const char half[] = "{\"execute\": \"query-status\", \"arguments\": {\"x\": \"unfinished ";

	start_source(paused);
	bring_to(stage);
	print_message("force from stage %d\n", stage);
	if (stage == DEVICE)
		channel_close(); /* the engine is dead */
	assert_int_equal(write(src->guardian_fd, half, sizeof(half) - 1), sizeof(half) - 1);
	ok(src->ops->force(src->guardian_fd, src->pidfd, what, lm_now_ns() + LIMIT, &rig_err));
	ok(src->ops->force(src->guardian_fd, src->pidfd, what, lm_now_ns() + LIMIT, &rig_err));
	channel_close();
	lm_vm_detach(src);
	src = NULL;
	if (paused)
		assert_paused(&src_qemu);
	else
		assert_status(&src_qemu, "running");
	rig_end(&src_qemu);
}

static void force_runs_a_guest_that_ran(void **state)
{
	(void)state;
	for (enum stage s = NOTHING; s <= COMPLETED; s++)
		force_from(s, NULL, LM_FORCE_UNDO_RUN);
}

static void force_leaves_a_paused_guest_paused(void **state)
{
	(void)state;
	for (enum stage s = NOTHING; s <= COMPLETED; s++)
		force_from(s, "-S", LM_FORCE_UNDO);
}

/* ---- guests that are paused ---- */

static void a_paused_guest_stays_paused(void **state)
{
	struct lm_vm_times times = { 0 };

	(void)state;
	start_source("-S");
	bring_to(PAUSED);
	ok(lm_vm_pause_wait(src, 0, &times, &rig_err));
	assert_true(times.stopped_ns > 0);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
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
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
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
	assert_true(lm_vm_state_save(src, lm_now_ns() + LIMIT, &rig_err) < 0);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
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
	ok(lm_vm_pause_start(src, ch.qemu, &rig_err));
	paused_wait(src, &stop);
	wait_ns = lm_now_ns() - start;
	assert_in_range(stop.stopped_ns, before, lm_clock_ns(CLOCK_REALTIME));
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &run, &rig_err));
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
	ok(lm_vm_pause_start(src, ch.qemu, &rig_err));
	assert_int_equal(lm_vm_pause_wait(src, 50, &times, &rig_err), -EAGAIN);
	assert_int_equal(eventfd_write(cancel_fd, 1), 0);
	assert_int_equal(lm_vm_pause_wait(src, 5000, &times, &rig_err), -ECANCELED);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
}

static void the_death_of_qemu_is_an_error_of_the_vm(void **state)
{
	struct lm_vm_times times;

	(void)state;
	start_source(NULL);
	bring_to(PAUSED);
	kill(src_qemu.pid, SIGKILL);
	assert_true(lm_vm_state_save(src, lm_now_ns() + LIMIT, &rig_err) < 0);
	assert_int_equal(rig_err.scope, LM_SCOPE_VM);
	assert_true(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err) < 0);
	assert_int_equal(rig_err.scope, LM_SCOPE_VM);
}

static void a_broken_channel_fails_the_save_not_the_guest(void **state)
{
	struct lm_vm_times times;

	(void)state;
	start_source(NULL);
	bring_to(PAUSED);
	shutdown(ch.near, SHUT_RDWR);
	assert_true(lm_vm_state_save(src, lm_now_ns() + LIMIT, &rig_err) < 0);
	assert_int_equal(rig_err.scope, LM_SCOPE_SESSION);
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
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
	ok(lm_vm_resume(src, lm_now_ns() + LIMIT, &times, &rig_err));
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
	ok(lm_vm_regions(src, &a, &rig_err));
	channel_open(0, -1);
	ok(lm_vm_pause_start(src, ch.qemu, &rig_err));
	ok(lm_vm_regions(src, &b, &rig_err));
	assert_true(lm_ram_same(&a, &b));
	lm_ram_fini(&b);
	paused_wait(src, &times);
	ok(lm_vm_regions(src, &b, &rig_err));
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
		ok(lm_vm_drain(src, t + LIMIT, &rig_err));
		sum += lm_now_ns() - t;
	}
	print_message("drain: %.3f ms\n", (double)sum / 20e6);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, rig_teardown)
	const struct CMUnitTest tests[] = {
		T(undo_of_nothing),
		T(undo_right_after_the_start),
		T(undo_of_a_pause),
		T(undo_while_the_state_is_stuck_in_the_socket),
		T(undo_after_the_state_has_left),
		T(force_runs_a_guest_that_ran),
		T(force_leaves_a_paused_guest_paused),
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
	};

	if (!rig_available())
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
