/* SPDX-License-Identifier: Apache-2.0 */
/* The fault decorator does what it says: tests of other things rest on it. */
#include <unistd.h>
#include "engine/transport/registry.h"
#include "transport_contract.h"
#include "engine/transport/fault.h"

static const struct backend tcp = { .name = "tcp", .listen = "127.0.0.1:0" };
static struct lm_error err;

static struct rig *rig_in(enum lm_direction direction, const char *text, enum lm_side side, unsigned nlanes)
{
	struct rig *rig = rig_new(&tcp, nlanes, 64 * PAGE, false);
	struct side *s = side == LM_SOURCE ? &rig->src : &rig->dst;
	struct lm_fault_options o;

	if (lm_fault_options_parse(text, &o, &err))
		fail_msg("%s", err.msg);
	s->t = lm_transport_fault_new(s->t, &o);
	assert_non_null(s->t);
	rig_set_direction(rig, direction);
	rig_connect(rig);
	pump_start_all(rig);
	return rig;
}

/* A rig whose source (or destination) has this fault. */
static struct rig *rig_with(const char *text, enum lm_side side, unsigned nlanes)
{
	return rig_in(LM_PUSH, text, side, nlanes);
}

static struct rig *rig_pull_with(const char *text, enum lm_side side, unsigned nlanes)
{
	return rig_in(LM_PULL, text, side, nlanes);
}

static void cut_kills_one_lane_after_so_many_bytes(void **state)
{
	struct rig *rig = rig_with("lane=1,after=8192,action=cut", LM_SOURCE, 2);
	struct lm_run a = data_run(0, 0, 2 * PAGE), b = data_run(1, 0, 2 * PAGE);

	(void)state;
	assert_int_equal(send_runs(rig, 0, &a, 1), 0);
	assert_int_equal(write_runs(rig, 1, &b, 1), 0);
	assert_true(send_runs(rig, 1, &b, 1) < 0);
	assert_int_equal(send_runs(rig, 0, &a, 1), 0);
	rig_free(rig);
}

static void cut_all_kills_every_lane(void **state)
{
	struct rig *rig = rig_with("write=2,action=cut-all", LM_SOURCE, 3);
	struct lm_run run = data_run(0, 0, PAGE);

	(void)state;
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	assert_true(send_runs(rig, 1, &run, 1) < 0);
	assert_true(send_runs(rig, 0, &run, 1) < 0);
	assert_true(send_runs(rig, 2, &run, 1) < 0);
	rig_free(rig);
}

static void a_cut_at_the_destination_is_seen_by_the_source(void **state)
{
	struct rig *rig = rig_with("after=4096,action=cut", LM_DEST, 1);
	struct lm_run run = data_run(0, 0, PAGE);
	int r = 0;

	(void)state;
	for (int i = 0; i < 100 && !r; i++)
		r = send_runs(rig, 0, &run, 1);
	assert_true(r < 0);
	rig_free(rig);
}

static void delay_takes_its_time_and_loses_nothing(void **state)
{
	struct rig *rig = rig_with("flush=1,action=delay=150", LM_SOURCE, 1);
	struct lm_run run = data_run(0, 0, 9 * PAGE);
	int64_t start = lm_now_ns();

	(void)state;
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	assert_true(lm_now_ns() - start >= 150 * LM_NS_PER_MS);
	expect_data(rig, 0, 0, 9 * PAGE);
	rig_free(rig);
}

static void corrupt_falsifies_one_run_and_tells_nobody(void **state)
{
	struct rig *rig = rig_with("write=2,action=corrupt", LM_SOURCE, 1);

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct lm_run run = data_run(0, i * PAGE, PAGE);

		assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	}
	expect_data(rig, 0, 0, PAGE);
	expect_byte(rig, 0, PAGE, PAGE, 0);
	expect_data(rig, 0, 2 * PAGE, PAGE);
	rig_free(rig);
}

