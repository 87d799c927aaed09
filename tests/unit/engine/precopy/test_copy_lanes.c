/* SPDX-License-Identifier: Apache-2.0 */
/* Copying over lanes that die, and that come back. */
#include <poll.h>
#include <pthread.h>
#include <unistd.h>
#include "unit.h"
#include "copyrig.h"

static struct lm_error err;

/* ---- lanes that die ---- */

/*
 * Who takes which chunk is a matter of luck.  The rig sees to it that a lane with a fault takes one; for
 * more than that the lanes are slowed down.  What is still luck is tried again until what the test is
 * about has happened; the result is checked in any case.
 */
#define SHARED (200u << 20)
#define TRIES 50

static void until_it_happens(bool (*attempt)(void))
{
	for (unsigned i = 0; i < TRIES; i++)
		if (attempt())
			return;
	fail_msg("no lane has died");
}

/* Copies everything with a lane that fails; the number of redos. */
static int copy_with(struct rig *g, unsigned lane, enum rig_fault fault, unsigned write)
{
	int redos;

	rig_fill(g, 4);
	rig_reuse_dest(g, 5);
	rig_all(g);
	g->copier.throttle.max_bytes_per_s = SHARED;
	g->all_faults = true;
	g->fault[lane] = fault;
	g->fault_write[lane] = write;
	redos = rig_copy(g, &err);
	if (redos < 0)
		fail_msg("%s", err.msg);
	assert_true(rig_equal(g));
	return redos;
}

static bool lane_dies(bool tcp, enum rig_fault fault, unsigned write)
{
	struct rig *g = rig_new(tcp);
	int redos = copy_with(g, 1, fault, write);

	assert_int_equal(lm_copier_live_lanes(&g->copier), RIG_LANES - redos);
	rig_free(g);
	return redos == 1;
}

static bool first_write_fails(void)
{
	return lane_dies(false, RIG_FAIL, 0);
}

static bool second_write_fails(void)
{
	return lane_dies(false, RIG_FAIL, 1);
}

static bool second_write_fails_over_tcp(void)
{
	return lane_dies(true, RIG_FAIL, 1);
}

static void pages_of_a_lane_that_failed_go_out_on_another(void **state)
{
	(void)state;
	until_it_happens(first_write_fails);
	until_it_happens(second_write_fails);
	until_it_happens(second_write_fails_over_tcp);
}

static bool all_is_lost(void)
{
	return lane_dies(false, RIG_LOSE, 0);
}

static bool half_is_lost_over_tcp(void)
{
	return lane_dies(true, RIG_LOSE, 1);
}

static void pages_that_a_lane_has_lost_in_flight_go_out_on_another(void **state)
{
	(void)state;
	until_it_happens(all_is_lost);
	until_it_happens(half_is_lost_over_tcp);
}

static bool mute_failure(void)
{
	return lane_dies(false, RIG_FAIL_MUTE, 0);
}

static void a_lane_that_fails_without_a_word_is_not_forgotten(void **state)
{
	(void)state;
	until_it_happens(mute_failure);
}

static bool peer_hangs_up(void)
{
	return lane_dies(false, RIG_HANG_UP, 0);
}

static void a_lane_that_the_peer_has_closed_is_dropped(void **state)
{
	(void)state;
	until_it_happens(peer_hangs_up);
}

static bool nothing_moves(void)
{
	struct rig *g = rig_new(false);
	int redos;

	g->copier.stall_ns = LM_NS_PER_S; /* the others must not be held up for so long */
	redos = copy_with(g, 0, RIG_FULL, 0);
	assert_int_equal(g->copier.lanes[0].dead, redos == 1);
	rig_free(g);
	return redos == 1;
}

static void a_lane_on_which_nothing_moves_is_dropped(void **state)
{
	(void)state;
	until_it_happens(nothing_moves);
}

static bool lane_is_dropped_and_comes_back(void)
{
	struct rig *g = rig_new(false);
	int redos = copy_with(g, 2, RIG_LOSE, 0);
	uint64_t pages = g->written_pages[2];

	g->fault[2] = RIG_OK;
	rig_fill(g, 8);
	rig_assert_copied(g, 0);
	if (redos)
		assert_int_equal(g->written_pages[2], pages);
	rig_free(g);
	return redos == 1;
}

static void a_dropped_lane_is_not_used_again(void **state)
{
	(void)state;
	until_it_happens(lane_is_dropped_and_comes_back);
}

/*
 * Lane 1 loses its pages, comes back while the job runs or when its workers have just ended, and has work
 * again: in this job, if there is any left, and in the next.
 */
static bool lane_comes_back_in_the_job(void)
{
	struct rig *g = rig_new(false);
	uint64_t dropped;
	int r;

	rig_fill(g, 14);
	rig_reuse_dest(g, 15);
	rig_all(g);
	g->copier.throttle.max_bytes_per_s = SHARED;
	g->all_faults = true;
	g->fault[1] = RIG_LOSE;
	g->reopens = true;
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	lm_pool_wait_worker(g->pool, 1);
	if (atomic_load(&g->copier.lanes[1].dead)) {
		assert_int_equal(lm_copier_live_lanes(&g->copier), RIG_LANES - 1);
		g->fault[1] = RIG_OK;
		lm_copier_revive(&g->copier, 1);
		assert_int_equal(lm_copier_live_lanes(&g->copier), RIG_LANES);
		assert_true(lm_pool_restart_worker(g->pool, 1));
	}
	r = lm_copier_finish(&g->copier, &dropped, &err);
	if (r == 1) {
		uint64_t pages = g->written_pages[1];

		assert_int_equal(dropped, 0); /* no lane is dead, but pages are lost */
		lm_copier_redo(&g->copier, dropped, &g->lost);
		assert_ok(lm_copier_finish(&g->copier, &dropped, &err), err);
		r = g->written_pages[1] > pages;
	}
	assert_true(rig_equal(g));
	rig_free(g);
	return r == 1;
}

