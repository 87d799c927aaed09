/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The RDMA transport, inside.  README.md has the theory; wire.h what is said.
 *
 * Objects, from the long-lived to the short-lived:
 *   device  one per RDMA device and process, shared by all transports: PD, thread for
 *           asynchronous events, threads that register memory (device.c)
 *   mem     guest memory registered with a device, shared by transports of the same
 *           device and memory (mr.c)
 *   use     what one transport uses of one device
 *   lane    a connection: rdma_cm id, QP, CQ (cm.c, connect.c, accept.c; lane.c, post.c, peer.c)
 */
#ifndef LM_RDMA_H
#define LM_RDMA_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <rdma/rdma_cma.h>
#include "plan.h"
#include "rails.h"

#define RDMA_SQ_DEPTH 512
/* Of these, kept for messages: they go out when the rest is full of data. */
#define RDMA_SQ_MESSAGES (RDMA_NRECV + 1)
/* A completion after so many work requests or bytes: seldom enough to cost nothing, often enough to show life. */
#define RDMA_SIGNAL_EVERY 32
#define RDMA_SIGNAL_BYTES (UINT64_C(4) << 20)
#define RDMA_PIECE_MAX (UINT64_C(16) << 20)
/* Work requests that are posted in one call. */
#define RDMA_BATCH 32
/* Longest piece of zeros that one step clears: bounds how long shut() has to wait. */
#define RDMA_ZERO_BYTES (UINT64_C(64) << 20)
#define RDMA_WORKERS_MAX 4
/* Chunks that are asked for ahead of the one that is needed: so many, and of small ones so many bytes. */
#define RDMA_AHEAD 3
#define RDMA_AHEAD_BYTES (UINT64_C(32) << 20)
#define RDMA_INLINE 64
#define RDMA_STAGE_SIZE (UINT64_C(4) << 20)

struct rd_lane;

/* ---- what calls of the libraries say when they fail; never 0 ---- */

/* Those that set errno: not all of them always do. */
static inline int rd_errno(void)
{
	return errno ? -errno : -EIO;
}

/* For calls that return the error: some providers return it negative, some return -1 and set errno.  0 stays 0. */
static inline int rd_result(int r)
{
	return r > 0 ? -r : r == -1 ? rd_errno() : r;
}

/* ---- device.c ---- */

struct rd_job {
	struct rd_mem *mem;
	uint32_t chunk;
	struct rd_job *next;
};

struct rd_device {
	struct rd_device *next; /* under the registry's mutex, as is refs */
	unsigned refs;
	/* Constant */
	struct ibv_context *verbs;
	struct ibv_pd *pd;
	struct ibv_device_attr_ex attr;
	const char *name;
	bool iwarp;
	struct rdma_event_channel *anchor_channel;
	struct rdma_cm_id *anchor; /* keeps the context open as long as we use it */
	int stop_fd;
	pthread_t watcher;
	/* Under mutex: */
	pthread_mutex_t mutex;
	pthread_cond_t work, idle;
	struct rd_lane *lanes; /* open ones */
	struct rd_mem *mems;
	struct rd_job *jobs, **jobs_end;
	bool stop;
	unsigned nworkers;
	pthread_t workers[RDMA_WORKERS_MAX];
};

/* The device of this bound or resolved id; shared, counted. */
int rd_device_get(struct rdma_cm_id *id, struct rd_device **ret, struct lm_error *err);
void rd_device_put(struct rd_device *d); /* takes NULL */
/* From add to remove, asynchronous events of its port shut the lane. */
void rd_device_add_lane(struct rd_device *d, struct rd_lane *l);
void rd_device_remove_lane(struct rd_device *d, struct rd_lane *l);
/* It can do what we need on demand; and whether only where packets are of 4 KiB. */
bool rd_device_odp(const struct rd_device *d);
bool rd_device_odp_needs_4k(const struct rd_device *d);

/* ---- mr.c ---- */

enum rd_chunk_state { RDMA_CHUNK_NONE, RDMA_CHUNK_WANTED, RDMA_CHUNK_BUSY, RDMA_CHUNK_READY, RDMA_CHUNK_FAILED };

struct rd_chunk {
	_Atomic int state; /* written under the device's mutex */
	int error;         /* FAILED: errno */
	struct ibv_mr *mr; /* READY */
	_Atomic uint32_t asked; /* by lanes that may do without, see chunk_is_full(); ODP: it was prefetched */
};

struct rd_mem {
	struct rd_device *dev;
	struct rd_mem *next; /* under the device's mutex, as are refs and busy */
	unsigned refs, busy;
	/* Constant */
	uint8_t *host;
	uint64_t size;
	unsigned access, shift;
	enum rd_mode mode;
	uint32_t nchunks;
	int fd; /* the caller's */
	uint64_t file_offset, page_size;
	struct ibv_mr *whole; /* RDMA_MODE_ODP: one for all chunks */
	_Atomic int prefetch_error; /* errno: the device takes no advice, so it gets no more */
	struct rd_chunk chunks[];
};

