/* SPDX-License-Identifier: Apache-2.0 */
/* What engine/transport/transport.h promises, over every backend that runs on one host. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "engine/transport/registry.h"
#include "transport_contract.h"
#include "../lib/skip.h"

static const struct backend backends[] = {
#ifndef __SANITIZE_THREAD__ /* their threads are those of the decorated one */
	{ .name = "tcp", .listen = "127.0.0.1:0" },
	{ .name = "tcp over ::1", .listen = "[::1]:0" },
#endif
	{ .name = "tcp, pages by reference", .listen = "127.0.0.1:0", .send = "splice" },
	{ .name = "tcp, into the mapping", .listen = "127.0.0.1:0", .place = "map" },
	{ .name = "tcp in a fault decorator", .listen = "127.0.0.1:0", .decorated = true },
	{ .name = "loop" },
};

#define NBACKENDS (sizeof(backends) / sizeof(backends[0]))
#define MIB (UINT64_C(1) << 20)

static struct lm_error err;

/* ---- rule 1: its place and nowhere else ---- */

static void data_arrives_at_its_place_and_nowhere_else(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);
	struct lm_run runs[] = {
		data_run(0, 0, PAGE), data_run(0, 5 * PAGE, 3 * PAGE), data_run(0, 63 * PAGE, PAGE),
		data_run(1, 7 * PAGE, 50 * PAGE),
	};

	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, runs, 4), 0);
	expect_data(rig, 0, 0, PAGE);
	expect_byte(rig, 0, PAGE, 4 * PAGE, OLD_BYTE);
	expect_data(rig, 0, 5 * PAGE, 3 * PAGE);
	expect_byte(rig, 0, 8 * PAGE, 55 * PAGE, OLD_BYTE);
	expect_data(rig, 0, 63 * PAGE, PAGE);
	expect_byte(rig, 1, 0, 7 * PAGE, OLD_BYTE);
	expect_data(rig, 1, 7 * PAGE, 50 * PAGE);
	expect_byte(rig, 1, 57 * PAGE, 7 * PAGE, OLD_BYTE);
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].bytes, 55 * PAGE);
	rig_free(rig);
}

static void thousands_of_small_scattered_runs_all_arrive(void **state)
{
	enum { N = 4096 };
	struct rig *rig = rig_open(*state, 1, 2 * N * PAGE);
	struct lm_run *runs = calloc(N, sizeof(*runs));

	assert_non_null(runs);
	for (unsigned i = 0; i < N; i++)
		runs[i] = data_run(0, 2 * (uint64_t)((i * 1237) % N) * PAGE, PAGE);
	pump_start(rig, 0);
	/* Twice: new pages, then pages that are there. */
	for (int pass = 0; pass < 2; pass++) {
		assert_int_equal(send_runs(rig, 0, runs, N), 0);
		for (unsigned i = 0; i < N; i++) {
			expect_data(rig, 0, 2 * i * PAGE, PAGE);
			expect_byte(rig, 0, (2 * i + 1) * PAGE, PAGE, OLD_BYTE);
		}
	}
	free(runs);
	rig_free(rig);
}

static void runs_from_4_KiB_to_1_GiB_arrive_whole(void **state)
{
	static const uint64_t lens[] = { PAGE, 64 << 10, MIB, 5 * MIB + PAGE, 300 * MIB, LM_RUN_MAX };
	struct rig *rig = rig_new(*state, 1, MIB, false);

	if (sysconf(_SC_AVPHYS_PAGES) < (long)(2 * LM_RUN_MAX / PAGE) || RIG_SLOW) {
		rig_free(rig);
		skip_because(RIG_SLOW ? "a gibibyte takes minutes under this sanitizer" : "not enough free memory");
	}
	rig_map_long(rig, LM_RUN_MAX);
	rig_connect(rig);
	pump_start(rig, 0);
	for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		struct lm_run run = data_run(0, 0, lens[i]);

		assert_int_equal(send_runs(rig, 0, &run, 1), 0);
		rig_check_long(rig, 0, lens[i]);
	}
	pump_stop_all(rig);
	rig_unmap_long(rig);
	rig_free(rig);
}

