/* SPDX-License-Identifier: Apache-2.0 */
/* A lane over a fake device: every call that fails, and every message that lies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "side.h"

#define MIB (UINT64_C(1) << 20)

static struct lm_error err;
static struct lm_poll_result res;

struct rig {
	struct rdma t;
	struct rd_lane lane;
	struct lm_region region;
};

static void rig_free(struct rig *rig)
{
	rd_lane_reset(&rig->lane);
	close(rig->lane.event_fd);
	for (unsigned i = 0; i < rig->t.nuses; i++) {
		rd_mem_put(rig->t.uses[i].mem[0]);
		rd_device_put(rig->t.uses[i].dev);
	}
	munmap(rig->region.host, rig->region.size);
	close(rig->region.fd);
	free(rig);
}

/* All that a lane needs; an error when a call failed. */
static int rig_open(struct rig *rig)
{
	struct rd_lane *l = &rig->lane;
	struct sockaddr_in address = fake_address(0, 1);
	struct rdma_event_channel *channel;
	int r = rd_channel_make(&channel);

	if (r)
		return lm_err(&err, r, LM_SCOPE_SESSION, "rdma_cm");
	l->channel = channel;
	if (rdma_create_id(channel, &l->id, NULL, RDMA_PS_TCP) || rdma_bind_addr(l->id, (struct sockaddr *)&address))
		return lm_err(&err, -errno, LM_SCOPE_SESSION, "rdma_cm");
	r = rd_device_get(l->id, &rig->t.uses[0].dev, &err);
	if (r)
		return r;
	rig->t.nuses = 1;
	l->use = &rig->t.uses[0];
	r = rd_lane_setup(l, &err);
	if (!r)
		r = rd_lane_restrict(l) ? lm_err(&err, -ENOMEM, LM_SCOPE_SESSION, "restrict") : 0;
	return r;
}

static struct rig *rig_new(enum lm_side side)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	fake_reset();
	rig->t.base.side = side;
	rig->t.base.nlanes = 1;
	rig->region = (struct lm_region){ .size = 64 * MIB, .page_size = LM_PAGE_SIZE, .fd = memfd_create("ram", 0) };
	assert_int_equal(ftruncate(rig->region.fd, 64 * MIB), 0);
	rig->region.host = (uint8_t *)mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, rig->region.fd, 0);
	rd_lane_init(&rig->lane, &rig->t, 0);
	return rig;
}

/* With one region in chunks of 8 MiB, as region_add and region_bind make it; sparse: nothing is registered yet. */
static struct rig *rig_with(enum lm_side side, bool sparse)
{
	struct rig *rig = rig_new(side);

	assert_int_equal(rig_open(rig), 0);
	rig->t.regions[0] = (struct rd_region){ rig->region.host, 64 * MIB, LM_PAGE_SIZE, 0, rig->region.fd, 23, sparse };
	rig->t.base.nregions = 1;
	rig->t.base.region_size[0] = 64 * MIB;
	assert_int_equal(rd_mem_get(rig->lane.use->dev, &rig->region, 0, 23, RDMA_MODE_CHUNK, &rig->lane.use->mem[0], &err), 0);
	if (!sparse)
		assert_int_equal(rd_mem_all(rig->lane.use->mem[0], NULL, NULL, &err), 0);
	if (side == LM_DEST)
		rig->lane.asked[0] = calloc(1, sizeof(uint64_t));
	else
		assert_int_equal(rd_active_bind(&rig->lane, 0, 23, 64 * MIB), 0);
	return rig;
}

static struct rig *rig_ready(enum lm_side side)
{
	return rig_with(side, false);
}

static void each_call_that_fails_is_told_and_leaks_nothing(void **state)
{
	unsigned calls;

	(void)state;
	for (unsigned at = 0, last = 1; at <= last; at++) {
		struct rig *rig = rig_new(LM_DEST);
		int r;

		fake_fail_at = at;
		lm_err_clear(&err);
		r = rig_open(rig);
		calls = fake_calls;
		if (!at) {
			assert_int_equal(r, 0);
			last = calls;
		} else if (r) {
			assert_true(err.code < 0 && err.msg[0]);
		} else {
			/* Tried again without inline data; or nothing that is needed. */
			assert_true(!strcmp(fake_failed, "rdma_create_qp") || !strcmp(fake_failed, "ibv_query_port"));
		}
		rig_free(rig);
		assert_int_equal(fake_live, 0);
	}
}

