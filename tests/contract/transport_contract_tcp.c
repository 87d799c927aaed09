/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TCP transport against peers that are not the source: strangers at the
 * listener, and a source that sends what it must not, by hand on a bare socket.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "transport_contract_tcp.h"

static const struct backend tcp = { .name = "tcp", .listen = "127.0.0.1:0" };
static struct lm_error err;

/* ---- by hand ---- */

struct lm_stream *dial(struct rig *rig)
{
	struct lm_stream *s = NULL;

	if (lm_stream_connect(rig->address, false, lm_now_ns() + 5 * LM_NS_PER_S, -1, &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

void say(struct lm_stream *s, const void *p, size_t len)
{
	struct iovec iov = { (void *)p, len };

	lm_stream_send_all(s, &iov, 1, lm_now_ns() + 5 * LM_NS_PER_S, -1, &err);
}

struct tcp_preamble preamble(const struct rig *rig, unsigned lane)
{
	struct tcp_preamble p = {
		.magic = lm_le64(TCP_PREAMBLE_MAGIC), .version = lm_le32(TCP_VERSION),
		.lane = lm_le32(lane), .nlanes = lm_le32(rig->params[LM_DEST].nlanes),
		.direction = lm_le32(rig->params[LM_DEST].direction),
	};

	memcpy(p.token, rig->params[LM_DEST].token, sizeof(p.token));
	return p;
}

static void *open_dest(void *arg)
{
	struct rig *rig = arg;

	rig->dst.open_result = lm_transport_open(rig->dst.t, &rig->params[LM_DEST], &rig->dst.err);
	return NULL;
}

struct lm_stream *rig_by_hand(struct rig *rig)
{
	struct lm_stream *s = dial(rig);
	struct tcp_preamble p = preamble(rig, 0);
	struct tcp_frame f;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, open_dest, rig), 0);
	say(s, &p, sizeof(p));
	pthread_join(thread, NULL);
	assert_int_equal(rig->dst.open_result, 0);
	assert_int_equal(lm_stream_recv_all(s, &f, sizeof(f), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
	assert_int_equal(lm_le32_get(f.type), TCP_WELCOME);
	rig_add_regions(rig, &rig->dst);
	return s;
}

/* A good batch of two pages; what is hostile changes something in it. */
static void message_init(struct message *m)
{
	memset(m, 0, sizeof(*m));
	m->frame = tcp_frame_make(TCP_BATCH, 1);
	m->frame.count = lm_le32(2);
	m->frame.bytes = lm_le64(2 * PAGE);
	m->desc[0] = desc(0, LM_RUN_DATA, 0, PAGE);
	m->desc[1] = desc(1, LM_RUN_DATA, 3 * PAGE, PAGE);
	m->ndesc = 2;
	pattern_fill(m->data, 0, 0, PAGE);
	pattern_fill(m->data + PAGE, 1, 3 * PAGE, PAGE);
	m->ndata = 2 * PAGE;
}

void message_say(struct lm_stream *s, const struct message *m)
{
	say(s, &m->frame, sizeof(m->frame));
	say(s, m->desc, m->ndesc * sizeof(m->desc[0]));
	say(s, m->data, m->ndata);
}

static void a_batch_made_by_hand_is_placed(void **state)
{
	struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);
	struct lm_stream *s = rig_by_hand(rig);
	struct message m;

	(void)state;
	message_init(&m);
	message_say(s, &m);
	assert_int_equal(dest_poll_until_error(rig, 0, 100, &err), 0);
	expect_data(rig, 0, 0, PAGE);
	expect_data(rig, 1, 3 * PAGE, PAGE);
	lm_stream_close(s);
	rig_free(rig);
}

/* ---- hostile frames ---- */

static void bad_magic(struct message *m) { m->frame.magic = lm_le32(TCP_FRAME_MAGIC + 1); }
static void bad_type(struct message *m) { m->frame.type = lm_le32(77); }
static void type_of_an_answer(struct message *m) { m->frame.type = lm_le32(TCP_FLUSHED); }
static void reserved_set(struct message *m) { m->frame.reserved = lm_le32(1); }
static void no_runs(struct message *m) { m->frame.count = lm_le32(0); }
static void too_many_runs(struct message *m) { m->frame.count = lm_le32(LM_WRITE_MAX + 1); }
static void four_billion_runs(struct message *m) { m->frame.count = lm_le32(UINT32_MAX); }
static void sum_too_small(struct message *m) { m->frame.bytes = lm_le64(PAGE); }
static void sum_too_large(struct message *m) { m->frame.bytes = lm_le64(UINT64_MAX); }
static void batch_seq_skips(struct message *m) { m->frame.seq = lm_le64(2); }
static void batch_seq_zero(struct message *m) { m->frame.seq = lm_le64(0); }
static void region_out_of_range(struct message *m) { m->desc[1] = desc(2, 0, 0, PAGE); }
static void region_max(struct message *m) { m->desc[1] = desc(UINT32_MAX, 0, 0, PAGE); }
static void kind_unknown(struct message *m) { m->desc[1] = desc(0, 2, 0, PAGE); }
static void kind_negative(struct message *m) { m->desc[1] = desc(0, UINT32_MAX, 0, PAGE); }
static void offset_at_the_end(struct message *m) { m->desc[1] = desc(0, 0, NREGION_PAGES * PAGE, PAGE); }
static void over_the_end(struct message *m) { m->desc[1] = desc(0, 0, (NREGION_PAGES - 1) * PAGE, 2 * PAGE); }
static void offset_wraps(struct message *m) { m->desc[1] = desc(0, 0, UINT64_MAX - PAGE + 1, 2 * PAGE); }
static void len_wraps(struct message *m) { m->desc[1] = desc(0, 0, PAGE, UINT64_MAX - PAGE + 1); }
static void len_zero(struct message *m) { m->desc[1] = desc(0, 0, 0, 0); }
static void len_huge(struct message *m) { m->desc[1] = desc(0, 0, 0, LM_RUN_MAX + PAGE); }
static void offset_unaligned(struct message *m) { m->desc[1] = desc(0, 0, 8, PAGE); }
static void len_unaligned(struct message *m) { m->desc[1] = desc(0, 0, 0, PAGE - 8); }
static void flush_zero(struct message *m) { m->frame = tcp_frame_make(TCP_FLUSH, 0); }
static void zero_run_outside(struct message *m)
{
	m->desc[1] = desc(0, LM_RUN_ZERO, NREGION_PAGES * PAGE, PAGE);
	m->frame.bytes = lm_le64(PAGE);
}

#define HOSTILE(fn) { #fn, fn }
static const struct {
	const char *name;
	void (*spoil)(struct message *m);
} hostile[] = {
	HOSTILE(bad_magic), HOSTILE(bad_type), HOSTILE(type_of_an_answer), HOSTILE(reserved_set),
	HOSTILE(no_runs), HOSTILE(too_many_runs), HOSTILE(four_billion_runs), HOSTILE(sum_too_small),
	HOSTILE(sum_too_large), HOSTILE(batch_seq_skips), HOSTILE(batch_seq_zero),
	HOSTILE(region_out_of_range), HOSTILE(region_max), HOSTILE(kind_unknown), HOSTILE(kind_negative),
	HOSTILE(offset_at_the_end), HOSTILE(over_the_end), HOSTILE(offset_wraps), HOSTILE(len_wraps),
	HOSTILE(len_zero), HOSTILE(len_huge), HOSTILE(offset_unaligned), HOSTILE(len_unaligned),
	HOSTILE(flush_zero), HOSTILE(zero_run_outside),
};

static void hostile_frames_end_the_lane_and_place_not_a_byte(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
		struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);
		struct lm_stream *s = rig_by_hand(rig);
		uint64_t before = dest_hash(rig);
		struct message m;

		message_init(&m);
		hostile[i].spoil(&m);
		message_say(s, &m);
		if (dest_poll_until_error(rig, 0, 2000, &err) != -EPROTO)
			fail_msg("%s was not refused", hostile[i].name);
		assert_int_equal(err.scope, LM_SCOPE_LANE);
		assert_true(dest_hash(rig) == before);
		lm_stream_close(s);
		rig_free(rig);
	}
}