static void a_lane_that_comes_back_takes_part_and_what_it_lost_goes_out_again(void **state)
{
	(void)state;
	until_it_happens(lane_comes_back_in_the_job);
}

/* Lane 0 loses its pages, lane 1 loses them again. */
static bool two_die_in_turn(void)
{
	struct rig *g = rig_new(false);
	uint64_t dropped;
	int r;

	rig_fill(g, 9);
	rig_reuse_dest(g, 10);
	rig_all(g);
	g->copier.throttle.max_bytes_per_s = SHARED;
	g->all_faults = true;
	g->fault[0] = RIG_LOSE;
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	r = lm_copier_finish(&g->copier, &dropped, &err);
	if (r == 1) {
		assert_int_equal(dropped, 1);
		g->fault[1] = RIG_LOSE;
		lm_copier_redo(&g->copier, dropped, &g->lost);
		r = lm_copier_finish(&g->copier, &dropped, &err);
	}
	if (r == 1) {
		assert_int_equal(dropped, 2);
		lm_copier_redo(&g->copier, dropped, &g->lost);
		assert_int_equal(lm_copier_finish(&g->copier, &dropped, &err), 0);
	}
	assert_true(rig_equal(g));
	r = lm_copier_live_lanes(&g->copier) == 1;
	rig_free(g);
	return r;
}

static void two_lanes_may_die_one_after_the_other(void **state)
{
	(void)state;
	until_it_happens(two_die_in_turn);
}

static bool two_die_at_once(void)
{
	struct rig *g = rig_new(false);
	int redos;

	g->fault[0] = RIG_FAIL;
	redos = copy_with(g, 2, RIG_LOSE, 0);
	redos = redos == 1 && lm_copier_live_lanes(&g->copier) == 1;
	rig_free(g);
	return redos;
}

static void lanes_may_die_in_the_same_job(void **state)
{
	(void)state;
	until_it_happens(two_die_at_once);
}

static void a_zero_that_replaces_what_a_dropped_lane_has_placed_goes_out(void **state)
{
	struct rig *g = rig_new(false);
	uint64_t dropped;

	(void)state;
	/* Lane 0 places the page, then fails before the flush; the guest clears the page before the redo. */
	memset(rig_page(&g->src, 0, 0), 9, LM_PAGE_SIZE);
	lm_bitmap_set(&g->todo.maps[0], 0);
	for (unsigned i = 0; i < RIG_LANES; i++)
		g->copier.lanes[i].dead = i != 0;
	lm_copier_start(&g->copier, &g->todo, &g->holes);
	lm_pool_finish(g->pool);
	memcpy(rig_page(&g->dst, 0, 0), rig_page(&g->src, 0, 0), LM_PAGE_SIZE);
	g->copier.lanes[0].dead = true;
	lm_err(&g->copier.lanes[0].error, -EIO, LM_SCOPE_LANE, "cut");
	g->copier.lanes[1].dead = false;
	assert_int_equal(lm_copier_finish(&g->copier, &dropped, &err), 1);
	memset(rig_page(&g->src, 0, 0), 0, LM_PAGE_SIZE);
	lm_bitmap_clear(&g->copier.filled.maps[0], 0); /* as if the lane had come no further than "zero" */
	lm_copier_redo(&g->copier, dropped, &g->lost);
	assert_int_equal(lm_copier_finish(&g->copier, &dropped, &err), 0);
	assert_true(rig_equal(g));
	rig_free(g);
}

static void without_a_lane_left_the_copy_fails(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	rig_fill(g, 12);
	rig_all(g);
	for (unsigned i = 0; i < RIG_LANES; i++)
		g->fault[i] = RIG_FAIL;
	assert_true(rig_copy(g, &err) < 0);
	assert_int_equal(err.code, -EIO);
	assert_int_equal(err.scope, LM_SCOPE_SESSION);
	assert_non_null(strstr(err.msg, "no lane is left"));
	assert_non_null(strstr(err.msg, "the test ended this lane"));
	rig_free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pages_of_a_lane_that_failed_go_out_on_another),
		cmocka_unit_test(pages_that_a_lane_has_lost_in_flight_go_out_on_another),
		cmocka_unit_test(a_lane_that_fails_without_a_word_is_not_forgotten),
		cmocka_unit_test(a_lane_that_the_peer_has_closed_is_dropped),
		cmocka_unit_test(a_lane_on_which_nothing_moves_is_dropped),
		cmocka_unit_test(a_dropped_lane_is_not_used_again),
		cmocka_unit_test(a_lane_that_comes_back_takes_part_and_what_it_lost_goes_out_again),
		cmocka_unit_test(two_lanes_may_die_one_after_the_other),
		cmocka_unit_test(lanes_may_die_in_the_same_job),
		cmocka_unit_test(a_zero_that_replaces_what_a_dropped_lane_has_placed_goes_out),
		cmocka_unit_test(without_a_lane_left_the_copy_fails),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
