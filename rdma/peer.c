/* SPDX-License-Identifier: Apache-2.0 */
/* What the peer says over a lane.  Nothing is believed without a check. */
#include <string.h>
#include "rdma.h"

struct incoming {
	const struct rd_msg *head;
	const uint8_t *entries;
	unsigned count;
};

static int strange(struct rd_lane *l, struct lm_error *err, const char *what)
{
	return lm_err(err, -EPROTO, LM_SCOPE_LANE, "the %s %s", rd_peer_name(l), what);
}

/* ---- one function per message ---- */

static int on_want(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res, struct lm_error *err)
{
	(void)res;
	for (unsigned i = 0; i < in->count; i++) {
		struct rd_want w;
		uint32_t region, chunk;

		memcpy(&w, in->entries + i * sizeof(w), sizeof(w));
		region = lm_le32_get(w.region);
		chunk = lm_le32_get(w.chunk);
		if (region >= l->t->base.nregions || chunk >= l->use->mem[region]->nchunks)
			return strange(l, err, "asked for a key outside of the regions");
		rd_mem_want(l->use->mem[region], chunk);
		rd_mem_prefetch(l->use->mem[region], chunk);
		l->nasked += !(l->asked[region][chunk / 64] >> (chunk % 64) & 1);
		l->asked[region][chunk / 64] |= UINT64_C(1) << (chunk % 64);
	}
	return 0;
}

static int on_keys(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res, struct lm_error *err)
{
	(void)res;
	for (unsigned i = 0; i < in->count; i++) {
		struct rd_rkey k;
		struct rd_peer_chunk *c;
		uint32_t region, chunk;

		memcpy(&k, in->entries + i * sizeof(k), sizeof(k));
		region = lm_le32_get(k.region);
		chunk = lm_le32_get(k.chunk);
		if (region >= l->t->base.nregions || !l->peer[region].chunks || chunk >= l->peer[region].nchunks)
			return strange(l, err, "sent a key outside of the regions");
		c = &l->peer[region].chunks[chunk];
		if (c->state != RDMA_PEER_ASKED)
			return strange(l, err, "sent a key that was not asked for");
		c->address = lm_le64_get(k.address);
		c->rkey = lm_le32_get(k.rkey);
		c->error = (int)(lm_le32_get(k.error) & 4095);
		c->state = RDMA_PEER_READY;
	}
	return 0;
}

static int on_zero(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res, struct lm_error *err)
{
	struct rd_zero z[RDMA_ENTRIES(struct rd_zero)];
	struct lm_run run[RDMA_ENTRIES(struct rd_zero)];
	int r = 0;

	(void)res;
	memcpy(z, in->entries, in->count * sizeof(z[0]));
	for (unsigned i = 0; i < in->count; i++) {
		run[i] = (struct lm_run){
			.region = lm_le32_get(z[i].region), .kind = (enum lm_run_kind)lm_le32_get(z[i].kind),
			.offset = lm_le64_get(z[i].offset), .len = lm_le64_get(z[i].len),
		};
		if (run[i].kind != LM_RUN_ZERO || !lm_transport_run_valid(&l->t->base, &run[i]))
			return strange(l, err, "cleared pages outside of the regions");
	}
	for (unsigned i = 0; !r && i < in->count; i++)
		r = rd_place_zero(l, &run[i], err);
	l->placed++;
	return r;
}

static int on_flush(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res, struct lm_error *err)
{
	uint64_t seq = lm_le64_get(in->head->seq), bytes = lm_le64_get(in->head->bytes);

	if (seq <= l->flush_seen || bytes < l->bytes_seen)
		return strange(l, err, "went back in its flushes");
	res->bytes += bytes - l->bytes_seen;
	l->flush_seen = seq;
	l->bytes_seen = bytes;
	l->flush_due = seq;
	return 0;
}

static int on_flushed(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res,
		      struct lm_error *err)
{
	uint64_t seq = lm_le64_get(in->head->seq);

	(void)res;
	if (seq <= l->flushed || seq > l->flush_seq)
		return strange(l, err, "answered a flush that was not asked for");
	l->flushed = seq;
	return 0;
}

static int on_credit(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res,
		     struct lm_error *err)
{
	(void)l;
	(void)in;
	(void)res;
	(void)err;
	return 0;
}

static int on_close(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res, struct lm_error *err)
{
	(void)in;
	(void)res;
	(void)err;
	l->closed = true;
	return 0;
}

/* ---- dispatch ---- */

enum from { FROM_ANY, FROM_ACTIVE, FROM_PASSIVE };

static const struct message {
	int (*fn)(struct rd_lane *l, const struct incoming *in, struct lm_poll_result *res, struct lm_error *err);
	size_t entry;
	enum from from;
	bool push_only;
} messages[] = {
	[RDMA_WANT] = { on_want, sizeof(struct rd_want), FROM_ACTIVE, false },
	[RDMA_KEYS] = { on_keys, sizeof(struct rd_rkey), FROM_PASSIVE, false },
	[RDMA_ZERO] = { on_zero, sizeof(struct rd_zero), FROM_ACTIVE, true },
	[RDMA_FLUSH] = { on_flush, 0, FROM_ACTIVE, true },
	[RDMA_FLUSHED] = { on_flushed, 0, FROM_PASSIVE, true },
	[RDMA_CREDIT] = { on_credit, 0, FROM_ANY, false },
	[RDMA_CLOSE] = { on_close, 0, FROM_ANY, false },
};