static void a_source_that_does_not_read_its_answers_gets_no_memory(void **state)
{
	struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);
	struct lm_stream *s = rig_by_hand(rig);
	struct lm_poll_result res;
	uint64_t seq = 0;
	int r = 0;

	(void)state;
	while (!r && seq < 10000000) {
		struct tcp_frame f = tcp_frame_make(TCP_FLUSH, ++seq);
		struct iovec iov = { &f, sizeof(f) };

		if (lm_stream_send(s, &iov, 1) != (ssize_t)sizeof(f))
			seq--;
		r = seq % 64 ? 0 : lm_transport_poll(rig->dst.t, 0, 0, &res, &err);
	}
	assert_int_equal(r, -EPROTO);
	lm_stream_close(s);
	rig_free(rig);
}

static void a_cut_in_the_middle_is_an_error_and_what_came_before_it_stays_in_its_run(void **state)
{
	struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);
	struct lm_stream *s = rig_by_hand(rig);
	struct message m;

	(void)state;
	message_init(&m);
	m.ndata = PAGE + 100;
	message_say(s, &m);
	lm_stream_close(s);
	assert_int_equal(dest_poll_until_error(rig, 0, 2000, &err), -ECONNRESET);
	expect_data(rig, 0, 0, PAGE);
	expect_byte(rig, 0, PAGE, (NREGION_PAGES - 1) * PAGE, OLD_BYTE);
	expect_byte(rig, 1, 0, 3 * PAGE, OLD_BYTE);
	expect_byte(rig, 1, 4 * PAGE, (NREGION_PAGES - 4) * PAGE, OLD_BYTE);
	rig_free(rig);
}

