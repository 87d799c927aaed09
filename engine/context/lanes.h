/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How lanes come up, in either direction: the transport is made, its lanes are opened, memory is made
 * known to it.  Session's thread only.
 */
#ifndef LM_CTX_LANES_H
#define LM_CTX_LANES_H

#include "context.h"

/* A transport of this name, not open; the caller's. */
int lm_ctx_new_transport(const char *name, struct lm_transport **ret, struct lm_error *err);
/* The same, as c->transport; the summary tells its name. */
int lm_ctx_make_transport(struct lm_ctx *c, const char *name, struct lm_error *err);
/* What all lanes of all directions have in common; the caller adds token and endpoint. */
struct lm_transport_params lm_ctx_transport_params(const struct lm_ctx *c, enum lm_direction direction,
						   unsigned nlanes);
/* A new random token, or secret. */
int lm_ctx_token(uint8_t ret[static LM_TOKEN_SIZE], struct lm_error *err);
/*
 * Open c->transport.  If the peer's part fails, the peer says so and why; this side then stops
 * waiting for lanes and reports the peer's words.
 */
int lm_ctx_open_lanes(struct lm_ctx *c, struct lm_transport_params *p, struct lm_error *err);
/* Make all RAM known to t.  May take minutes; the peer hears from us meanwhile. */
int lm_ctx_register(struct lm_ctx *c, struct lm_transport *t, struct lm_key keys[static LM_REGIONS_MAX],
		    struct lm_error *err);
/* The peer's keys, as READY or POSTCOPY_KEYS brings them. */
int lm_ctx_bind(struct lm_ctx *c, struct lm_transport *t, const struct lm_msg *msg, struct lm_error *err);
/* LANE_OPEN with a token of its own, which is returned: a lane that was lost is tried again. */
int lm_ctx_send_lane_open(struct lm_ctx *c, unsigned lane, uint8_t ret_token[static LM_TOKEN_SIZE],
			  struct lm_error *err);

#endif