const struct lm_run rig_bad_runs[RIG_BAD_RUNS] = {
	{ .region = RIG_REGIONS, .offset = 0, .len = PAGE },
	{ .region = UINT32_MAX, .offset = 0, .len = PAGE },
	{ .region = 0, .offset = 0, .len = 0 },
	{ .region = 0, .offset = 1, .len = PAGE },
	{ .region = 0, .offset = 0, .len = PAGE + 1 },
	{ .region = 0, .offset = 64 * PAGE, .len = PAGE },
	{ .region = 0, .offset = 63 * PAGE, .len = 2 * PAGE },
	{ .region = 0, .offset = 0, .len = 65 * PAGE },
	{ .region = 0, .offset = 0, .len = LM_RUN_MAX + PAGE },
	{ .region = 0, .offset = UINT64_MAX - PAGE + 1, .len = PAGE },
	{ .region = 0, .offset = UINT64_MAX - PAGE + 1, .len = 2 * PAGE },
	{ .region = 0, .offset = PAGE, .len = UINT64_MAX - PAGE + 1 },
	{ .region = 0, .kind = (enum lm_run_kind)2, .offset = 0, .len = PAGE },
};

static void write_refuses_invalid_runs_and_the_lane_lives_on(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);
	struct lm_run good = data_run(1, 0, PAGE);

	for (unsigned i = 0; i < RIG_BAD_RUNS; i++) {
		struct lm_run two[2] = { good, rig_bad_runs[i] };

		assert_int_equal(lm_transport_write(rig->src.t, 0, &rig_bad_runs[i], 1, &err), -EINVAL);
		assert_int_equal(lm_transport_write(rig->src.t, 0, two, 2, &err), -EINVAL);
	}
	assert_int_equal(lm_transport_write(rig->src.t, 0, &good, 0, &err), -EINVAL);
	assert_int_equal(lm_transport_write(rig->src.t, 1, &good, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_write(rig->dst.t, 0, &good, 1, &err), -EINVAL);
	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, &good, 1), 0);
	expect_data(rig, 1, 0, PAGE);
	expect_byte(rig, 0, 0, 64 * PAGE, OLD_BYTE);
	rig_free(rig);
}

/* A source that is not ours does not call our wrapper. */
static void the_destination_refuses_a_run_outside_of_its_regions(void **state)
{
	const struct backend *b = *state;

	for (unsigned i = 0; i < RIG_BAD_RUNS && !b->decorated; i++) {
		struct rig *rig = rig_open(b, 1, 64 * PAGE);
		uint64_t before = dest_hash(rig);
		struct lm_run run = rig_bad_runs[i];

		if (run.kind == LM_RUN_DATA)
			run.kind = LM_RUN_ZERO; /* no data: the source's own memory is not touched */
		assert_int_equal(rig->src.t->ops->write(rig->src.t, 0, &run, 1, &err), 1);
		assert_int_equal(dest_poll_until_error(rig, 0, 2000, &err), -EPROTO);
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_true(dest_hash(rig) == before);
		rig_free(rig);
	}
}

/* ---- rule 2: order ---- */

static void runs_of_a_lane_are_placed_in_the_order_of_writing(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);

	pump_start(rig, 0);
	for (unsigned i = 0; i < 64; i++) {
		struct lm_run runs[] = {
			data_run(0, i * PAGE, PAGE), zero_run(0, i * PAGE, PAGE), data_run(0, i * PAGE, PAGE),
			data_run(1, i * PAGE, PAGE), zero_run(1, i * PAGE, PAGE),
		};

		assert_int_equal(write_runs(rig, 0, runs, 3), 0);
		assert_int_equal(send_runs(rig, 0, runs + 3, 2), 0);
		expect_data(rig, 0, i * PAGE, PAGE);
		expect_byte(rig, 1, i * PAGE, PAGE, 0);
	}
	rig_free(rig);
}

