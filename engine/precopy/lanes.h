/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes that fail and come back, at the source, in pre-copy.
 *
 * A lane that failed is dropped at both sides (LANE_DROP) while the others go on, and
 * tried again with a back-off (comeback.h): LANE_OPEN tells the destination to wait for it, a
 * thread of its own connects it, and it takes part again in the copy that runs.  What it had
 * taken and not confirmed goes out again at the end of the copy, as without it.
 *
 * When no lane is left the copy waits for one, at most recover_timeout_ns, while the
 * guest runs here; in the blackout no longer than it may last.
 *
 * Attempts are made only while a copy runs: outside of lm_precopy_*()'s copies no thread
 * of this file is there and all lanes belong to the session.  Session's thread only.
 */
#ifndef LM_LANES_H
#define LM_LANES_H

#include "engine/transport/comeback.h"

struct lm_precopy;

struct lm_lanes {
	struct lm_comeback comeback; /* made when both sides can open a lane again */
	uint64_t dropped;            /* bits: the destination has dropped it, and it is not back */
	int64_t none_since_ns;       /* no lane works, or none has lived for long; 0: all is well */
};

/* After the transport was opened with these; can: the destination says that it can. */
int lm_lanes_init(struct lm_precopy *p, const struct lm_transport_params *params, bool can, struct lm_error *err);
/* Cancel an attempt and wait for its thread; no message goes out.  May be called without an attempt. */
void lm_lanes_stop(struct lm_precopy *p);
void lm_lanes_fini(struct lm_precopy *p);

/* Nothing of these lanes can land any more when this returns 0: their pages may go out on others. */
int lm_lanes_drop(struct lm_precopy *p, uint64_t lanes, struct lm_error *err);
/* While a copy runs or is waited for, several times a second: drop, try, take back. */
int lm_lanes_tick(struct lm_precopy *p, struct lm_error *err);
/* At the end of a copy: no attempt is under way afterwards. */
int lm_lanes_settle(struct lm_precopy *p, struct lm_error *err);
/* Readable when tick has something to do; -1: never. */
int lm_lanes_fd(const struct lm_precopy *p);
/* How long a copy without lanes waits for one, as a time on the clock; 0: it does not wait. */
int64_t lm_lanes_wait_until(const struct lm_precopy *p);

#endif