/* Memory of this region on this device; shared, counted.  ODP that is refused becomes CHUNK. */
int rd_mem_get(struct rd_device *d, const struct lm_region *region, unsigned access, unsigned shift,
		 enum rd_mode mode, struct rd_mem **ret, struct lm_error *err);
void rd_mem_put(struct rd_mem *m); /* takes NULL; deregisters with the last */
/* Any thread: have the chunk registered in the background; its state. */
int rd_mem_want(struct rd_mem *m, uint32_t chunk);
/*
 * Any thread, does not wait.  ODP: have the device look up the pages of this chunk before it needs
 * them, once, and only those that exist: a hole would be allocated.  Whether it does or not
 * changes nothing but the time.
 */
void rd_mem_prefetch(struct rd_mem *m, uint32_t chunk);
/* Have all chunks registered but those that skip (NULL: none) names, and wait for it. */
int rd_mem_all(struct rd_mem *m, bool (*skip)(const void *opaque, uint32_t chunk), const void *opaque,
	       struct lm_error *err);
/* The size of the chunks in which this memory is registered already, as log2; 0: it is not. */
unsigned rd_mem_shift(struct rd_device *d, const struct lm_region *region);
/* Of a READY chunk. */
static inline struct ibv_mr *rd_mem_mr(const struct rd_mem *m, uint32_t chunk)
{
	return m->whole ? m->whole : m->chunks[chunk].mr;
}

static inline int rd_mem_state(struct rd_mem *m, uint32_t chunk)
{
	return atomic_load_explicit(&m->chunks[chunk].state, memory_order_acquire);
}

/*
 * Any thread: run fn while no registration of this chunk begins, its result in *ret;
 * false: it is, or is being, registered.
 */
bool rd_mem_unless_pinned(struct rd_mem *m, uint32_t chunk, int (*fn)(void *), void *arg, int *ret);

/* ---- a transport ---- */

/* Constant once it counts (nuses). */
struct rd_use {
	struct rd_device *dev;
	bool late;          /* of a lane that came back: no thread waits until its memory is registered */
	bool small_packets; /* a lane's path MTU is below 4096 */
	struct rd_mem *mem[LM_REGIONS_MAX];
};

struct rd_region {
	uint8_t *host;
	uint64_t size, page_size, file_offset;
	int fd;         /* the caller's */
	unsigned shift; /* of our chunks */
	bool sparse;    /* source: it has holes, which registering would make real */
};

/* Of a source's region: whether any of these bytes is a hole of the file. */
bool rd_region_has_hole(const struct rd_region *r, uint64_t from, uint64_t len);

struct rdma {
	struct lm_transport base;
	struct rd_lane *lanes;
	struct rd_use uses[RDMA_RAILS_MAX];
	_Atomic unsigned nuses; /* grows when a lane comes back over a device that is new, while others work */
	enum lm_pin pin;
	bool may_pull, may_discard;
	uint64_t ram_bytes;        /* of the guest; 0: not told */
	struct rd_region regions[LM_REGIONS_MAX];
	unsigned peer_shift[LM_REGIONS_MAX]; /* active side, of the peer's chunks; 0: not bound */
	/* Source: who connects to whom, as found by open */
	struct rd_rail local[RDMA_RAILS_MAX], peer[RDMA_RAILS_MAX];
	struct rd_pair pairs[RDMA_PAIRS_MAX];
	unsigned npairs;
	/* Destination, from listen to close: lanes may come back */
	struct rdma_event_channel *listen_channel;
	struct rd_rail listening[RDMA_RAILS_MAX];
	struct rdma_cm_id *listeners[RDMA_RAILS_MAX]; /* NULL: the rail's device is gone */
	unsigned nlisteners;
};

/* What the peer's device needs to hear for one of its chunks. */
struct rd_peer_chunk {
	uint64_t address;
	uint32_t rkey;
	int error; /* errno: the peer cannot register it */
	enum { RDMA_PEER_UNKNOWN, RDMA_PEER_ASKED, RDMA_PEER_READY } state;
};

struct rd_peer_region {
	unsigned shift;
	uint32_t nchunks;
	struct rd_peer_chunk *chunks; /* NULL: not bound */
};

/* What a work request in the send queue stands for. */
struct rd_note {
	uint32_t bytes;    /* of data */
	uint32_t staged;   /* of them in the staging buffer */
	bool is_message;
	bool ends_run;
};

enum rd_lane_state { RDMA_LANE_NEW, RDMA_LANE_ADDR, RDMA_LANE_ROUTE, RDMA_LANE_CONNECT, RDMA_LANE_OPEN };

