/* SPDX-License-Identifier: Apache-2.0 */
/* LM_PULL: the destination fetches, the source's poll answers. */
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include "transport_contract.h"
#include "../lib/skip.h"

#define MIB (UINT64_C(1) << 20)

static struct lm_error err;

static void punch(const struct lm_region *r, uint64_t offset, uint64_t len)
{
	assert_int_equal(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   (off_t)(r->file_offset + offset), (off_t)len), 0);
}

/* ---- places and contents ---- */

void fetched_runs_arrive_at_their_place_and_nowhere_else(void **state)
{
	struct rig *rig = rig_open_pull(*state, 1, 64 * PAGE);
	struct lm_run runs[] = {
		data_run(0, 0, PAGE), data_run(0, 5 * PAGE, 3 * PAGE), data_run(0, 63 * PAGE, PAGE),
		data_run(1, 7 * PAGE, 50 * PAGE),
	};

	pump_start(rig, 0);
	assert_int_equal(fetch_runs(rig, 0, runs, 4), 0);
	assert_int_equal(rig->fetch[0].whole, 4);
	expect_data(rig, 0, 0, PAGE);
	expect_byte(rig, 0, PAGE, 4 * PAGE, OLD_BYTE);
	expect_data(rig, 0, 5 * PAGE, 3 * PAGE);
	expect_byte(rig, 0, 8 * PAGE, 55 * PAGE, OLD_BYTE);
	expect_data(rig, 0, 63 * PAGE, PAGE);
	expect_byte(rig, 1, 0, 7 * PAGE, OLD_BYTE);
	expect_data(rig, 1, 7 * PAGE, 50 * PAGE);
	expect_byte(rig, 1, 57 * PAGE, 7 * PAGE, OLD_BYTE);
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].bytes, rig->backend->rdma ? 0 : 55 * PAGE);
	if (rig->backend->listen)
		assert_int_equal(rig->fetch[0].bytes, 55 * PAGE);
	rig_free(rig);
}

void fetched_runs_of_all_lengths_arrive_whole(void **state)
{
	static const uint64_t lens[] = { PAGE, 63 * PAGE, 65 * PAGE, MIB, 5 * MIB + PAGE, LM_RUN_MAX };
	struct rig *rig = rig_new(*state, 1, MIB, false);

	if (sysconf(_SC_AVPHYS_PAGES) < (long)(2 * LM_RUN_MAX / PAGE) || RIG_SLOW) {
		rig_free(rig);
		skip_because(RIG_SLOW ? "a gibibyte takes minutes under this sanitizer" : "not enough free memory");
	}
	rig_map_long(rig, LM_RUN_MAX);
	rig_set_direction(rig, LM_PULL);
	rig_connect(rig);
	pump_start(rig, 0);
	for (unsigned i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		struct lm_run run = data_run(0, LM_RUN_MAX - lens[i], lens[i]);

		assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
		assert_int_equal(rig->fetch[0].whole, i + 1);
		rig_check_long(rig, run.offset, lens[i]);
	}
	pump_stop_all(rig);
	rig_unmap_long(rig);
	rig_free(rig);
}

void fetched_runs_become_whole_in_their_order(void **state)
{
	enum { N = 4096 };
	struct rig *rig = rig_open_pull(*state, 1, 2 * N * PAGE);
	struct lm_run runs[N];
	unsigned asked = 0, seen = 0;
	int r = 0;

	for (unsigned i = 0; i < N; i++)
		runs[i] = data_run(0, 2 * (uint64_t)((i * 1237) % N) * PAGE, PAGE);
	pump_start(rig, 0);
	while (seen < N) {
		unsigned n = 1 + asked % 200;

		n = n < N - asked ? n : N - asked;
		r = n ? fetch_try(rig, 0, runs + asked, n, &err) : -EAGAIN;
		if (r > 0)
			asked += (unsigned)r;
		else
			assert_int_equal(r, -EAGAIN);
		assert_int_equal(fetch_poll(rig, 0, r > 0 ? 0 : 100, &err), 0);
		for (; seen < rig->fetch[0].whole; seen++)
			expect_data(rig, 0, runs[seen].offset, PAGE);
	}
	assert_int_equal(rig->fetch[0].whole, N);
	for (unsigned i = 0; i < N; i++)
		expect_byte(rig, 0, (2 * i + 1) * PAGE, PAGE, OLD_BYTE);
	rig_free(rig);
}