static void truncate_loses_the_last_page_of_one_run(void **state)
{
	struct rig *rig = rig_with("action=truncate", LM_SOURCE, 1);
	struct lm_run first = data_run(0, 0, 4 * PAGE), second = data_run(1, 0, 4 * PAGE);

	(void)state;
	assert_int_equal(send_runs(rig, 0, &first, 1), 0);
	assert_int_equal(send_runs(rig, 0, &second, 1), 0);
	expect_data(rig, 0, 0, 3 * PAGE);
	expect_byte(rig, 0, 3 * PAGE, PAGE, OLD_BYTE);
	expect_data(rig, 1, 0, 4 * PAGE);
	rig_free(rig);
}

static void stray_is_refused_by_the_destination(void **state)
{
	struct rig *rig = rig_with("write=2,action=stray", LM_SOURCE, 1);
	struct lm_run run = data_run(0, 0, PAGE);
	int64_t start = lm_now_ns();

	(void)state;
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	assert_true(send_runs(rig, 0, &run, 1) < 0);
	assert_true(lm_now_ns() - start < 20 * LM_NS_PER_S); /* the source is told, it need not guess */
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].result, -EPROTO);
	rig_free(rig);
}

/* ---- LM_PULL ---- */

static void cut_kills_one_fetching_lane_after_so_many_bytes(void **state)
{
	struct rig *rig = rig_pull_with("lane=1,after=8192,action=cut", LM_DEST, 2);
	struct lm_run a = data_run(0, 0, 2 * PAGE), b = data_run(1, 0, 2 * PAGE);

	(void)state;
	assert_int_equal(fetch_runs(rig, 0, &a, 1), 0);
	assert_int_equal(fetch_runs(rig, 1, &b, 1), 0);
	assert_true(fetch_runs(rig, 1, &b, 1) < 0);
	assert_int_equal(rig->fetch[1].whole, 1);
	assert_int_equal(fetch_runs(rig, 0, &a, 1), 0);
	expect_data(rig, 0, 0, 2 * PAGE);
	expect_data(rig, 1, 0, 2 * PAGE);
	rig_free(rig);
}

static void cut_all_kills_every_fetching_lane(void **state)
{
	struct rig *rig = rig_pull_with("write=2,action=cut-all", LM_DEST, 3);
	struct lm_run run = data_run(0, 0, PAGE);

	(void)state;
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	for (unsigned lane = 0; lane < 3; lane++)
		assert_true(fetch_runs(rig, (lane + 1) % 3, &run, 1) < 0);
	rig_free(rig);
}

static void a_cut_at_the_source_is_seen_by_who_fetches(void **state)
{
	struct rig *rig = rig_pull_with("after=4096,action=cut", LM_SOURCE, 1);
	struct lm_run run = data_run(0, 0, PAGE);
	int r = 0;

	(void)state;
	for (int i = 0; i < 100 && !r; i++)
		r = fetch_runs(rig, 0, &run, 1);
	assert_true(r < 0);
	assert_true(rig->fetch[0].whole >= 1);
	rig_free(rig);
}

static void delay_of_a_fetch_takes_its_time_and_loses_nothing(void **state)
{
	struct rig *rig = rig_pull_with("write=1,action=delay=150", LM_DEST, 1);
	struct lm_run run = data_run(0, 0, 9 * PAGE);
	int64_t start = lm_now_ns();

	(void)state;
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	assert_true(lm_now_ns() - start >= 150 * LM_NS_PER_MS);
	expect_data(rig, 0, 0, 9 * PAGE);
	rig_free(rig);
}

static void corrupt_falsifies_one_fetched_run_and_tells_nobody(void **state)
{
	struct rig *rig = rig_pull_with("write=2,action=corrupt", LM_DEST, 1);

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct lm_run run = data_run(0, 2 * i * PAGE, 2 * PAGE);

		assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	}
	assert_int_equal(rig->fetch[0].whole, 3);
	expect_data(rig, 0, 0, 2 * PAGE);
	expect_byte(rig, 0, 2 * PAGE, 2 * PAGE, 0);
	expect_data(rig, 0, 4 * PAGE, 2 * PAGE);
	rig_free(rig);
}

