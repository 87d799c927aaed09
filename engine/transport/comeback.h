/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes that failed and come back: whose turn it is, and the thread that tries.
 *
 * Either side has one of these per transport.  It knows nothing of messages: in pre-copy
 * ../precopy/lanes.c (source) uses it, in post-copy dest_lanes.c and source_lanes.c of ../postcopy.  A lane is tried after
 * LM_LANE_RETRY_NS, then after twice that and so on, one lane at a time; when one has come back,
 * all others are due at once: where it came from there may be more.
 *
 * Session's thread only, but for what the thread of an attempt does: lm_transport_reopen().  While
 * one is under way (trying >= 0) nobody else may use or shut that lane.
 */
#ifndef LM_COMEBACK_H
#define LM_COMEBACK_H

#include <pthread.h>
#include "engine/base/clock.h"
#include "transport.h"

/* Before the first attempt, doubled after each that failed. */
#define LM_LANE_RETRY_NS     (1 * LM_NS_PER_S)
#define LM_LANE_RETRY_MAX_NS (8 * LM_NS_PER_S)
/* A lane that has worked for this long after it came back counts as back. */
#define LM_LANE_STEADY_NS    (5 * LM_NS_PER_S)
/* How long one attempt may take.  The side that waits for the other to connect waits a little longer. */
#define LM_LANE_ATTEMPT_NS   (3 * LM_NS_PER_S)
#define LM_LANE_ACCEPT_NS    (LM_LANE_ATTEMPT_NS + 1 * LM_NS_PER_S)

struct lm_comeback {
	bool can;                          /* was made: all functions take one that was not */
	struct lm_transport_params params; /* as for open; token and deadline are each attempt's own */
	uint8_t endpoint[LM_ENDPOINT_SIZE];
	struct lm_lane_turn {
		int64_t delay_ns, next_ns; /* of the back-off */
		int64_t back_ns;           /* when it came back; 0: it never had to, or has failed since */
	} lane[LM_LANES_MAX];
	unsigned last;                     /* lane that was tried */
	/* An attempt */
	int trying;                        /* lane; -1: none */
	pthread_t thread;
	int done_fd, cancel_fd;            /* eventfds */
	struct lm_transport *transport;
	int result;                        /* thread's, until it was joined */
	struct lm_error error;
};

/* params: as for the open that has succeeded; what its endpoint points to is copied. */
int lm_comeback_init(struct lm_comeback *c, const struct lm_transport_params *params, struct lm_error *err);
/* The lane has failed, or an attempt: it is tried after a while, of max_ns at most. */
void lm_comeback_failed(struct lm_comeback *c, unsigned lane, int64_t max_ns);
/* The next of these lanes (a bit each) whose time has come, or -1: none, or an attempt is under way. */
int lm_comeback_next(const struct lm_comeback *c, uint64_t gone);
/* Try it, until the deadline. */
int lm_comeback_begin(struct lm_comeback *c, struct lm_transport *t, unsigned lane,
		      const uint8_t token[static LM_TOKEN_SIZE], int64_t deadline_ns, struct lm_error *err);
/* To be polled: readable when the attempt is over; -1: there is none. */
int lm_comeback_fd(const struct lm_comeback *c);
bool lm_comeback_over(const struct lm_comeback *c);
/* Make the attempt end soon, with or without success.  May be called without an attempt. */
void lm_comeback_cancel(struct lm_comeback *c);
/*
 * Blocks until the attempt has ended.  Returns 0 when the lane is back, or an error (c->error says
 * why). *ret_lane: which lane it was.
 */
int lm_comeback_end(struct lm_comeback *c, unsigned *ret_lane);
/* End an attempt, if there is one, as if it had not been made. */
void lm_comeback_fini(struct lm_comeback *c);

#endif
