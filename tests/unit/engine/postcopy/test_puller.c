/* SPDX-License-Identifier: Apache-2.0 */
/* The threads that bring missing pages. */
#include <unistd.h>
#include "unit.h"
#include "pullrig.h"

static void storm(bool tcp)
{
	struct lm_postcopy_stats stats = { 0 };
	struct rig *g = rig_new(tcp);

	rig_touchers_start(g, TOUCHERS);
	rig_serve(g);
	rig_up(g);
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 20));
	rig_touchers_end(g);
	rig_down(g);
	assert_null(lm_puller_error(&g->p));
	lm_arrival_stats(&g->p.arrival, &stats);
	assert_int_equal(stats.left_pages, rig_pages[0] + rig_pages[1]);
	assert_int_equal(atomic_load(&g->p.bytes), atomic_load(&g->fetched_pages) * LM_PAGE_SIZE);
	rig_assert_all_right(g);
	rig_free(g);
}

static void eight_threads_that_touch_everything_see_right_pages_in_process(void **state)
{
	(void)state;
	storm(false);
}

static void eight_threads_that_touch_everything_see_right_pages_over_tcp(void **state)
{
	(void)state;
	storm(true);
}

static void without_the_background_pages_come_when_they_are_touched(void **state)
{
	struct rig *g = rig_new(true);
	uint64_t missing;

	(void)state;
	rig_serve(g);
	rig_up(g);
	assert_true(rig_touch(g, 0, 1000));
	assert_true(rig_touch(g, 1, 699)); /* the last: nothing is around it */
	unit_sleep_ms(100);
	missing = lm_puller_missing(&g->p);
	assert_true(missing < rig_pages[0] + rig_pages[1]);
	assert_true(missing >= rig_pages[0] + rig_pages[1] - 2 * 65);
	/* Of a page whose neighbours came with it, a touch is free. */
	assert_true(rig_touch(g, 0, 1001));
	rig_free(g);
}

static void pages_that_are_whole_are_shown_without_a_connection(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	lm_bitmap_set_range(&g->whole[0], 500, 10);
	for (uint64_t i = 500; i < 510; i++)
		memcpy(rig_page(&g->dst, 0, i), rig_page(&g->src, 0, i), LM_PAGE_SIZE);
	rig_serve(g);
	assert_true(rig_touch(g, 0, 505));
	assert_false(g->shown[0][499] || g->shown[0][510]);
	rig_free(g);
}

static void who_waits_from_before_is_served_when_the_connection_is_there(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	rig_touchers_start(g, TOUCHERS);
	rig_serve(g);
	unit_sleep_ms(50);
	assert_int_equal(lm_puller_missing(&g->p), rig_pages[0] + rig_pages[1]);
	rig_up(g);
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 20));
	rig_touchers_end(g);
	rig_assert_all_right(g);
	rig_free(g);
}

/* Lanes that fail one after the other, and connections that go and come. */
static void lanes_that_die(bool tcp)
{
	struct rig *g = rig_new(tcp);
	uint64_t x = 5;
	unsigned rounds = 0;

	rig_touchers_start(g, TOUCHERS);
	rig_serve(g);
	while (lm_puller_missing(&g->p) && rounds < 200) {
		atomic_store(&g->die_lanes, 1u << unit_random(&x) % (LANES + 1));
		atomic_store(&g->die_at, rounds < 30 ? 1 + (unsigned)(unit_random(&x) % 12) : 0);
		rig_up(g);
		if (unit_random(&x) % 4)
			lm_puller_background(&g->p);
		/* Those in which nothing dies bring the rest, however slow this machine is. */
		unit_sleep_ms(rounds < 30 ? (unsigned)(unit_random(&x) % 4) : 20);
		rig_down(g);
		rounds++;
	}
	rig_touchers_end(g);
	assert_true(rounds > 3);
	rig_assert_all_right(g);
	rig_free(g);
}

static void lanes_that_die_cost_no_page_in_process(void **state)
{
	(void)state;
	lanes_that_die(false);
}

static void lanes_that_die_cost_no_page_over_tcp(void **state)
{
	(void)state;
	lanes_that_die(true);
}