/* ---- messages ---- */

struct message {
	struct rd_msg head;
	uint8_t entries[RDMA_MSG_SIZE - sizeof(struct rd_msg)];
};

static struct message message(enum rd_msg_type type, unsigned n, const void *entries, size_t size)
{
	struct message m = { .head = { .magic = lm_le32(RDMA_MSG_MAGIC), .type = lm_le16((uint16_t)type),
				       .count = lm_le16((uint16_t)n) } };

	if (n)
		memcpy(m.entries, entries, n * size);
	return m;
}

static int say(struct rig *rig, const struct message *m, size_t entries)
{
	memset(&res, 0, sizeof(res));
	return rd_peer_message(&rig->lane, (const uint8_t *)m, sizeof(m->head) + entries, &res, &err);
}

static void a_message_that_is_none_is_refused(void **state)
{
	struct rig *rig = rig_ready(LM_DEST);
	struct message m = message(RDMA_CREDIT, 0, NULL, 0);

	(void)state;
	assert_int_equal(rd_peer_message(&rig->lane, (const uint8_t *)&m, 0, &res, &err), -EPROTO);
	assert_int_equal(rd_peer_message(&rig->lane, (const uint8_t *)&m, 31, &res, &err), -EPROTO);
	assert_int_equal(say(rig, &m, 1), -EPROTO);
	m.head.magic = lm_le32(0);
	assert_int_equal(say(rig, &m, 0), -EPROTO);
	for (unsigned type = 0; type < 256; type++) {
		m = message((enum rd_msg_type)type, 0, NULL, 0);
		if (type != RDMA_CREDIT && type != RDMA_FLUSH && type != RDMA_CLOSE)
			assert_int_equal(say(rig, &m, 0), -EPROTO);
	}
	assert_int_equal(rig->lane.credits, RDMA_NRECV);
	rig_free(rig);
}

static void what_a_side_may_not_say_is_refused(void **state)
{
	struct rd_want w = { lm_le32(0), lm_le32(0) };
	struct rig *rig = rig_ready(LM_SOURCE);
	struct message m = message(RDMA_WANT, 1, &w, sizeof(w));

	(void)state;
	assert_int_equal(say(rig, &m, sizeof(w)), -EPROTO);
	m = message(RDMA_FLUSHED, 0, NULL, 0);
	m.head.seq = lm_le64(1);
	assert_int_equal(say(rig, &m, 0), -EPROTO); /* nothing was flushed */
	m = message(RDMA_CREDIT, 0, NULL, 0);
	m.head.credits = lm_le32(1);
	assert_int_equal(say(rig, &m, 0), -EPROTO); /* nothing was sent */
	m.head.credits = lm_le32(0);
	m.head.placed = lm_le32(1);
	assert_int_equal(say(rig, &m, 0), -EPROTO); /* no zeros were sent */
	rig_free(rig);
}

static void keys_are_for_what_there_is_and_what_was_asked(void **state)
{
	static const struct { uint32_t region, chunk; } bad[] = { { 1, 0 }, { UINT32_MAX, 0 }, { 0, 8 }, { 0, UINT32_MAX } };
	struct rig *rig = rig_ready(LM_DEST);

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		struct rd_want w = { lm_le32(bad[i].region), lm_le32(bad[i].chunk) };
		struct message m = message(RDMA_WANT, 1, &w, sizeof(w));

		assert_int_equal(say(rig, &m, sizeof(w)), -EPROTO);
	}
	rig_free(rig);
	rig = rig_ready(LM_SOURCE);
	for (unsigned i = 0; i < 5; i++) {
		struct rd_rkey k = { lm_le32(i < 4 ? bad[i].region : 0), lm_le32(i < 4 ? bad[i].chunk : 3), lm_le64(0),
				     lm_le32(1), lm_le32(0) };
		struct message m = message(RDMA_KEYS, 1, &k, sizeof(k));

		assert_int_equal(say(rig, &m, sizeof(k)), -EPROTO);
	}
	rig_free(rig);
}

