/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One side of a transport over the fake device, opened, used and freed as the engine does.
 * One at a time.
 */
#ifndef SIDE_H
#define SIDE_H

#include "rdma/cm.h"
#include "fakeverbs.h"

#define SIDE_REGION (UINT64_C(16) << 20) /* two chunks of 8 MiB */

struct side {
	struct lm_transport *t;
	struct lm_transport_params p;
	uint8_t endpoint[LM_ENDPOINT_SIZE];
	struct lm_region region;
	unsigned nfds; /* before there was anything */
};

/* Resets the fake; a source knows the endpoint of a peer with as many rails as we have.  Ten seconds until the deadline. */
void side_begin(struct side *s, enum lm_side side, unsigned nlanes, unsigned ndevices);
/* A destination listens before; an idle test's thread makes the source's requests come (side_requests). */
int side_open(struct side *s, struct lm_error *err);
int side_listen(struct side *s, struct lm_error *err);
/* Both must succeed. */
void side_ready(struct side *s, enum lm_side side, unsigned nlanes, unsigned ndevices);
/* Memory, registered by chunk; the source has the peer's key of it as well. */
void side_add_region(struct side *s);
/* One lane again, as after LANE_OPEN: with a new token, and ten seconds. */
int side_reopen(struct side *s, unsigned lane, struct lm_error *err);
/* The active side's lane knows the peer's key of a chunk. */
void side_give_key(struct rd_lane *l, uint32_t chunk);
/* A message of the peer, with n entries of this size. */
void side_say(struct rd_lane *l, enum rd_msg_type type, uint64_t seq, const void *entries, unsigned n, size_t size);
/* Frees the transport: nothing is left, no object and no open file. */
void side_end(struct side *s);

static inline struct rdma *side_rdma(const struct side *s)
{
	return (struct rdma *)s->t;
}

static inline struct rd_lane *side_lane(const struct side *s, unsigned i)
{
	return &side_rdma(s)->lanes[i];
}

/* For fake_idle: every lane that is not open is asked for, over one of the rails; not for ever. */
bool side_requests(void);
/* A request for this lane over this rail, as the source makes it. */
bool side_request(struct side *s, unsigned net, unsigned lane);

/* A lane that works and that nobody touches: as it is now, and that it still is. */
void side_remember(const struct side *s, unsigned lane);
bool side_is_unchanged(const struct side *s, unsigned lane);

/* An error in words: negative, the code's own, and not "Success". */
bool side_says_why(int r, const struct lm_error *err);
/*
 * run once for every call that it makes, which then fails: with an errno, and with none.  run
 * begins a side, calls side_fail() where the counting begins, ends the side, and says what must be.
 */
void side_each_call_fails(void (*run)(void));
void side_fail(void);

#endif
