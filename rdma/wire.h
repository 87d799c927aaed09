/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What two RDMA transports say to each other.  All integers are little-endian.
 *
 * Endpoint: where the destination listens, one entry per rail; travels in OPENED.
 * Hello: private data of a lane's rdma_connect().  A request that does not show
 * the session's token is rejected.
 * Key: per region, in READY: how the passive side divides it into chunks.
 *
 * Over a lane, by SEND (no immediate data: iWARP has none), one message per receive
 * buffer, a header and `count` entries:
 *
 *	active side                                      passive side
 *	  WANT {region, chunk}...                     ->   registers them
 *	                        <-  KEYS {region, chunk, address, rkey}...
 *	  RDMA WRITE ...                                   (nothing: the device places it)
 *	  ZERO {region, kind, offset, len}...         ->   clears them
 *	  FLUSH {seq, bytes}                          ->
 *	                        <-  FLUSHED {seq}          all before it is placed and visible
 *	  CREDIT                                     <->   receive buffers are free again, zeros are placed
 *	  CLOSE                                      <->   nothing follows in this direction
 *
 * Every header gives credits back and says how many ZERO messages were placed.  A
 * side may have as many messages under way as it has credits, RDMA_NRECV at first;
 * the last one is kept for CREDIT.
 */
#ifndef LM_RDMA_WIRE_H
#define LM_RDMA_WIRE_H

#include "engine/base/le.h"
#include "engine/transport/transport.h"

#define RDMA_VERSION 1
#define RDMA_ENDPOINT_MAGIC UINT64_C(0x31646e652d726d6c) /* "lmr-end1" */
#define RDMA_HELLO_MAGIC    UINT32_C(0x31686d6c)         /* "lmh1" */
#define RDMA_MSG_MAGIC      UINT32_C(0x31726d6c)         /* "lmr1" */

#define RDMA_NRECV 32
#define RDMA_MSG_SIZE 4096

struct rd_wire_rail {
	struct le16 family;   /* 4 or 6 */
	struct le16 port;     /* of the listener */
	struct le32 mbps;     /* speed of the link */
	uint8_t address[16];  /* network byte order; IPv4: the first four */
};

struct rd_wire_endpoint {
	struct le64 magic;
	struct le16 version;
	struct le16 count;
	struct le32 reserved; /* 0 */
	struct rd_wire_rail rails[10]; /* unused ones: 0 */
};

struct rd_hello {
	struct le32 magic;
	struct le16 version;
	struct le16 direction; /* enum lm_direction */
	struct le16 lane;
	struct le16 nlanes;
	struct le32 reserved;  /* 0 */
	uint8_t token[LM_TOKEN_SIZE];
};

struct rd_wire_key {
	struct le32 version;
	struct le32 shift; /* a chunk is 1 << shift bytes */
	struct le64 size;  /* of the region */
	uint8_t reserved[16]; /* 0 */
};

enum rd_msg_type {
	RDMA_WANT = 1,
	RDMA_KEYS,
	RDMA_ZERO,
	RDMA_FLUSH,
	RDMA_FLUSHED,
	RDMA_CREDIT,
	RDMA_CLOSE,
};

struct rd_msg {
	struct le32 magic;
	struct le16 type;
	struct le16 count;   /* of entries */
	struct le32 credits; /* receive buffers that were given back since the message before */
	struct le32 placed;  /* ZERO messages placed so far, modulo 2^32 */
	struct le64 seq;     /* FLUSH, FLUSHED; else 0 */
	struct le64 bytes;   /* FLUSH: of data written on this lane so far; else 0 */
};

struct rd_want {
	struct le32 region;
	struct le32 chunk;
};

struct rd_rkey {
	struct le32 region;
	struct le32 chunk;
	struct le64 address; /* of the chunk's first byte */
	struct le32 rkey;
	struct le32 error;   /* errno: why there is no key; else 0 */
};

struct rd_zero {
	struct le32 region;
	struct le32 kind;    /* LM_RUN_ZERO */
	struct le64 offset;
	struct le64 len;
};

#define RDMA_ENTRIES(type) ((RDMA_MSG_SIZE - sizeof(struct rd_msg)) / sizeof(type))

_Static_assert(sizeof(struct rd_wire_rail) == 24, "size on the wire");
_Static_assert(sizeof(struct rd_wire_endpoint) == LM_ENDPOINT_SIZE, "size on the wire");
_Static_assert(sizeof(struct rd_hello) == 32, "size on the wire; InfiniBand has room for 56");
_Static_assert(sizeof(struct rd_wire_key) == LM_KEY_SIZE, "size on the wire");
_Static_assert(sizeof(struct rd_msg) == 32, "size on the wire");
_Static_assert(sizeof(struct rd_want) == 8, "size on the wire");
_Static_assert(sizeof(struct rd_rkey) == 24, "size on the wire");
_Static_assert(sizeof(struct rd_zero) == 24, "size on the wire");
_Static_assert(LM_PUSH == 0 && LM_PULL == 1 && LM_RUN_ZERO == 1, "values on the wire");

#endif