struct stripe {
	struct rig *rig;
	unsigned lane;
	int result;
	pthread_t thread;
};

/* Every lane sends every fourth 16 KiB, in runs of one to four pages. */
static void *send_stripe(void *arg)
{
	struct stripe *s = arg;

	for (uint64_t at = s->lane * 4 * PAGE; at < s->rig->size && !s->result; at += 16 * PAGE) {
		uint64_t n = 1 + at / PAGE / 16 % 4;
		struct lm_run runs[] = { data_run(0, at, n * PAGE), data_run(1, at, 4 * PAGE) };

		s->result = write_runs(s->rig, s->lane, runs, 2);
		if (!s->result && at / PAGE % 256 < 16)
			s->result = flush_lane(s->rig, s->lane, next_flush());
	}
	if (!s->result)
		s->result = flush_lane(s->rig, s->lane, next_flush());
	return NULL;
}

static void many_lanes_at_once_place_everything(void **state)
{
	struct rig *rig = rig_open(*state, 4, 16 * MIB);
	struct stripe stripes[4];

	pump_start_all(rig);
	for (unsigned i = 0; i < 4; i++) {
		stripes[i] = (struct stripe){ .rig = rig, .lane = i };
		assert_int_equal(pthread_create(&stripes[i].thread, NULL, send_stripe, &stripes[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(stripes[i].thread, NULL);
		assert_int_equal(stripes[i].result, 0);
	}
	expect_data(rig, 1, 0, 16 * MIB);
	for (uint64_t at = 0; at < 16 * MIB; at += 4 * PAGE) {
		uint64_t n = 1 + at / PAGE / 16 % 4;

		expect_data(rig, 0, at, n * PAGE);
		expect_byte(rig, 0, at + n * PAGE, (4 - n) * PAGE, OLD_BYTE);
	}
	rig_free(rig);
}

/* ---- rule 3: flush ---- */

static void confirmed_data_is_visible_at_once(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);
	uint8_t *page = rig->src.region[0].host + 9 * PAGE;
	const volatile uint8_t *there = rig->dst.region[0].host + 9 * PAGE;

	pump_start(rig, 0);
	for (unsigned i = 1; i < 300; i++) {
		struct lm_run run = data_run(0, 9 * PAGE, PAGE);

		memset(page, (int)(i % 251), PAGE);
		assert_int_equal(send_runs(rig, 0, &run, 1), 0);
		assert_int_equal(there[0], i % 251);
		assert_int_equal(there[PAGE - 1], i % 251);
	}
	rig_free(rig);
}

static void a_flush_of_an_empty_lane_is_confirmed(void **state)
{
	struct rig *rig = rig_open(*state, 2, 64 * PAGE);

	pump_start_all(rig);
	assert_int_equal(flush_lane(rig, 1, next_flush()), 0);
	assert_int_equal(flush_lane(rig, 0, next_flush()), 0);
	assert_int_equal(flush_lane(rig, 0, next_flush()), 0);
	rig_free(rig);
}

static void nothing_is_confirmed_before_the_destination_has_polled(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);
	struct lm_run run = data_run(0, 0, 8 * PAGE);
	struct lm_poll_result res;
	uint64_t seq = next_flush();

	assert_int_equal(write_runs(rig, 0, &run, 1), 0);
	assert_int_equal(lm_transport_flush(rig->src.t, 0, seq, &err), 0);
	assert_int_equal(lm_transport_poll(rig->src.t, 0, 50, &res, &err), 0);
	assert_true(res.flushed < seq);
	pump_start(rig, 0);
	for (int i = 0; i < 200 && res.flushed < seq; i++)
		assert_int_equal(lm_transport_poll(rig->src.t, 0, 50, &res, &err), 0);
	assert_true(res.flushed == seq);
	expect_data(rig, 0, 0, 8 * PAGE);
	rig_free(rig);
}

/* ---- zeros ---- */

static void zero_runs_leave_holes_and_allocate_nothing(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);
	struct lm_region *r = &rig->dst.region[0];
	struct lm_run runs[] = { zero_run(0, 3 * PAGE, PAGE), zero_run(0, 10 * PAGE, 20 * PAGE),
				 zero_run(1, 0, 64 * PAGE) };

	assert_int_equal(fallocate(rig->dst.region[1].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE,
				   64 * PAGE), 0);
	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, runs, 3), 0);
	if (!rig->backend->pinned) {
		assert_int_equal(file_bytes(r, 0, 64 * PAGE), 43 * PAGE);
		assert_int_equal(file_bytes(r, 3 * PAGE, PAGE), 0);
		assert_int_equal(file_bytes(r, 10 * PAGE, 20 * PAGE), 0);
	}
	assert_int_equal(file_bytes(&rig->dst.region[1], 0, 64 * PAGE), 0);
	expect_byte(rig, 0, 2 * PAGE, PAGE, OLD_BYTE);
	expect_byte(rig, 0, 3 * PAGE, PAGE, 0);
	expect_byte(rig, 0, 4 * PAGE, 6 * PAGE, OLD_BYTE);
	expect_byte(rig, 0, 10 * PAGE, 20 * PAGE, 0);
	expect_byte(rig, 0, 30 * PAGE, 34 * PAGE, OLD_BYTE);
	rig_free(rig);
}

