/* SPDX-License-Identifier: Apache-2.0 */
/* The control channel comes up: the source connects, the destination waits for it. */
#ifndef LM_CONNECT_H
#define LM_CONNECT_H

#include "context.h"

/* Destination: begin to listen at opt.address, and tell the user where.  Fills address. */
int lm_ctx_listen(struct lm_ctx *c, struct lm_error *err);
/* Destination: the next connection that speaks our protocol, at most until the deadline.  Fills peer. */
int lm_ctx_accept(struct lm_ctx *c, int64_t deadline_ns, struct lm_error *err);
/* Source: connect to opt.address. */
int lm_ctx_connect(struct lm_ctx *c, int64_t deadline_ns, struct lm_error *err);

#endif
