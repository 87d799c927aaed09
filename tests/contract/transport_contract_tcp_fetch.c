/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP in LM_PULL against peers that are none: a source that answers what it must
 * not, and a destination that asks for what it must not, by hand on a bare socket.
 */
#include <unistd.h>
#include "transport_contract_tcp.h"

static const struct backend tcp = { .name = "tcp", .listen = "127.0.0.1:0" };
static struct lm_error err;

static struct rig *rig_new_pull(void)
{
	struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);

	assert_non_null(rig);
	rig_set_direction(rig, LM_PULL);
	return rig;
}

/* ---- a source by hand ---- */

/* What the destination asks for: two runs, of four pages and of one. */
static void ask(struct rig *rig, struct lm_stream *s)
{
	const struct lm_run runs[] = { data_run(0, 2 * PAGE, 4 * PAGE), data_run(1, 9 * PAGE, PAGE) };
	struct tcp_frame f;
	struct tcp_desc d[2];

	assert_int_equal(fetch_try(rig, 0, runs, 2, &err), 2);
	assert_int_equal(fetch_poll(rig, 0, 0, &err), 0);
	assert_int_equal(lm_stream_recv_all(s, &f, sizeof(f), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
	assert_int_equal(lm_le32_get(f.magic), TCP_FRAME_MAGIC);
	assert_int_equal(lm_le32_get(f.type), TCP_REQUEST);
	assert_int_equal(lm_le32_get(f.count), 2);
	assert_int_equal(lm_le64_get(f.bytes), 5 * PAGE);
	assert_int_equal(lm_le64_get(f.seq), 1);
	assert_int_equal(lm_stream_recv_all(s, d, sizeof(d), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
	for (unsigned i = 0; i < 2; i++) {
		struct tcp_desc want = tcp_desc_make(&runs[i]);

		assert_memory_equal(&d[i], &want, sizeof(want));
	}
}

/* A right beginning: the first two pages of the first run as zeros, the third as data. */
static void answer_init(struct message *m)
{
	memset(m, 0, sizeof(*m));
	m->frame = tcp_frame_make(TCP_BATCH, 1);
	m->frame.count = lm_le32(2);
	m->frame.bytes = lm_le64(PAGE);
	m->desc[0] = desc(0, LM_RUN_ZERO, 2 * PAGE, 2 * PAGE);
	m->desc[1] = desc(0, LM_RUN_DATA, 4 * PAGE, PAGE);
	m->ndesc = 2;
	pattern_fill(m->data, 0, 4 * PAGE, PAGE);
	m->ndata = PAGE;
}

/* The rest: the end of the first run and all of the second. */
static void answer_rest(struct message *m)
{
	memset(m, 0, sizeof(*m));
	m->frame = tcp_frame_make(TCP_BATCH, 2);
	m->frame.count = lm_le32(2);
	m->frame.bytes = lm_le64(2 * PAGE);
	m->desc[0] = desc(0, LM_RUN_DATA, 5 * PAGE, PAGE);
	m->desc[1] = desc(1, LM_RUN_DATA, 9 * PAGE, PAGE);
	m->ndesc = 2;
	pattern_fill(m->data, 0, 5 * PAGE, PAGE);
	pattern_fill(m->data + PAGE, 1, 9 * PAGE, PAGE);
	m->ndata = 2 * PAGE;
}

static void poll_some(struct rig *rig)
{
	for (int i = 0; i < 10; i++)
		assert_int_equal(fetch_poll(rig, 0, 5, &err), 0);
}

static void expect_first_half(struct rig *rig)
{
	expect_byte(rig, 0, 0, 2 * PAGE, OLD_BYTE);
	expect_byte(rig, 0, 2 * PAGE, 2 * PAGE, 0);
	expect_data(rig, 0, 4 * PAGE, PAGE);
	expect_byte(rig, 0, 5 * PAGE, (NREGION_PAGES - 5) * PAGE, OLD_BYTE);
	expect_byte(rig, 1, 0, NREGION_PAGES * PAGE, OLD_BYTE);
}

static void an_answer_in_pieces_counts_when_the_last_byte_is_there(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s = rig_by_hand(rig);
	struct message m;

	(void)state;
	ask(rig, s);
	answer_init(&m);
	message_say(s, &m);
	poll_some(rig);
	assert_int_equal(rig->fetch[0].whole, 0);
	expect_first_half(rig);
	answer_rest(&m);
	m.ndata = PAGE - 1;
	message_say(s, &m);
	poll_some(rig);
	assert_int_equal(rig->fetch[0].whole, 0);
	say(s, m.data + PAGE - 1, 1);
	poll_some(rig);
	assert_int_equal(rig->fetch[0].whole, 1);
	expect_data(rig, 0, 4 * PAGE, 2 * PAGE);
	say(s, m.data + PAGE, PAGE - 1);
	poll_some(rig);
	assert_int_equal(rig->fetch[0].whole, 1);
	say(s, m.data + 2 * PAGE - 1, 1);
	assert_int_equal(fetch_wait(rig, 0), 0);
	assert_int_equal(rig->fetch[0].whole, 2);
	expect_data(rig, 1, 9 * PAGE, PAGE);
	lm_stream_close(s);
	rig_free(rig);
}

static void an_answer_that_trickles_in_is_placed(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s = rig_by_hand(rig);
	struct message m[2];

	(void)state;
	ask(rig, s);
	answer_init(&m[0]);
	answer_rest(&m[1]);
	for (unsigned i = 0; i < 2; i++) {
		const uint8_t *p[3] = { (uint8_t *)&m[i].frame, (uint8_t *)m[i].desc, m[i].data };
		size_t len[3] = { sizeof(m[i].frame), 2 * sizeof(m[i].desc[0]), m[i].ndata };

		for (int part = 0; part < 3; part++)
			for (size_t k = 0; k < len[part]; k++) {
				say(s, p[part] + k, 1);
				if (k % 7 == 0 || part < 2)
					assert_int_equal(fetch_poll(rig, 0, 0, &err), 0);
			}
	}
	assert_int_equal(fetch_wait(rig, 0), 0);
	expect_byte(rig, 0, 2 * PAGE, 2 * PAGE, 0);
	expect_data(rig, 0, 4 * PAGE, 2 * PAGE);
	expect_data(rig, 1, 9 * PAGE, PAGE);
	lm_stream_close(s);
	rig_free(rig);
}

static void from_the_second_page(struct message *m) { m->desc[0] = desc(0, LM_RUN_ZERO, 3 * PAGE, PAGE); }
static void one_page_too_early(struct message *m) { m->desc[0] = desc(0, LM_RUN_ZERO, PAGE, 3 * PAGE); }
static void with_a_gap(struct message *m) { m->desc[1] = desc(0, LM_RUN_DATA, 5 * PAGE, PAGE); }
static void the_same_twice(struct message *m) { m->desc[1] = desc(0, LM_RUN_DATA, 3 * PAGE, PAGE); }
static void of_another_region(struct message *m) { m->desc[0] = desc(1, LM_RUN_ZERO, 2 * PAGE, 2 * PAGE); }
static void of_the_second_run_first(struct message *m) { m->desc[1] = desc(1, LM_RUN_DATA, 9 * PAGE, PAGE); }
static void beyond_the_run(struct message *m) { m->desc[0] = desc(0, LM_RUN_ZERO, 2 * PAGE, 5 * PAGE); }
static void beyond_the_region(struct message *m) { m->desc[0] = desc(0, LM_RUN_ZERO, 2 * PAGE, NREGION_PAGES * PAGE); }
static void of_length_zero(struct message *m) { m->desc[0] = desc(0, LM_RUN_ZERO, 2 * PAGE, 0); }
static void of_half_a_page(struct message *m) { m->desc[0] = desc(0, LM_RUN_ZERO, 2 * PAGE, PAGE / 2); }
static void of_a_kind_that_is_none(struct message *m) { m->desc[0] = desc(0, 2, 2 * PAGE, 2 * PAGE); }
static void more_than_was_asked(struct message *m)
{
	m->frame.count = lm_le32(3);
	m->frame.bytes = lm_le64(0);
	m->desc[0] = desc(0, LM_RUN_ZERO, 2 * PAGE, 4 * PAGE);
	m->desc[1] = desc(1, LM_RUN_ZERO, 9 * PAGE, PAGE);
	m->desc[2] = desc(1, LM_RUN_ZERO, 10 * PAGE, PAGE);
	m->ndesc = 3;
}
static void with_a_wrong_sum(struct message *m) { m->frame.bytes = lm_le64(2 * PAGE); }
static void with_a_wrong_seq(struct message *m) { m->frame.seq = lm_le64(2); }
static void without_runs(struct message *m) { m->frame.count = lm_le32(0); }
static void with_too_many_runs(struct message *m) { m->frame.count = lm_le32(LM_WRITE_MAX + 1); }
static void with_reserved_set(struct message *m) { m->frame.reserved = lm_le32(1); }
static void with_bad_magic(struct message *m) { m->frame.magic = lm_le32(1); }
static void that_is_a_flush(struct message *m) { m->frame = tcp_frame_make(TCP_FLUSH, 1); }
static void that_is_a_request(struct message *m) { m->frame.type = lm_le32(TCP_REQUEST); }
static void that_is_a_welcome(struct message *m) { m->frame.type = lm_le32(TCP_WELCOME); }

#define HOSTILE(fn) { #fn, fn }
struct hostile {
	const char *name;
	void (*spoil)(struct message *m);
};

static const struct hostile answers[] = {
	HOSTILE(from_the_second_page), HOSTILE(one_page_too_early), HOSTILE(with_a_gap), HOSTILE(the_same_twice),
	HOSTILE(of_another_region), HOSTILE(of_the_second_run_first), HOSTILE(beyond_the_run),
	HOSTILE(beyond_the_region), HOSTILE(of_length_zero), HOSTILE(of_half_a_page),
	HOSTILE(of_a_kind_that_is_none), HOSTILE(more_than_was_asked), HOSTILE(with_a_wrong_sum),
	HOSTILE(with_a_wrong_seq), HOSTILE(without_runs), HOSTILE(with_too_many_runs), HOSTILE(with_reserved_set),
	HOSTILE(with_bad_magic), HOSTILE(that_is_a_flush), HOSTILE(that_is_a_request), HOSTILE(that_is_a_welcome),
};

static void hostile_answers_end_the_lane_and_place_not_a_byte(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
		struct rig *rig = rig_new_pull();
		struct lm_stream *s = rig_by_hand(rig);
		uint64_t before = dest_hash(rig);
		struct message m;

		ask(rig, s);
		answer_init(&m);
		answers[i].spoil(&m);
		message_say(s, &m);
		if (dest_poll_until_error(rig, 0, 2000, &err) != -EPROTO)
			fail_msg("an answer %s was not refused", answers[i].name);
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_true(dest_hash(rig) == before);
		lm_stream_close(s);
		rig_free(rig);
	}
}

static void an_answer_to_nothing_is_refused(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s = rig_by_hand(rig);
	uint64_t before = dest_hash(rig);
	struct message m;

	(void)state;
	answer_init(&m);
	message_say(s, &m);
	assert_int_equal(dest_poll_until_error(rig, 0, 2000, &err), -EPROTO);
	assert_true(dest_hash(rig) == before);
	lm_stream_close(s);
	rig_free(rig);
}

static void an_answer_given_again_is_refused_when_the_ring_has_gone_round(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s = rig_by_hand(rig);
	struct lm_run run = data_run(0, PAGE, PAGE);
	struct message m = { .ndesc = 1, .desc = { desc(0, LM_RUN_ZERO, PAGE, PAGE) } };
	uint8_t request[sizeof(struct tcp_frame) + sizeof(struct tcp_desc)];

	(void)state;
	for (uint64_t seq = 1; seq <= 2048; seq++) {
		m.frame = tcp_frame_make(TCP_BATCH, seq);
		m.frame.count = lm_le32(1);
		assert_int_equal(fetch_try(rig, 0, &run, 1, &err), 1);
		assert_int_equal(lm_stream_recv_all(s, request, sizeof(request), lm_now_ns() + LM_NS_PER_S, -1, &err),
				 0);
		message_say(s, &m);
		assert_int_equal(fetch_wait(rig, 0), 0);
	}
	expect_byte(rig, 0, PAGE, PAGE, 0);
	memset(rig->dst.region[0].host, OLD_BYTE, 2 * PAGE);
	m.frame.seq = lm_le64(2049);
	message_say(s, &m);
	assert_int_equal(dest_poll_until_error(rig, 0, 2000, &err), -EPROTO);
	expect_byte(rig, 0, 0, 2 * PAGE, OLD_BYTE);
	lm_stream_close(s);
	rig_free(rig);
}

static void a_cut_in_the_middle_of_an_answer_counts_nothing_that_is_not_whole(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s = rig_by_hand(rig);
	struct lm_poll_result res;
	struct message m;
	uint64_t before;

	(void)state;
	ask(rig, s);
	answer_init(&m);
	message_say(s, &m);
	answer_rest(&m);
	m.ndata = PAGE + 100;
	message_say(s, &m);
	lm_stream_close(s);
	assert_int_equal(dest_poll_until_error(rig, 0, 2000, &err), -ECONNRESET);
	assert_true(lm_transport_poll(rig->dst.t, 0, 0, &res, &err) < 0);
	assert_int_equal(res.fetched, 1);
	expect_data(rig, 0, 4 * PAGE, 2 * PAGE);
	expect_byte(rig, 1, 0, 9 * PAGE, OLD_BYTE);
	expect_byte(rig, 1, 10 * PAGE, (NREGION_PAGES - 10) * PAGE, OLD_BYTE);
	memset(rig->dst.region[1].host, 0x11, NREGION_PAGES * PAGE);
	before = dest_hash(rig);
	assert_true(lm_transport_poll(rig->dst.t, 0, 20, &res, &err) < 0);
	assert_true(dest_hash(rig) == before);
	rig_free(rig);
}

/* CLOSE is orderly only from a source that owes nothing. */
static void a_close_before_the_answer_is_no_orderly_one(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s = rig_by_hand(rig);
	struct tcp_frame f = tcp_frame_make(TCP_CLOSE, 0);

	(void)state;
	ask(rig, s);
	say(s, &f, sizeof(f));
	assert_int_equal(dest_poll_until_error(rig, 0, 2000, &err), -ECONNRESET);
	lm_stream_close(s);
	rig_free(rig);
}

/* ---- a destination by hand ---- */

static void *open_src(void *arg)
{
	struct rig *rig = arg;

	rig->src.open_result = lm_transport_open(rig->src.t, &rig->params[LM_SOURCE], &rig->src.err);
	return NULL;
}

/* A source with one lane whose other end is a bare socket. */
static struct lm_stream *dest_by_hand(struct rig *rig)
{
	struct lm_stream *s = NULL;
	struct tcp_preamble p, want = preamble(rig, 0);
	struct tcp_frame welcome = tcp_frame_make(TCP_WELCOME, 0);
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, open_src, rig), 0);
	assert_int_equal(lm_stream_accept(rig->listen_fd, false, lm_now_ns() + 5 * LM_NS_PER_S, -1, &s, &err), 0);
	assert_int_equal(lm_stream_recv_all(s, &p, sizeof(p), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
	assert_memory_equal(&p, &want, sizeof(p));
	say(s, &welcome, sizeof(welcome));
	pthread_join(thread, NULL);
	assert_int_equal(rig->src.open_result, 0);
	rig_add_regions(rig, &rig->src);
	return s;
}

static void request_init(struct message *m, uint64_t seq)
{
	memset(m, 0, sizeof(*m));
	m->frame = tcp_frame_make(TCP_REQUEST, seq);
	m->frame.count = lm_le32(2);
	m->frame.bytes = lm_le64(3 * PAGE);
	m->desc[0] = desc(0, LM_RUN_DATA, 0, 2 * PAGE);
	m->desc[1] = desc(1, LM_RUN_DATA, 3 * PAGE, PAGE);
	m->ndesc = 2;
}

static void a_request_made_by_hand_is_answered(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s;
	struct tcp_desc d[3], want[] = { desc(0, LM_RUN_ZERO, 0, PAGE), desc(0, LM_RUN_DATA, PAGE, PAGE),
					 desc(1, LM_RUN_DATA, 3 * PAGE, PAGE) };
	static uint8_t data[2 * PAGE], want_data[2 * PAGE];
	struct tcp_frame f;
	struct message m;

	(void)state;
	memset(rig->src.region[0].host, 0, PAGE);
	pattern_fill(want_data, 0, PAGE, PAGE);
	pattern_fill(want_data + PAGE, 1, 3 * PAGE, PAGE);
	s = dest_by_hand(rig);
	for (uint64_t seq = 1; seq < 4; seq++) {
		request_init(&m, seq);
		message_say(s, &m);
		assert_int_equal(source_poll_until_error(rig, 0, 30, &err), 0);
		assert_int_equal(lm_stream_recv_all(s, &f, sizeof(f), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
		assert_int_equal(lm_le32_get(f.type), TCP_BATCH);
		assert_int_equal(lm_le32_get(f.count), 3);
		assert_int_equal(lm_le64_get(f.bytes), 2 * PAGE);
		assert_int_equal(lm_le64_get(f.seq), seq);
		assert_int_equal(lm_stream_recv_all(s, d, sizeof(d), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
		assert_memory_equal(d, want, sizeof(d));
		assert_int_equal(lm_stream_recv_all(s, data, sizeof(data), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
		assert_memory_equal(data, want_data, sizeof(data));
	}
	lm_stream_close(s);
	rig_free(rig);
}

static void for_a_region_out_of_range(struct message *m) { m->desc[1] = desc(2, 0, 0, PAGE); }
static void for_region_max(struct message *m) { m->desc[1] = desc(UINT32_MAX, 0, 0, PAGE); }
static void for_zeros(struct message *m) { m->desc[1] = desc(1, LM_RUN_ZERO, 3 * PAGE, PAGE); }
static void for_a_kind_that_is_none(struct message *m) { m->desc[1] = desc(1, 7, 3 * PAGE, PAGE); }
static void at_the_end(struct message *m) { m->desc[1] = desc(0, 0, NREGION_PAGES * PAGE, PAGE); }
static void over_the_end(struct message *m)
{
	m->desc[1] = desc(0, 0, (NREGION_PAGES - 1) * PAGE, 2 * PAGE);
	m->frame.bytes = lm_le64(4 * PAGE);
}
static void with_an_offset_that_wraps(struct message *m)
{
	m->desc[1] = desc(0, 0, UINT64_MAX - PAGE + 1, 2 * PAGE);
	m->frame.bytes = lm_le64(4 * PAGE);
}
static void with_a_length_that_wraps(struct message *m)
{
	m->desc[1] = desc(0, 0, PAGE, UINT64_MAX - PAGE + 1);
	m->frame.bytes = lm_le64(PAGE);
}
static void for_nothing(struct message *m)
{
	m->desc[1] = desc(0, 0, 0, 0);
	m->frame.bytes = lm_le64(2 * PAGE);
}
static void at_half_a_page(struct message *m) { m->desc[1] = desc(0, 0, PAGE / 2, PAGE); }
static void for_half_a_page(struct message *m)
{
	m->desc[1] = desc(0, 0, 0, PAGE / 2);
	m->frame.bytes = lm_le64(2 * PAGE + PAGE / 2);
}
static void that_is_a_batch(struct message *m) { m->frame.type = lm_le32(TCP_BATCH); }
static void that_is_an_answer_to_a_flush(struct message *m) { m->frame = tcp_frame_make(TCP_FLUSHED, 1); }

static const struct hostile requests[] = {
	HOSTILE(for_a_region_out_of_range), HOSTILE(for_region_max), HOSTILE(for_zeros),
	HOSTILE(for_a_kind_that_is_none), HOSTILE(at_the_end), HOSTILE(over_the_end),
	HOSTILE(with_an_offset_that_wraps), HOSTILE(with_a_length_that_wraps), HOSTILE(for_nothing),
	HOSTILE(at_half_a_page), HOSTILE(for_half_a_page), HOSTILE(that_is_a_batch),
	HOSTILE(that_is_an_answer_to_a_flush), HOSTILE(that_is_a_welcome), HOSTILE(with_a_wrong_sum),
	HOSTILE(with_a_wrong_seq), HOSTILE(without_runs), HOSTILE(with_too_many_runs), HOSTILE(with_reserved_set),
	HOSTILE(with_bad_magic),
};

static void hostile_requests_end_the_lane_and_get_not_a_byte(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		struct rig *rig = rig_new_pull();
		struct lm_stream *s = dest_by_hand(rig);
		struct message m;

		request_init(&m, 1);
		requests[i].spoil(&m);
		message_say(s, &m);
		if (source_poll_until_error(rig, 0, 2000, &err) != -EPROTO)
			fail_msg("a request %s was not refused", requests[i].name);
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_true(hangs_up(s)); /* and says nothing before it does */
		lm_stream_close(s);
		rig_free(rig);
	}
}

/* Requests without end, until nothing goes out for 100 ms; no answer is read.  How many bytes went out. */
static uint64_t flood(struct lm_stream *s)
{
	const size_t len = sizeof(struct tcp_frame) + 2 * sizeof(struct tcp_desc);
	int64_t until = lm_now_ns() + 60 * LM_NS_PER_S;
	struct message m; /* frame and descriptors lie one after the other */
	uint64_t sent = 0;

	for (unsigned full = 0; full < 100;) {
		struct iovec iov = { (uint8_t *)&m + sent % len, len - sent % len };
		ssize_t n;

		request_init(&m, 1 + sent / len);
		n = lm_stream_send(s, &iov, 1);
		full = n == -EAGAIN ? full + 1 : 0;
		if (full)
			usleep(1000);
		else
			sent += (uint64_t)n;
		assert_true(n > 0 || full);
		assert_true(lm_now_ns() < until && sent < UINT64_C(64) << 20);
	}
	return sent;
}

/* They wait in the sender's own buffers, and nobody spins. */
static void a_destination_that_floods_the_source_waits_for_itself(void **state)
{
	struct rig *rig = rig_new_pull();
	struct lm_stream *s = dest_by_hand(rig);
	uint64_t polls;
	int64_t start;

	(void)state;
	pump_start(rig, 0);
	assert_true(flood(s) > 0);
	start = lm_now_ns();
	polls = rig->pumps[0].polls;
	usleep(200000);
	/* It waits 5 ms at a time, whatever lies in its buffer. */
	assert_true((int64_t)(rig->pumps[0].polls - polls) <= (lm_now_ns() - start) / (5 * LM_NS_PER_MS) + 5);
	pump_stop(rig, 0);
	assert_int_equal(rig->pumps[0].result, 0);
	lm_stream_close(s);
	rig_free(rig);
}

/* ---- lanes of the other direction ---- */

static void a_lane_of_the_other_direction_is_hung_up_on(void **state)
{
	(void)state;
	for (int pull = 0; pull < 2; pull++) {
		struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);
		pthread_t thread;

		rig->params[pull ? LM_SOURCE : LM_DEST].direction = LM_PULL;
		rig->params[LM_DEST].deadline_ns = lm_now_ns() + LM_NS_PER_S / 2;
		assert_int_equal(pthread_create(&thread, NULL, open_src, rig), 0);
		assert_int_equal(lm_transport_open(rig->dst.t, &rig->params[LM_DEST], &err), -ETIMEDOUT);
		pthread_join(thread, NULL);
		assert_int_equal(rig->src.open_result, -EACCES);
		rig_free(rig);
	}
}

int transport_contract_tcp_fetch(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_answer_in_pieces_counts_when_the_last_byte_is_there),
		cmocka_unit_test(an_answer_that_trickles_in_is_placed),
		cmocka_unit_test(hostile_answers_end_the_lane_and_place_not_a_byte),
		cmocka_unit_test(an_answer_to_nothing_is_refused),
		cmocka_unit_test(an_answer_given_again_is_refused_when_the_ring_has_gone_round),
		cmocka_unit_test(a_cut_in_the_middle_of_an_answer_counts_nothing_that_is_not_whole),
		cmocka_unit_test(a_close_before_the_answer_is_no_orderly_one),
		cmocka_unit_test(a_request_made_by_hand_is_answered),
		cmocka_unit_test(hostile_requests_end_the_lane_and_get_not_a_byte),
		cmocka_unit_test(a_destination_that_floods_the_source_waits_for_itself),
		cmocka_unit_test(a_lane_of_the_other_direction_is_hung_up_on),
	};

	return cmocka_run_group_tests_name("tcp in the other direction, and its peers", tests, NULL, NULL);
}
