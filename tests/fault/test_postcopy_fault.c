/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy loses its network, its engines, or both, again and again: afterwards
 * every page is right.
 *
 * Two kinds of proof.  With the guest paused at both ends all of RAM is compared.
 * With the guest running it checks each of its pages by itself: a page that was
 * old, or was overwritten by an older copy of itself, is a bad page.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"
#include "../guest/layout.h"

enum { EXIT_INTERRUPTED = 8 }; /* migrate-rdma(1) */

/* All of 64 MiB stays behind; faults and the background take more than two seconds for it. */
static const struct rig_config guest = { .mb = 128, .append = "mb=64 rate=2000" };
#define SLOW "--postcopy", "now", "--max-bandwidth", "16MiB/s", "--lanes", "2"
/* The cap is for the background; the lane for faults (the third) is slowed by the test. */
#define SLOW_FAULTS "action=delay=3,lane=2,repeat=1"

struct move {
	struct rig *rig;
	struct rig_vm *a, *b;
	struct rig_relay *relay;
	struct rig_run *send, *receive;
	char listen[80]; /* the destination's own address, for its successor */
};

static struct rig_run_options with(const struct rig_run_options *base, const char *peer_timeout)
{
	struct rig_run_options o = base ? *base : (struct rig_run_options){ 0 };
	unsigned n = 0;

	if (!o.transport_fault)
		o.transport_fault = SLOW_FAULTS;
	while (o.args[n])
		n++;
	o.args[n++] = "--peer-timeout";
	o.args[n++] = peer_timeout;
	o.args[n] = NULL;
	return o;
}

static void start(struct move *m, struct rig *rig, const struct rig_run_options *receive,
		  const struct rig_run_options *send)
{
	struct rig_run_options r = with(receive, "2s"), s = with(send, "2s");

	m->rig = rig;
	m->a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	m->b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	m->relay = rig_relay_start(rig);
	rig_guest_wait_ready(m->a);
	rig_watch(m->a, m->b);
	m->receive = rig_receive(m->b, &r);
	rig_relay_to(m->relay, m->receive->address);
	snprintf(m->listen, sizeof(m->listen), "%s", m->receive->address);
	m->send = rig_send(m->a, rig_relay_address(m->relay), &s);
}

static void wait_postcopy(struct move *m)
{
	assert_non_null(rig_run_event_is(m->send, "stage", "name", "postcopy", 2 * RIG_WAIT_MS));
	assert_non_null(rig_run_event_is(m->receive, "stage", "name", "postcopy", RIG_WAIT_MS));
	rig_sleep_ms(300);
}

static struct rig_run *recover(struct move *m, struct rig_vm *vm, const char *how, const char *address)
{
	const char *argv[] = { "recover", "--json", "--qmp", vm->qmp, how, address, "--peer-timeout", "2s", NULL };

	return rig_engine(m->rig, vm == m->a ? "recover-A" : "recover-B", argv,
			  &(struct rig_run_options){ .transport_fault = SLOW_FAULTS });
}

static void kill_and_recover_dest(struct move *m)
{
	rig_proc_end(m->receive->proc);
	m->receive = recover(m, m->b, "--listen", m->listen);
}

static void kill_and_recover_source(struct move *m)
{
	rig_proc_end(m->send->proc);
	m->send = recover(m, m->a, "--to", rig_relay_address(m->relay));
}

