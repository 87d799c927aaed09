/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The threads that bring missing pages, with everything that they need, in one process: RAM on both
 * sides, a transport (in process, or TCP on loopback), threads of a guest that touch pages, and a
 * pager that is a table: it checks each page when it is shown, then writes to it as a guest would, so
 * that whatever lands later is found.  The destination's transport goes through a decorator that looks
 * at what is fetched, and fails when told to.
 */
#ifndef PULLRIG_H
#define PULLRIG_H

#include <pthread.h>
#include "engine/net/address.h"
#include "engine/postcopy/puller.h"

#define LANES 2 /* of the background */
#define NREGIONS 2
#define PAGES_MAX 4096
#define TOUCHERS 8
#define QUEUE 8192

/* of the regions */
extern const uint64_t rig_pages[NREGIONS];

struct rig {
	struct lm_ram src, dst;
	struct lm_bitmap whole[NREGIONS];
	struct lm_puller p;
	bool tcp;
	/* the connection */
	struct lm_transport *source, *dest; /* dest: the decorator */
	struct lm_transport_params params; /* of both, but for side and ram */
	char address[LM_ADDRESS_MAX];
	struct lm_pool *answerers;
	_Atomic bool stop_answering;
	_Atomic unsigned fetches, die_at; /* the die_at-th fetch of a connection fails, and those after it; 0: none */
	_Atomic unsigned die_lanes;       /* a bit for each lane that this is true of */
	bool die_first;                   /* the other lanes wait for that */
	_Atomic unsigned died, fenced;    /* bits of lanes of this connection */
	_Atomic uint8_t owner[NREGIONS][PAGES_MAX]; /* the lane that has fetched the page, and one */
	_Atomic uint64_t fetched_pages;
	/* the pager */
	struct lm_pager pager;
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	struct lm_page_fault queue[QUEUE];
	unsigned put, taken;
	bool shown[NREGIONS][PAGES_MAX];
	_Atomic int fail_place;
	_Atomic unsigned wrong_content, not_whole, fetched_again, too_early;
	/* who touches */
	_Atomic bool give_up;
	struct toucher {
		struct rig *g;
		uint64_t x;
		pthread_t thread;
	} touchers[TOUCHERS];
	unsigned ntouchers;
};

/* The source has content in three of four pages; the destination something older everywhere. All is left. */
struct rig *rig_new(bool tcp);
void rig_free(struct rig *g);
uint8_t *rig_page(const struct lm_ram *ram, unsigned region, uint64_t page);
/* Touch a page as a thread of the guest: true when it is there, false when the test is over. */
bool rig_touch(struct rig *g, unsigned region, uint64_t page);
/* n threads that touch pages anywhere, until the end. */
void rig_touchers_start(struct rig *g, unsigned n);
void rig_touchers_end(struct rig *g);
/* Faults are answered from now on. */
void rig_serve(struct rig *g);
/* A connection comes, and goes. */
void rig_up(struct rig *g);
void rig_down(struct rig *g);
/* A lane that has died, over TCP, is opened again and fetches from here on. */
void rig_lane_back(struct rig *g, unsigned lane);
/* Until nothing is missing. */
bool rig_await_all(struct rig *g, unsigned seconds);
/* Every page is as it was at the source, or as the guest has changed it since it saw it. */
void rig_assert_all_right(struct rig *g);

#endif
