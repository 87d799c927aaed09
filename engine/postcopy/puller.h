/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy, destination: the threads that bring the missing pages.
 *
 * One thread takes the guest's faults.  It lives from the moment at which all pages
 * that stay behind are named until the last one is whole, whether there is a
 * connection or not: pages that are whole are shown at any time.  While there is a
 * connection it drives the lane for faults (the last one): the page itself first,
 * then its neighbours.  The other lanes have a worker each, which fetches what is
 * missing in the background, from where the last fault was.
 *
 * A lane that fails gives back what it had on its way, and the others go on.  Without the
 * lane for faults the background's serve faults before anything else.  Only when none of
 * those is left is the connection lost, and both sides make a new one.  A lane that failed may
 * come back while the others work.
 *
 * The session's thread makes and frees everything, and calls up, background, down
 * and stop in this order (up ... down as often as the peer is lost and found; lane_back in between).
 */
#ifndef LM_PULLER_H
#define LM_PULLER_H

#include "arrival.h"
#include "engine/base/pool.h"
#include "engine/base/throttle.h"

#define LM_PULL_QUEUE 256 /* runs of one lane that are claimed and not whole */

/* Lane thread only. */
struct lm_pull_lane {
	struct lm_run runs[LM_PULL_QUEUE]; /* in order: [done, sent) are being fetched, [sent, put) wait */
	uint64_t put, sent, done;          /* since the lane was opened */
	uint64_t bytes;                    /* in [done, put) */
	uint64_t owed;                     /* bytes that the bandwidth cap has not been paid for */
	int64_t moved_ns;                  /* when something last came, or the lane had nothing to wait for */
	struct lm_error error;
} __attribute__((aligned(64)));

enum lm_pull_phase { LM_PULL_DOWN, LM_PULL_UP, LM_PULL_STOPPING };

struct lm_puller {
	const struct lm_ram *ram;
	struct lm_pager *pager;
	struct lm_arrival arrival;
	struct lm_transport *transport; /* not owned; valid from up to down */
	struct lm_pool *pool;           /* owned: one worker per background lane */
	struct lm_pull_lane *lanes;     /* nlanes + 1 */
	unsigned nlanes;                /* of the background; lane number nlanes is for faults */
	int64_t stall_ns;
	struct lm_throttle throttle;
	pthread_t faults;
	bool serving, pulling;
	_Atomic int phase;              /* enum lm_pull_phase; the fault thread turns STOPPING into DOWN */
	_Atomic bool stop;              /* the fault thread ends */
	_Atomic bool stop_background;
	_Atomic uint64_t failed;        /* a bit per lane that its thread has let go; its error was written before */
	_Atomic bool lost;              /* no lane of the background is left: the session's thread has to act */
	_Atomic bool vm_lost;           /* pages cannot be shown: see vm_error */
	struct lm_error vm_error;       /* written once, before vm_lost */
	_Atomic bool vm_error_taken;
	_Atomic uint64_t bytes;
	_Atomic uint64_t around_pages;  /* fetched with a fault */
	int event_fd;                   /* readable: a lane failed, vm_lost, or nothing is missing any more */
};

/*
 * pager is armed.  whole: one bitmap per region (arrival.h); both stay the caller's.
 * nlanes: of the background, at least 1.
 */
int lm_puller_init(struct lm_puller *p, const struct lm_ram *ram, struct lm_pager *pager,
		   struct lm_bitmap *whole, unsigned nlanes, struct lm_error *err);
/* The pages that stay behind are known: faults are answered from here on. */
int lm_puller_serve(struct lm_puller *p, struct lm_error *err);
/* There is a connection: t has nlanes + 1 lanes and its regions are bound. */
void lm_puller_up(struct lm_puller *p, struct lm_transport *t);
/* Begin to fetch what nobody waits for. */
void lm_puller_background(struct lm_puller *p);
/*
 * Wait until the thread of a lane that has failed no longer uses it; that thread then ignores the lane
 * until lane_back.
 */
void lm_puller_lane_wait(struct lm_puller *p, unsigned lane);
/* It was opened again: it fetches from here on.  After wait. */
void lm_puller_lane_back(struct lm_puller *p, unsigned lane);
/*
 * When it returns, no thread uses the transport, and pages that were on their way are missing again.
 * May be down already.
 */
void lm_puller_down(struct lm_puller *p);
/* How much to fetch with a fault: what the link carries in one round trip. */
void lm_puller_set_link(struct lm_puller *p, int64_t rtt_ns, uint64_t bytes_per_s);
/* Why the first lane failed; NULL: none has failed since the last up. */
const struct lm_error *lm_puller_error(const struct lm_puller *p);
uint64_t lm_puller_missing(struct lm_puller *p);
/* Down, and the fault thread ends: nobody calls the pager any more. */
void lm_puller_stop(struct lm_puller *p);
/* The same, and all is freed.  Takes a zeroed one. */
void lm_puller_fini(struct lm_puller *p);

#endif
