/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copies with peers that lie, and strangers. */
#include <sys/socket.h>
#include <unistd.h>
#include "pcpair.h"

/* ---- peers that lie ---- */

struct lie {
	const char *stage; /* of the source, at which it is told */
	enum lm_msg_type type;
	const void *payload;
	size_t len;
};

static const struct lm_wire_left left_end = { .kind = { { LM_LEFT_END } } };
static const uint8_t zeros[256];
static const struct lie *lie;

static void tell_lie(struct pair *p, const struct lm_event *e)
{
	if (pair_is_stage(e, lie->stage) && !p->count++)
		lm_control_send(&p->src->ctx.control, lie->type, lie->payload, lie->len, lm_deadline_after(LM_NS_PER_S), NULL);
}

static void messages_out_of_place_end_the_session_before_commit(void **state)
{
	static const struct lie lies[] = {
		{ "prepare", LM_MSG_LEFT, &left_end, sizeof(left_end) },         /* before POSTCOPY */
		{ "prepare", LM_MSG_POSTCOPY_KEYS, zeros, 2 * sizeof(struct lm_key) },
		{ "prepare", LM_MSG_RECOVER, zeros, LM_TOKEN_SIZE },
		{ "prepare", LM_MSG_WHOLE, NULL, 0 },
		{ "prepare", LM_MSG_MISSING, zeros, sizeof(struct lm_wire_missing) },
		{ "prepare", LM_MSG_POSTCOPY, zeros, 7 },
		{ "postcopy-prepare", LM_MSG_POSTCOPY, zeros, 8 },               /* the source's own is the second */
		{ "postcopy-prepare", LM_MSG_POSTCOPY_KEYS, zeros, 3 },
		{ "pausing", LM_MSG_POSTCOPY_KEYS, zeros, 2 * sizeof(struct lm_key) }, /* twice */
		{ "pausing", LM_MSG_POSTCOPY, zeros, 8 },
		{ "pausing", LM_MSG_RECOVER, zeros, LM_TOKEN_SIZE },
		{ "pausing", LM_MSG_LEFT, zeros, 3 },
		{ "paused", LM_MSG_SAVED, zeros, sizeof(struct lm_wire_saved) }, /* before all is named */
		{ "copied", LM_MSG_LEFT, &left_end, sizeof(left_end) },          /* all was named */
		{ "copied", LM_MSG_LEFT, zeros, sizeof(left_end) },
		{ "loaded", LM_MSG_LEFT, &left_end, sizeof(left_end) },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct pair *p = pair_new(&pair_small);

		lie = &lies[i];
		p->on_src = tell_lie;
		pair_run(p);
		if (p->b->running || !p->a->running)
			fail_msg("lie %u was believed", i);
		pair_assert_stayed(p, LM_OUTCOME_ABORTED);
		pair_free(p);
	}
}

/* In post-copy the connection is given up, and both sides find each other again. */
static void lie_from_source(struct pair *p, const struct lm_event *e)
{
	static const struct { enum lm_msg_type type; size_t len; } lies[] = {
		{ LM_MSG_LEFT, sizeof(struct lm_wire_left) }, { LM_MSG_POSTCOPY_KEYS, 64 }, { LM_MSG_COMMIT, 4 },
		{ LM_MSG_WHOLE, 0 }, { LM_MSG_RECOVER, 16 },
	};

	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages || p->count == sizeof(lies) / sizeof(lies[0]))
		return;
	lm_control_send(&p->src->ctx.control, lies[p->count].type, zeros, lies[p->count].len, lm_deadline_after(LM_NS_PER_S),
			NULL);
	p->count++;
}

static void a_source_that_lies_in_postcopy_is_sent_away_and_taken_back(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	p->on_src = lie_from_source;
	p->src_opt.max_bandwidth_bytes_per_s = 3u << 20;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_true(p->dst_sum.postcopy.recoveries >= 2);
	pair_free(p);
}

static void lie_from_destination(struct pair *p, const struct lm_event *e)
{
	static const struct { enum lm_msg_type type; size_t len; } lies[] = {
		{ LM_MSG_MISSING, 3 }, { LM_MSG_MISSING, sizeof(struct lm_wire_missing) + 1 }, { LM_MSG_PREPARED, 0 },
		{ LM_MSG_POSTCOPY_OPENED, 100 }, { LM_MSG_LOADED, 16 }, { LM_MSG_LANE_OPEN, 3 },
		{ LM_MSG_LANE_OPEN, sizeof(struct lm_wire_lane_open) + 1 },
	};

	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages || p->count == sizeof(lies) / sizeof(lies[0]))
		return;
	lm_control_send(&p->dst->ctx.control, lies[p->count].type, zeros, lies[p->count].len, lm_deadline_after(LM_NS_PER_S),
			NULL);
	p->count++;
}

