/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the source's (connect.c) and the destination's (accept.c) part of opening lanes
 * share.  All of it is for the thread that opens the transport, or that opens one
 * lane again; nothing but rd_cm_wait() waits.
 */
#ifndef LM_RDMA_CM_H
#define LM_RDMA_CM_H

#include "rdma.h"

/* What a request for this lane shows, on both sides. */
struct rd_hello rd_hello_make(const struct lm_transport_params *p, unsigned lane);
/* For rdma_connect() and rdma_accept(); without private data, which is the caller's to add. */
struct rdma_conn_param rd_conn_param(const struct rd_lane *l);
/*
 * The transport's use of the device that this id is bound to; it is the transport's until
 * close.  A device that is new becomes one more, with its memory when the transport is open.
 * -ENOSPC: there are RDMA_RAILS_MAX.
 */
int rd_use_find(struct rdma *t, struct rdma_cm_id *id, struct rd_use **ret, struct lm_error *err);
/* The connection is established: from now on the device's asynchronous events shut the lane. */
void rd_lane_opened(struct rd_lane *l);
/* Lanes that are not open. */
unsigned rd_lanes_missing(const struct rdma *t);
/*
 * Until something happens on a lane or the extra channel (NULL: none), or a lane's attempt
 * has lasted long enough; 0 then.  -ETIMEDOUT at p's deadline, -ECANCELED when its cancel_fd
 * is readable, and what p's peer_said says.  only: nothing but this lane is looked at; NULL: all.
 */
int rd_cm_wait(struct rdma *t, const struct rd_lane *only, const struct lm_transport_params *p,
	       struct rdma_event_channel *extra, struct lm_error *err);

#endif