static const struct message *message_find(const struct rd_lane *l, unsigned type)
{
	bool active = lm_transport_is_active(&l->t->base);
	const struct message *m = type < sizeof(messages) / sizeof(messages[0]) ? &messages[type] : NULL;

	if (!m || !m->fn || (m->push_only && l->t->base.direction != LM_PUSH))
		return NULL;
	return m->from == (active ? FROM_ACTIVE : FROM_PASSIVE) ? NULL : m;
}

static int take_header(struct rd_lane *l, const struct rd_msg *h, struct lm_error *err)
{
	uint32_t credits = lm_le32_get(h->credits), placed = lm_le32_get(h->placed);

	if (credits > RDMA_NRECV - l->credits)
		return strange(l, err, "gave back more receive buffers than there are");
	l->credits += credits;
	if (placed - l->zeros_placed > l->zeros_sent - l->zeros_placed)
		return strange(l, err, "placed zeros that were not sent");
	l->zeros_placed = placed;
	return 0;
}

int rd_peer_message(struct rd_lane *l, const uint8_t *buf, size_t len, struct lm_poll_result *res,
		      struct lm_error *err)
{
	struct rd_msg head;
	const struct message *m;
	struct incoming in = { .head = &head };
	int r;

	if (len < sizeof(head) || len > RDMA_MSG_SIZE)
		return strange(l, err, "sent a message of a wrong length");
	memcpy(&head, buf, sizeof(head));
	in.entries = buf + sizeof(head);
	in.count = lm_le16_get(head.count);
	m = message_find(l, lm_le16_get(head.type));
	if (lm_le32_get(head.magic) != RDMA_MSG_MAGIC || !m || l->closed)
		return strange(l, err, "sent a message of an unknown kind, or at the wrong time");
	if (len != sizeof(head) + in.count * m->entry || (m->entry ? !in.count : in.count))
		return strange(l, err, "sent a message whose length is not that of its entries");
	r = take_header(l, &head, err);
	return r ? r : m->fn(l, &in, res, err);
}

/* ---- answers ---- */

static struct rd_rkey key_of(const struct rd_mem *m, unsigned region, uint32_t chunk, int state)
{
	const struct ibv_mr *mr = state == RDMA_CHUNK_READY ? rd_mem_mr(m, chunk) : NULL;

	return (struct rd_rkey){
		.region = lm_le32(region), .chunk = lm_le32(chunk),
		.address = lm_le64((uintptr_t)m->host + ((uint64_t)chunk << m->shift)),
		.rkey = lm_le32(mr ? mr->rkey : 0), .error = lm_le32(mr ? 0 : (uint32_t)m->chunks[chunk].error),
	};
}

/* Keys of chunks that are ready now, of those that were asked for. */
static unsigned keys_collect(struct rd_lane *l, struct rd_rkey *keys, unsigned max)
{
	unsigned n = 0;

	for (unsigned region = 0; region < l->t->base.nregions; region++) {
		struct rd_mem *m = l->use->mem[region];

		for (uint32_t w = 0; w < (m->nchunks + 63) / 64; w++) {
			uint64_t word = l->asked[region][w];

			for (; word && n < max; word &= word - 1) {
				uint32_t chunk = w * 64 + (uint32_t)__builtin_ctzll(word);
				int state = rd_mem_state(m, chunk);

				if (state < RDMA_CHUNK_READY)
					continue;
				keys[n++] = key_of(m, region, chunk, state);
				l->asked[region][w] &= ~(UINT64_C(1) << (chunk % 64));
				l->nasked--;
			}
		}
	}
	return n;
}

static int answer_wants(struct rd_lane *l, struct lm_error *err)
{
	while (l->nasked && rd_can_send(l, false)) {
		struct rd_rkey keys[RDMA_ENTRIES(struct rd_rkey)];
		unsigned n = keys_collect(l, keys, RDMA_ENTRIES(struct rd_rkey));
		int r = n ? rd_send(l, RDMA_KEYS, keys, n, sizeof(keys[0]), 0, 0, err) : 0;

		if (r || !n)
			return r;
	}
	return 0;
}

int rd_peer_answer(struct rd_lane *l, struct lm_error *err)
{
	int r = answer_wants(l, err);

	if (!r && l->flush_due && rd_can_send(l, false)) {
		r = rd_send(l, RDMA_FLUSHED, NULL, 0, 0, l->flush_due, 0, err);
		l->flush_due = 0;
	}
	if (!r && (l->owed >= RDMA_NRECV / 2 || l->placed != l->placed_told) && rd_can_send(l, true))
		r = rd_send(l, RDMA_CREDIT, NULL, 0, 0, 0, 0, err);
	return r ? r : rd_post_batch(l, err);
}
