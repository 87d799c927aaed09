/* SPDX-License-Identifier: Apache-2.0 */
/* Lanes that die, are slow, or carry what they should not, under a running guest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"

enum { EXIT_ABORTED = 3 }; /* migrate-rdma(1) */

static const struct rig_config guest = { .mb = 128, .append = "mb=64 rate=5000" };

struct move {
	struct rig_vm *a, *b;
	struct rig_run *send, *receive;
	int send_code, receive_code;
};

/* What goes wrong, and on which side. */
struct lane_fault {
	const char *at_source, *at_dest;
	const char *args[6]; /* of send */
};

/* The guest stays paused at the destination, so that RAM can be compared. */
static struct move move(struct rig *rig, const struct lane_fault *fault)
{
	struct move m = {
		.a = rig_vm_start(rig, "A", &guest, RIG_RUNS),
		.b = rig_vm_start(rig, "B", &guest, RIG_WAITS),
	};
	struct rig_run_options send = { .transport_fault = fault->at_source };

	memcpy(send.args, fault->args, sizeof(fault->args));
	rig_guest_wait_ready(m.a);
	m.receive = rig_receive(m.b, &(struct rig_run_options){ .transport_fault = fault->at_dest,
								.args = { "--paused", "--postcopy", "never" } });
	m.send = rig_send(m.a, m.receive->address, &send);
	m.send_code = rig_run_wait(m.send, 2 * RIG_WAIT_MS);
	m.receive_code = rig_run_wait(m.receive, 2 * RIG_WAIT_MS);
	return m;
}

static void the_guest_moves_all_the_same(struct rig *rig)
{
	struct move m = move(rig, rig_arg(rig));

	if (m.send_code || m.receive_code)
		fail_msg("send ended with %d, receive with %d", m.send_code, m.receive_code);
	rig_assert_ram_equal(m.a, m.b);
	rig_qmp_do(m.b, "cont", NULL);
	rig_guest_assert_well(m.b);
}

/* The copy is slow enough that there is something left for a lane that comes back. */
static void the_lane_comes_back_and_carries_the_rest(struct rig *rig)
{
	struct move m = move(rig, rig_arg(rig));

	if (m.send_code || m.receive_code)
		fail_msg("send ended with %d, receive with %d", m.send_code, m.receive_code);
	assert_non_null(rig_run_event_is(m.send, "lane", "state", "lost", 0));
	assert_non_null(rig_run_event_is(m.send, "lane", "state", "back", 0));
	rig_assert_ram_equal(m.a, m.b);
	rig_qmp_do(m.b, "cont", NULL);
	rig_guest_assert_well(m.b);
}

/*
 * The destination is slow to place what lane 1 still has in its socket when the source has lost the lane:
 * meanwhile the pages go out again, on other lanes, and change.
 */
static int move_past_a_slow_lane(struct rig *rig, struct move *m, const char *breaks)
{
	struct rig_run_options send = { .breaks = breaks, .transport_fault = "action=cut,lane=1,after=7000000",
					.args = { "--lanes", "4", "--max-bandwidth", "24MiB/s" } };
	struct rig_run_options receive = { .breaks = breaks, .transport_fault = "action=delay=4500,lane=1,after=4000000",
					   .args = { "--paused", "--postcopy", "never" } };

	m->a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	m->b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	rig_guest_wait_ready(m->a);
	m->receive = rig_receive(m->b, &receive);
	m->send = rig_send(m->a, m->receive->address, &send);
	m->send_code = rig_run_wait(m->send, 3 * RIG_WAIT_MS);
	m->receive_code = rig_run_wait(m->receive, 2 * RIG_WAIT_MS);
	return m->send_code;
}

static void what_a_lost_lane_had_does_not_land_late(struct rig *rig)
{
	struct move m;

	assert_int_equal(move_past_a_slow_lane(rig, &m, NULL), 0);
	rig_assert_ram_equal(m.a, m.b);
}

static void without_the_drop_old_pages_land_on_new_ones(struct rig *rig)
{
	char where[128];
	struct move m;

	/* Whether a page changed while its old content waited is a matter of time: on a loaded machine not each time. */
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(move_past_a_slow_lane(rig, &m, "lane-drop"), 0);
		if (!rig_ram_equal(m.a, m.b, where, sizeof(where)))
			return;
		rig_vm_end(m.a);
		rig_vm_end(m.b);
	}
	fail_msg("nothing of it was seen");
}

