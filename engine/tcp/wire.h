/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes over a TCP lane.
 *
 * A lane is one TCP connection from the source to the destination's listener,
 * the one that the control channel came in by.  All integers are little-endian.
 *
 *	source                                          destination
 *	  preamble {magic, version, token, lane,         ->
 *	            nlanes, direction}
 *	                        <-  frame WELCOME            it is ours, and the first with this number
 *
 *	LM_PUSH:
 *	  frame BATCH, count descriptors, data           ->   placed while it comes in
 *	  ...
 *	  frame FLUSH {seq}                              ->
 *	                        <-  frame FLUSHED {seq}      all before it is placed and visible
 *
 *	LM_PULL:
 *	                        <-  frame REQUEST, count descriptors
 *	  frame BATCH, count descriptors, data           ->   placed while it comes in
 *	  ...                                                 until all of the request is answered
 *
 *	either:
 *	  frame CLOSE                                   <->   nothing follows in this direction
 *
 * A connection that does not show the right preamble is closed without an answer.
 *
 * A BATCH has 1 to LM_WRITE_MAX descriptors {region, kind, offset, len}, then the
 * bytes of its DATA runs one after the other; `bytes` is their sum, `seq` counts
 * the lane's batches from 1.  A ZERO run has no bytes.  FLUSH numbers grow with
 * every FLUSH of the lane.
 *
 * A REQUEST has 1 to LM_WRITE_MAX descriptors, all of kind DATA: what the destination wants.
 * `bytes` is the sum of their lengths, `seq` counts the lane's requests from 1.  The answer is
 * made of BATCHes whose runs, one after the other, cover the requested runs in their order, each
 * cut into as many pieces of DATA and ZERO as the source likes; a piece belongs to one requested
 * run, and a BATCH may end in the middle of a run and hold pieces of many, also of different
 * requests.  More than one REQUEST may be on its way.  The source reads the next only when the
 * answer to the one before has gone out, so a peer that asks too much, or does not read its
 * answers, costs the source no memory; the destination bounds what it has asked for
 * (TCP_FETCH_BYTES, TCP_FETCH_RUNS).
 *
 * Neither side believes anything: magic, version, direction, type, count, seq, sum,
 * and that every run lies in a region in whole pages (lm_transport_run_valid), and of
 * an answer that it goes on where the last one ended and is of something that was
 * asked for, are checked before a byte of the batch is placed or answered; anything
 * else ends the lane with -EPROTO.  Memory does not depend on what the peer sends.  A
 * frame type that does not belong to the direction is an error: extensions need a new
 * version, which the preamble says.
 */
#ifndef LM_TRANSPORT_TCP_WIRE_H
#define LM_TRANSPORT_TCP_WIRE_H

#include "engine/base/le.h"
#include "engine/transport/transport.h"

#define TCP_PREAMBLE_MAGIC UINT64_C(0x31656e616c2d6d6c) /* "lm-lane1" */
#define TCP_FRAME_MAGIC    UINT32_C(0x31666d6c)         /* "lmf1" */
#define TCP_VERSION 1

struct tcp_preamble {
	struct le64 magic;
	struct le32 version;
	struct le32 lane;
	struct le32 nlanes;
	struct le32 direction; /* enum lm_direction */
	uint8_t token[LM_TOKEN_SIZE];
};

enum tcp_frame_type {
	TCP_WELCOME = 1,
	TCP_BATCH,
	TCP_FLUSH,
	TCP_FLUSHED,
	TCP_CLOSE,
	TCP_REQUEST,
};

struct tcp_frame {
	struct le32 magic;
	struct le32 type;
	struct le32 count;    /* BATCH, REQUEST: descriptors; else 0 */
	struct le32 reserved; /* 0 */
	struct le64 bytes;    /* BATCH: of data; REQUEST: of all runs; else 0 */
	struct le64 seq;      /* BATCH, REQUEST, FLUSH, FLUSHED; else 0 */
};

struct tcp_desc {
	struct le32 region;
	struct le32 kind; /* enum lm_run_kind */
	struct le64 offset;
	struct le64 len;
};

_Static_assert(sizeof(struct tcp_preamble) == 40, "size on the wire");
_Static_assert(sizeof(struct tcp_frame) == 32, "size on the wire");
_Static_assert(sizeof(struct tcp_desc) == 24, "size on the wire");
_Static_assert(LM_RUN_DATA == 0 && LM_RUN_ZERO == 1, "kinds on the wire");
_Static_assert(LM_PUSH == 0 && LM_PULL == 1, "directions on the wire");

static inline struct tcp_desc tcp_desc_make(const struct lm_run *run)
{
	return (struct tcp_desc){ .region = lm_le32(run->region), .kind = lm_le32(run->kind),
				  .offset = lm_le64(run->offset), .len = lm_le64(run->len) };
}

static inline struct tcp_frame tcp_frame_make(enum tcp_frame_type type, uint64_t seq)
{
	return (struct tcp_frame){ .magic = lm_le32(TCP_FRAME_MAGIC), .type = lm_le32(type), .seq = lm_le64(seq) };
}

#endif
