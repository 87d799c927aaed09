/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transports: how guest pages get from the source's RAM into the destination's.
 *
 * A transport object works in one direction of control.  LM_PUSH (pre-copy): the
 * source writes runs, the destination's poll places them where that takes a CPU.
 * LM_PULL (post-copy): the destination fetches runs, the source's poll answers
 * where that takes a CPU.  Data always goes from the source to the destination,
 * and it is always the source that connects.  The side that writes or fetches is
 * the active one; region keys are made by the other, the passive one.
 *
 * A transport has lanes.  Each lane is driven by one thread on each side and
 * needs no lock: write, fetch, flush and poll of a lane are called by its thread
 * only.  listen, open, region_add, region_bind and close are called by the
 * session's thread while no lane thread runs.  The exceptions are shut and reopen, see below.
 *
 * Rules that every backend keeps and tests/contract checks:
 *  1. A run is placed at (region, offset) of the peer's RAM and nowhere else; a
 *     descriptor from the peer that lies outside a region is refused (-EPROTO).
 *  2. Runs of one lane are placed in the order in which they were written.
 *     Between lanes there is no order: the engine sends a page at most once
 *     between two flushes of all lanes.
 *  3. A flush is confirmed only when the data of all earlier writes of the lane
 *     is visible to the destination's CPUs.
 *  4. After close or fence on the destination nothing can reach guest RAM any more,
 *     however late it arrives.  After shut nothing new can: a packet that the device
 *     is just placing may still land.
 *  5. -EAGAIN means that the lane is full: poll and try again.  Any other error
 *     kills the lane, and only the lane.
 *  6. A fetched run counts as fetched only when all of its bytes are visible to
 *     the destination's CPUs; those of one lane are completed in their order.
 *     After fence nothing that the lane had fetched but not completed can land any
 *     more, so it may be fetched elsewhere.
 */
#ifndef LM_TRANSPORT_H
#define LM_TRANSPORT_H

#include <stdbool.h>
#include <stdint.h>
#include "engine/base/region.h"
#include "engine/base/side.h"

#define LM_LANES_MAX 64
#define LM_TOKEN_SIZE 16
#define LM_KEY_SIZE 32      /* opaque to the engine: an rkey and an address, say */
#define LM_ENDPOINT_SIZE 256
#define LM_TRANSPORT_NAME_MAX 16
/* Longest run; lm_transport_write() refuses longer ones. */
#define LM_RUN_MAX (UINT64_C(1) << 30)
#define LM_WRITE_MAX 256    /* runs in one write call */

enum lm_direction { LM_PUSH, LM_PULL };

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
	enum lm_direction direction;
	unsigned nlanes;
	const struct lm_ram *ram;     /* the regions that will be added; outlives the transport */
	bool may_pull;                /* LM_PUSH: a transport in the other direction may follow for the same RAM */
	const char *const *rails;     /* devices to use, "DEV[:PORT[:GID]]"; nrails 0: find them */
	unsigned nrails;
	enum lm_pin pin;
	const uint8_t *endpoint;      /* source: LM_ENDPOINT_SIZE bytes that the destination's listen gave */
	uint8_t token[LM_TOKEN_SIZE]; /* of this session: a lane that does not show it is not ours */
	int listen_fd;                /* destination: where lanes may come in; stays the caller's */
	const char *peer;             /* source: "HOST:PORT" of the destination's listener */
	bool insecure;                /* peers that are not loopback are allowed */
	int64_t deadline_ns;          /* for open */
	int cancel_fd;                /* readable when the session is cancelled; -1: none */
	/*
	 * open: when peer_fd is readable, the peer has sent a message.  Then the thread that opens
	 * calls peer_said, which returns 0, or an error if waiting has become pointless.
	 * peer_said NULL: peer_fd is ignored.
	 */
	int peer_fd;
	int (*peer_said)(void *opaque, struct lm_error *err);
	void *peer_opaque;
};

/* To be polled, for lm_transport_peer_said(); -1: nothing. */
static inline int lm_transport_peer_fd(const struct lm_transport_params *p)
{
	return p->peer_said ? p->peer_fd : -1;
}

struct lm_poll_result {
	uint64_t flushed; /* source: highest flush sequence number that was confirmed */
	uint64_t bytes;   /* destination: data bytes placed by this call; source: sent by this call */
	uint64_t fetched; /* LM_PULL, destination: runs of this lane that are whole, since open */
	bool closed;      /* the peer closed this lane in an orderly way */
};

struct lm_transport;