static void a_lane_that_dies_is_told_of_and_the_rest_goes_on(void **state)
{
	(void)state;
	for (unsigned lane = 0; lane <= LANES; lane++) {
		struct rig *g = rig_new(true);

		atomic_store(&g->die_at, 1);
		atomic_store(&g->die_lanes, 1u << lane);
		g->die_first = true;
		rig_serve(g);
		rig_up(g);
		lm_puller_background(&g->p);
		if (lane == LANES)
			rig_touchers_start(g, 1); /* the lane for faults notices when there is one */
		assert_true(rig_await_all(g, 10)); /* by the others */
		assert_int_equal(atomic_load(&g->p.failed), 1u << lane);
		assert_false(atomic_load(&g->p.lost));
		rig_touchers_end(g);
		rig_down(g);
		assert_non_null(lm_puller_error(&g->p));
		assert_non_null(strstr(lm_puller_error(&g->p)->msg, "the test ended"));
		rig_assert_all_right(g);
		rig_free(g);
	}
}

struct one_touch {
	struct rig *g;
	uint64_t page;
	pthread_t thread;
	bool shown;
};

static void *one_touch_main(void *arg)
{
	struct one_touch *t = arg;

	t->shown = rig_touch(t->g, 0, t->page);
	return NULL;
}

static bool await_failed(struct rig *g, unsigned lanes)
{
	for (unsigned i = 0; i < 5000 && atomic_load(&g->p.failed) != lanes; i++)
		unit_sleep_ms(1);
	return atomic_load(&g->p.failed) == lanes;
}

/* One after the other dies and comes back; in the end the one that was first has to bring all of the rest alone. */
static void a_lane_of_the_background_that_comes_back_fetches_again(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	g->p.throttle.max_bytes_per_s = 4u << 20; /* pages are missing still when the last lane has died */
	rig_serve(g);
	rig_up(g);
	lm_puller_background(&g->p);
	for (unsigned lane = 0; lane < LANES; lane++) {
		atomic_store(&g->die_lanes, 1u << lane);
		atomic_store(&g->die_at, 1);
		assert_true(await_failed(g, 1u << lane));
		atomic_store(&g->die_at, 0);
		rig_lane_back(g, lane);
		assert_int_equal(atomic_load(&g->p.failed), 0);
	}
	atomic_store(&g->die_lanes, 1u << (LANES - 1));
	atomic_store(&g->die_at, 1);
	assert_true(await_failed(g, 1u << (LANES - 1)));
	assert_true(lm_puller_missing(&g->p) > 100);
	assert_true(rig_await_all(g, 20));
	assert_false(atomic_load(&g->p.lost));
	rig_down(g);
	rig_assert_all_right(g);
	rig_free(g);
}

/* There is no background: that lane serves a waiting thread, or nothing does. */
static void the_lane_for_faults_that_comes_back_serves_them_again(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	rig_serve(g);
	rig_up(g);
	assert_true(rig_touch(g, 0, 1000));
	for (unsigned i = 0; i < 3; i++) {
		struct one_touch t = { .g = g, .page = 1500 + 300 * i };

		atomic_store(&g->die_lanes, 1u << LANES);
		atomic_store(&g->die_at, 1);
		pthread_create(&t.thread, NULL, one_touch_main, &t);
		assert_true(await_failed(g, 1u << LANES));
		atomic_store(&g->die_at, 0);
		rig_lane_back(g, LANES);
		pthread_join(t.thread, NULL);
		assert_true(t.shown);
		assert_true(rig_touch(g, 0, 3000 + 200 * i));
	}
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 20));
	rig_down(g);
	rig_assert_all_right(g);
	rig_free(g);
}

/* Lane 0 has runs under way when it dies: who fetches them meanwhile? */
static unsigned fetched_too_early(void)
{
	struct rig *g = rig_new(true);
	unsigned n;

	atomic_store(&g->die_at, 8);
	atomic_store(&g->die_lanes, 1);
	rig_serve(g);
	rig_up(g);
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 10));
	rig_down(g);
	n = atomic_load(&g->too_early);
	rig_free(g);
	return n;
}

