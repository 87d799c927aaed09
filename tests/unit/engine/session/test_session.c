/* SPDX-License-Identifier: Apache-2.0 */
/* Whole sessions, source and destination in one process over TCP on loopback, with a VM that can fail. */
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>
#include "netrelay.h"
#include "sessionpair.h"

static void a_busy_guest_moves_with_equal_memory(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->src_opt.max_bandwidth_bytes_per_s = 20u << 20; /* or else one round is enough */
	fakevm_fill(p->a, 60, 1);
	pair_run(p);
	assert_moved(p);
	assert_true(p->rounds_seen >= 2);
	pair_free(p);
}

static void verify_agrees(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->src_opt.verify = true;
	fakevm_fill(p->a, 60, 1);
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

/* KVM renews the guest's clock page when the state is loaded. */
static struct pair *loading_writes(void)
{
	struct pair *p = pair_new(&small);

	p->src_opt.verify = true;
	p->b->config.load_writes = true;
	fakevm_fill(p->a, 60, 1);
	setenv("LM_FAULT", "comparing:sleep=300", 1);
	pair_run(p);
	unsetenv("LM_FAULT");
	return p;
}

static void verify_looks_before_the_state_is_loaded(void **state)
{
	struct pair *p = loading_writes();

	(void)state;
	if (p->src_ret || p->dst_ret)
		fail_msg("source: %s; destination: %s", p->src_err.msg, p->dst_err.msg);
	assert_false(fakevm_ram_equal(p->a, p->b));
	pair_free(p);
}

static void without_holding_the_state_back_verify_complains(void **state)
{
	struct pair *p;

	(void)state;
	setenv("LM_BREAK", "verify-hold", 1);
	p = loading_writes();
	unsetenv("LM_BREAK");
	assert_stayed(p, LM_OUTCOME_ABORTED);
	pair_free(p);
}

static void old_content_of_the_destination_is_replaced(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	fakevm_fill(p->a, 30, 2);
	fakevm_scribble(p->b);
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

static void punch_after_first_round(struct pair *p, const struct lm_round *round)
{
	if (round->round)
		return;
	fakevm_discard(p->a, 0, 100, 700);
	fakevm_discard(p->a, 1, 5, 1);
}

static void discarded_memory_reads_as_zero_at_the_destination(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	fakevm_fill(p->a, 100, 3);
	p->on_round = punch_after_first_round;
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

/* Teeth: without the look for holes the destination keeps what the guest has given back. */
static void without_looking_for_discarded_memory_it_stays(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	fakevm_fill(p->a, 100, 3);
	p->on_round = punch_after_first_round;
	setenv("LM_BREAK", "discard", 1);
	pair_run(p);
	unsetenv("LM_BREAK");
	assert_int_equal(p->src_ret, 0);
	assert_false(fakevm_ram_equal(p->a, p->b));
	pair_free(p);
}

static void holes_stay_holes_on_both_sides(void **state)
{
	struct fakevm_config c = small;
	struct pair *p;

	(void)state;
	c.writes_per_ms = 0;
	p = pair_new(&c);
	fakevm_fill(p->a, 1, 4);
	pair_run(p);
	assert_moved(p);
	assert_true(lm_session_summary(p->src)->existing_pages < 200);
	assert_true(lm_session_summary(p->src)->sent_pages < 200);
	pair_free(p);
}

static void failure_before_commit_leaves_the_guest_at_the_source(void **state)
{
	static const size_t faults[] = {
		offsetof(struct fakevm_config, fail_drain), offsetof(struct fakevm_config, fail_pause),
		offsetof(struct fakevm_config, fail_save),
	};
	static const size_t dest_faults[] = {
		offsetof(struct fakevm_config, fail_load), offsetof(struct fakevm_config, fail_wait),
		offsetof(struct fakevm_config, fail_resume),
	};

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		struct pair *p = pair_new(&small);
		struct fakevm_state *st = i < 3 ? p->a : p->b;

		*(int *)((char *)&st->config + (i < 3 ? faults[i] : dest_faults[i - 3])) = EIO;
		pair_run(p);
		assert_stayed(p, LM_OUTCOME_ABORTED);
		assert_non_null(strstr(p->src_err.msg, "injected"));
		pair_free(p);
	}
}

static void half_a_guest_is_ended_at_the_destination(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->b->config.fail_wait = EIO;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_ABORTED);
	assert_true(p->b->ended);
	pair_free(p);
}

static void a_refused_layout_touches_nothing(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->b->config.region_bytes[1] -= 1u << 20;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_REFUSED);
	assert_non_null(strstr(p->src_err.msg, "size="));
	assert_false(p->b->ended);
	assert_int_equal(p->a->resumes, 0);
	p->b->config.region_bytes[1] += 1u << 20;
	pair_free(p);
}