static void a_batch_that_trickles_in_byte_by_byte_is_placed(void **state)
{
	struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);
	struct lm_stream *s = rig_by_hand(rig);
	struct lm_poll_result res;
	struct message m;
	const uint8_t *p[3];
	size_t len[3];

	(void)state;
	message_init(&m);
	p[0] = (uint8_t *)&m.frame, len[0] = sizeof(m.frame);
	p[1] = (uint8_t *)m.desc, len[1] = 2 * sizeof(m.desc[0]);
	p[2] = m.data, len[2] = m.ndata;
	for (int i = 0; i < 3; i++)
		for (size_t k = 0; k < len[i]; k++) {
			say(s, p[i] + k, 1);
			if (k % 7 == 0 || i < 2)
				assert_int_equal(lm_transport_poll(rig->dst.t, 0, 0, &res, &err), 0);
		}
	assert_int_equal(dest_poll_until_error(rig, 0, 100, &err), 0);
	expect_data(rig, 0, 0, PAGE);
	expect_data(rig, 1, 3 * PAGE, PAGE);
	lm_stream_close(s);
	rig_free(rig);
}

/* ---- files that take less than tmpfs ---- */

static void a_file_that_refuses_splice_gets_its_data_through_the_mapping(void **state)
{
	struct rig *rig = rig_new(&tcp, 1, 4096 * PAGE, false);
	struct lm_run run = data_run(0, 0, 4000 * PAGE);
	char path[64];
	int rw = rig->dst.region[0].fd;

	(void)state;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", rw);
	rig->dst.region[0].fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(rig->dst.region[0].fd >= 0);
	rig_connect(rig);
	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	expect_data(rig, 0, 0, 4000 * PAGE);
	/* Nor does it punch: pages that hold something are cleared in place. */
	run = zero_run(0, 5 * PAGE, 100 * PAGE);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	expect_byte(rig, 0, 5 * PAGE, 100 * PAGE, 0);
	expect_data(rig, 0, 105 * PAGE, PAGE);
	close(rw);
	rig_free(rig);
}

/* ---- strangers ---- */

static void strangers_do_not_keep_our_lanes_out(void **state)
{
	struct rig *rig = rig_new(&tcp, 4, NREGION_PAGES * PAGE, false);
	struct tcp_preamble p = preamble(rig, 0), wrong_token = p, too_high = p, old = p;
	struct lm_stream *s[110] = { 0 };
	unsigned n = 0;
	int64_t start = lm_now_ns();

	(void)state;
	wrong_token.token[15] ^= 1;
	too_high.lane = lm_le32(4);
	old.version = lm_le32(TCP_VERSION + 1);
	for (; n < 100; n++)
		s[n] = dial(rig); /* silent: more than there are places for */
	say(s[n++] = dial(rig), "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: everything\r\n\r\n", 56);
	say(s[n++] = dial(rig), &p, sizeof(p) - 1); /* stops one byte before the end */
	say(s[n++] = dial(rig), &wrong_token, sizeof(p));
	say(s[n++] = dial(rig), &too_high, sizeof(p));
	say(s[n++] = dial(rig), &old, sizeof(p));
	rig_connect(rig);
	assert_true(lm_now_ns() - start < LM_NS_PER_S);
	pump_start_all(rig);
	for (unsigned i = 0; i < 4; i++) {
		struct lm_run run = data_run(1, i * PAGE, PAGE);

		assert_int_equal(send_runs(rig, i, &run, 1), 0);
	}
	expect_data(rig, 1, 0, 4 * PAGE);
	while (n)
		lm_stream_close(s[--n]);
	rig_free(rig);
}

bool hangs_up(struct lm_stream *s)
{
	uint8_t byte;

	return lm_stream_recv_all(s, &byte, 1, lm_now_ns() + 5 * LM_NS_PER_S, -1, &err) == -ECONNRESET;
}