static void without_the_fence_pages_are_fetched_that_a_dead_lane_may_still_place(void **state)
{
	unsigned n = 0;

	(void)state;
	setenv("LM_BREAK", "fence", 1);
	for (unsigned i = 0; i < 50 && !n; i++)
		n = fetched_too_early();
	unsetenv("LM_BREAK");
	assert_true(n > 0);
	assert_int_equal(fetched_too_early(), 0);
}

static void when_no_lane_of_the_background_is_left_the_connection_is_lost(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	atomic_store(&g->die_at, 1);
	atomic_store(&g->die_lanes, (1u << LANES) - 1);
	rig_serve(g);
	rig_up(g);
	lm_puller_background(&g->p);
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.lost); i++)
		unit_sleep_ms(1);
	assert_true(atomic_load(&g->p.lost));
	assert_true(rig_touch(g, 0, 4000)); /* until somebody does something about it, faults are served */
	rig_down(g);
	atomic_store(&g->die_at, 0);
	rig_up(g);
	assert_int_equal(atomic_load(&g->p.failed), 0);
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 10));
	rig_assert_all_right(g);
	rig_free(g);
}

/* Pages far from each other, and a cap that lets the background have a run a second. */
static void without_the_lane_for_faults_the_others_serve_them_first(void **state)
{
	struct rig *g = rig_new(true);
	struct one_touch touches[TOUCHERS];
	unsigned shown = 0;

	(void)state;
	g->p.throttle.max_bytes_per_s = 256u << 10;
	atomic_store(&g->die_at, 1);
	atomic_store(&g->die_lanes, 1u << LANES);
	rig_serve(g);
	rig_up(g);
	for (unsigned i = 0; i < TOUCHERS; i++) {
		touches[i] = (struct one_touch){ .g = g, .page = 500 + 400 * i };
		pthread_create(&touches[i].thread, NULL, one_touch_main, &touches[i]);
	}
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.failed); i++)
		unit_sleep_ms(1);
	lm_puller_background(&g->p);
	unit_sleep_ms(2500);
	atomic_store(&g->give_up, true);
	pthread_mutex_lock(&g->mutex);
	pthread_cond_broadcast(&g->cond);
	pthread_mutex_unlock(&g->mutex);
	for (unsigned i = 0; i < TOUCHERS; i++) {
		pthread_join(touches[i].thread, NULL);
		shown += touches[i].shown;
	}
	assert_int_equal(shown, TOUCHERS);
	assert_true(lm_puller_missing(&g->p) > rig_pages[0] / 2); /* not because all came */
	rig_down(g);
	rig_free(g);
}

static void a_lane_on_which_nothing_comes_is_given_up(void **state)
{
	struct rig *g = rig_new(false);

	(void)state;
	g->p.stall_ns = 200 * LM_NS_PER_MS;
	rig_serve(g);
	rig_up(g);
	/* Nobody answers any more, but the connection stands. */
	atomic_store(&g->stop_answering, true);
	unit_sleep_ms(30);
	lm_puller_background(&g->p);
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.lost); i++)
		unit_sleep_ms(1);
	assert_true(atomic_load(&g->p.lost));
	rig_down(g);
	assert_non_null(lm_puller_error(&g->p));
	rig_up(g);
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 10));
	rig_assert_all_right(g);
	rig_free(g);
}

static void the_bandwidth_cap_is_kept_by_the_background(void **state)
{
	struct rig *g = rig_new(true);
	int64_t begin;
	uint64_t bytes;

	(void)state;
	g->p.throttle.max_bytes_per_s = 8u << 20;
	rig_serve(g);
	rig_up(g);
	begin = lm_now_ns();
	lm_puller_background(&g->p);
	unit_sleep_ms(700);
	bytes = atomic_load(&g->p.bytes);
	/* Each lane has at most one run that is not paid for. */
	assert_true((double)bytes <= 8e6 * 1.05 * (double)(lm_now_ns() - begin) / 1e9 + (LANES + 1) * 64 * LM_PAGE_SIZE);
	assert_true(bytes > 2u << 20);
	/* A fault does not wait for it. */
	begin = lm_now_ns();
	assert_true(rig_touch(g, 1, 350));
	assert_true(lm_now_ns() - begin < 300 * LM_NS_PER_MS);
	begin = lm_now_ns();
	rig_down(g); /* nor does the end */
	assert_true(lm_now_ns() - begin < LM_NS_PER_S);
	rig_free(g);
}

