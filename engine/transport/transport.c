/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "engine/base/testhook.h"
#include "transport.h"

static int misuse(struct lm_error *err, const char *what)
{
	return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "transport: %s", what);
}

bool lm_transport_run_valid(const struct lm_transport *t, const struct lm_run *run)
{
	uint64_t size;

	if (run->kind != LM_RUN_DATA && run->kind != LM_RUN_ZERO)
		return false;
	if (run->region >= t->nregions || !run->len || run->len > LM_RUN_MAX)
		return false;
	if ((run->offset | run->len) & (LM_PAGE_SIZE - 1))
		return false;
	size = t->region_size[run->region];
	return run->offset < size && run->len <= size - run->offset;
}

static int check_params(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err)
{
	if (t->is_open)
		return misuse(err, "opened twice");
	if (!p->nlanes || p->nlanes > LM_LANES_MAX)
		return misuse(err, "the number of lanes is out of range");
	if (p->direction == LM_PULL && !t->ops->fetch)
		return misuse(err, "it cannot fetch");
	t->side = p->side;
	t->direction = p->direction;
	t->nlanes = p->nlanes;
	t->nregions = 0;
	return 0;
}

int lm_transport_listen(struct lm_transport *t, const struct lm_transport_params *p,
			uint8_t ret_endpoint[LM_ENDPOINT_SIZE], struct lm_error *err)
{
	int r = check_params(t, p, err);

	memset(ret_endpoint, 0, LM_ENDPOINT_SIZE);
	if (!r && p->side != LM_DEST)
		r = misuse(err, "listen out of place");
	if (!r && t->ops->listen)
		r = t->ops->listen(t, p, ret_endpoint, err);
	t->is_listening = !r;
	return r;
}

int lm_transport_open(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err)
{
	int r = check_params(t, p, err);

	if (!r && t->ops->listen && p->side == LM_DEST && !t->is_listening)
		r = misuse(err, "open without listen");
	if (!r && t->ops->listen && p->side == LM_SOURCE && !p->endpoint)
		r = misuse(err, "open without an endpoint");
	if (r)
		return r;
	r = t->ops->open(t, p, err);
	t->is_open = !r;
	return r;
}

int lm_transport_region_add(struct lm_transport *t, const struct lm_region *region, struct lm_key *ret_key,
			    struct lm_error *err)
{
	unsigned index = t->nregions;
	int r;

	if (!t->is_open)
		return misuse(err, "not open");
	if (index == LM_REGIONS_MAX)
		return misuse(err, "too many regions");
	if (!region->host || !region->size || region->size > LM_REGION_SIZE_MAX ||
	    region->size % LM_PAGE_SIZE)
		return misuse(err, "a region that is not mapped or has a bad size");
	memset(ret_key, 0, sizeof(*ret_key));
	r = t->ops->region_add(t, index, region, ret_key, err);
	if (r)
		return r;
	t->region_size[index] = region->size;
	t->nregions++;
	return 0;
}

int lm_transport_region_bind(struct lm_transport *t, unsigned index, const struct lm_key *key,
			     struct lm_error *err)
{
	if (!t->is_open || !lm_transport_is_active(t) || index >= t->nregions)
		return misuse(err, "region_bind out of place");
	return t->ops->region_bind(t, index, key, err);
}

/* Rule 5: an error kills the lane, also in the eyes of the peer. */
static int lane_result(struct lm_transport *t, unsigned lane, int r)
{
	if (r < 0 && r != -EAGAIN)
		t->ops->shut(t, lane);
	return r;
}

static bool can_write(const struct lm_transport *t)
{
	return t->direction == LM_PUSH && t->side == LM_SOURCE;
}

int lm_transport_write(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err)
{
	if (!t->is_open || !can_write(t) || lane >= t->nlanes || !n || n > LM_WRITE_MAX)
		return misuse(err, "write out of place");
	for (unsigned i = 0; i < n; i++)
		if (!lm_transport_run_valid(t, &runs[i]))
			return misuse(err, "a run outside of the regions");
	return lane_result(t, lane, t->ops->write(t, lane, runs, n, err));
}

int lm_transport_fetch(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err)
{
	if (!t->is_open || t->direction != LM_PULL || t->side != LM_DEST || lane >= t->nlanes || !n ||
	    n > LM_WRITE_MAX)
		return misuse(err, "fetch out of place");
	for (unsigned i = 0; i < n; i++)
		if (runs[i].kind != LM_RUN_DATA || !lm_transport_run_valid(t, &runs[i]))
			return misuse(err, "a run outside of the regions");
	return lane_result(t, lane, t->ops->fetch(t, lane, runs, n, err));
}

int lm_transport_flush(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err)
{
	if (!t->is_open || !can_write(t) || lane >= t->nlanes || !seq)
		return misuse(err, "flush out of place");
	return lane_result(t, lane, t->ops->flush(t, lane, seq, err));
}

int lm_transport_poll(struct lm_transport *t, unsigned lane, int timeout_ms, struct lm_poll_result *res,
		      struct lm_error *err)
{
	return lm_transport_poll_or(t, lane, timeout_ms, -1, res, err);
}

int lm_transport_poll_or(struct lm_transport *t, unsigned lane, int timeout_ms, int wake_fd,
			 struct lm_poll_result *res, struct lm_error *err)
{
	memset(res, 0, sizeof(*res));
	if (!t->is_open || lane >= t->nlanes || timeout_ms < 0)
		return misuse(err, "poll out of place");
	return lane_result(t, lane, t->ops->poll(t, lane, timeout_ms, wake_fd, res, err));
}

void lm_transport_shut(struct lm_transport *t, unsigned lane)
{
	if (t->is_open && lane < t->nlanes)
		t->ops->shut(t, lane);
}

void lm_transport_fence_lane(struct lm_transport *t, unsigned lane)
{
	if (!t->is_open || lane >= t->nlanes || lm_broken("fence"))
		return;
	t->ops->shut(t, lane);
	if (t->ops->fence)
		t->ops->fence(t, lane);
}

void lm_transport_fence(struct lm_transport *t)
{
	for (unsigned i = 0; t->is_open && i < t->nlanes; i++)
		lm_transport_fence_lane(t, i);
}

int lm_transport_reopen(struct lm_transport *t, unsigned lane, const struct lm_transport_params *p,
			struct lm_error *err)
{
	if (!t->is_open || !t->ops->reopen || lane >= t->nlanes || p->nlanes != t->nlanes || p->side != t->side ||
	    p->direction != t->direction)
		return misuse(err, "reopen out of place");
	return t->ops->reopen(t, lane, p, err);
}

void lm_transport_free(struct lm_transport *t)
{
	if (t)
		t->ops->close(t);
}