static void a_destination_that_lies_in_postcopy_is_looked_for_anew(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	p->on_dst = lie_from_destination;
	p->src_opt.max_bandwidth_bytes_per_s = 3u << 20;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_true(p->src_sum.postcopy.recoveries >= 2);
	pair_free(p);
}

/* ---- strangers ---- */

static bool hello_as(int fd, uint16_t version, uint16_t compat)
{
	uint8_t frame[sizeof(struct lm_wire_header) + 64];
	struct lm_wire_hello *hello = (void *)(frame + sizeof(struct lm_wire_header));
	size_t len = lm_wire_put_hello(hello);
	struct lm_wire_header h = { .magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16(LM_MSG_HELLO),
				    .len = lm_le32((uint32_t)len) };

	hello->version = lm_le16(version);
	hello->compat = lm_le16(compat);
	memcpy(frame, &h, sizeof(h));
	return send(fd, frame, sizeof(h) + len, MSG_NOSIGNAL) == (ssize_t)(sizeof(h) + len);
}

static void *strangers_main(void *arg)
{
	struct pair *p = arg;
	struct lm_wire_header h = { .magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16(LM_MSG_RECOVER),
				    .len = lm_le32(LM_TOKEN_SIZE), .seq = lm_le64(1) };
	uint8_t frame[sizeof(h) + LM_TOKEN_SIZE] = { 0 };
	int fd;

	unit_sleep_ms(300);
	/* One of another version, */
	fd = netrelay_connect(p->relay->target);
	hello_as(fd, 99, 98);
	unit_sleep_ms(200);
	close(fd);
	/* one who hangs up at once, */
	fd = netrelay_connect(p->relay->target);
	close(fd);
	/* and one who does not know the secret. */
	memcpy(frame, &h, sizeof(h));
	fd = netrelay_connect(p->relay->target);
	hello_as(fd, LM_WIRE_VERSION, LM_WIRE_COMPAT);
	send(fd, frame, sizeof(frame), MSG_NOSIGNAL);
	unit_sleep_ms(200);
	close(fd);
	atomic_store(&p->relay->refuses, false);
	return NULL;
}

/* It says HELLO and no more, and stays. */
static void *silent_stranger_main(void *arg)
{
	struct pair *p = arg;
	int fd = netrelay_connect(p->relay->target);

	hello_as(fd, LM_WIRE_VERSION, LM_WIRE_COMPAT);
	atomic_store(&p->relay->refuses, false);
	unit_sleep_ms(6000);
	close(fd);
	return NULL;
}

static void *(*strangers)(void *) = strangers_main;

static void let_strangers_in(struct pair *p, const struct lm_event *e)
{
	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages || p->count++)
		return;
	atomic_store(&p->relay->refuses, true);
	netrelay_cut(p->relay);
	pthread_create(&p->helper, NULL, strangers, p);
	p->has_helper = true;
}

/* Longer than the source looks for us would be too long. */
static void a_stranger_who_says_no_more_than_hello_is_not_waited_for(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	strangers = silent_stranger_main;
	p->dst_opt.peer_timeout_ns = 30 * LM_NS_PER_S;
	p->src_opt.recover_timeout_ns = 5 * LM_NS_PER_S;
	p->on_dst = let_strangers_in;
	pair_run(p);
	strangers = strangers_main;
	pair_assert_postcopied(p);
	assert_int_equal(p->dst_sum.postcopy.recoveries, 1);
	pair_free(p);
}

static void strangers_do_not_end_the_wait_for_the_source(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	p->on_dst = let_strangers_in;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_int_equal(p->dst_sum.postcopy.recoveries, 1);
	pair_free(p);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_out_of_place_end_the_session_before_commit),
		cmocka_unit_test(a_source_that_lies_in_postcopy_is_sent_away_and_taken_back),
		cmocka_unit_test(a_destination_that_lies_in_postcopy_is_looked_for_anew),
		cmocka_unit_test(strangers_do_not_end_the_wait_for_the_source),
		cmocka_unit_test(a_stranger_who_says_no_more_than_hello_is_not_waited_for),
	};

	return pair_main(argc, argv, tests);
}
