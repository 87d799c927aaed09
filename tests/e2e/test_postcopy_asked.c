/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy that somebody asks for, by hand or by the clock, and who refuses it. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rig.h"

enum { EXIT_REFUSED = 2 }; /* migrate-rdma(1) */

/* The first pass takes 24 s at this bandwidth. */
static const struct rig_config guest = { .mb = 128, .append = "mb=96 rate=2000" };
#define PAGES (96 << 8)
#define CAP "--max-bandwidth", "4MiB/s"

struct move {
	struct rig *rig;
	struct rig_vm *a, *b;
	struct rig_run *receive, *send;
};

static void start(struct move *m, struct rig *rig, const struct rig_run_options *receive,
		  const struct rig_run_options *send)
{
	m->rig = rig;
	m->a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	m->b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	rig_guest_wait_ready(m->a);
	rig_watch(m->a, m->b);
	m->receive = rig_receive(m->b, receive);
	m->send = rig_send(m->a, m->receive->address, send);
}

/* Exit code of `migrate-rdma postcopy`; its log says why. */
static struct rig_proc *ask(struct rig *rig, const struct rig_vm *vm)
{
	const char *argv[] = { "postcopy", "--qmp", vm->qmp, NULL };
	struct rig_run *r = rig_engine(rig, "postcopy", argv, NULL);

	rig_run_wait(r, RIG_WAIT_MS);
	return r->proc;
}

static void assert_moved(struct move *m)
{
	char how[128];

	assert_int_equal(rig_run_wait(m->send, 3 * RIG_WAIT_MS), 0);
	assert_int_equal(rig_run_wait(m->receive, RIG_WAIT_MS), 0);
	if (rig_saw_two(m->a, m->b, how, sizeof(how)))
		fail_msg("%s", how);
	assert_false(rig_vm_running(m->a));
	assert_true(rig_vm_running(m->b));
	rig_guest_assert_well(m->b);
}

/* What waits for the end of the pass leaves next to nothing behind. */
static void assert_the_pass_was_cut_short(struct move *m, int64_t from_ms)
{
	assert_non_null(rig_run_event_is(m->send, "stage", "name", "postcopy", RIG_WAIT_MS));
	assert_in_range(rig_now_ms() - from_ms, 0, 5000);
	assert_null(rig_run_event(m->send, "completed", 0));
	/* The rest of it at 4 MiB/s, too, but for what the guest touches: which it does with all of it, soon. */
	assert_moved(m);
	assert_true(rig_summary_int(m->receive, "postcopy.left_pages") > PAGES / 2);
}

static void by_hand_in_the_middle_of_the_first_pass(struct rig *rig)
{
	struct move m;
	int64_t from;

	start(&m, rig, NULL, &(struct rig_run_options){ .args = { CAP } });
	assert_non_null(rig_run_event(m.send, "progress", RIG_WAIT_MS));
	rig_sleep_ms(1000);
	from = rig_now_ms();
	assert_int_equal(ask(rig, m.a)->status, 0);
	assert_int_equal(ask(rig, m.a)->status, 0); /* twice is no harm */
	assert_the_pass_was_cut_short(&m, from);
}

static void by_the_clock_in_the_middle_of_the_first_pass(struct rig *rig)
{
	struct move m;

	start(&m, rig, NULL, &(struct rig_run_options){ .args = { CAP, "--postcopy-after", "1s" } });
	assert_the_pass_was_cut_short(&m, rig_now_ms());
}

/* In post-copy it is too late to ask, and nothing comes of it. */
static void by_hand_when_it_has_happened(struct rig *rig)
{
	struct move m;

	start(&m, rig, NULL, &(struct rig_run_options){ .args = { CAP, "--postcopy", "now" } });
	assert_non_null(rig_run_event_is(m.send, "stage", "name", "postcopy", RIG_WAIT_MS));
	assert_int_equal(ask(rig, m.a)->status, 0);
	assert_moved(&m);
}

static void nobody_is_there_to_be_asked(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct rig_proc *p = ask(rig, a);

	assert_int_equal(p->status, EXIT_REFUSED);
	assert_true(rig_log_has(p, "nothing done"));
	rig_guest_wait_ready(a);
	rig_guest_assert_well(a);
}

static void a_send_that_must_never_refuses(struct rig *rig)
{
	struct rig_proc *p;
	struct move m;

	start(&m, rig, NULL, &(struct rig_run_options){ .args = { "--max-bandwidth", "32MiB/s", "--postcopy", "never" } });
	assert_non_null(rig_run_event(m.send, "progress", RIG_WAIT_MS));
	p = ask(rig, m.a);
	assert_int_equal(p->status, EXIT_REFUSED);
	assert_true(rig_log_has(p, "--postcopy never"));
	assert_null(rig_run_event(m.send, "completed", 0));
	assert_moved(&m);
	assert_null(rig_run_event_is(m.send, "stage", "name", "postcopy", 0));
}

/* The destination's word counts as well; who asked is told by the send. */
static void a_receive_that_must_never_refuses(struct rig *rig)
{
	struct move m;

	start(&m, rig, &(struct rig_run_options){ .args = { "--postcopy", "never" } },
	      &(struct rig_run_options){ .args = { "--max-bandwidth", "32MiB/s" } });
	assert_non_null(rig_run_event(m.send, "progress", RIG_WAIT_MS));
	assert_int_equal(ask(rig, m.a)->status, 0);
	assert_moved(&m);
	assert_null(rig_run_event_is(m.send, "stage", "name", "postcopy", 0));
	assert_non_null(strstr(json_object_to_json_string(m.send->events), "the destination does not allow it"));
}

static void at_once_is_refused_where_the_receive_must_never(struct rig *rig)
{
	struct move m;

	start(&m, rig, &(struct rig_run_options){ .args = { "--postcopy", "never", "--peer-timeout", "2s" } },
	      &(struct rig_run_options){ .args = { "--postcopy", "now" } });
	assert_int_not_equal(rig_run_wait(m.send, RIG_WAIT_MS), 0);
	assert_int_not_equal(rig_run_wait(m.receive, RIG_WAIT_MS), 0);
	assert_non_null(strstr(json_object_to_json_string(m.send->events), "the destination does not allow it"));
	assert_true(rig_vm_running(m.a));
	assert_int_equal(rig_longest_pause_us(m.a), 0);
	rig_guest_assert_well(m.a);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(by_hand_in_the_middle_of_the_first_pass),
		RIG_TEST(by_the_clock_in_the_middle_of_the_first_pass),
		RIG_TEST(by_hand_when_it_has_happened),
		RIG_TEST(nobody_is_there_to_be_asked),
		RIG_TEST(a_send_that_must_never_refuses),
		RIG_TEST(a_receive_that_must_never_refuses),
		RIG_TEST(at_once_is_refused_where_the_receive_must_never),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