/* Lane thread only, but for the atomics; open and close while there is none. */
struct rd_lane {
	struct rdma *t;
	unsigned index;
	enum rd_lane_state state;
	unsigned attempt, pair;    /* source, open: which pair of rails is tried, */
	int64_t attempt_until_ns;  /* and how long, if there is another */
	unsigned home, returns;    /* source: the pair it was opened with; attempts to come back */
	/* Constant while open */
	struct rd_lane *next_on_device;
	struct rd_use *use;
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	struct ibv_comp_channel *completions;
	struct ibv_cq *cq;
	unsigned depth, max_inline;
	uint64_t max_msg;
	int event_fd;              /* shut, or memory was registered */
	uint8_t *buffers;          /* RDMA_NRECV to receive, RDMA_NRECV to send */
	struct ibv_mr *buffers_mr;
	/* Any thread */
	_Atomic bool shut;
	_Atomic bool parted; /* who shut it is done with the queue pair */
	_Atomic bool placing;      /* lane thread; see rd_place_begin() */
	_Atomic(const char *) why; /* something that is not its peer shut it, rd_lane_fail() */
	/* The connection */
	bool armed;                /* completions will be told */
	bool hung_up;              /* rdma_cm says so */
	bool closed;               /* CLOSE has come */
	/* Send queue: counters of work requests, and what each stands for */
	uint64_t posted, completed;
	struct rd_note *notes;   /* ring of depth */
	unsigned unsignaled;
	uint64_t unsignaled_bytes;
	struct ibv_send_wr wr[RDMA_BATCH];
	struct ibv_sge sge[RDMA_BATCH];
	unsigned nbatch;
	/* Messages */
	uint64_t msgs_posted, msgs_completed;
	unsigned credits, owed;    /* to send; receive buffers to tell about */
	/* Active side */
	struct rd_peer_region peer[LM_REGIONS_MAX];
	struct lm_run rest;        /* of the run that is under way; len 0: none */
	struct rd_want wants[RDMA_ENTRIES(struct rd_want)];
	unsigned nwants;
	struct rd_zero zeros[RDMA_ENTRIES(struct rd_zero)];
	unsigned nzeros;
	uint32_t zeros_sent, zeros_placed;     /* messages */
	uint64_t zero_lo, zero_hi; /* encloses those that are not placed; see active.c */
	uint64_t written;          /* bytes of data queued since open */
	uint64_t flush_queued, flush_seq, flushed; /* asked for, sent, confirmed */
	bool full;                 /* write said so; until the next poll */
	uint64_t fetched;
	/* Staging: for memory that must not be pinned */
	uint8_t *stage;
	struct ibv_mr *stage_mr;
	uint64_t stage_head, stage_tail;
	/* Passive side */
	uint64_t *asked[LM_REGIONS_MAX]; /* a bit per chunk whose key the peer waits for */
	unsigned nasked;
	uint64_t flush_due;        /* FLUSH that is not answered; 0: none */
	uint64_t flush_seen, bytes_seen;
	uint32_t placed, placed_told;
	/* Counters */
	uint64_t waits;
};

/* memory.c: which memory is registered how */
/* Fills t->regions[index], and registers it with all devices or begins to. */
int rd_memory_add(struct rdma *t, unsigned index, const struct lm_region *region, struct lm_error *err);
/* What READY carries of it. */
struct lm_key rd_memory_key(const struct rd_region *r);
/* Memory for a use that came late; before it counts. */
int rd_use_add_memory(struct rdma *t, struct rd_use *u, struct lm_error *err);
static inline const char *rd_peer_name(const struct rd_lane *l)
{
	return l->t->base.side == LM_SOURCE ? "destination" : "source";
}

/* channel.c: the id's events */
/*
 * One event, without waiting: 0; -EAGAIN: there is none, or another negative errno.  Of a
 * CONNECT_REQUEST the new id is the caller's.
 */
struct rd_event {
	enum rdma_cm_event_type type;
	int status;
	struct rdma_cm_id *id;
	struct rd_hello hello;
	bool has_hello;
};
int rd_event_next(struct rdma_event_channel *channel, struct rd_event *ret);
/* Non-blocking, the caller's to destroy; 0 or a negative errno. */
int rd_channel_make(struct rdma_event_channel **ret);

/*
 * accept.c: the destination's lanes.  All of it for the session's thread, but for accept_again,
 * see reopen in transport.h; accepting and connecting wait until p's deadline, or until its cancel_fd is
 * readable.  After an error the caller resets lanes and calls unlisten.
 */
int rd_cm_listen(struct rdma *t, const struct lm_transport_params *p, uint8_t ret_endpoint[LM_ENDPOINT_SIZE],
		   struct lm_error *err);
