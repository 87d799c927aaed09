/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The TCP transport, inside.
 *
 * Sending.  Either the bytes are copied into the socket (sendmsg), or the socket
 * is given references to the pages of guest RAM (vmsplice into a pipe, splice
 * from there) and no CPU of the source copies anything.  A page may change while it
 * is referenced: then it is dirty again and comes again, and in the last round
 * the guest stands still.  References win where the wire takes the bytes out of
 * memory; on a connection within one host they lose (the receiver's copy then
 * runs over cold pages, one small fragment each), so there the copy is the choice.
 * It is also what is left when pipes are refused or the stream is not the
 * bare socket (TLS).
 *
 * Placing.  A page that is new to the file is spliced from the socket into the file: the kernel
 * writes it whole, without clearing it first, without a page fault and without a page-table entry.
 * A page that was placed before is received straight into the mapping, one system call for many
 * runs.  hugetlbfs files know only the mapping.  `seen` has a bit for every page that was placed;
 * it only chooses the way, so an outdated bit costs time and no data.
 *
 * Waiting.  A receiver that wakes up for every segment spends more on waking up
 * than on placing: while a batch is coming in, SO_RCVLOWAT holds the wake-up back
 * until TCP_LOWAT bytes (or the rest of the batch) are there.
 *
 * Fetching (LM_PULL).  The answers to a fetch are placed in the same ways.  Placing
 * into the file is right here, too: the kernel marks a new page as filled when its first
 * bytes have come, but the guest does not see a page of the file before the pager has
 * placed it, and the engine has that done only for runs that are whole (`fetched`).
 * The source answers out of guest RAM; a page that is all zeros, or not there, is
 * answered as a zero run, and a hole of the source's file stays one
 * (lm_region_zeros).  Answers up to TCP_SMALL_BYTES are always copied: three system
 * calls for references cost more.  What one fault waits for is small: SO_RCVLOWAT stays
 * at one byte for it, a frame is read together with its first descriptor, and the
 * request goes out inside fetch.  Nothing waits for an acknowledgement (TCP_NODELAY).
 *
 * Rule 4 (nothing lands after shut): the lane's thread says `placing` around every
 * call that can write guest RAM and looks at `shut` in between; shut() sets
 * `shut` and waits for the call that is under way, which is short, because the
 * sockets never block.
 */
#ifndef LM_TRANSPORT_TCP_H
#define LM_TRANSPORT_TCP_H

#include <stdatomic.h>
#include <sys/uio.h>
#include "engine/net/stream.h"
#include "wire.h"

/* The pipe between pages and socket: what an unprivileged user may have (fs.pipe-max-size). */
#define TCP_PIPE_SIZE (1 << 20)
/* A batch is closed when it has so many data bytes (one longer run goes alone). */
#define TCP_BATCH_BYTES (UINT64_C(4) << 20)
/* Longest pieces that one step receives and clears: they bound how long shut() has to wait. */
#define TCP_PIECE_BYTES (UINT64_C(1) << 20)
#define TCP_ZERO_BYTES (UINT64_C(64) << 20)
#define TCP_LOWAT (512 << 10)
#define TCP_SCRATCH_SIZE (64 << 10)
/* Answers that are always copied; batches that are not waited for as a whole. */
#define TCP_SMALL_BYTES (64 << 10)
/* What may be outstanding on a lane: this many runs, and bytes (one longer run goes alone). */
#define TCP_FETCH_RUNS 512
#define TCP_FETCH_BYTES (UINT64_C(4) << 20)

enum tcp_method { TCP_COPY, TCP_SPLICE };

/* Bytes of a header that has not gone out or come in whole yet. */
struct tcp_head {
	unsigned done, len;
	union {
		uint8_t bytes[sizeof(struct tcp_frame) + LM_WRITE_MAX * sizeof(struct tcp_desc)];
		struct {
			struct tcp_frame frame;
			struct tcp_desc desc[LM_WRITE_MAX];
		} h;
	} u;
};

/* LM_PULL, destination: what was asked for and has not come yet.  A ring; all three counts grow. */
struct tcp_fetch {
	uint64_t whole, sent, queued; /* runs [whole, sent) have been asked for, [sent, queued) will be */
	uint64_t done;                /* bytes of the run `whole` that are placed */
	uint64_t bytes;               /* of the runs [whole, queued) */
	struct lm_run ring[TCP_FETCH_RUNS];
};