/* Whether a packet lands late that a device was just placing is a matter of microseconds.  The fault's transport looks. */
static void without_the_fence_the_lane_is_kept_out(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS), *b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	struct rig_run *receive, *send;

	rig_guest_wait_ready(a);
	receive = rig_receive(b, &(struct rig_run_options){ .breaks = "fence", .args = { "--postcopy", "never" },
							    .transport_fault = "action=cut,lane=2,after=4000000" });
	send = rig_send(a, receive->address, &(struct rig_run_options){ .args = { "--lanes", "4", "--max-bandwidth",
										  "24MiB/s" } });
	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), 0);
	assert_non_null(rig_run_event_is(send, "lane", "state", "lost", 0));
	assert_null(rig_run_event_is(send, "lane", "state", "back", 0));
}

/* Until the time is out the guest runs at the source, and what it writes is seen: the retry moves all of it. */
static void the_guest_stays_and_a_retry_succeeds(struct rig *rig)
{
	struct move m = move(rig, rig_arg(rig));
	struct rig_vm *c;

	assert_int_equal(m.send_code, EXIT_ABORTED);
	assert_int_not_equal(m.receive_code, 0);
	assert_true(rig_vm_running(m.a));
	rig_guest_assert_well(m.a);
	rig_vm_end(m.b);
	c = rig_vm_start(rig, "C", &guest, RIG_WAITS);
	rig_migrate(m.a, c, NULL);
	rig_guest_assert_well(c);
}

/*
 * A page of the destination that nobody sent is changed while the device state is
 * on its way.  Returns the code of send.
 */
static int move_and_spoil(struct rig *rig, struct rig_vm **ret_a, struct rig_vm **ret_b, const char *verify)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	struct rig_run *receive, *send;
	int code;

	rig_guest_wait_ready(a);
	receive = rig_receive(b, &(struct rig_run_options){ .fault = "loading:sleep=500", .args = { "--paused", "--postcopy", "never" } });
	send = rig_send(a, receive->address, &(struct rig_run_options){ .args = { verify } });
	assert_non_null(rig_run_event_is(receive, "stage", "name", "loading", RIG_WAIT_MS));
	rig_ram_fill(b, 0, 120 << 20, 4096, 7);
	code = rig_run_wait(send, 2 * RIG_WAIT_MS);
	rig_run_wait(receive, RIG_WAIT_MS);
	if (verify)
		assert_non_null(strstr(json_object_to_json_string(rig_run_event(send, "completed", 0)), verify));
	*ret_a = a;
	*ret_b = b;
	return code;
}

static void a_spoiled_page_is_seen_by_the_rig(struct rig *rig)
{
	struct rig_vm *a, *b;
	char where[128];

	assert_int_equal(move_and_spoil(rig, &a, &b, NULL), 0);
	assert_false(rig_ram_equal(a, b, where, sizeof(where)));
	assert_non_null(strstr(where, "0x7800000"));
}

static void a_spoiled_page_is_seen_by_verify(struct rig *rig)
{
	struct rig_vm *a, *b;

	assert_int_equal(move_and_spoil(rig, &a, &b, "--verify"), EXIT_ABORTED);
	assert_true(rig_vm_running(a));
	rig_guest_assert_well(a);
}

#define FOUR "--lanes", "4"
static const struct lane_fault source_lane_dies = { "action=cut,lane=1,after=4000000", NULL, { FOUR } };
static const struct lane_fault dest_lane_dies = { NULL, "action=cut,lane=2,after=4000000", { FOUR } };
static const struct lane_fault lane_dies_at_once = { "action=cut,lane=0,write=1", NULL, { FOUR } };
static const struct lane_fault lane_dies_at_a_flush = { "action=cut,lane=3,flush=2", NULL, { FOUR } };
static const struct lane_fault slow_lane = { "action=delay=20,lane=1,repeat=1", NULL, { FOUR } };
static const struct lane_fault lane_returns = { "action=cut,lane=1,after=4000000", NULL,
						 { FOUR, "--max-bandwidth", "24MiB/s" } };
