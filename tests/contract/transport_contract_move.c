/* SPDX-License-Identifier: Apache-2.0 */
/* The transport contract: moving runs, and fetching them. */
#include "transport_contract.h"

#define WAIT_NS (200 * LM_NS_PER_S)

/* ---- moving ---- */

static void *pump_main(void *arg)
{
	struct pump *p = arg;
	struct rig *rig = p->rig;
	struct lm_transport *t = rig->params[LM_DEST].direction == LM_PULL ? rig->src.t : rig->dst.t;
	struct lm_error err;
	int r = 0;

	while (!r && !atomic_load(&p->stop)) {
		struct lm_poll_result res;

		r = lm_transport_poll(t, p->lane, 5, &res, &err);
		atomic_fetch_add(&p->bytes, res.bytes);
		atomic_fetch_add(&p->polls, 1);
		if (!r && res.closed)
			r = 1;
	}
	atomic_store(&p->result, r);
	return NULL;
}

void pump_start(struct rig *rig, unsigned lane)
{
	struct pump *p = &rig->pumps[lane];

	memset(p, 0, sizeof(*p));
	p->rig = rig;
	p->lane = lane;
	p->running = !pthread_create(&p->thread, NULL, pump_main, p);
	assert_true(p->running);
}

void pump_stop(struct rig *rig, unsigned lane)
{
	struct pump *p = &rig->pumps[lane];

	if (!p->running)
		return;
	atomic_store(&p->stop, true);
	pthread_join(p->thread, NULL);
	p->running = false;
}

void pump_start_all(struct rig *rig)
{
	for (unsigned i = 0; i < rig->params[LM_DEST].nlanes; i++)
		pump_start(rig, i);
}

void pump_stop_all(struct rig *rig)
{
	for (unsigned i = 0; i < LM_LANES_MAX; i++)
		pump_stop(rig, i);
}

static int source_poll(struct rig *rig, unsigned lane, uint64_t *ret_flushed)
{
	struct lm_poll_result res;
	struct lm_error err;
	int r = lm_transport_poll(rig->src.t, lane, 20, &res, &err);

	*ret_flushed = res.flushed;
	return !r && res.closed ? -ECONNRESET : r;
}

int write_runs(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n)
{
	int64_t until = lm_now_ns() + WAIT_NS;
	struct lm_error err;
	uint64_t unused;
	unsigned done = 0;

	while (done < n && lm_now_ns() < until) {
		unsigned some = n - done < LM_WRITE_MAX ? n - done : LM_WRITE_MAX;
		int r = lm_transport_write(rig->src.t, lane, runs + done, some, &err);

		if (r == -EAGAIN)
			r = source_poll(rig, lane, &unused);
		if (r < 0)
			return r;
		done += (unsigned)r;
	}
	return done < n ? -ETIMEDOUT : 0;
}

/* Flush numbers only have to grow. */
uint64_t next_flush(void)
{
	static _Atomic uint64_t seq;

	return atomic_fetch_add(&seq, 1) + 1;
}

int flush_lane(struct rig *rig, unsigned lane, uint64_t seq)
{
	int64_t until = lm_now_ns() + WAIT_NS;
	struct lm_error err;
	uint64_t flushed = 0;
	int r;

	while ((r = lm_transport_flush(rig->src.t, lane, seq, &err)) == -EAGAIN && lm_now_ns() < until) {
		r = source_poll(rig, lane, &flushed);
		if (r)
			return r;
	}
	while (!r && flushed < seq)
		r = lm_now_ns() < until ? source_poll(rig, lane, &flushed) : -ETIMEDOUT;
	return r;
}

int send_runs(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n)
{
	int r = write_runs(rig, lane, runs, n);

	return r ? r : flush_lane(rig, lane, next_flush());
}

/* ---- fetching ---- */

int fetch_poll(struct rig *rig, unsigned lane, int timeout_ms, struct lm_error *err)
{
	struct lm_poll_result res;
	int r = lm_transport_poll(rig->dst.t, lane, timeout_ms, &res, err);

	assert_true(res.fetched >= rig->fetch[lane].whole);
	assert_true(res.fetched <= rig->fetch[lane].asked);
	rig->fetch[lane].whole = res.fetched;
	rig->fetch[lane].bytes += res.bytes;
	return !r && res.closed ? -ECONNRESET : r;
}

int fetch_try(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n, struct lm_error *err)
{
	int r = lm_transport_fetch(rig->dst.t, lane, runs, n, err);

	if (r > 0)
		rig->fetch[lane].asked += (unsigned)r;
	assert_true(r != 0 && r <= (int)n);
	return r;
}

int fetch_wait(struct rig *rig, unsigned lane)
{
	int64_t until = lm_now_ns() + WAIT_NS;
	struct lm_error err;
	int r = 0;

	while (!r && rig->fetch[lane].whole < rig->fetch[lane].asked)
		r = lm_now_ns() < until ? fetch_poll(rig, lane, 20, &err) : -ETIMEDOUT;
	return r;
}

int fetch_runs(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n)
{
	int64_t until = lm_now_ns() + WAIT_NS;
	struct lm_error err;
	unsigned done = 0;

	while (done < n && lm_now_ns() < until) {
		unsigned some = n - done < LM_WRITE_MAX ? n - done : LM_WRITE_MAX;
		int r = fetch_try(rig, lane, runs + done, some, &err);

		if (r > 0)
			done += (unsigned)r;
		else if (r == -EAGAIN)
			r = fetch_poll(rig, lane, 20, &err);
		if (r < 0)
			return r;
	}
	return done < n ? -ETIMEDOUT : fetch_wait(rig, lane);
}

static int poll_until_error(struct lm_transport *t, unsigned lane, int timeout_ms, struct lm_error *err)
{
	int64_t until = lm_now_ns() + timeout_ms * LM_NS_PER_MS;
	int r = 0;

	while (!r && lm_now_ns() < until) {
		struct lm_poll_result res;

		r = lm_transport_poll(t, lane, 5, &res, err);
	}
	return r;
}

int dest_poll_until_error(struct rig *rig, unsigned lane, int timeout_ms, struct lm_error *err)
{
	return poll_until_error(rig->dst.t, lane, timeout_ms, err);
}

int source_poll_until_error(struct rig *rig, unsigned lane, int timeout_ms, struct lm_error *err)
{
	return poll_until_error(rig->src.t, lane, timeout_ms, err);
}
