/* SPDX-License-Identifier: Apache-2.0 */
/* A running guest moves from one QEMU to another and goes on as if nothing had been. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"
#include "../guest/layout.h"

static const struct rig_config tcg = { .mb = 128, .append = "mb=64 rate=5000" };
static const struct rig_config microvm = {
	.machine = "microvm", .accel = "kvm", .mb = 128, .append = "mb=64 rate=5000",
};

static uint64_t beat_now(const struct rig_vm *vm)
{
	struct guest_beat b;

	rig_guest_beat(vm, &b);
	return b.beat;
}

static void assert_moved(struct rig_vm *a, struct rig_vm *b, uint64_t beat_before)
{
	char how[128], status[32];

	if (rig_saw_two(a, b, how, sizeof(how)))
		fail_msg("%s", how);
	rig_vm_status(a, status);
	assert_string_equal(status, "postmigrate");
	assert_true(rig_vm_running(b));
	assert_true(beat_now(b) > beat_before);
	rig_guest_assert_well(b);
	assert_false(rig_guest_beats(a, 50));
}

static void move(struct rig *rig, const struct rig_config *config, const char *listen,
		 const struct rig_run_options *options)
{
	struct rig_vm *a = rig_vm_start(rig, "A", config, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", config, RIG_WAITS);
	struct rig_run *receive, *send;
	uint64_t before;

	rig_guest_wait_ready(a);
	rig_watch(a, b);
	before = beat_now(a);
	receive = rig_receive_on(b, listen, NULL);
	send = rig_send(a, receive->address, options);
	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_string_equal(rig_run_outcome(send), "completed");
	assert_string_equal(rig_run_outcome(receive), "completed");
	assert_moved(a, b, before);
}

static void a_guest_under_tcg_moves_and_never_sees_a_bad_page(struct rig *rig)
{
	move(rig, &tcg, "127.0.0.1:0", NULL);
}

static void a_guest_under_kvm_moves_and_never_sees_a_bad_page(struct rig *rig)
{
	move(rig, &microvm, "127.0.0.1:0", NULL);
}

static void a_guest_moves_over_ipv6(struct rig *rig)
{
	move(rig, &tcg, "[::1]:0", NULL);
}

static void a_guest_moves_over_one_lane(struct rig *rig)
{
	move(rig, &tcg, "127.0.0.1:0", &(struct rig_run_options){ .args = { "--lanes", "1" } });
}

static void a_guest_moves_over_four_lanes(struct rig *rig)
{
	move(rig, &tcg, "127.0.0.1:0", &(struct rig_run_options){ .args = { "--lanes", "4" } });
}

static void a_guest_of_another_machine_type_moves(struct rig *rig)
{
	struct rig_config pc = tcg;

	pc.machine = "pc";
	move(rig, &pc, "127.0.0.1:0", NULL);
}

/* The summary must add up with what the engine and QEMU told before. */
static void the_summary_tells_what_happened(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &tcg, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &tcg, RIG_WAITS);
	struct rig_run *receive, *send;
	int64_t total, parts;

	rig_guest_wait_ready(a);
	receive = rig_receive(b, NULL);
	/* Where the machine is slow the last rounds may not pay, and pages stay behind. */
	send = rig_send(a, receive->address, &(struct rig_run_options){ .args = { "--postcopy", "never" } });
	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_non_null(rig_run_event(send, "opened", 0));
	assert_non_null(rig_run_event(send, "round", 0));
	assert_non_null(rig_run_event_is(send, "decision", "decision", "switchover", 0));
	assert_int_equal(rig_summary_int(send, "ram_bytes"), 128 << 20);
	assert_true(rig_summary_int(send, "sent_pages") >= 64 << 8);
	assert_true(rig_summary_int(send, "bytes") >= 64 << 20);
	assert_true(rig_summary_int(send, "bytes") < 192 << 20);
	total = rig_summary_int(send, "blackout.total_ns");
	parts = rig_summary_int(send, "blackout.last_scan_ns") + rig_summary_int(send, "blackout.last_copy_ns") +
		rig_summary_int(send, "blackout.device_state_ns");
	assert_true(total > 0);
	assert_in_range(parts, 1, (uint64_t)total + 5000000);
	assert_true(rig_summary_int(send, "blackout.device_state_bytes") > 1000);
}