static void zeros_and_data_mix_in_one_write(void **state)
{
	struct rig *rig = rig_open(*state, 1, 256 * PAGE);
	struct lm_run runs[256];

	for (unsigned i = 0; i < 256; i++)
		runs[i] = i % 3 ? data_run(0, i * PAGE, PAGE) : zero_run(0, i * PAGE, PAGE);
	pump_start(rig, 0);
	for (int pass = 0; pass < 3; pass++)
		assert_int_equal(send_runs(rig, 0, runs, 256), 0);
	for (unsigned i = 0; i < 256; i++) {
		if (i % 3)
			expect_data(rig, 0, i * PAGE, PAGE);
		else
			expect_byte(rig, 0, i * PAGE, PAGE, 0);
	}
	rig_free(rig);
}

static void memory_on_hugetlbfs_works_the_same(void **state)
{
	struct rig *rig = rig_new(*state, 1, 4 * MIB, true);
	struct lm_run runs[] = { data_run(0, 0, MIB), data_run(0, 2 * MIB + PAGE, PAGE),
				 zero_run(0, 3 * MIB, 5 * PAGE), zero_run(1, 0, 4 * MIB) };
	struct stat st;

	if (!rig) {
		print_message("no huge pages to be had (vm.nr_hugepages)\n");
		skip();
	}
	assert_int_equal(fallocate(rig->dst.region[1].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * MIB,
				   4 * MIB), 0);
	rig_connect(rig);
	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, runs, 4), 0);
	expect_data(rig, 0, 0, MIB);
	expect_byte(rig, 0, MIB, MIB + PAGE, OLD_BYTE);
	expect_data(rig, 0, 2 * MIB + PAGE, PAGE);
	expect_byte(rig, 0, 3 * MIB - PAGE, PAGE, OLD_BYTE);
	expect_byte(rig, 0, 3 * MIB, 5 * PAGE, 0);
	if (strcmp(rig->backend->name, "loop") && !rig->backend->pinned) {
		assert_int_equal(fstat(rig->dst.region[1].fd, &st), 0);
		assert_int_equal(st.st_blocks * 512, 4 * MIB); /* the guards, nothing more */
	}
	rig_free(rig);
}

/* ---- rule 5: a full lane ---- */