/* By page: 0 data, 1 zeros in memory, 2 a hole, 3 data but for its first half. */
static unsigned page_kind(uint64_t page)
{
	return page < 100 ? page % 4 : page < 300 ? (unsigned)(page / 50 % 4) : (unsigned)((page / 7 + page / 90) % 4);
}

static uint64_t mix_source(struct rig *rig, unsigned region, uint64_t npages)
{
	struct lm_region *r = &rig->src.region[region];
	uint64_t data = 0;

	for (uint64_t i = 0; i < npages; i++) {
		unsigned kind = page_kind(i);

		if (kind == 2)
			punch(r, i * PAGE, PAGE);
		else if (kind)
			memset(r->host + i * PAGE, 0, kind == 1 ? PAGE : PAGE / 2);
		data += kind == 0 || kind == 3;
	}
	return data;
}

static void expect_mixed(struct rig *rig, unsigned region, uint64_t npages)
{
	for (uint64_t i = 0; i < npages; i++) {
		unsigned kind = page_kind(i);
		uint64_t zeros = kind == 0 ? 0 : kind == 3 ? PAGE / 2 : PAGE;

		expect_byte(rig, region, i * PAGE, zeros, 0);
		expect_data(rig, region, i * PAGE + zeros, PAGE - zeros);
	}
}

/* A page that was pinned before its hole was made stays with the device. */
static bool holes_show(const struct backend *b)
{
	return b->pin != LM_PIN_ALL;
}

void fetched_zeros_and_holes_leave_no_page_on_either_side(void **state)
{
	enum { N = 1000 };
	struct rig *rig = holes_show(*state) ? rig_open_pull(*state, 1, N * PAGE) : NULL;
	struct lm_run one = data_run(0, 0, N * PAGE), many[N];
	uint64_t data, at_source[2];

	if (!rig)
		skip_because("memory that is pinned as a whole has no holes");
	data = mix_source(rig, 0, N);
	assert_int_equal(mix_source(rig, 1, N), data);
	for (unsigned i = 0; i < 2; i++)
		at_source[i] = file_bytes(&rig->src.region[i], 0, N * PAGE);
	for (unsigned i = 0; i < N; i++)
		many[i] = data_run(1, (uint64_t)(i * 7 % N) * PAGE, PAGE);
	pump_start(rig, 0);
	for (unsigned pass = 0; pass < 2; pass++) { /* over old bytes, and over what came in the first */
		assert_int_equal(fetch_runs(rig, 0, &one, 1), 0);
		assert_int_equal(fetch_runs(rig, 0, many, N), 0);
		assert_int_equal(rig->fetch[0].whole, (pass + 1) * (N + 1));
		for (unsigned i = 0; i < 2 && !rig->backend->rdma; i++) { /* a device sees no holes */
			assert_int_equal(file_bytes(&rig->dst.region[i], 0, N * PAGE), data * PAGE);
			assert_int_equal(file_bytes(&rig->src.region[i], 0, N * PAGE), at_source[i]);
		}
	}
	expect_mixed(rig, 0, N);
	expect_mixed(rig, 1, N);
	pump_stop(rig, 0);
	if (!rig->backend->rdma)
		assert_int_equal(rig->pumps[0].bytes, 4 * data * PAGE);
	rig_free(rig);
}

void a_large_hole_is_fetched_without_a_byte_of_data(void **state)
{
	struct rig *rig = holes_show(*state) ? rig_open_pull(*state, 1, 16 * MIB) : NULL;
	struct lm_run run = data_run(0, PAGE, 16 * MIB - PAGE);

	if (!rig)
		skip_because("memory that is pinned as a whole has no holes");
	punch(&rig->src.region[0], PAGE, 16 * MIB - PAGE);
	pump_start(rig, 0);
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	if (!rig->backend->rdma) {
		assert_int_equal(file_bytes(&rig->src.region[0], 0, 16 * MIB), PAGE);
		assert_int_equal(file_bytes(&rig->dst.region[0], 0, 16 * MIB), PAGE);
	}
	expect_byte(rig, 0, 0, PAGE, OLD_BYTE);
	expect_byte(rig, 0, PAGE, 16 * MIB - PAGE, 0);
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].bytes, 0);
	rig_free(rig);
}

