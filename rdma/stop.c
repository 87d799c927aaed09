/* SPDX-License-Identifier: Apache-2.0 */
/* Any thread may stop a lane.  Its later errors say why; a thread that places zeros has ended before. */
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
#include "rdma.h"

int rd_lane_error(struct rd_lane *l, int code, struct lm_error *err, const char *fmt, ...)
{
	const char *why = atomic_load(&l->why);
	char text[LM_ERROR_MSG_MAX / 2];
	va_list ap;

	if (why)
		return lm_err(err, -ENETDOWN, LM_SCOPE_LANE, "RDMA device %s, port %u: %s", l->use->dev->name,
			      l->id->port_num, why);
	if (atomic_load(&l->shut))
		return lm_err(err, -ESHUTDOWN, LM_SCOPE_LANE, "the lane was shut");
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!code)
		return lm_err(err, -ECONNRESET, LM_SCOPE_LANE, "%s: the %s hung up", text, rd_peer_name(l));
	return lm_err_errno(err, code, LM_SCOPE_LANE, "%s", text);
}

void rd_lane_disconnect(struct rd_lane *l)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_ERR };

	if (!l->id || !l->id->qp)
		return;
	ibv_modify_qp(l->id->qp, &a, IBV_QP_STATE);
	rdma_disconnect(l->id); /* sends and does not wait */
}

void rd_lane_wake(struct rd_lane *l)
{
	uint64_t one = 1;

	if (write(l->event_fd, &one, sizeof(one)) < 0)
		return; /* the counter is at its limit: it is readable, which is all we want */
}

void rd_lane_stop(struct rd_lane *l)
{
	if (!atomic_exchange(&l->shut, true)) {
		rd_lane_disconnect(l);
		atomic_store(&l->parted, true);
	}
	rd_lane_wake(l);
}

void rd_lane_fail(struct rd_lane *l, const char *why)
{
	if (atomic_load(&l->shut))
		return;
	atomic_store(&l->why, why);
	rd_lane_stop(l);
}

void rd_lane_shut(struct rd_lane *l)
{
	rd_lane_stop(l);
	while (atomic_load(&l->placing))
		sched_yield();
}

/* Pairs with rd_lane_shut(): one of the two sees the other's store. */
bool rd_place_begin(struct rd_lane *l)
{
	atomic_store(&l->placing, true);
	if (!atomic_load(&l->shut))
		return true;
	atomic_store(&l->placing, false);
	return false;
}

void rd_place_end(struct rd_lane *l)
{
	atomic_store_explicit(&l->placing, false, memory_order_release);
}