static void a_paused_guest_stays_paused(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &tcg, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &tcg, RIG_WAITS);

	rig_guest_wait_ready(a);
	rig_qmp_do(a, "stop", NULL);
	rig_migrate(a, b, NULL);
	assert_false(rig_vm_running(b));
	assert_false(rig_guest_beats(b, 100));
	assert_false(rig_vm_wait_event(b, "RESUME", 0));
	rig_assert_ram_equal(a, b);
	rig_qmp_do(b, "cont", NULL);
	rig_guest_assert_well(b);
}

static void the_source_qemu_ends_when_asked_to(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &tcg, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &tcg, RIG_WAITS);

	rig_guest_wait_ready(a);
	rig_migrate(a, b, &(struct rig_run_options){ .args = { "--quit-source" } });
	assert_true(rig_proc_ended(a->proc, RIG_WAIT_MS));
	assert_int_equal(a->proc->status, 0);
	rig_guest_assert_well(b);
}

static void receive_starts_qemu_itself_and_leaves_it_running(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &tcg, RIG_RUNS);
	const char *argv[80] = { "receive", "--json", "--listen", "127.0.0.1:0", "--" };
	struct rig_vm *b = rig_vm_plan(rig, "B", &tcg, RIG_RUNS, argv + 5, 75);
	struct rig_run *receive, *send;
	struct json_object *e, *address;

	rig_guest_wait_ready(a);
	receive = rig_engine(rig, "receive", argv, NULL);
	e = rig_run_event(receive, "listening", RIG_WAIT_MS);
	if (!e)
		fail_msg("receive did not listen");
	assert_true(json_object_object_get_ex(e, "address", &address));
	rig_vm_found(b);
	assert_false(rig_vm_running(b));
	rig_watch(a, b);
	send = rig_send(a, json_object_get_string(address), NULL);
	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_moved(a, b, 0);
}

/* The QEMU that it started is its own to end when nothing came of it. */
static void receive_ends_the_qemu_that_it_started_in_vain(struct rig *rig)
{
	const char *argv[80] = { "receive", "--json", "--listen", "127.0.0.1:0", "--" };
	struct rig_vm *b = rig_vm_plan(rig, "B", &tcg, RIG_RUNS, argv + 5, 75);
	struct rig_run *receive = rig_engine(rig, "receive", argv, NULL);
	int64_t end;

	assert_non_null(rig_run_event(receive, "listening", RIG_WAIT_MS));
	rig_vm_found(b);
	rig_proc_kill(receive->proc, SIGINT);
	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), 4);
	end = rig_now_ms() + RIG_WAIT_MS;
	while (rig_vm_alive(b) && rig_now_ms() < end)
		rig_sleep_ms(20);
	assert_false(rig_vm_alive(b));
}

/* What the user had set in QEMU is as it was. */
static void settings_of_both_qemus_are_put_back(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &tcg, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &tcg, RIG_WAITS);
	char *a_before, *a_after, *b_before, *b_after;

	rig_guest_wait_ready(a);
	a_before = rig_vm_migration_settings(a);
	b_before = rig_vm_migration_settings(b);
	rig_migrate(a, b, NULL);
	a_after = rig_vm_migration_settings(a);
	b_after = rig_vm_migration_settings(b);
	assert_string_equal(a_after, a_before);
	assert_string_equal(b_after, b_before);
	free(a_before);
	free(a_after);
	free(b_before);
	free(b_after);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(a_guest_under_tcg_moves_and_never_sees_a_bad_page),
		RIG_TEST(a_guest_under_kvm_moves_and_never_sees_a_bad_page),
		RIG_TEST(a_guest_moves_over_ipv6),
		RIG_TEST(a_guest_moves_over_one_lane),
		RIG_TEST(a_guest_moves_over_four_lanes),
		RIG_TEST(a_guest_of_another_machine_type_moves),
		RIG_TEST(the_summary_tells_what_happened),
		RIG_TEST(a_paused_guest_stays_paused),
		RIG_TEST(the_source_qemu_ends_when_asked_to),
		RIG_TEST(receive_starts_qemu_itself_and_leaves_it_running),
		RIG_TEST(receive_ends_the_qemu_that_it_started_in_vain),
		RIG_TEST(settings_of_both_qemus_are_put_back),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