/* Lane thread only, but for the atomics. */
struct tcp_lane {
	unsigned index;
	struct lm_stream *stream; /* NULL until connected */
	_Atomic bool shut;        /* any thread, once */
	_Atomic bool placing;     /* lane thread; see "Rule 4" above */
	bool closed;              /* the peer's CLOSE has come */
	int pipe[2];              /* -1 when there is none */
	size_t pipe_size;
	enum tcp_method method;
	uint64_t seq;             /* of the last BATCH */
	uint64_t request_seq;     /* of the last REQUEST */
	uint64_t flush_seq;       /* source: last sent; destination: last received */
	struct tcp_head in, out;
	struct tcp_fetch *fetch;  /* LM_PULL, destination; else NULL */
	/* Source: data of the batch that is under way */
	bool small;               /* it is copied, whatever the method */
	struct iovec iov[LM_WRITE_MAX];
	struct iovec *next;
	unsigned niov;
	size_t in_pipe;
	uint64_t flushed;
	/* Destination: where the batch is.  Source (LM_PULL): where the request is that is being answered. */
	bool in_batch;
	unsigned count, run;
	uint64_t run_done;        /* bytes of the run that are placed, or answered */
	uint64_t left;            /* bytes of the batch that are due */
	int lowat;                /* as set on the socket; 0: not yet */
	uint8_t *scratch;
	/* Counters */
	uint64_t batches, bytes, waits;
};

struct tcp_region {
	struct lm_region local; /* as it was added */
	uint8_t *host;
	uint64_t size, page_size, file_offset;
	int fd;                 /* the caller's */
	_Atomic bool splice;    /* the file takes splice; any lane clears it */
	_Atomic uint64_t *seen; /* destination: a bit per page; any lane */
	uint64_t seen_words;
};

struct tcp {
	struct lm_transport base;
	struct tcp_lane *lanes;
	struct tcp_region regions[LM_REGIONS_MAX];
};

/* open.c */
int tcp_connect_lanes(struct tcp *t, const struct lm_transport_params *p, struct lm_error *err);
int tcp_accept_lanes(struct tcp *t, const struct lm_transport_params *p, struct lm_error *err);
/* One lane, which has no stream. */
int tcp_connect_lane(struct tcp_lane *l, const struct lm_transport_params *p, struct lm_error *err);
int tcp_accept_lane(struct tcp *t, struct tcp_lane *l, const struct lm_transport_params *p, struct lm_error *err);

/* send.c: the source's lane */
int tcp_send_init(struct tcp_lane *l);
/* A batch of which not all is in the socket. */
bool tcp_send_pending(const struct tcp_lane *l);
/* 0: all is in the socket, -EAGAIN, or an error. */
int tcp_send_push(struct tcp_lane *l, struct lm_poll_result *res, struct lm_error *err);
int tcp_send_batch(struct tcp *t, struct tcp_lane *l, const struct lm_run *runs, unsigned n,
		   struct lm_error *err);
int tcp_send_flush(struct tcp_lane *l, uint64_t seq, struct lm_error *err);
int tcp_send_poll(struct tcp_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		  struct lm_error *err);

/* recv.c: the destination's lane */
int tcp_recv_init(struct tcp_lane *l);
int tcp_recv_poll(struct tcp *t, struct tcp_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		  struct lm_error *err);

/* fetch.c: LM_PULL, what the destination's lane asks for */
int tcp_fetch_init(struct tcp_lane *l);
int tcp_fetch_queue(struct tcp_lane *l, const struct lm_run *runs, unsigned n, struct lm_error *err);
/* Ask for what is queued: 0 when all is out, -EAGAIN, or an error. */
int tcp_fetch_send(struct tcp_lane *l);
/* Whether the first count descriptors in l->in answer what was asked for, from where the last ones ended. */
bool tcp_fetch_expects(const struct tcp_lane *l, unsigned count);
/* The pieces from `first` up to l->run are placed. */
void tcp_fetch_placed(struct tcp_lane *l, unsigned first);

/* answer.c: LM_PULL, the source's lane */
int tcp_answer_poll(struct tcp *t, struct tcp_lane *l, int timeout_ms, int wake_fd, struct lm_poll_result *res,
		    struct lm_error *err);

/* place.c: one step at l->run: the bytes placed (0 for zeros), -EAGAIN, or an error */
ssize_t tcp_place_data(struct tcp *t, struct tcp_lane *l, struct lm_error *err);
int tcp_place_zero(struct tcp *t, struct tcp_lane *l, struct lm_error *err);

/* lane.c: shared by both sides */
bool tcp_place_begin(struct tcp_lane *l); /* false: the lane is shut */
void tcp_place_end(struct tcp_lane *l);
void tcp_lane_free(struct tcp_lane *l);
int tcp_pipe_open(struct tcp_lane *l);
struct lm_run tcp_desc_get(const struct tcp_desc *d);
/* Write what is in l->out: 0 when all is out, -EAGAIN, or an error. */
int tcp_head_send(struct tcp_lane *l);
/* Fill l->in up to len bytes: 1 when it is there, 0 at the end of the stream, -EAGAIN, or an error. */
int tcp_head_recv(struct tcp_lane *l, unsigned len);
/*
 * LM_PULL: fill l->in with a frame, and with its first descriptor if that is there:
 * every frame but CLOSE has one, and nothing follows CLOSE.  As tcp_head_recv().
 */
int tcp_frame_recv(struct tcp_lane *l);
/* Wait at most timeout_ms: the events that came, or an error. */
int tcp_lane_wait(struct tcp_lane *l, short events, int timeout_ms, int wake_fd);
int tcp_lane_error(struct tcp_lane *l, int code, struct lm_error *err, const char *doing);

#endif