static void a_second_lane_with_the_same_number_is_hung_up_on(void **state)
{
	struct rig *rig = rig_new(&tcp, 2, NREGION_PAGES * PAGE, false);
	struct tcp_preamble p0 = preamble(rig, 0), p1 = preamble(rig, 1);
	struct lm_stream *first = dial(rig), *second, *other;
	struct tcp_frame f;
	pthread_t thread;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, open_dest, rig), 0);
	say(first, &p0, sizeof(p0));
	assert_int_equal(lm_stream_recv_all(first, &f, sizeof(f), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
	second = dial(rig);
	say(second, &p0, sizeof(p0));
	assert_true(hangs_up(second));
	other = dial(rig);
	say(other, &p1, sizeof(p1));
	pthread_join(thread, NULL);
	assert_int_equal(rig->dst.open_result, 0);
	assert_int_equal(lm_stream_recv_all(other, &f, sizeof(f), lm_now_ns() + LM_NS_PER_S, -1, &err), 0);
	rig_add_regions(rig, &rig->dst);
	assert_int_equal(dest_poll_until_error(rig, 0, 50, &err), 0); /* the first is not hurt */
	lm_stream_close(first);
	lm_stream_close(second);
	lm_stream_close(other);
	rig_free(rig);
}

static void the_source_is_told_when_its_token_is_wrong(void **state)
{
	struct rig *rig = rig_new(&tcp, 2, NREGION_PAGES * PAGE, false);
	unsigned before = open_descriptors();
	pthread_t thread;

	(void)state;
	rig->params[LM_SOURCE].token[0] ^= 0x80;
	rig->params[LM_DEST].deadline_ns = lm_now_ns() + LM_NS_PER_S / 2;
	assert_int_equal(pthread_create(&thread, NULL, open_dest, rig), 0);
	assert_int_equal(lm_transport_open(rig->src.t, &rig->params[LM_SOURCE], &err), -EACCES);
	pthread_join(thread, NULL);
	assert_int_equal(rig->dst.open_result, -ETIMEDOUT);
	assert_int_equal(open_descriptors(), before);
	rig_free(rig);
}

static void open_ends_at_the_deadline_and_when_cancelled(void **state)
{
	int pipe_fds[2];
	struct rig *rig = rig_new(&tcp, 3, NREGION_PAGES * PAGE, false);
	struct tcp_preamble p = preamble(rig, 0);
	struct lm_stream *s = dial(rig);
	unsigned before;

	(void)state;
	say(s, &p, sizeof(p)); /* one lane of three */
	before = open_descriptors();
	rig->params[LM_DEST].deadline_ns = lm_now_ns() + 100 * LM_NS_PER_MS;
	assert_int_equal(lm_transport_open(rig->dst.t, &rig->params[LM_DEST], &err), -ETIMEDOUT);
	assert_string_equal(err.msg, "2 of 3 lanes have not come");
	rig->params[LM_SOURCE].deadline_ns = lm_now_ns() + 100 * LM_NS_PER_MS;
	assert_int_equal(lm_transport_open(rig->src.t, &rig->params[LM_SOURCE], &err), -ETIMEDOUT);
	assert_int_equal(open_descriptors(), before);
	assert_int_equal(pipe(pipe_fds), 0);
	assert_int_equal(write(pipe_fds[1], "c", 1), 1);
	for (int side = 0; side < 2; side++) {
		rig->params[side].cancel_fd = pipe_fds[0];
		rig->params[side].deadline_ns = lm_now_ns() + 10 * LM_NS_PER_S;
	}
	assert_int_equal(lm_transport_open(rig->dst.t, &rig->params[LM_DEST], &err), -ECANCELED);
	assert_int_equal(lm_transport_open(rig->src.t, &rig->params[LM_SOURCE], &err), -ECANCELED);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	assert_int_equal(open_descriptors(), before);
	lm_stream_close(s);
	rig_free(rig);
}

static void lanes_to_other_hosts_need_insecure(void **state)
{
	struct rig *rig = rig_new(&tcp, 1, NREGION_PAGES * PAGE, false);

	(void)state;
	rig->params[LM_SOURCE].peer = "192.0.2.1:9";
	assert_int_equal(lm_transport_open(rig->src.t, &rig->params[LM_SOURCE], &err), -EACCES);
	assert_non_null(strstr(err.msg, "--insecure"));
	rig_free(rig);
}

int transport_contract_tcp(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_batch_made_by_hand_is_placed),
		cmocka_unit_test(hostile_frames_end_the_lane_and_place_not_a_byte),
		cmocka_unit_test(a_source_that_does_not_read_its_answers_gets_no_memory),
		cmocka_unit_test(a_cut_in_the_middle_is_an_error_and_what_came_before_it_stays_in_its_run),
		cmocka_unit_test(a_batch_that_trickles_in_byte_by_byte_is_placed),
		cmocka_unit_test(a_file_that_refuses_splice_gets_its_data_through_the_mapping),
		cmocka_unit_test(strangers_do_not_keep_our_lanes_out),
		cmocka_unit_test(a_second_lane_with_the_same_number_is_hung_up_on),
		cmocka_unit_test(the_source_is_told_when_its_token_is_wrong),
		cmocka_unit_test(open_ends_at_the_deadline_and_when_cancelled),
		cmocka_unit_test(lanes_to_other_hosts_need_insecure),
	};

	return cmocka_run_group_tests_name("tcp and its peers", tests, NULL, NULL);
}
