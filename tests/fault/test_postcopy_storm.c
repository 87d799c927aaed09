/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fault storm in bad weather: eight vCPUs touch all of their memory as fast as
 * they can, while the background is slow, the lane for faults is late, the network goes
 * and comes, engines stand still, are told to stop, or are killed.
 *
 * The guest checks every page that it reads: a page that was old, came twice, or
 * was not whole is a bad page.  A vCPU that nobody wakes any more is seen, too: a pass
 * is complete when all vCPUs have made it.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"
#include "../guest/layout.h"

#define MIB (UINT64_C(1) << 20)
#define ENGINE_BYTES (8 * MIB) /* besides guest RAM; 2 MiB were seen */

enum { EXIT_INTERRUPTED = 8 }; /* migrate-rdma(1) */

static const struct rig_config tcg = {
	.mb = 128, .append = "mb=32 rate=max cpus=8", .extra = { "-smp", "8" },
};
static const struct rig_config kvm = {
	.machine = "microvm", .accel = "kvm", .mb = 128, .append = "mb=32 rate=max cpus=8", .extra = { "-smp", "8" },
};

struct storm {
	struct rig *rig;
	struct rig_vm *a, *b;
	struct rig_relay *relay;
	struct rig_run *send, *receive;
	char listen[80];
	uint64_t peak_bytes;
};

#define LATE "action=delay=2,lane=2,repeat=1"

/* peer_timeout: NULL: as it is when nobody says anything, 10 s. */
static void start(struct storm *m, struct rig *rig, const struct rig_config *config, const char *peer_timeout)
{
	const char *option = peer_timeout ? "--peer-timeout" : NULL;

	*m = (struct storm){ .rig = rig };
	m->a = rig_vm_start(rig, "A", config, RIG_RUNS);
	m->b = rig_vm_start(rig, "B", config, RIG_WAITS);
	m->relay = rig_relay_start(rig);
	rig_guest_wait_ready(m->a);
	rig_watch(m->a, m->b);
	m->receive = rig_receive(m->b, &(struct rig_run_options){ .transport_fault = LATE,
								   .args = { option, peer_timeout } });
	rig_relay_to(m->relay, m->receive->address);
	snprintf(m->listen, sizeof(m->listen), "%s", m->receive->address);
	m->send = rig_send(m->a, rig_relay_address(m->relay), &(struct rig_run_options){
		.args = { "--postcopy", "now", "--max-bandwidth", "4MiB/s", "--lanes", "2", option, peer_timeout } });
	assert_non_null(rig_run_event_is(m->send, "stage", "name", "postcopy", 2 * RIG_WAIT_MS));
	assert_non_null(rig_run_event_is(m->receive, "stage", "name", "postcopy", RIG_WAIT_MS));
	rig_sleep_ms(200);
}

static void look_at_memory(struct storm *m)
{
	uint64_t bytes = rig_proc_ended(m->receive->proc, 0) ? 0 : rig_anon_bytes(m->receive->proc->pid);

	if (bytes > m->peak_bytes)
		m->peak_bytes = bytes;
}

static void wait_ms(struct storm *m, int ms)
{
	for (int64_t end = rig_now_ms() + ms; rig_now_ms() < end; rig_sleep_ms(10))
		look_at_memory(m);
}

static bool in_postcopy(struct storm *m)
{
	return !rig_proc_ended(m->receive->proc, 0) && !rig_run_event(m->receive, "completed", 0);
}