static void another_machine_type_is_refused(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->b->config.machine = "fake-2";
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_REFUSED);
	assert_non_null(strstr(p->src_err.msg, "-machine"));
	pair_free(p);
}

static void memory_plugged_meanwhile_is_noticed(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->a->config.layout_changes = true;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_ABORTED);
	assert_non_null(strstr(p->src_err.msg, "plugged"));
	assert_int_equal(p->a->resumes, 0); /* noticed before the guest was paused */
	pair_free(p);
}

/* Teeth: without that check a guest is moved without the memory that it was given. */
static void without_a_look_at_the_layout_plugged_memory_is_lost(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->a->config.layout_changes = true;
	setenv("LM_BREAK", "layout", 1);
	pair_run(p);
	unsetenv("LM_BREAK");
	assert_int_equal(p->src_ret, 0);
	assert_true(p->b->running);
	pair_free(p);
}

static void a_guest_that_was_paused_meanwhile_stays_paused(void **state)
{
	struct fakevm_config c = small;
	struct pair *p;

	(void)state;
	c.stopped_meanwhile = true;
	p = pair_new(&c);
	pair_run(p);
	assert_int_equal(p->src_ret, 0);
	assert_int_equal(p->dst_ret, 0);
	assert_false(p->b->running);
	pair_free(p);
}

static void the_destination_can_leave_the_guest_paused(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->dst_opt.start_paused = true;
	pair_run(p);
	assert_int_equal(p->src_ret, 0);
	assert_false(p->b->running);
	assert_true(fakevm_ram_equal(p->a, p->b));
	pair_free(p);
}

static void broken_commit_rule_runs_two_guests(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	setenv("LM_BREAK", "commit", 1);
	setenv("LM_FAULT", "commit:error", 1);
	p->dst_opt.peer_timeout_ns = 300 * LM_NS_PER_MS;
	pair_run(p);
	unsetenv("LM_FAULT");
	unsetenv("LM_BREAK");
	assert_true(p->a->running);
	assert_true(p->b->running);
	pair_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_busy_guest_moves_with_equal_memory),
		cmocka_unit_test(verify_agrees),
		cmocka_unit_test(verify_looks_before_the_state_is_loaded),
		cmocka_unit_test(without_holding_the_state_back_verify_complains),
		cmocka_unit_test(old_content_of_the_destination_is_replaced),
		cmocka_unit_test(discarded_memory_reads_as_zero_at_the_destination),
		cmocka_unit_test(without_looking_for_discarded_memory_it_stays),
		cmocka_unit_test(holes_stay_holes_on_both_sides),
		cmocka_unit_test(failure_before_commit_leaves_the_guest_at_the_source),
		cmocka_unit_test(half_a_guest_is_ended_at_the_destination),
		cmocka_unit_test(a_refused_layout_touches_nothing),
		cmocka_unit_test(another_machine_type_is_refused),
		cmocka_unit_test(memory_plugged_meanwhile_is_noticed),
		cmocka_unit_test(without_a_look_at_the_layout_plugged_memory_is_lost),
		cmocka_unit_test(a_guest_that_was_paused_meanwhile_stays_paused),
		cmocka_unit_test(the_destination_can_leave_the_guest_paused),
		cmocka_unit_test(broken_commit_rule_runs_two_guests),
	};

	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
