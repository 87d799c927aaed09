/* SPDX-License-Identifier: Apache-2.0 */
/* Two sessions, source and destination in one process over TCP on loopback, with a VM that can fail. */
#ifndef SESSIONPAIR_H
#define SESSIONPAIR_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "engine/session/session.h"
#include "fakevm.h"

struct pair {
	struct fakevm_state *a, *b; /* source's and destination's VM */
	struct lm_session *src, *dst;
	struct lm_options src_opt, dst_opt;
	struct lm_error src_err, dst_err;
	int src_ret, dst_ret;
	unsigned rounds_seen, decisions;
	void (*on_round)(struct pair *p, const struct lm_round *round);
};

/* A small guest that writes. */
extern const struct fakevm_config small;

/* One of the two; fails the test when it cannot be made. */
struct lm_session *pair_session(const struct lm_options *o, enum lm_side side, struct fakevm_state *st);
struct pair *pair_new(const struct fakevm_config *config);
/* Makes both sessions; pair_run() makes and runs them, until both have ended. */
void pair_open(struct pair *p);
void pair_run(struct pair *p);
/* pthread: runs the destination's session. */
void *pair_dest_main(void *pair);
void pair_free(struct pair *p);
void assert_moved(const struct pair *p);
/* The guest is at the source as before, and nowhere else. */
void assert_stayed(const struct pair *p, enum lm_outcome outcome);

#endif