void hugetlbfs_is_fetched_and_its_holes_stay(void **state)
{
	struct rig *rig = rig_new(*state, 1, 4 * MIB, true);
	struct lm_run runs[] = { data_run(0, 0, 2 * MIB), data_run(0, 2 * MIB + PAGE, PAGE),
				 data_run(1, 0, 4 * MIB) };
	struct stat st;

	if (!rig) {
		skip_because("no huge pages to be had (vm.nr_hugepages)");
	}
	memset(rig->src.region[0].host + 3 * PAGE, 0, 70 * PAGE);
	punch(&rig->src.region[1], 0, 4 * MIB);
	rig_set_direction(rig, LM_PULL);
	rig_connect(rig);
	pump_start(rig, 0);
	assert_int_equal(fetch_runs(rig, 0, runs, 3), 0);
	expect_data(rig, 0, 0, 3 * PAGE);
	expect_byte(rig, 0, 3 * PAGE, 70 * PAGE, 0);
	expect_data(rig, 0, 73 * PAGE, 2 * MIB - 73 * PAGE);
	expect_byte(rig, 0, 2 * MIB, PAGE, OLD_BYTE);
	expect_data(rig, 0, 2 * MIB + PAGE, PAGE);
	expect_byte(rig, 0, 2 * MIB + 2 * PAGE, 2 * MIB - 2 * PAGE, OLD_BYTE);
	expect_byte(rig, 1, 0, 4 * MIB, 0);
	assert_int_equal(fstat(rig->src.region[1].fd, &st), 0);
	if (!rig->backend->rdma)
		assert_int_equal(st.st_blocks * 512, 4 * MIB); /* the guards, nothing more */
	rig_free(rig);
}

struct stripe {
	struct rig *rig;
	unsigned lane;
	int result;
	pthread_t thread;
};

/* Every lane fetches every fourth 16 KiB, in runs of one to four pages, alone and in batches. */
static void *fetch_stripe(void *arg)
{
	struct stripe *s = arg;
	struct lm_run runs[128];
	unsigned n = 0;

	for (uint64_t at = s->lane * 4 * PAGE; at < s->rig->size && !s->result; at += 16 * PAGE) {
		runs[n++] = data_run(0, at, (1 + at / PAGE / 16 % 4) * PAGE);
		runs[n++] = data_run(1, at, 4 * PAGE);
		if (n < sizeof(runs) / sizeof(runs[0]) && at % MIB)
			continue;
		s->result = fetch_runs(s->rig, s->lane, runs, n);
		n = 0;
	}
	if (!s->result && n)
		s->result = fetch_runs(s->rig, s->lane, runs, n);
	return NULL;
}

