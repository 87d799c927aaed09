/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes over a TCP lane.
 *
 * A lane is one TCP connection from the source to the destination's listener,
 * the one that the control channel came in by.  All integers are little-endian.
 *
 *	source                                          destination
 *	  preamble {magic, version, token, lane, nlanes}  ->
 *	                        <-  frame WELCOME            it is ours, and the first with this number
 *	  frame BATCH, count descriptors, data           ->   placed while it comes in
 *	  ...
 *	  frame FLUSH {seq}                              ->
 *	                        <-  frame FLUSHED {seq}      all before it is placed and visible
 *	  frame CLOSE                                   <->   nothing follows in this direction
 *
 * A connection that does not show the right preamble is closed without an answer.
 *
 * A BATCH has 1 to LM_WRITE_MAX descriptors {region, kind, offset, len}, then the
 * bytes of its DATA runs one after the other; `bytes` is their sum, `seq` counts
 * the lane's batches from 1.  A ZERO run has no bytes.  FLUSH numbers grow with
 * every FLUSH of the lane.
 *
 * The destination believes nothing: magic, version, type, count, seq, sum, and that
 * every run lies in a region in whole pages (lm_transport_run_valid) are checked
 * before a byte of the batch is placed; anything else ends the lane with -EPROTO.
 * Its memory does not depend on what the peer sends.  A frame type that it does
 * not know is an error: extensions need a new version, which the preamble says.
 */
#ifndef LM_TRANSPORT_TCP_WIRE_H
#define LM_TRANSPORT_TCP_WIRE_H

#include "le.h"
#include "transport.h"

#define TCP_PREAMBLE_MAGIC UINT64_C(0x31656e616c2d6d6c) /* "lm-lane1" */
#define TCP_FRAME_MAGIC    UINT32_C(0x31666d6c)         /* "lmf1" */
#define TCP_VERSION 1

struct tcp_preamble {
	struct le64 magic;
	struct le32 version;
	struct le32 lane;
	struct le32 nlanes;
	struct le32 reserved; /* 0 */
	uint8_t token[LM_TOKEN_SIZE];
};

enum tcp_frame_type {
	TCP_WELCOME = 1,
	TCP_BATCH,
	TCP_FLUSH,
	TCP_FLUSHED,
	TCP_CLOSE,
};

struct tcp_frame {
	struct le32 magic;
	struct le32 type;
	struct le32 count;    /* BATCH: descriptors; else 0 */
	struct le32 reserved; /* 0 */
	struct le64 bytes;    /* BATCH: of data; else 0 */
	struct le64 seq;      /* BATCH, FLUSH, FLUSHED; else 0 */
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

static inline struct tcp_frame tcp_frame_make(enum tcp_frame_type type, uint64_t seq)
{
	return (struct tcp_frame){ .magic = lm_le32(TCP_FRAME_MAGIC), .type = lm_le32(type), .seq = lm_le64(seq) };
}

#endif
