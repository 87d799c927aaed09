/* SPDX-License-Identifier: Apache-2.0 */
/* Sets of pages as messages of extents: RESIDENT and LEFT. */
#ifndef LM_EXTENTS_H
#define LM_EXTENTS_H

#include "context.h"

/*
 * The set bits of map, in as many messages as it takes (none for an empty map).
 * buf: LM_WIRE_PAYLOAD_MAX bytes, the caller's.
 */
int lm_ctx_send_resident(struct lm_ctx *c, unsigned region, const struct lm_bitmap *map, uint8_t *buf,
			 struct lm_error *err);
int lm_ctx_send_left(struct lm_ctx *c, unsigned region, const struct lm_bitmap *map, enum lm_left_kind kind,
		     uint8_t *buf, struct lm_error *err);

#endif