static void truncate_leaves_the_last_page_of_one_fetched_run_as_it_was(void **state)
{
	struct rig *rig = rig_pull_with("action=truncate", LM_DEST, 1);
	struct lm_run first = data_run(0, 0, 4 * PAGE), second = data_run(1, 0, 4 * PAGE);

	(void)state;
	assert_int_equal(fetch_runs(rig, 0, &first, 1), 0);
	assert_int_equal(fetch_runs(rig, 0, &second, 1), 0);
	assert_int_equal(rig->fetch[0].whole, 2);
	expect_data(rig, 0, 0, 3 * PAGE);
	expect_byte(rig, 0, 3 * PAGE, PAGE, OLD_BYTE);
	expect_data(rig, 1, 0, 4 * PAGE);
	rig_free(rig);
}

static void a_stray_fetch_is_refused_by_the_source(void **state)
{
	struct rig *rig = rig_pull_with("write=2,action=stray", LM_DEST, 1);
	struct lm_run run = data_run(0, 0, PAGE);
	uint64_t before;

	(void)state;
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	before = dest_hash(rig);
	assert_true(fetch_runs(rig, 0, &run, 1) < 0);
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].result, -EPROTO);
	assert_true(dest_hash(rig) == before);
	rig_free(rig);
}

static void bad_options_are_named(void **state)
{
	static const char *const bad[] = { "", "action=burn", "lane=64,action=cut", "after=x,action=cut", "action",
					   "write=0,action=cut", "action=delay=-1", "lane=1", "action=cut,colour=1" };
	struct lm_fault_options o;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(lm_fault_options_parse(bad[i], &o, &err), -EINVAL);
	assert_int_equal(lm_fault_options_parse("lane=3,flush=7,action=delay=20,repeat=1", &o, &err), 0);
	assert_int_equal(o.lane, 3);
	assert_int_equal(o.flush, 7);
	assert_int_equal(o.action, LM_FAULT_DELAY);
	assert_int_equal(o.delay_ms, 20);
	assert_true(o.repeat);
}

static void the_environment_puts_the_fault_into_the_transport_by_name(void **state)
{
	struct lm_transport *t;

	(void)state;
	setenv("LM_TRANSPORT_FAULT", "after=1,action=cut", 1);
	t = lm_transport_make(lm_transport_find("tcp"));
	assert_string_equal(t->ops->name, "fault");
	lm_transport_free(t);
	unsetenv("LM_TRANSPORT_FAULT");
	t = lm_transport_make(lm_transport_find("tcp"));
	assert_string_equal(t->ops->name, "tcp");
	lm_transport_free(t);
	assert_null(lm_transport_find("pigeon"));
}

int transport_contract_fault(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cut_kills_one_lane_after_so_many_bytes),
		cmocka_unit_test(cut_all_kills_every_lane),
		cmocka_unit_test(a_cut_at_the_destination_is_seen_by_the_source),
		cmocka_unit_test(delay_takes_its_time_and_loses_nothing),
		cmocka_unit_test(corrupt_falsifies_one_run_and_tells_nobody),
		cmocka_unit_test(truncate_loses_the_last_page_of_one_run),
		cmocka_unit_test(stray_is_refused_by_the_destination),
		cmocka_unit_test(cut_kills_one_fetching_lane_after_so_many_bytes),
		cmocka_unit_test(cut_all_kills_every_fetching_lane),
		cmocka_unit_test(a_cut_at_the_source_is_seen_by_who_fetches),
		cmocka_unit_test(delay_of_a_fetch_takes_its_time_and_loses_nothing),
		cmocka_unit_test(corrupt_falsifies_one_fetched_run_and_tells_nobody),
		cmocka_unit_test(truncate_leaves_the_last_page_of_one_fetched_run_as_it_was),
		cmocka_unit_test(a_stray_fetch_is_refused_by_the_source),
		cmocka_unit_test(bad_options_are_named),
		cmocka_unit_test(the_environment_puts_the_fault_into_the_transport_by_name),
	};

	return cmocka_run_group_tests_name("fault decorator", tests, NULL, NULL);
}
