/* SPDX-License-Identifier: Apache-2.0 */
/* Cancel, stall, time limits, bandwidth: the guest is never the one to suffer. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"
#include "../guest/layout.h"

#define MIB (INT64_C(1) << 20)

enum { EXIT_ABORTED = 3, EXIT_CANCELLED = 4, EXIT_STALLED = 5 }; /* migrate-rdma(1) */

static const struct rig_config calm = { .mb = 128, .append = "mb=96 rate=1000" };
static const struct rig_config busy = { .mb = 128, .append = "mb=64 rate=max verify=0" };

struct pair {
	struct rig_vm *a, *b;
	struct rig_run *receive, *send;
};

static struct pair begin(struct rig *rig, const struct rig_config *config, const struct rig_run_options *send_options)
{
	struct pair p = {
		.a = rig_vm_start(rig, "A", config, RIG_RUNS),
		.b = rig_vm_start(rig, "B", config, RIG_WAITS),
	};

	rig_guest_wait_ready(p.a);
	rig_watch(p.a, p.b);
	p.receive = rig_receive(p.b, &(struct rig_run_options){ .args = { "--postcopy", "never" } });
	p.send = rig_send(p.a, p.receive->address, send_options);
	return p;
}

static void assert_runs_here_only(struct rig_vm *here, struct rig_vm *there)
{
	char how[128];

	assert_true(rig_vm_running(here));
	assert_true(rig_guest_beats(here, RIG_WAIT_MS));
	assert_false(rig_vm_alive(there) && rig_vm_running(there));
	if (rig_saw_two(here, there, how, sizeof(how)))
		fail_msg("%s", how);
}

/* What a migration that was given up has left must not stand in the way of the next. */
static void retry(struct rig_vm *a, const struct rig_config *config)
{
	struct rig_vm *c = rig_vm_start(a->rig, "C", config, RIG_WAITS);

	rig_migrate(a, c, NULL);
	assert_runs_here_only(c, a);
	rig_guest_assert_well(c);
}

static void sigint_in_precopy_leaves_the_guest_on_the_source(struct rig *rig)
{
	struct pair p = begin(rig, &calm, &(struct rig_run_options){ .fault = "round:sleep=1000" });
	char *before = rig_vm_migration_settings(p.a), *after;

	assert_non_null(rig_run_event(p.send, "round", RIG_WAIT_MS));
	rig_proc_kill(p.send->proc, SIGINT);
	assert_int_equal(rig_run_wait(p.send, RIG_WAIT_MS), EXIT_CANCELLED);
	assert_string_equal(rig_run_outcome(p.send), "cancelled");
	assert_int_not_equal(rig_run_wait(p.receive, RIG_WAIT_MS), 0);
	assert_runs_here_only(p.a, p.b);
	assert_int_equal(rig_longest_pause_us(p.a), 0);
	rig_guest_assert_well(p.a);
	after = rig_vm_migration_settings(p.a);
	assert_string_equal(after, before);
	free(before);
	free(after);
	rig_vm_end(p.b);
	retry(p.a, &calm);
}

/* The engine sits in a slow copy and must hear the signal there, too. */
static void sigint_in_the_first_pass_is_heard_at_once(struct rig *rig)
{
	struct pair p = begin(rig, &calm, &(struct rig_run_options){ .args = { "--max-bandwidth", "4MiB/s" } });
	int64_t at;

	assert_non_null(rig_run_event(p.send, "progress", RIG_WAIT_MS));
	at = rig_now_ms();
	rig_proc_kill(p.send->proc, SIGINT);
	assert_int_equal(rig_run_wait(p.send, RIG_WAIT_MS), EXIT_CANCELLED);
	assert_in_range(rig_now_ms() - at, 0, 5000);
	assert_int_not_equal(rig_run_wait(p.receive, RIG_WAIT_MS), 0);
	assert_runs_here_only(p.a, p.b);
	rig_vm_end(p.b);
	retry(p.a, &calm);
}

static void sigint_at_the_destination_leaves_the_guest_on_the_source(struct rig *rig)
{
	struct pair p = begin(rig, &calm, &(struct rig_run_options){ .fault = "round:sleep=500" });

	assert_non_null(rig_run_event(p.send, "round", RIG_WAIT_MS));
	rig_proc_kill(p.receive->proc, SIGINT);
	assert_int_equal(rig_run_wait(p.receive, RIG_WAIT_MS), EXIT_CANCELLED);
	assert_int_equal(rig_run_wait(p.send, RIG_WAIT_MS), EXIT_CANCELLED);
	assert_runs_here_only(p.a, p.b);
	rig_vm_end(p.b);
	retry(p.a, &calm);
}

static const char *const slow[] = { "--max-bandwidth", "64MiB/s", "--max-downtime", "5ms",
					 "--postcopy", "never" };

