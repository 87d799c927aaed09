/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The send queue of a lane: work requests are collected and posted in one call,
 * every RDMA_SIGNAL_EVERY-th (or after RDMA_SIGNAL_BYTES) with a completion, which
 * stands for all before it.
 */
#include <string.h>
#include "rdma.h"

#define RECV_BIT (UINT64_C(1) << 63)

int rd_post_recv(struct rd_lane *l, unsigned buffer)
{
	struct ibv_sge sge = { .addr = (uintptr_t)(l->buffers + buffer * RDMA_MSG_SIZE), .length = RDMA_MSG_SIZE,
			       .lkey = l->buffers_mr->lkey };
	struct ibv_recv_wr wr = { .wr_id = RECV_BIT | buffer, .sg_list = &sge, .num_sge = 1 }, *bad;

	return rd_result(ibv_post_recv(l->id->qp, &wr, &bad));
}

int rd_post_batch(struct rd_lane *l, struct lm_error *err)
{
	struct ibv_send_wr *bad;
	int r;

	if (!l->nbatch)
		return 0;
	for (unsigned i = 0; i + 1 < l->nbatch; i++)
		l->wr[i].next = &l->wr[i + 1];
	l->wr[l->nbatch - 1].next = NULL;
	l->nbatch = 0;
	r = rd_result(ibv_post_send(l->id->qp, l->wr, &bad));
	return r ? rd_lane_error(l, r, err, "the device does not take work") : 0;
}

/* The next work request; the caller knows that there is room in the queue. */
static int wr_next(struct rd_lane *l, struct rd_note note, bool signal, struct ibv_send_wr **ret,
		   struct lm_error *err)
{
	int r = l->nbatch == RDMA_BATCH ? rd_post_batch(l, err) : 0;
	struct ibv_send_wr *wr = &l->wr[l->nbatch];

	if (r)
		return r;
	l->notes[l->posted % l->depth] = note;
	l->posted++;
	l->unsignaled++;
	l->unsignaled_bytes += note.bytes;
	*wr = (struct ibv_send_wr){ .wr_id = l->posted, .sg_list = &l->sge[l->nbatch], .num_sge = 1 };
	if (signal || l->unsignaled >= RDMA_SIGNAL_EVERY || l->unsignaled_bytes >= RDMA_SIGNAL_BYTES) {
		wr->send_flags = IBV_SEND_SIGNALED;
		l->unsignaled = 0;
		l->unsignaled_bytes = 0;
	}
	l->nbatch++;
	*ret = wr;
	return 0;
}

unsigned rd_data_room(const struct rd_lane *l)
{
	uint64_t used = l->posted - l->completed, max = l->depth - RDMA_SQ_MESSAGES;

	return used < max ? (unsigned)(max - used) : 0;
}

int rd_post_data(struct rd_lane *l, const struct rd_piece *p, struct lm_error *err)
{
	struct rd_note note = { .bytes = (uint32_t)p->len, .staged = p->staged, .ends_run = p->ends_run };
	bool pull = l->t->base.direction == LM_PULL;
	struct ibv_send_wr *wr;
	int r = wr_next(l, note, pull && p->ends_run, &wr, err);

	if (r)
		return r;
	*wr->sg_list = (struct ibv_sge){ .addr = p->local, .length = (uint32_t)p->len, .lkey = p->lkey };
	wr->opcode = pull ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
	wr->wr.rdma.remote_addr = p->remote;
	wr->wr.rdma.rkey = p->rkey;
	return 0;
}

/* ---- messages ---- */

bool rd_can_send(const struct rd_lane *l, bool last_credit)
{
	return l->credits > (last_credit ? 0 : 1) && l->msgs_posted - l->msgs_completed < RDMA_NRECV &&
	       l->posted - l->completed < l->depth;
}

int rd_send(struct rd_lane *l, enum rd_msg_type type, const void *entries, unsigned n, size_t size,
	      uint64_t seq, uint64_t bytes, struct lm_error *err)
{
	uint8_t *buf = l->buffers + (RDMA_NRECV + l->msgs_posted % RDMA_NRECV) * RDMA_MSG_SIZE;
	struct rd_msg m = {
		.magic = lm_le32(RDMA_MSG_MAGIC), .type = lm_le16((uint16_t)type), .count = lm_le16((uint16_t)n),
		.credits = lm_le32(l->owed), .placed = lm_le32(l->placed), .seq = lm_le64(seq), .bytes = lm_le64(bytes),
	};
	size_t len = sizeof(m) + n * size;
	struct ibv_send_wr *wr;
	int r = wr_next(l, (struct rd_note){ .is_message = true }, true, &wr, err);

	if (r)
		return r;
	memcpy(buf, &m, sizeof(m));
	if (n)
		memcpy(buf + sizeof(m), entries, n * size);
	*wr->sg_list = (struct ibv_sge){ .addr = (uintptr_t)buf, .length = (uint32_t)len, .lkey = l->buffers_mr->lkey };
	wr->opcode = IBV_WR_SEND;
	if (len <= l->max_inline)
		wr->send_flags |= IBV_SEND_INLINE;
	l->msgs_posted++;
	l->credits--;
	l->owed = 0;
	l->placed_told = l->placed;
	return 0;
}

void rd_sent(struct rd_lane *l, uint64_t upto, struct lm_poll_result *res)
{
	while (l->completed < upto && l->completed < l->posted) {
		const struct rd_note *n = &l->notes[l->completed % l->depth];

		res->bytes += n->bytes;
		l->stage_tail += n->staged;
		l->msgs_completed += n->is_message;
		l->fetched += n->ends_run && l->t->base.direction == LM_PULL;
		l->completed++;
	}
}