struct lm_transport_ops {
	const char *name;
	/*
	 * Destination, before open: begin to listen, and say where: ret_endpoint travels
	 * to the source, opaque to the engine.  NULL: the control channel's address is
	 * all that is needed.  After an error close is still called.
	 */
	int (*listen)(struct lm_transport *t, const struct lm_transport_params *p,
		      uint8_t ret_endpoint[LM_ENDPOINT_SIZE], struct lm_error *err);
	/*
	 * Connect (source) or wait for (destination) all lanes, until the deadline.
	 * On error everything that open made is gone again and close is not called.
	 */
	int (*open)(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err);
	/* Make a local region known; *ret_key is what the peer needs to reach it. */
	int (*region_add)(struct lm_transport *t, unsigned index, const struct lm_region *region,
			  struct lm_key *ret_key, struct lm_error *err);
	/* Active side: the peer's key for region index. */
	int (*region_bind)(struct lm_transport *t, unsigned index, const struct lm_key *key,
			   struct lm_error *err);
	/* Queue up to n runs; returns how many were taken (>= 1), -EAGAIN, or an error. */
	int (*write)(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		     struct lm_error *err);
	/*
	 * LM_PULL, destination: queue up to n runs (kind LM_RUN_DATA) to be fetched into
	 * their places; returns how many were taken (>= 1), -EAGAIN, or an error.  poll
	 * counts those that are whole.  NULL: this transport cannot.
	 */
	int (*fetch)(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		     struct lm_error *err);
	/* Queue a flush; seq grows by one with every flush of the lane.  0, -EAGAIN or an error. */
	int (*flush)(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err);
	/*
	 * Move the lane on, waiting at most timeout_ms (0: not at all) for something
	 * to happen or until wake_fd (-1: none) is readable.  In LM_PUSH the destination
	 * places data here, in LM_PULL the source answers here.  0 or an error.
	 */
	int (*poll)(struct lm_transport *t, unsigned lane, int timeout_ms, int wake_fd,
		    struct lm_poll_result *res, struct lm_error *err);
	/*
	 * Make a lane unusable at once, from any thread, while its own thread may be
	 * in write, flush or poll (which then return an error soon).  Does not free.
	 * May be called again; the wrappers call it after every error of a lane.
	 */
	void (*shut)(struct lm_transport *t, unsigned lane);
	/*
	 * Destination, the lane is shut, and its thread makes no more calls (or makes this one): what
	 * rule 4 needs beyond that, and nothing else: the guest may wait for it.  What takes longer
	 * (memory that is registered) is left to close.  May be called again.  NULL: shut is enough.
	 */
	void (*fence)(struct lm_transport *t, unsigned lane);
	/*
	 * Connect (source) or wait for (destination) one lane again that was shut, until p's
	 * deadline or until p's cancel_fd is readable.  p is as it was for open, but for these
	 * two and the token: a new one for every attempt, so that what is left of an attempt
	 * before is a stranger.  Regions and keys stay; the lane's sequence numbers begin anew.
	 * For one lane at a time, by any thread, while the other lanes work, and while nobody
	 * uses or shuts this one.  On error the lane is as shut as before.  NULL: lanes that
	 * have failed stay out.
	 */
	int (*reopen)(struct lm_transport *t, unsigned lane, const struct lm_transport_params *p,
		      struct lm_error *err);
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
	enum lm_direction direction;
	bool is_listening, is_open;
	unsigned nlanes;
	unsigned nregions;                 /* regions added so far: indices 0..nregions-1 */
	uint64_t region_size[LM_REGIONS_MAX];
	char info[128];                    /* filled by open: how it works here, for the debug log */
};

/*
 * In process, for tests: source and destination are two ends made together;
 * open both, then write at one end and poll the other.
 */
int lm_transport_loop_new(struct lm_transport **ret_source, struct lm_transport **ret_dest);

/* The only way to call a backend: state and arguments are checked here. */
/* ret_endpoint is all zeros for a transport that has nothing to say. */
int lm_transport_listen(struct lm_transport *t, const struct lm_transport_params *p,
			uint8_t ret_endpoint[LM_ENDPOINT_SIZE], struct lm_error *err);
int lm_transport_open(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err);
int lm_transport_region_add(struct lm_transport *t, const struct lm_region *region,
			    struct lm_key *ret_key, struct lm_error *err);
int lm_transport_region_bind(struct lm_transport *t, unsigned index, const struct lm_key *key,
			     struct lm_error *err);
int lm_transport_write(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err);
int lm_transport_flush(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err);
int lm_transport_fetch(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err);
int lm_transport_poll(struct lm_transport *t, unsigned lane, int timeout_ms,
		      struct lm_poll_result *res, struct lm_error *err);
/* The same, and returns early when wake_fd is readable. */
int lm_transport_poll_or(struct lm_transport *t, unsigned lane, int timeout_ms, int wake_fd,
			 struct lm_poll_result *res, struct lm_error *err);
void lm_transport_shut(struct lm_transport *t, unsigned lane);
/*
 * Shuts the lane and fences it.  The lane's own thread has ended, and the caller stands in for it:
 * only reopen and free may follow.
 */
void lm_transport_fence_lane(struct lm_transport *t, unsigned lane);
/* All lanes; no lane thread runs any more. */
void lm_transport_fence(struct lm_transport *t);
int lm_transport_reopen(struct lm_transport *t, unsigned lane, const struct lm_transport_params *p,
			struct lm_error *err);
void lm_transport_free(struct lm_transport *t); /* takes NULL */

/* The side that writes or fetches. */
static inline bool lm_transport_is_active(const struct lm_transport *t)
{
	return (t->direction == LM_PUSH) == (t->side == LM_SOURCE);
}

/* Whether a run lies inside the regions that were added, in whole pages. */
bool lm_transport_run_valid(const struct lm_transport *t, const struct lm_run *run);

#endif