static void zeros_outside_of_the_regions_clear_nothing(void **state)
{
	struct rd_zero z[2] = { { lm_le32(0), lm_le32(LM_RUN_ZERO), lm_le64(0), lm_le64(LM_PAGE_SIZE) },
				{ lm_le32(0), lm_le32(LM_RUN_ZERO), lm_le64(64 * MIB), lm_le64(LM_PAGE_SIZE) } };
	struct rig *rig = rig_ready(LM_DEST);
	struct message m = message(RDMA_ZERO, 2, z, sizeof(z[0]));

	(void)state;
	rig->region.host[5] = 1;
	assert_int_equal(say(rig, &m, sizeof(z)), -EPROTO);
	assert_int_equal(rig->region.host[5], 1); /* not even the one that was right */
	m = message(RDMA_ZERO, 1, z, sizeof(z[0]));
	assert_int_equal(say(rig, &m, sizeof(z[0])), 0);
	assert_int_equal(rig->region.host[5], 0);
	rig_free(rig);
}

static void a_flush_counts_bytes_and_never_goes_back(void **state)
{
	struct rig *rig = rig_ready(LM_DEST);
	struct message m = message(RDMA_FLUSH, 0, NULL, 0);

	(void)state;
	m.head.seq = lm_le64(4);
	m.head.bytes = lm_le64(8192);
	assert_int_equal(say(rig, &m, 0), 0);
	assert_int_equal(res.bytes, 8192);
	assert_int_equal(say(rig, &m, 0), -EPROTO);
	m.head.seq = lm_le64(5);
	m.head.bytes = lm_le64(4096);
	assert_int_equal(say(rig, &m, 0), -EPROTO);
	rig_free(rig);
}

/* ---- the active side ---- */

static void a_run_waits_for_its_key_and_asks_for_it(void **state)
{
	struct rig *rig = rig_ready(LM_SOURCE);
	struct lm_run run = { .offset = 9 * MIB, .len = LM_PAGE_SIZE };

	(void)state;
	assert_int_equal(rd_active_queue(&rig->lane, &run, 1, &err), 1); /* it waits in the lane */
	assert_int_equal(fake_posted, 1);                                /* WANT */
	assert_int_equal(rig->lane.peer[0].chunks[1].state, RDMA_PEER_ASKED);
	assert_int_equal(rig->lane.peer[0].chunks[0].state, RDMA_PEER_UNKNOWN);
	assert_int_equal(rd_active_queue(&rig->lane, &run, 1, &err), -EAGAIN);
	assert_int_equal(rd_active_flush(&rig->lane, 1, &err), -EAGAIN);
	side_give_key(&rig->lane, 1);
	assert_int_equal(rd_active_advance(&rig->lane, &err), 0);
	assert_int_equal(fake_posted, 2);
	rig_free(rig);
}

static void a_key_that_cannot_be_had_is_an_error_of_the_lane(void **state)
{
	struct rig *rig = rig_ready(LM_SOURCE);
	struct lm_run run = { .offset = 0, .len = LM_PAGE_SIZE };

	(void)state;
	side_give_key(&rig->lane, 0);
	rig->lane.peer[0].chunks[0].error = ENOMEM;
	assert_int_equal(rd_active_queue(&rig->lane, &run, 1, &err), -ENOMEM);
	assert_int_equal(err.scope, LM_SCOPE_LANE);
	rig_free(rig);
}

static void a_run_is_cut_at_chunks(void **state)
{
	struct rig *rig = rig_ready(LM_SOURCE);
	struct lm_run run = { .offset = 7 * MIB, .len = 10 * MIB };

	(void)state;
	for (uint32_t i = 0; i < 8; i++)
		side_give_key(&rig->lane, i);
	assert_int_equal(rd_active_queue(&rig->lane, &run, 1, &err), 1);
	assert_int_equal(fake_posted, 3); /* 1 + 8 + 1 MiB */
	assert_int_equal(rig->lane.written, 10 * MIB);
	rig_free(rig);
}