static void a_full_lane_says_again_and_loses_nothing(void **state)
{
	const struct backend *b = *state;
	/* More than what a socket holds with generous limits, or the loop; a queue pair holds less. */
	struct rig *rig = rig_open(b, 1, (b->rdma || (b->listen && RIG_SLOW) ? 32 : 128) * MIB);
	uint64_t at = 0, first;
	int r = 1;

	while (at < rig->size && r > 0) {
		struct lm_run run = data_run(0, at, 16 * PAGE);

		r = lm_transport_write(rig->src.t, 0, &run, 1, &err);
		if (r > 0)
			at += run.len;
	}
	assert_int_equal(r, -EAGAIN);
	first = at;
	assert_int_equal(lm_transport_flush(rig->src.t, 0, next_flush(), &err), -EAGAIN);
	pump_start(rig, 0);
	for (; at < rig->size; at += 16 * PAGE) {
		struct lm_run run = data_run(0, at, 16 * PAGE);

		assert_int_equal(write_runs(rig, 0, &run, 1), 0);
	}
	assert_int_equal(flush_lane(rig, 0, next_flush()), 0);
	assert_true(first > 0);
	expect_data(rig, 0, 0, rig->size);
	rig_free(rig);
}

static void poll_without_timeout_does_not_wait(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);
	struct lm_poll_result res;
	int64_t start = lm_now_ns();

	for (int i = 0; i < 100; i++) {
		assert_int_equal(lm_transport_poll(rig->src.t, 0, 0, &res, &err), 0);
		assert_int_equal(lm_transport_poll(rig->dst.t, 0, 0, &res, &err), 0);
	}
	assert_true(lm_now_ns() - start < LM_NS_PER_S);
	rig_free(rig);
}

static void no_descriptor_is_left_behind(void **state)
{
	struct rig *rig = rig_open(*state, 3, 64 * PAGE);
	unsigned before;

	rig_free(rig); /* what a library keeps for good it has from now on */
	before = open_descriptors();
	for (int i = 0; i < 3; i++)
		rig_free(rig_open(*state, 3, 64 * PAGE));
	rig = rig_new(*state, 3, 64 * PAGE, false); /* never opened */
	rig_free(rig);
	assert_int_equal(open_descriptors(), before);
}

static void open_says_how_it_works(void **state)
{
	struct rig *rig = rig_open(*state, 1, 64 * PAGE);

	assert_true(strlen(rig->src.t->info) > 4);
	assert_true(strlen(rig->dst.t->info) > 4);
	rig_free(rig);
}

/* ---- all tests over all backends ---- */

struct test {
	const char *name;
	void (*fn)(void **state);
};

#define TEST(fn) { #fn, fn }

static const struct test tests[] = {
	TEST(data_arrives_at_its_place_and_nowhere_else),
	TEST(thousands_of_small_scattered_runs_all_arrive),
	TEST(runs_from_4_KiB_to_1_GiB_arrive_whole),
	TEST(write_refuses_invalid_runs_and_the_lane_lives_on),
	TEST(the_destination_refuses_a_run_outside_of_its_regions),
	TEST(runs_of_a_lane_are_placed_in_the_order_of_writing),
	TEST(many_lanes_at_once_place_everything),
	TEST(confirmed_data_is_visible_at_once),
	TEST(a_flush_of_an_empty_lane_is_confirmed),
	TEST(nothing_is_confirmed_before_the_destination_has_polled),
	TEST(zero_runs_leave_holes_and_allocate_nothing),
	TEST(zeros_and_data_mix_in_one_write),
	TEST(memory_on_hugetlbfs_works_the_same),
	TEST(a_full_lane_says_again_and_loses_nothing),
	TEST(poll_without_timeout_does_not_wait),
	TEST(one_lane_cut_leaves_the_others_alive),
	TEST(shut_from_another_thread_ends_a_waiting_poll),
	TEST(nothing_lands_after_shut_at_the_destination),
	TEST(nothing_lands_after_close_at_the_destination),
	TEST(nothing_lands_after_the_fence_at_the_destination),
	TEST(without_the_fence_late_writes_land),
	TEST(an_orderly_close_is_told_from_a_cut),
	TEST(a_lane_that_failed_comes_back_while_others_work),
	TEST(a_fetching_lane_that_failed_comes_back_while_others_work),
	TEST(a_lane_that_shows_an_old_token_stays_out),
	TEST(an_attempt_to_come_back_can_be_cancelled),
	TEST(what_the_peer_says_ends_the_wait_for_its_lanes),
	TEST(fetched_runs_arrive_at_their_place_and_nowhere_else),
	TEST(fetched_runs_of_all_lengths_arrive_whole),
	TEST(fetched_runs_become_whole_in_their_order),
	TEST(fetched_zeros_and_holes_leave_no_page_on_either_side),
	TEST(a_large_hole_is_fetched_without_a_byte_of_data),
	TEST(hugetlbfs_is_fetched_and_its_holes_stay),
	TEST(many_lanes_fetch_at_once),
	TEST(what_was_fetched_is_visible_at_once),
	TEST(a_lane_that_is_asked_too_much_says_again_and_loses_nothing),
	TEST(a_wait_ends_when_the_other_descriptor_is_readable),
	TEST(each_direction_refuses_the_calls_of_the_other),
	TEST(the_source_refuses_to_answer_for_what_lies_outside),
	TEST(a_wait_ends_when_the_answer_has_come),
	TEST(an_idle_lane_takes_no_cpu),
	TEST(a_source_whose_answers_nobody_reads_takes_no_cpu),
	TEST(nothing_that_was_fetched_lands_after_shut),
	TEST(a_cut_at_the_source_leaves_whole_what_was_counted),
	TEST(one_fetching_lane_cut_leaves_the_others_alive),
	TEST(the_end_of_the_peer_is_reported_to_who_fetches),
	TEST(the_end_of_the_peer_is_reported_to_who_answers),
	TEST(nothing_that_was_fetched_lands_after_close),
	TEST(no_descriptor_is_left_behind),
	TEST(open_says_how_it_works),
};

