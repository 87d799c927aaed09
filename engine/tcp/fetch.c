/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LM_PULL: what the destination's lane asks for.
 *
 * Runs wait in a ring, in the order in which they were fetched: first to be asked
 * for, then for their answers, which come in the same order.  Receiving, checking
 * and placing are those of every batch (recv.c, place.c).
 */
#include <stdlib.h>
#include "tcp.h"

int tcp_fetch_init(struct tcp_lane *l)
{
	l->fetch = calloc(1, sizeof(*l->fetch));
	return l->fetch ? 0 : -ENOMEM;
}

static struct lm_run *run_at(struct tcp_fetch *f, uint64_t i)
{
	return &f->ring[i % TCP_FETCH_RUNS];
}

static bool has_room(const struct tcp_fetch *f, uint64_t len)
{
	if (f->queued - f->whole == TCP_FETCH_RUNS)
		return false;
	return f->queued == f->whole || f->bytes + len <= TCP_FETCH_BYTES;
}

/* The next request, of what is queued. */
static void request_make(struct tcp_lane *l)
{
	struct tcp_fetch *f = l->fetch;
	uint64_t bytes = 0;
	unsigned n = 0;

	while (f->sent < f->queued && n < LM_WRITE_MAX) {
		const struct lm_run *run = run_at(f, f->sent++);

		l->out.u.h.desc[n++] = tcp_desc_make(run);
		bytes += run->len;
	}
	l->out.u.h.frame = tcp_frame_make(TCP_REQUEST, ++l->request_seq);
	l->out.u.h.frame.count = lm_le32(n);
	l->out.u.h.frame.bytes = lm_le64(bytes);
	l->out.done = 0;
	l->out.len = (unsigned)(sizeof(struct tcp_frame) + n * sizeof(struct tcp_desc));
}

int tcp_fetch_send(struct tcp_lane *l)
{
	for (;;) {
		int r = tcp_head_send(l);

		if (r || l->fetch->sent == l->fetch->queued)
			return r;
		request_make(l);
	}
}

int tcp_fetch_queue(struct tcp_lane *l, const struct lm_run *runs, unsigned n, struct lm_error *err)
{
	struct tcp_fetch *f = l->fetch;
	unsigned taken = 0;
	int r;

	if (atomic_load_explicit(&l->shut, memory_order_relaxed))
		return tcp_lane_error(l, 0, err, "");
	if (l->closed)
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "the source has closed the lane");
	while (taken < n && has_room(f, runs[taken].len)) {
		f->bytes += runs[taken].len;
		*run_at(f, f->queued++) = runs[taken++];
	}
	r = taken ? tcp_fetch_send(l) : 0;
	if (r && r != -EAGAIN)
		return tcp_lane_error(l, r, err, "asking");
	return taken ? (int)taken : -EAGAIN;
}

bool tcp_fetch_expects(const struct tcp_lane *l, unsigned count)
{
	const struct tcp_fetch *f = l->fetch;
	uint64_t run = f->whole, done = f->done;

	for (unsigned i = 0; i < count; i++) {
		struct lm_run piece = tcp_desc_get(&l->in.u.h.desc[i]);
		const struct lm_run *want = &f->ring[run % TCP_FETCH_RUNS];

		if (run == f->sent || piece.region != want->region || piece.offset != want->offset + done ||
		    piece.len > want->len - done)
			return false;
		done += piece.len;
		if (done == want->len) {
			run++;
			done = 0;
		}
	}
	return true;
}

void tcp_fetch_placed(struct tcp_lane *l, unsigned first)
{
	struct tcp_fetch *f = l->fetch;

	for (; first < l->run; first++) {
		f->done += tcp_desc_get(&l->in.u.h.desc[first]).len;
		if (f->done < run_at(f, f->whole)->len)
			continue;
		f->bytes -= run_at(f, f->whole)->len;
		f->whole++;
		f->done = 0;
	}
}