static void assert_well(struct storm *m)
{
	char how[128];

	while (in_postcopy(m))
		wait_ms(m, 50);
	assert_int_equal(rig_run_wait(m->receive, RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(m->send, RIG_WAIT_MS), 0);
	assert_int_equal(rig_summary_int(m->receive, "postcopy.missing_pages"), 0);
	print_message("%lld faults, p50 %lld us, max %lld us, %lld recoveries, %lld ms; engine %llu KiB\n",
		      (long long)rig_summary_int(m->receive, "postcopy.faults"),
		      (long long)rig_summary_int(m->receive, "postcopy.fault_p50_ns") / 1000,
		      (long long)rig_summary_int(m->receive, "postcopy.fault_max_ns") / 1000,
		      (long long)rig_summary_int(m->receive, "postcopy.recoveries"),
		      (long long)rig_summary_int(m->receive, "postcopy.duration_ns") / 1000000,
		      (unsigned long long)m->peak_bytes >> 10);
	assert_true(m->peak_bytes > 0 && m->peak_bytes < ENGINE_BYTES);
	if (rig_saw_two(m->a, m->b, how, sizeof(how)))
		fail_msg("%s", how);
	assert_false(rig_vm_running(m->a));
	assert_true(rig_vm_running(m->b));
	rig_guest_assert_well(m->b);
}

static struct rig_run *recover(struct storm *m, struct rig_vm *vm, const char *how, const char *address)
{
	const char *argv[] = { "recover", "--json", "--qmp", vm->qmp, how, address, "--peer-timeout", "2s", NULL };

	return rig_engine(m->rig, vm == m->a ? "recover-A" : "recover-B", argv,
			  &(struct rig_run_options){ .transport_fault = LATE });
}

static void the_network_goes_and_comes(struct rig *rig)
{
	struct storm m;
	int cuts = 0;

	start(&m, rig, rig_arg(rig), "2s");
	for (; cuts < 4 && in_postcopy(&m); cuts++) {
		rig_relay_cut(m.relay);
		wait_ms(&m, 400);
		rig_relay_mend(m.relay);
		wait_ms(&m, 500);
	}
	assert_true(cuts > 1);
	assert_well(&m);
	assert_true(rig_summary_int(m.receive, "postcopy.recoveries") > 0);
}

/* Shorter than the peer timeout: nothing is lost, everything is late. */
static void the_network_is_silent_for_a_second(struct rig *rig)
{
	struct storm m;

	start(&m, rig, &tcg, "3s");
	rig_relay_silence(m.relay);
	wait_ms(&m, 1000);
	rig_relay_mend(m.relay);
	assert_well(&m);
}

static void engines_are_killed(struct rig *rig)
{
	struct storm m;

	start(&m, rig, &tcg, "2s");
	for (int i = 0; i < 2; i++) {
		rig_proc_end(m.receive->proc);
		m.receive = recover(&m, m.b, "--listen", m.listen);
		/* Before that its memory may still be that of this program. */
		assert_non_null(rig_run_event(m.receive, "listening", RIG_WAIT_MS));
		wait_ms(&m, 200);
		rig_proc_end(m.send->proc);
		m.send = recover(&m, m.a, "--to", rig_relay_address(m.relay));
		wait_ms(&m, 400);
	}
	assert_well(&m);
}

/* ---- an engine that stands still ---- */

struct still {
	bool source;
	const char *peer_timeout;
};

static void an_engine_stands_still(struct rig *rig)
{
	const struct still *s = rig_arg(rig);
	struct rig_proc *engine;
	struct storm m;

	start(&m, rig, &tcg, s->peer_timeout);
	engine = s->source ? m.send->proc : m.receive->proc;
	rig_proc_kill(engine, SIGSTOP);
	rig_sleep_ms(3000);
	/* All that it has is read; then it waits, and reads nothing that is old. */
	rig_proc_kill(engine, SIGCONT);
	assert_well(&m);
	/* Given up it is found again: once, or once more by a connection of the time in which it stood still. */
	if (s->peer_timeout)
		assert_in_range(rig_summary_int(m.receive, "postcopy.recoveries"), 1, 2);
	else
		assert_int_equal(rig_summary_int(m.receive, "postcopy.recoveries"), 0);
}

/* ---- being told to stop ---- */

/* There is no way back: both go on to the end. */
static void a_signal_changes_nothing(struct rig *rig)
{
	struct storm m;

	start(&m, rig, &tcg, "2s");
	for (int i = 0; i < 3; i++) {
		rig_proc_kill(m.send->proc, i == 1 ? SIGTERM : SIGINT);
		rig_proc_kill(m.receive->proc, i == 1 ? SIGTERM : SIGINT);
		rig_sleep_ms(100);
	}
	assert_true(in_postcopy(&m));
	assert_well(&m);
	assert_int_equal(rig_summary_int(m.receive, "postcopy.recoveries"), 0);
}

/* A user may tell an engine that looks for its peer to give that up; nothing is lost by it. */
static void a_signal_ends_the_search(struct rig *rig)
{
	struct storm m;

	start(&m, rig, &tcg, "2s");
	rig_relay_cut(m.relay);
	wait_ms(&m, 500);
	rig_proc_kill(m.send->proc, SIGINT);
	rig_proc_kill(m.receive->proc, SIGINT);
	assert_int_equal(rig_run_wait(m.send, RIG_WAIT_MS), EXIT_INTERRUPTED);
	assert_int_equal(rig_run_wait(m.receive, RIG_WAIT_MS), EXIT_INTERRUPTED);
	rig_relay_mend(m.relay);
	m.receive = recover(&m, m.b, "--listen", m.listen);
	m.send = recover(&m, m.a, "--to", rig_relay_address(m.relay));
	assert_well(&m);
}

static const struct still dest = { false, NULL }, source = { true, NULL };
static const struct still dest_given_up = { false, "1s" }, source_given_up = { true, "1s" };

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST_ARG("the_network_goes_and_comes", the_network_goes_and_comes, &tcg),
		RIG_TEST_ARG("under_kvm_the_network_goes_and_comes", the_network_goes_and_comes, &kvm),
		RIG_TEST(the_network_is_silent_for_a_second),
		RIG_TEST(engines_are_killed),
		RIG_TEST_ARG("the_destination_engine_stands_still", an_engine_stands_still, &dest),
		RIG_TEST_ARG("the_source_engine_stands_still", an_engine_stands_still, &source),
		RIG_TEST_ARG("the_destination_engine_stands_still_and_is_given_up", an_engine_stands_still, &dest_given_up),
		RIG_TEST_ARG("the_source_engine_stands_still_and_is_given_up", an_engine_stands_still, &source_given_up),
		RIG_TEST(a_signal_changes_nothing),
		RIG_TEST(a_signal_ends_the_search),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
