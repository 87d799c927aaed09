/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transports: how guest pages get from the source's RAM into the destination's.
 *
 * A transport has lanes.  Each lane is driven by one thread on each side and
 * needs no lock: write, flush and poll of a lane are called by its thread only.
 * open, region_add, region_bind and close are called by the session's thread
 * while no lane thread runs.  The one exception is shut, see below.
 *
 * Rules that every backend keeps and tests/contract checks:
 *  1. A run is placed at (region, offset) of the peer's RAM and nowhere else; a
 *     descriptor from the peer that lies outside a region is refused (-EPROTO).
 *  2. Runs of one lane are placed in the order in which they were written.
 *     Between lanes there is no order: the engine sends a page at most once
 *     between two flushes of all lanes.
 *  3. A flush is confirmed only when the data of all earlier writes of the lane
 *     is visible to the destination's CPUs.
 *  4. After close (or shut) on the destination nothing can reach guest RAM any
 *     more, however late it arrives.
 *  5. -EAGAIN means that the lane is full: poll and try again.  Any other error
 *     kills the lane, and only the lane.
 */
#ifndef LM_TRANSPORT_H
#define LM_TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>
#include "region.h"

#define LM_LANES_MAX 64
#define LM_TOKEN_SIZE 16
#define LM_KEY_SIZE 32      /* opaque to the engine: an rkey and an address, say */
#define LM_ENDPOINT_SIZE 256
/* Longest run; lm_transport_write() refuses longer ones. */
#define LM_RUN_MAX (UINT64_C(1) << 30)
#define LM_WRITE_MAX 256    /* runs in one write call */

enum lm_side { LM_SOURCE, LM_DEST };

enum lm_run_kind {
	LM_RUN_DATA, /* the bytes at this place in the sender's region */
	LM_RUN_ZERO, /* the bytes there become zero, freed where the file allows */
};

/* A run of whole pages in one region. */
struct lm_run {
	uint32_t region;
	enum lm_run_kind kind;
	uint64_t offset; /* bytes, multiple of LM_PAGE_SIZE */
	uint64_t len;    /* bytes, multiple of LM_PAGE_SIZE, > 0 */
};

struct lm_key {
	uint8_t bytes[LM_KEY_SIZE];
};

struct lm_transport_params {
	enum lm_side side;
	unsigned nlanes;
	uint8_t token[LM_TOKEN_SIZE]; /* of this session: a lane that does not show it is not ours */
	int listen_fd;                /* destination: where lanes may come in; stays the caller's */
	const char *peer;             /* source: "HOST:PORT" of the destination's listener */
	bool insecure;                /* peers that are not loopback are allowed */
	int64_t deadline_ns;          /* for open */
	int cancel_fd;                /* readable when the session is cancelled; -1: none */
};

struct lm_poll_result {
	uint64_t flushed; /* source: highest flush sequence number that was confirmed */
	uint64_t bytes;   /* destination: data bytes placed by this call; source: sent by this call */
	bool closed;      /* the peer closed this lane in an orderly way */
};

struct lm_transport;

struct lm_transport_ops {
	const char *name;
	/*
	 * Connect (source) or wait for (destination) all lanes, until the deadline.
	 * On error everything that open made is gone again and close is not called.
	 */
	int (*open)(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err);
	/* Make a local region known; *ret_key is what the peer needs to reach it. */
	int (*region_add)(struct lm_transport *t, unsigned index, const struct lm_region *region,
			  struct lm_key *ret_key, struct lm_error *err);
	/* Source: the peer's key for region index. */
	int (*region_bind)(struct lm_transport *t, unsigned index, const struct lm_key *key,
			   struct lm_error *err);
	/* Queue up to n runs; returns how many were taken (>= 1), -EAGAIN, or an error. */
	int (*write)(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		     struct lm_error *err);
	/* Queue a flush; seq grows by one with every flush of the lane.  0, -EAGAIN or an error. */
	int (*flush)(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err);
	/*
	 * Move the lane on, waiting at most timeout_ms (0: not at all) for something
	 * to happen.  The destination places data here.  0 or an error.
	 */
	int (*poll)(struct lm_transport *t, unsigned lane, int timeout_ms, struct lm_poll_result *res,
		    struct lm_error *err);
	/*
	 * Make a lane unusable at once, from any thread, while its own thread may be
	 * in write, flush or poll (which then return an error soon).  Does not free.
	 * May be called again; the wrappers call it after every error of a lane.
	 */
	void (*shut)(struct lm_transport *t, unsigned lane);
	/*
	 * Free everything, the object itself too, whether it is open or not.  No lane
	 * thread runs any more.
	 */
	void (*close)(struct lm_transport *t);
};

/* A backend embeds this first. */
struct lm_transport {
	const struct lm_transport_ops *ops;
	enum lm_side side;
	bool is_open;
	unsigned nlanes;
	unsigned nregions;                 /* regions added so far: indices 0..nregions-1 */
	uint64_t region_size[LM_REGIONS_MAX];
	char info[128];                    /* filled by open: how it works here, for the debug log */
};

/* Makers: the object is the caller's; lm_transport_free() closes it too. */
struct lm_transport *lm_transport_tcp_new(void);
/*
 * In process, for tests: source and destination are two ends made together;
 * open both, then write at one end and poll the other.
 */
int lm_transport_loop_new(struct lm_transport **ret_source, struct lm_transport **ret_dest);

/* The only way to call a backend: state and arguments are checked here. */
int lm_transport_open(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err);
int lm_transport_region_add(struct lm_transport *t, const struct lm_region *region,
			    struct lm_key *ret_key, struct lm_error *err);
int lm_transport_region_bind(struct lm_transport *t, unsigned index, const struct lm_key *key,
			     struct lm_error *err);
int lm_transport_write(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err);
int lm_transport_flush(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err);
int lm_transport_poll(struct lm_transport *t, unsigned lane, int timeout_ms,
		      struct lm_poll_result *res, struct lm_error *err);
void lm_transport_shut(struct lm_transport *t, unsigned lane);
void lm_transport_free(struct lm_transport *t); /* takes NULL */

/* Whether a run lies inside the regions that were added, in whole pages. */
bool lm_transport_run_valid(const struct lm_transport *t, const struct lm_run *run);

struct lm_transport_info {
	const char *name;
	const char *what; /* one line for people */
	struct lm_transport *(*make)(void);
};
/* By name; NULL when there is none.  "auto" is the first. */
const struct lm_transport_info *lm_transport_find(const char *name);

#endif