static void a_guest_that_writes_faster_than_the_link_stalls_and_stays(struct rig *rig)
{
	struct pair p = begin(rig, &busy, &(struct rig_run_options){
		.args = { slow[0], slow[1], slow[2], slow[3], slow[4], slow[5], "--on-stall", "abort" } });

	assert_int_equal(rig_run_wait(p.send, 3 * RIG_WAIT_MS), EXIT_STALLED);
	assert_string_equal(rig_run_outcome(p.send), "stalled");
	assert_non_null(rig_run_event_is(p.send, "decision", "decision", "abort", 0));
	assert_int_not_equal(rig_run_wait(p.receive, RIG_WAIT_MS), 0);
	assert_runs_here_only(p.a, p.b);
	assert_int_equal(rig_longest_pause_us(p.a), 0);
}

static void a_guest_that_writes_faster_than_the_link_moves_by_force(struct rig *rig)
{
	struct pair p = begin(rig, &busy, &(struct rig_run_options){
		.args = { slow[0], slow[1], slow[2], slow[3], slow[4], slow[5], "--on-stall", "force" } });

	assert_int_equal(rig_run_wait(p.send, 3 * RIG_WAIT_MS), 0);
	assert_non_null(rig_run_event_is(p.send, "decision", "decision", "force", 0));
	assert_int_equal(rig_run_wait(p.receive, RIG_WAIT_MS), 0);
	assert_runs_here_only(p.b, p.a);
}

static void the_time_limit_ends_a_migration_that_waits_forever(struct rig *rig)
{
	struct pair p = begin(rig, &busy, &(struct rig_run_options){
		.args = { slow[0], slow[1], slow[2], slow[3], slow[4], slow[5], "--on-stall", "wait", "--timeout", "4s" } });
	int64_t at = rig_now_ms();

	assert_int_equal(rig_run_wait(p.send, 3 * RIG_WAIT_MS), EXIT_ABORTED);
	assert_in_range(rig_now_ms() - at, 1000, 12000);
	assert_non_null(strstr(json_object_to_json_string(rig_run_event(p.send, "completed", 0)), "timeout"));
	assert_int_not_equal(rig_run_wait(p.receive, RIG_WAIT_MS), 0);
	assert_runs_here_only(p.a, p.b);
	assert_int_equal(rig_longest_pause_us(p.a), 0);
}

/* A ratio of what it took, so that a slow machine only makes it easier. */
static void the_bandwidth_limit_is_kept(struct rig *rig)
{
	struct pair p = begin(rig, &calm, &(struct rig_run_options){ .args = { "--max-bandwidth", "48MiB/s" } });
	int64_t bytes, ns;

	assert_int_equal(rig_run_wait(p.send, 3 * RIG_WAIT_MS), 0);
	bytes = rig_summary_int(p.send, "bytes");
	ns = rig_summary_int(p.send, "copying_ns");
	assert_true(bytes > 96 * MIB);
	assert_true((double)bytes * 1e9 / (double)ns < 1.25 * 48 * MIB);
	assert_int_equal(rig_run_wait(p.receive, RIG_WAIT_MS), 0);
	rig_guest_assert_well(p.b);
}

static void a_destination_that_does_not_answer_is_given_up(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &calm, RIG_RUNS);
	struct rig_run *send;

	rig_guest_wait_ready(a);
	send = rig_send(a, "127.0.0.1:1", NULL);
	assert_int_not_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), 0);
	assert_true(rig_log_has(send->proc, "127.0.0.1:1") ||
		    strstr(json_object_to_json_string(send->events), "127.0.0.1:1"));
	assert_true(rig_vm_running(a));
	assert_int_equal(rig_longest_pause_us(a), 0);
}

static void nothing_but_loopback_without_insecure(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &calm, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &calm, RIG_WAITS);
	struct rig_run *send = rig_send(a, "192.0.2.1:4", NULL);
	struct rig_run *receive = rig_receive_on(b, "0.0.0.0:0", NULL);

	assert_int_not_equal(rig_run_wait(send, RIG_WAIT_MS), 0);
	assert_int_not_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	assert_non_null(strstr(json_object_to_json_string(send->events), "--insecure"));
	assert_non_null(strstr(json_object_to_json_string(receive->events), "--insecure"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(sigint_in_precopy_leaves_the_guest_on_the_source),
		RIG_TEST(sigint_in_the_first_pass_is_heard_at_once),
		RIG_TEST(sigint_at_the_destination_leaves_the_guest_on_the_source),
		RIG_TEST(a_guest_that_writes_faster_than_the_link_stalls_and_stays),
		RIG_TEST(a_guest_that_writes_faster_than_the_link_moves_by_force),
		RIG_TEST(the_time_limit_ends_a_migration_that_waits_forever),
		RIG_TEST(the_bandwidth_limit_is_kept),
		RIG_TEST(a_destination_that_does_not_answer_is_given_up),
		RIG_TEST(nothing_but_loopback_without_insecure),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
