/* SPDX-License-Identifier: Apache-2.0 */
#include "extents.h"

/* A message that is being filled: a head of head_size bytes with a count in it, then the extents. */
struct extents {
	enum lm_msg_type type;
	uint8_t *buf;
	size_t head_size;
	struct le32 *count;
};

static int send_extents(struct lm_ctx *c, const struct extents *e, const struct lm_bitmap *map, struct lm_error *err)
{
	struct lm_wire_extent *x = (void *)(e->buf + e->head_size);
	uint64_t pos = 0, first, n;
	uint32_t count = 0;
	int r = 0;

	do {
		n = lm_bitmap_next_run(map, pos, map->nbits, &first);
		if (n)
			x[count++] = (struct lm_wire_extent){ lm_le64(first), lm_le64(n) };
		pos = first + n;
		if (!count || (n && count < LM_WIRE_EXTENTS_MAX))
			continue;
		*e->count = lm_le32(count);
		r = lm_control_send(&c->control, e->type, e->buf, e->head_size + count * sizeof(*x),
				    lm_ctx_peer_deadline(c), err);
		count = 0;
	} while (!r && n);
	return r;
}

int lm_ctx_send_resident(struct lm_ctx *c, unsigned region, const struct lm_bitmap *map, uint8_t *buf,
			 struct lm_error *err)
{
	struct lm_wire_resident *w = (void *)buf;

	*w = (struct lm_wire_resident){ .region = lm_le32(region) };
	return send_extents(c, &(struct extents){ LM_MSG_RESIDENT, buf, sizeof(*w), &w->count }, map, err);
}

int lm_ctx_send_left(struct lm_ctx *c, unsigned region, const struct lm_bitmap *map, enum lm_left_kind kind,
		     uint8_t *buf, struct lm_error *err)
{
	struct lm_wire_left *w = (void *)buf;

	*w = (struct lm_wire_left){ .region = lm_le32(region), .kind = lm_le32(kind) };
	return send_extents(c, &(struct extents){ LM_MSG_LEFT, buf, sizeof(*w), &w->count }, map, err);
}