static void assert_ended_well(struct move *m)
{
	char how[128];

	assert_int_equal(rig_run_wait(m->send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(m->receive, RIG_WAIT_MS), 0);
	assert_int_equal(rig_summary_int(m->receive, "postcopy.missing_pages"), 0);
	if (rig_saw_two(m->a, m->b, how, sizeof(how)))
		fail_msg("%s", how);
	assert_false(rig_vm_running(m->a));
}

static void assert_well_running(struct move *m)
{
	assert_ended_well(m);
	assert_true(rig_vm_running(m->b));
	rig_guest_assert_well(m->b);
}

static void assert_well_paused(struct move *m)
{
	assert_ended_well(m);
	rig_assert_ram_equal(m->a, m->b);
	rig_qmp_do(m->b, "cont", NULL);
	rig_guest_assert_well(m->b);
}

static const struct rig_run_options slow = { .args = { SLOW } };
static const struct rig_run_options paused = { .args = { "--paused" } };

static void the_network_is_cut_and_comes_back(struct rig *rig)
{
	struct move m;

	start(&m, rig, NULL, &slow);
	wait_postcopy(&m);
	for (int i = 0; i < 2; i++) {
		rig_relay_cut(m.relay);
		rig_sleep_ms(700);
		rig_relay_mend(m.relay);
		rig_sleep_ms(400);
	}
	assert_well_running(&m);
	assert_in_range(rig_summary_int(m.receive, "postcopy.recoveries"), 1, 2);
}

static void the_network_is_silent_for_seconds(struct rig *rig)
{
	struct move m;

	start(&m, rig, NULL, &slow);
	wait_postcopy(&m);
	rig_relay_silence(m.relay);
	rig_sleep_ms(3500);
	rig_relay_mend(m.relay);
	assert_well_running(&m);
	assert_true(rig_summary_int(m.receive, "postcopy.recoveries") > 0);
}

struct lane_fault {
	const char *at_source, *at_dest;
	bool runs; /* the guest: only then are there faults */
	bool all;  /* no lane is left: a new connection; else the others go on, */
	bool back; /* and the lane comes back */
};

static void a_lane_is_cut(struct rig *rig)
{
	const struct lane_fault *f = rig_arg(rig);
	struct rig_run_options send = slow;
	struct move m;

	send.transport_fault = f->at_source;
	start(&m, rig, &(struct rig_run_options){ .transport_fault = f->at_dest,
						  .args = { f->runs ? NULL : "--paused" } }, &send);
	if (f->runs)
		assert_well_running(&m);
	else
		assert_well_paused(&m);
	assert_int_equal(rig_summary_int(m.receive, "postcopy.recoveries") > 0, f->all);
	assert_non_null(rig_run_event_is(m.receive, "lane", "state", "lost", 0));
	assert_int_equal(!!rig_run_event_is(m.receive, "lane", "state", "back", 0), f->back);
	assert_int_equal(!!rig_run_event_is(m.send, "lane", "state", "back", 0), f->back);
}

static void the_destination_engine_is_killed(struct rig *rig)
{
	struct move m;

	start(&m, rig, rig_arg(rig), &slow);
	wait_postcopy(&m);
	kill_and_recover_dest(&m);
	if (rig_arg(rig))
		assert_well_paused(&m);
	else
		assert_well_running(&m);
}

static void the_source_engine_is_killed(struct rig *rig)
{
	struct move m;

	start(&m, rig, rig_arg(rig), &slow);
	wait_postcopy(&m);
	kill_and_recover_source(&m);
	if (rig_arg(rig))
		assert_well_paused(&m);
	else
		assert_well_running(&m);
}

static void both_engines_are_killed_several_times(struct rig *rig)
{
	struct move m;

	start(&m, rig, NULL, &slow);
	wait_postcopy(&m);
	for (int i = 0; i < 3; i++) {
		kill_and_recover_dest(&m);
		kill_and_recover_source(&m);
		rig_sleep_ms(350);
	}
	assert_well_running(&m);
}

/* Without its engine the guest waits; nothing runs on what is missing. */
static void without_an_engine_the_guest_waits(struct rig *rig)
{
	struct move m;

	start(&m, rig, NULL, &slow);
	wait_postcopy(&m);
	rig_proc_end(m.receive->proc);
	rig_proc_end(m.send->proc);
	rig_sleep_ms(1500);
	assert_false(rig_guest_beats(m.b, 300));
	m.receive = recover(&m, m.b, "--listen", m.listen);
	m.send = recover(&m, m.a, "--to", rig_relay_address(m.relay));
	assert_well_running(&m);
}

/* What a person might try next must not lose the guest: its missing pages are in the source's QEMU. */
static void assert_resolve_refuses(struct move *m, const char *how)
{
	const char *argv[] = { "resolve", "--qmp", m->a->qmp, how, "--yes", NULL };
	struct rig_run *r = rig_engine(m->rig, "resolve", argv, NULL);

	assert_int_not_equal(rig_run_wait(r, RIG_WAIT_MS), 0);
	assert_true(rig_log_has(r->proc, "recover"));
	assert_true(rig_vm_alive(m->a));
	assert_false(rig_vm_running(m->a));
}

static void who_finds_nobody_says_what_to_do(struct rig *rig)
{
	struct move m;

	start(&m, rig, &(struct rig_run_options){ .args = { "--recover-timeout", "1s" } },
	      &(struct rig_run_options){ .args = { SLOW, "--recover-timeout", "1s" } });
	wait_postcopy(&m);
	rig_relay_cut(m.relay);
	assert_int_equal(rig_run_wait(m.send, RIG_WAIT_MS), EXIT_INTERRUPTED);
	assert_int_equal(rig_run_wait(m.receive, RIG_WAIT_MS), EXIT_INTERRUPTED);
	assert_string_equal(rig_run_outcome(m.send), "interrupted");
	assert_non_null(strstr(json_object_to_json_string(rig_run_event(m.receive, "completed", 0)), "recover"));
	assert_resolve_refuses(&m, "--end-here");
	assert_resolve_refuses(&m, "--run-here");
	rig_relay_mend(m.relay);
	m.receive = recover(&m, m.b, "--listen", m.listen);
	m.send = recover(&m, m.a, "--to", rig_relay_address(m.relay));
	assert_well_running(&m);
}

/* Teeth: when the descriptor does not stay inside QEMU, the guest of a dead engine reads what is old. */
static void without_the_descriptor_in_qemu_old_pages_are_read(struct rig *rig)
{
	struct guest_beat b;
	struct move m;

	start(&m, rig, &(struct rig_run_options){ .breaks = "pager-close" }, &slow);
	wait_postcopy(&m);
	rig_proc_end(m.receive->proc);
	rig_sleep_ms(1500);
	rig_guest_beat(m.b, &b);
	if (!b.bad && !rig_guest_log_has(m.b, "BAD") && rig_guest_beats(m.b, 300))
		fail_msg("the guest goes on without its engine, and no test would notice");
	rig_proc_end(m.send->proc);
}

static const struct lane_fault fault_lane_at_dest = { NULL, "action=cut,lane=2,write=20", true, false, true };
static const struct lane_fault background_lane_at_dest = { NULL, "action=cut,lane=0,write=20", false, false, true };
static const struct lane_fault lane_that_stays_away = { NULL, "action=cut,lane=0,write=20,stay=1", false, false };
static const struct lane_fault lane_at_source = { "action=cut,lane=1,after=6000000", NULL, false, false, true };
static const struct lane_fault all_lanes_at_dest = { NULL, "action=cut-all,write=20", true, true, false };

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(the_network_is_cut_and_comes_back),
		RIG_TEST(the_network_is_silent_for_seconds),
		RIG_TEST_ARG("the_lane_for_faults_is_cut", a_lane_is_cut, &fault_lane_at_dest),
		RIG_TEST_ARG("a_lane_of_the_background_is_cut", a_lane_is_cut, &background_lane_at_dest),
		RIG_TEST_ARG("a_lane_is_cut_and_stays_away", a_lane_is_cut, &lane_that_stays_away),
		RIG_TEST_ARG("a_lane_is_cut_at_the_source", a_lane_is_cut, &lane_at_source),
		RIG_TEST_ARG("all_lanes_are_cut", a_lane_is_cut, &all_lanes_at_dest),
		RIG_TEST(the_destination_engine_is_killed),
		RIG_TEST(the_source_engine_is_killed),
		RIG_TEST_ARG("the_destination_engine_of_a_paused_guest_is_killed",
			     the_destination_engine_is_killed, &paused),
		RIG_TEST_ARG("the_source_engine_of_a_paused_guest_is_killed", the_source_engine_is_killed, &paused),
		RIG_TEST(both_engines_are_killed_several_times),
		RIG_TEST(without_an_engine_the_guest_waits),
		RIG_TEST(who_finds_nobody_says_what_to_do),
		RIG_TEST(without_the_descriptor_in_qemu_old_pages_are_read),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