void many_lanes_fetch_at_once(void **state)
{
	struct rig *rig = rig_open_pull(*state, 4, 16 * MIB);
	struct stripe stripes[4];

	pump_start_all(rig);
	for (unsigned i = 0; i < 4; i++) {
		stripes[i] = (struct stripe){ .rig = rig, .lane = i };
		assert_int_equal(pthread_create(&stripes[i].thread, NULL, fetch_stripe, &stripes[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(stripes[i].thread, NULL);
		assert_int_equal(stripes[i].result, 0);
		assert_int_equal(rig->fetch[i].whole, 2 * 16 * MIB / PAGE / 16);
	}
	expect_data(rig, 1, 0, 16 * MIB);
	for (uint64_t at = 0; at < 16 * MIB; at += 4 * PAGE) {
		uint64_t n = 1 + at / PAGE / 16 % 4;

		expect_data(rig, 0, at, n * PAGE);
		expect_byte(rig, 0, at + n * PAGE, (4 - n) * PAGE, OLD_BYTE);
	}
	rig_free(rig);
}

void what_was_fetched_is_visible_at_once(void **state)
{
	struct rig *rig = rig_open_pull(*state, 1, 64 * PAGE);
	const volatile uint8_t *there = rig->dst.region[0].host + 9 * PAGE;
	struct lm_run run = data_run(0, 9 * PAGE, PAGE);

	for (unsigned i = 1; i < 300; i++) {
		memset(rig->src.region[0].host + 9 * PAGE, (int)(i % 251), PAGE);
		if (i == 1)
			pump_start(rig, 0);
		assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
		assert_int_equal(rig->fetch[0].whole, i);
		assert_int_equal(there[0], i % 251);
		assert_int_equal(there[PAGE - 1], i % 251);
	}
	rig_free(rig);
}

/* ---- a full lane ---- */

/* Nobody answers: how many runs of this length does the lane take? */
static unsigned fill_lane(struct rig *rig, uint64_t len)
{
	unsigned n = 0;
	int r = 1;

	for (uint64_t at = 0; at < rig->size && r > 0; at += len) {
		struct lm_run run = data_run(0, at, len);

		r = fetch_try(rig, 0, &run, 1, &err);
		n += r > 0;
	}
	assert_int_equal(r, -EAGAIN);
	return n;
}

void a_lane_that_is_asked_too_much_says_again_and_loses_nothing(void **state)
{
	static const uint64_t lens[] = { PAGE, 16 * PAGE, 8 * MIB };
	const struct backend *b = *state;

	/* The loop's ring counts runs, not bytes. */
	for (unsigned i = 0; i < (b->listen ? 3 : 1); i++) {
		struct rig *rig = rig_open_pull(b, 1, 16 * MIB);
		unsigned n = fill_lane(rig, lens[i]);

		assert_true(n > 0);
		if (rig->backend->listen)
			assert_true(n == 1 || n * lens[i] <= 4 * MIB);
		assert_int_equal(fetch_poll(rig, 0, 20, &err), 0);
		assert_int_equal(rig->fetch[0].whole, 0);
		pump_start(rig, 0);
		for (uint64_t at = n * lens[i]; at < rig->size; at += lens[i]) {
			struct lm_run run = data_run(0, at, lens[i]);

			while (fetch_try(rig, 0, &run, 1, &err) == -EAGAIN)
				assert_int_equal(fetch_poll(rig, 0, 20, &err), 0);
		}
		assert_int_equal(fetch_wait(rig, 0), 0);
		assert_int_equal(rig->fetch[0].whole, rig->size / lens[i]);
		expect_data(rig, 0, 0, rig->size);
		rig_free(rig);
	}
}

/* ---- waiting ---- */

static void *wake_soon(void *arg)
{
	uint64_t one = 1;

	usleep(20000);
	assert_int_equal(write(*(int *)arg, &one, sizeof(one)), sizeof(one));
	return NULL;
}

void a_wait_ends_when_the_other_descriptor_is_readable(void **state)
{
	for (unsigned i = 0; i < 4; i++) {
		struct rig *rig = i & 1 ? rig_open(*state, 1, 64 * PAGE) : rig_open_pull(*state, 1, 64 * PAGE);
		struct lm_run run = data_run(0, 0, PAGE);
		struct side *s = i & 2 ? &rig->src : &rig->dst;
		int64_t start = lm_now_ns();
		struct lm_poll_result res;
		pthread_t thread;
		int fd = eventfd(0, EFD_CLOEXEC);

		assert_true(fd >= 0);
		if (i == 0) /* also while an answer is due that does not come */
			assert_int_equal(fetch_try(rig, 0, &run, 1, &err), 1);
		assert_int_equal(pthread_create(&thread, NULL, wake_soon, &fd), 0);
		assert_int_equal(lm_transport_poll_or(s->t, 0, 30000, fd, &res, &err), 0);
		pthread_join(thread, NULL);
		assert_true(lm_now_ns() - start < 15 * LM_NS_PER_S);
		assert_int_equal(res.fetched, 0);
		close(fd);
		rig_free(rig);
	}
}

/* However long the wait may be, it ends with what it waits for. */
void a_wait_ends_when_the_answer_has_come(void **state)
{
	static const uint64_t lens[] = { PAGE, 5 * PAGE, 16 * PAGE, 17 * PAGE, 100 * PAGE, MIB + PAGE };
	struct rig *rig = rig_open_pull(*state, 1, 8 * MIB);
	int64_t start = lm_now_ns();

	punch(&rig->src.region[0], 0, 9 * PAGE);
	punch(&rig->src.region[0], 30 * PAGE, 100 * PAGE);
	pump_start(rig, 0);
	for (unsigned i = 0; i < 6; i++)
		for (unsigned region = 0; region < 2; region++) {
			struct lm_run run = data_run(region, 0, lens[i]);

			assert_int_equal(fetch_try(rig, 0, &run, 1, &err), 1);
			while (rig->fetch[0].whole < rig->fetch[0].asked)
				assert_int_equal(fetch_poll(rig, 0, 30000, &err), 0);
		}
	assert_true(lm_now_ns() - start < 20 * LM_NS_PER_S);
	rig_free(rig);
}

/* Neither by itself (the loop naps inside, the others do not), nor by being called for nothing. */
static void expect_lazy(struct lm_transport *t)
{
	int64_t start = lm_now_ns(), cpu = lm_clock_ns(CLOCK_THREAD_CPUTIME_ID), wall;
	struct lm_poll_result res;
	unsigned polls = 0;

	while (lm_now_ns() - start < 150 * LM_NS_PER_MS) {
		assert_int_equal(lm_transport_poll(t, 0, 50, &res, &err), 0);
		polls++;
	}
	wall = lm_now_ns() - start;
	assert_true(lm_clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu < wall / 2);
	assert_true(polls <= 20);
}

void an_idle_lane_takes_no_cpu(void **state)
{
	struct rig *rig = rig_open_pull(*state, 1, 64 * PAGE);
	struct lm_run run = data_run(0, 0, PAGE);

	expect_lazy(rig->src.t);
	expect_lazy(rig->dst.t);
	pump_start(rig, 0);
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	pump_stop(rig, 0);
	expect_lazy(rig->src.t);
	expect_lazy(rig->dst.t);
	/* Nor does a destination that waits for its answer. */
	assert_int_equal(fetch_try(rig, 0, &run, 1, &err), 1);
	expect_lazy(rig->dst.t);
	rig_free(rig);
}

void a_source_whose_answers_nobody_reads_takes_no_cpu(void **state)
{
	struct rig *rig = rig_open_pull(*state, 1, 24 * MIB);
	struct lm_run run = data_run(0, 0, 24 * MIB);
	struct lm_poll_result res;
	int64_t until = lm_now_ns() + 2 * LM_NS_PER_S;

	assert_int_equal(fetch_try(rig, 0, &run, 1, &err), 1);
	do
		assert_int_equal(lm_transport_poll(rig->src.t, 0, 100, &res, &err), 0);
	while (res.bytes && lm_now_ns() < until);
	expect_lazy(rig->src.t);
	pump_start(rig, 0);
	assert_int_equal(fetch_wait(rig, 0), 0);
	expect_data(rig, 0, 0, 24 * MIB);
	rig_free(rig);
}

/* ---- what is refused ---- */

void each_direction_refuses_the_calls_of_the_other(void **state)
{
	struct rig *pull = rig_open_pull(*state, 1, 64 * PAGE), *push = rig_open(*state, 1, 64 * PAGE);
	struct lm_run good = data_run(1, 0, PAGE), zero = zero_run(1, 0, PAGE);

	assert_int_equal(lm_transport_write(pull->src.t, 0, &good, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_write(pull->dst.t, 0, &good, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_flush(pull->src.t, 0, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_fetch(pull->src.t, 0, &good, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_fetch(pull->dst.t, 1, &good, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_fetch(pull->dst.t, 0, &good, 0, &err), -EINVAL);
	assert_int_equal(lm_transport_fetch(pull->dst.t, 0, &zero, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_fetch(push->dst.t, 0, &good, 1, &err), -EINVAL);
	assert_int_equal(lm_transport_fetch(push->src.t, 0, &good, 1, &err), -EINVAL);
	for (unsigned i = 0; i < RIG_BAD_RUNS; i++) {
		struct lm_run two[2] = { good, rig_bad_runs[i] };

		assert_int_equal(lm_transport_fetch(pull->dst.t, 0, &rig_bad_runs[i], 1, &err), -EINVAL);
		assert_int_equal(lm_transport_fetch(pull->dst.t, 0, two, 2, &err), -EINVAL);
	}
	/* None of it hurt a lane. */
	pump_start(pull, 0);
	assert_int_equal(fetch_runs(pull, 0, &good, 1), 0);
	expect_data(pull, 1, 0, PAGE);
	pump_start(push, 0);
	assert_int_equal(send_runs(push, 0, &good, 1), 0);
	rig_free(pull);
	rig_free(push);
}

/* A destination that is not ours does not call our wrapper. */
void the_source_refuses_to_answer_for_what_lies_outside(void **state)
{
	const struct backend *b = *state;

	if (b->rdma)
		skip_because("the device refuses, not the source's poll: tests/rdma");
	for (unsigned i = 0; i < RIG_BAD_RUNS && !b->decorated; i++) {
		struct rig *rig = rig_open_pull(b, 2, 64 * PAGE);
		struct lm_run run = rig_bad_runs[i], good = data_run(0, 0, PAGE);
		uint64_t before = dest_hash(rig);

		assert_int_equal(rig->dst.t->ops->fetch(rig->dst.t, 0, &run, 1, &err), 1);
		assert_int_equal(source_poll_until_error(rig, 0, 2000, &err), -EPROTO);
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_true(dest_poll_until_error(rig, 0, 2000, &err) < 0);
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_true(dest_hash(rig) == before);
		pump_start(rig, 1);
		assert_int_equal(fetch_runs(rig, 1, &good, 1), 0); /* the lane, and only the lane */
		rig_free(rig);
	}
}