static void a_pager_that_fails_is_told_of_and_stops_the_faults(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	rig_serve(g);
	rig_up(g);
	atomic_store(&g->fail_place, ENOMEM);
	lm_puller_background(&g->p);
	for (unsigned i = 0; i < 3000 && !atomic_load(&g->p.vm_lost); i++)
		unit_sleep_ms(1);
	assert_true(atomic_load(&g->p.vm_lost));
	assert_int_equal(g->p.vm_error.code, -ENOMEM);
	rig_down(g);
	rig_free(g);
}

static void it_can_be_stopped_at_any_time(void **state)
{
	uint64_t x = 99;

	(void)state;
	for (unsigned i = 0; i < 12; i++) {
		struct rig *g = rig_new(i & 1);
		int64_t begin;

		rig_touchers_start(g, 2);
		if (i % 5)
			rig_serve(g);
		if (i % 3)
			rig_up(g);
		if (i % 3 && i % 4)
			lm_puller_background(&g->p);
		unit_sleep_ms((unsigned)(unit_random(&x) % 3));
		begin = lm_now_ns();
		lm_puller_fini(&g->p);
		assert_true(lm_now_ns() - begin < LM_NS_PER_S);
		assert_int_equal(atomic_load(&g->wrong_content), 0);
		rig_free(g);
	}
}

/* Zeros that nobody waits for leave no page behind. */
static void zeros_are_not_made_real(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	rig_serve(g);
	rig_up(g);
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 20));
	rig_down(g);
	for (uint64_t i = 0; i < rig_pages[0]; i++)
		if (i % 97 > 72 && i % 2)
			assert_false(g->shown[0][i]);
	rig_assert_all_right(g);
	rig_free(g);
}

static void without_marking_first_the_checks_bite(void **state)
{
	struct rig *g = rig_new(true);

	(void)state;
	setenv("LM_BREAK", "whole-first", 1);
	rig_serve(g);
	rig_up(g);
	lm_puller_background(&g->p);
	assert_true(rig_await_all(g, 20));
	rig_down(g);
	unsetenv("LM_BREAK");
	assert_true(atomic_load(&g->not_whole) > 0);
	rig_free(g);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(eight_threads_that_touch_everything_see_right_pages_in_process),
		cmocka_unit_test(eight_threads_that_touch_everything_see_right_pages_over_tcp),
		cmocka_unit_test(without_the_background_pages_come_when_they_are_touched),
		cmocka_unit_test(pages_that_are_whole_are_shown_without_a_connection),
		cmocka_unit_test(who_waits_from_before_is_served_when_the_connection_is_there),
		cmocka_unit_test(lanes_that_die_cost_no_page_in_process),
		cmocka_unit_test(lanes_that_die_cost_no_page_over_tcp),
		cmocka_unit_test(a_lane_that_dies_is_told_of_and_the_rest_goes_on),
		cmocka_unit_test(a_lane_of_the_background_that_comes_back_fetches_again),
		cmocka_unit_test(the_lane_for_faults_that_comes_back_serves_them_again),
		cmocka_unit_test(without_the_fence_pages_are_fetched_that_a_dead_lane_may_still_place),
		cmocka_unit_test(when_no_lane_of_the_background_is_left_the_connection_is_lost),
		cmocka_unit_test(without_the_lane_for_faults_the_others_serve_them_first),
		cmocka_unit_test(a_lane_on_which_nothing_comes_is_given_up),
		cmocka_unit_test(the_bandwidth_cap_is_kept_by_the_background),
		cmocka_unit_test(a_pager_that_fails_is_told_of_and_stops_the_faults),
		cmocka_unit_test(it_can_be_stopped_at_any_time),
		cmocka_unit_test(zeros_are_not_made_real),
		cmocka_unit_test(without_marking_first_the_checks_bite),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("puller", tests, NULL, NULL);
}