static uint64_t file_bytes(const struct rig *rig)
{
	struct stat st;

	assert_int_equal(fstat(rig->region.fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Registering with a real device would allocate it; the fake one does not touch memory, so that is told by what was registered. */
static void a_chunk_with_a_hole_is_copied_until_it_has_none(void **state)
{
	struct rig *rig = rig_with(LM_SOURCE, true);
	struct lm_run run = { .offset = 8 * MIB, .len = 3 * LM_PAGE_SIZE };
	struct rd_mem *m = rig->lane.use->mem[0];

	(void)state;
	for (uint32_t i = 0; i < 8; i++)
		side_give_key(&rig->lane, i);
	memset(rig->region.host + 8 * MIB, 1, 3 * LM_PAGE_SIZE);
	for (int i = 0; i < 5; i++)
		assert_int_equal(rd_active_queue(&rig->lane, &run, 1, &err), 1);
	assert_int_equal(fake_posted, 5);
	assert_int_equal(rig->lane.stage_head, 5 * run.len);
	assert_int_equal(file_bytes(rig), 3 * LM_PAGE_SIZE);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(rd_mem_state(m, i), RDMA_CHUNK_NONE);
	memset(rig->region.host + 8 * MIB, 1, 8 * MIB);
	for (int i = 0; i < 500 && rd_mem_state(m, 1) != RDMA_CHUNK_READY; i++) {
		assert_in_range(rd_active_queue(&rig->lane, &run, 1, &err) + EAGAIN, 0, EAGAIN + 1);
		usleep(1000);
		assert_int_equal(rd_active_advance(&rig->lane, &err), 0);
	}
	assert_int_equal(rd_mem_state(m, 1), RDMA_CHUNK_READY);
	for (uint32_t i = 0; i < 8; i++)
		assert_true(i == 1 || rd_mem_state(m, i) == RDMA_CHUNK_NONE);
	rig_free(rig);
}

/* What post-copy asks for is registered whatever it is: there it cannot be copied. */
static void post_copy_registers_what_it_is_asked_for(void **state)
{
	struct rig *rig = rig_with(LM_SOURCE, true);
	struct rd_want w = { lm_le32(0), lm_le32(2) };
	struct message m;

	(void)state;
	rig->t.base.direction = LM_PULL;
	rig->lane.asked[0] = calloc(1, sizeof(uint64_t));
	m = message(RDMA_WANT, 1, &w, sizeof(w));
	assert_int_equal(say(rig, &m, sizeof(w)), 0);
	for (int i = 0; i < 500 && rd_mem_state(rig->lane.use->mem[0], 2) != RDMA_CHUNK_READY; i++)
		usleep(1000);
	assert_int_equal(rd_mem_state(rig->lane.use->mem[0], 2), RDMA_CHUNK_READY);
	rig_free(rig);
}

static void a_write_over_a_zero_waits_until_the_zero_is_placed(void **state)
{
	struct rig *rig = rig_ready(LM_SOURCE);
	struct lm_run runs[3] = { { .offset = 0, .len = LM_PAGE_SIZE, .kind = LM_RUN_ZERO },
				  { .offset = LM_PAGE_SIZE, .len = LM_PAGE_SIZE },
				  { .offset = 0, .len = LM_PAGE_SIZE } };

	(void)state;
	side_give_key(&rig->lane, 0);
	assert_int_equal(rd_active_queue(&rig->lane, runs, 3, &err), 3);
	assert_int_equal(fake_posted, 2); /* the other page, and the ZERO */
	rig->lane.zeros_placed = rig->lane.zeros_sent;
	assert_int_equal(rd_active_advance(&rig->lane, &err), 0);
	assert_int_equal(fake_posted, 3);
	rig_free(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_call_that_fails_is_told_and_leaks_nothing),
		cmocka_unit_test(a_message_that_is_none_is_refused),
		cmocka_unit_test(what_a_side_may_not_say_is_refused),
		cmocka_unit_test(keys_are_for_what_there_is_and_what_was_asked),
		cmocka_unit_test(zeros_outside_of_the_regions_clear_nothing),
		cmocka_unit_test(a_flush_counts_bytes_and_never_goes_back),
		cmocka_unit_test(a_run_waits_for_its_key_and_asks_for_it),
		cmocka_unit_test(a_key_that_cannot_be_had_is_an_error_of_the_lane),
		cmocka_unit_test(a_run_is_cut_at_chunks),
		cmocka_unit_test(a_chunk_with_a_hole_is_copied_until_it_has_none),
		cmocka_unit_test(post_copy_registers_what_it_is_asked_for),
		cmocka_unit_test(a_write_over_a_zero_waits_until_the_zero_is_placed),
	};

	return cmocka_run_group_tests_name("rdma lane", tests, NULL, NULL);
}