void rd_cm_unlisten(struct rdma *t);
int rd_cm_accept(struct rdma *t, const struct lm_transport_params *p, struct lm_error *err);
/* One lane that was reset, once more. */
int rd_cm_accept_again(struct rdma *t, struct rd_lane *l, const struct lm_transport_params *p, struct lm_error *err);

/* connect.c: the source's lanes */
int rd_cm_connect(struct rdma *t, const struct lm_transport_params *p, struct lm_error *err);
/* One lane that was reset, once more, over one pair of rails: its own while other lanes work. */
int rd_cm_connect_again(struct rdma *t, struct rd_lane *l, const struct lm_transport_params *p, struct lm_error *err);

/* find.c: the RDMA ports of this host that have addresses, one rail each */
int rd_rails_find(const char *const *names, unsigned n, struct rd_rail ret[static RDMA_RAILS_MAX],
		    unsigned *ret_n, struct lm_error *err);

/* stop.c */
/* The queue pair in error, so that nothing is placed any more, and the peer told. */
void rd_lane_disconnect(struct rd_lane *l);
/* Any thread: queue pair in error, thread woken; shut also waits for zeros that are being placed. */
void rd_lane_stop(struct rd_lane *l);
/* The same, unless it is shut already, with the words that its errors shall have (static). */
void rd_lane_fail(struct rd_lane *l, const char *why);
void rd_lane_shut(struct rd_lane *l);
void rd_lane_wake(struct rd_lane *l); /* any thread */
/* Why the lane cannot go on; code 0: the peer hung up. */
int rd_lane_error(struct rd_lane *l, int code, struct lm_error *err, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
bool rd_place_begin(struct rd_lane *l); /* false: the lane is shut */
void rd_place_end(struct rd_lane *l);

/* lane.c */
int rd_lane_init(struct rd_lane *l, struct rdma *t, unsigned index);
/* QP, CQ, buffers, receives: all that must be there before the first message. */
int rd_lane_setup(struct rd_lane *l, struct lm_error *err);
/* After the connection stands: what the peer may do. */
int rd_lane_restrict(struct rd_lane *l);
/* No thread uses the lane any more: its queue pair is gone, the rest goes with reset. */
void rd_lane_fence(struct rd_lane *l);
/* Back to NEW, all resources gone. */
void rd_lane_reset(struct rd_lane *l);
int rd_lane_poll(struct rd_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		   struct lm_error *err);
/* The id's events of an open lane, without waiting: whether the peer has hung up, or its device is gone. */
void rd_lane_hear(struct rd_lane *l);
/* Orderly end of all lanes, at most some time. */
void rd_lanes_say_close(struct rdma *t);

/* post.c: the send queue.  0, -EAGAIN: no room (or key, or memory) now, or an error */
int rd_post_recv(struct rd_lane *l, unsigned buffer);
int rd_post_batch(struct rd_lane *l, struct lm_error *err);
/* A part of a run that needs one work request. */
struct rd_piece {
	uint64_t local, remote, len;
	uint32_t lkey, rkey;
	uint32_t staged; /* bytes of the staging buffer that are free again when it has completed */
	bool ends_run;
};
/* Work requests that the queue has room for, messages aside. */
unsigned rd_data_room(const struct rd_lane *l);
int rd_post_data(struct rd_lane *l, const struct rd_piece *p, struct lm_error *err);
/* Whether a message may go out now; last_credit: it is a CREDIT. */
bool rd_can_send(const struct rd_lane *l, bool last_credit);
int rd_send(struct rd_lane *l, enum rd_msg_type type, const void *entries, unsigned n, size_t size,
	      uint64_t seq, uint64_t bytes, struct lm_error *err);
void rd_sent(struct rd_lane *l, uint64_t upto, struct lm_poll_result *res);

/* active.c: write and fetch */
int rd_active_bind(struct rd_lane *l, unsigned region, unsigned shift, uint64_t size);
int rd_active_queue(struct rd_lane *l, const struct lm_run *runs, unsigned n, struct lm_error *err);
int rd_active_flush(struct rd_lane *l, uint64_t seq, struct lm_error *err);
/* Go on with what is queued. */
int rd_active_advance(struct rd_lane *l, struct lm_error *err);

/* peer.c: messages that have come; what they lead to */
int rd_peer_message(struct rd_lane *l, const uint8_t *buf, size_t len, struct lm_poll_result *res,
		      struct lm_error *err);
int rd_peer_answer(struct rd_lane *l, struct lm_error *err);

/* place.c */
int rd_place_zero(struct rd_lane *l, const struct lm_run *run, struct lm_error *err);

/* info.c: lm_transport_info.usable and .check */
bool lm_rdma_usable(const char *peer, const char *const *rails, unsigned nrails, char *ret_why, size_t size);
void lm_rdma_check(lm_check_fn *fn, void *opaque);

#endif