static const struct lane_fault all_die_at_source = { "action=cut-all,after=8000000", NULL, { FOUR } };
static const struct lane_fault all_die_at_dest = { NULL, "action=cut-all,after=8000000", { FOUR } };
static const struct lane_fault the_only_lane_dies = { "action=cut,after=8000000", NULL, { "--lanes", "1" } };
static const struct lane_fault all_stay_away = { "action=cut-all,after=8000000,stay=1", NULL,
						  { FOUR, "--recover-timeout", "2500ms" } };
static const struct lane_fault nobody_lets_them_in = { "action=cut-all,after=8000000",
							"action=cut-all,after=1000000000,stay=1",
							{ FOUR, "--recover-timeout", "2500ms" } };
static const struct lane_fault the_only_one_stays_away = { "action=cut,after=8000000,stay=1", NULL,
							    { "--lanes", "1", "--recover-timeout", "1s" } };
static const struct lane_fault they_die_again_and_again = { "action=cut-all,after=8000000,repeat=1", NULL,
							     { FOUR, "--recover-timeout", "3s" } };
static const struct lane_fault nobody_waits = { "action=cut-all,after=8000000", NULL,
						 { FOUR, "--recover-timeout", "0s" } };
static const struct lane_fault corrupt = { "action=corrupt,write=3", NULL, { "--lanes", "1" } };
static const struct lane_fault truncated = { "action=truncate,write=3", NULL, { "--lanes", "1" } };
static const struct lane_fault stray = { "action=stray,write=3,stay=1", NULL,
					  { "--lanes", "1", "--recover-timeout", "1s" } };

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST_ARG("a_lane_dies_at_the_source", the_guest_moves_all_the_same, &source_lane_dies),
		RIG_TEST_ARG("a_lane_dies_at_the_destination", the_guest_moves_all_the_same, &dest_lane_dies),
		RIG_TEST_ARG("a_lane_dies_at_its_first_write", the_guest_moves_all_the_same, &lane_dies_at_once),
		RIG_TEST_ARG("a_lane_dies_at_a_flush", the_guest_moves_all_the_same, &lane_dies_at_a_flush),
		RIG_TEST_ARG("a_lane_is_slow", the_guest_moves_all_the_same, &slow_lane),
		RIG_TEST_ARG("a_lane_comes_back", the_lane_comes_back_and_carries_the_rest, &lane_returns),
		RIG_TEST_ARG("all_lanes_die_at_the_source_and_come_back", the_lane_comes_back_and_carries_the_rest,
			     &all_die_at_source),
		RIG_TEST_ARG("all_lanes_die_at_the_destination_and_come_back", the_lane_comes_back_and_carries_the_rest,
			     &all_die_at_dest),
		RIG_TEST_ARG("the_only_lane_dies_and_comes_back", the_lane_comes_back_and_carries_the_rest,
			     &the_only_lane_dies),
		RIG_TEST(without_the_fence_the_lane_is_kept_out),
		RIG_TEST(what_a_lost_lane_had_does_not_land_late),
		RIG_TEST(without_the_drop_old_pages_land_on_new_ones),
		RIG_TEST_ARG("all_lanes_stay_away", the_guest_stays_and_a_retry_succeeds, &all_stay_away),
		RIG_TEST_ARG("nobody_lets_lanes_in", the_guest_stays_and_a_retry_succeeds, &nobody_lets_them_in),
		RIG_TEST_ARG("the_only_lane_stays_away", the_guest_stays_and_a_retry_succeeds, &the_only_one_stays_away),
		RIG_TEST_ARG("all_lanes_die_again_and_again", the_guest_stays_and_a_retry_succeeds,
			     &they_die_again_and_again),
		RIG_TEST_ARG("all_lanes_die_and_nobody_waits", the_guest_stays_and_a_retry_succeeds, &nobody_waits),
		RIG_TEST_ARG("pages_that_arrive_as_zeros_are_counted", the_guest_stays_and_a_retry_succeeds,
			     &corrupt),
		RIG_TEST(a_spoiled_page_is_seen_by_the_rig),
		RIG_TEST(a_spoiled_page_is_seen_by_verify),
		RIG_TEST_ARG("missing_pages_are_counted", the_guest_stays_and_a_retry_succeeds, &truncated),
		RIG_TEST_ARG("a_run_outside_of_memory_is_refused", the_guest_stays_and_a_retry_succeeds, &stray),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