#define NTESTS (sizeof(tests) / sizeof(tests[0]))

/* A device each way of registering; in the lab, over a wire between namespaces. */
static const struct backend rdma_backends[] = {
	{ .name = "rdma on demand", .listen = "rdma", .rdma = true, .pin = LM_PIN_ODP },
	{ .name = "rdma, all registered", .listen = "rdma", .rdma = true, .pin = LM_PIN_ALL, .pinned = true },
	{ .name = "rdma by chunk", .listen = "rdma", .rdma = true, .pin = LM_PIN_CHUNK, .pinned = true },
};

#define NRDMA (sizeof(rdma_backends) / sizeof(rdma_backends[0]))

static int run_all(const struct backend *list, size_t n)
{
	static char names[(NBACKENDS + NRDMA) * NTESTS][128];
	static struct CMUnitTest all[(NBACKENDS + NRDMA) * NTESTS];

	for (size_t i = 0; i < n * NTESTS; i++) {
		const struct test *t = &tests[i % NTESTS];

		snprintf(names[i], sizeof(names[i]), "%s [%s]", t->name, list[i / NTESTS].name);
		all[i] = (struct CMUnitTest){ .name = names[i], .test_func = t->fn,
					      .initial_state = (void *)&list[i / NTESTS] };
	}
	return _cmocka_run_group_tests("transport contract", all, n * NTESTS, NULL, NULL);
}

static int run_rdma(const char *source_netns, const char *dest_netns)
{
	const struct lm_transport_info *info = lm_transport_find("rdma");
	char why[256] = "it is not built in";

	rig_namespaces(source_netns, dest_netns);
	if (!info || !info->usable(NULL, NULL, 0, why, sizeof(why))) {
		printf("skipped: rdma: %s\n", why);
		return 77;
	}
	return run_all(rdma_backends, NRDMA);
}

/* rdma [SOURCE-NETNS DEST-NETNS [PATTERN]]: over this host's RDMA devices; else all that needs none. */
int main(int argc, char *argv[])
{
	if (argc > 4)
		cmocka_set_test_filter(argv[4]);
	if (argc > 1 && !strcmp(argv[1], "rdma"))
		return run_rdma(argc > 3 ? argv[2] : NULL, argc > 3 ? argv[3] : NULL);
	return run_all(backends, NBACKENDS) + transport_contract_tcp() +
	       transport_contract_tcp_fetch() + transport_contract_fault();
}
