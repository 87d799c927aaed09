/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole post-copies in one process: a guest that writes at the source, threads that touch and change
 * pages at the destination, userfaultfd between them and what has not come, and a network that is
 * cut, falls silent or lies (netrelay.h).
 */
#ifndef PCPAIR_H
#define PCPAIR_H

#include <pthread.h>
#include "unit.h"
#include "fakevm.h"
#include "netrelay.h"
#include "engine/session/session.h"

#define VCPUS 4
#define STAMP_AT (LM_PAGE_SIZE - 8)

struct pair;

struct vcpu {
	struct pair *p;
	unsigned index;
	uint64_t x;
	pthread_t thread;
};

struct pair {
	struct fakevm_state *a, *b;
	struct lm_session *src, *dst;
	struct lm_options src_opt, dst_opt;
	struct lm_error src_err, dst_err;
	struct lm_summary src_sum, dst_sum;
	int src_ret, dst_ret;
	struct netrelay *relay;
	enum lm_decision_kind decision;
	/* What the test does when something happens; in the thread of that side's session. */
	void (*on_src)(struct pair *p, const struct lm_event *e);
	void (*on_dst)(struct pair *p, const struct lm_event *e);
	unsigned count; /* of the test's hook */
	pthread_t helper;
	bool has_helper;
	/* the guest at the destination */
	struct vcpu vcpus[VCPUS];
	bool vcpus_run;
	_Atomic bool vcpus_stop, saw_wrong;
	_Atomic uint8_t *stamps[FAKE_REGIONS_MAX];
	_Atomic unsigned touches;
	unsigned nap_every, nap_ms; /* of a vCPU, in touches */
};

extern const struct fakevm_config pair_small;

/* Post-copy at once, peer timeout 3 s, recover timeout 8 s: tests change the options before run. */
struct pair *pair_new(const struct fakevm_config *config);
/* One whose pages take a few seconds to follow. */
struct pair *pair_slow(void);
struct lm_session *pair_session(const struct lm_options *o, enum lm_side side, struct fakevm_state *st);
/* Makes both sessions and the network between them, then does as pair_go(). */
void pair_run(struct pair *p);
/* Both sessions to their ends. */
void pair_go(struct pair *p);
void pair_free(struct pair *p);
bool pair_is_stage(const struct lm_event *e, const char *name);
void pair_assert_moved(struct pair *p);
void pair_assert_postcopied(struct pair *p);
/* The guest is at the source as before, and nowhere else. */
void pair_assert_stayed(const struct pair *p, enum lm_outcome outcome);
/* Nothing is left: no state file, no pager. */
void pair_assert_left_nothing(const struct pair *p);
/* The program of a group of tests: [NAME]. */
#define pair_main(argc, argv, tests) pair_main_of(argc, argv, tests, sizeof(tests) / sizeof((tests)[0]))
int pair_main_of(int argc, char **argv, const struct CMUnitTest *tests, size_t n);

#endif
