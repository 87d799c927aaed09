/* SPDX-License-Identifier: Apache-2.0 */
/* TCP lanes whose other end is a bare socket, and what is said on it by hand. */
#ifndef TRANSPORT_CONTRACT_TCP_H
#define TRANSPORT_CONTRACT_TCP_H

#include "engine/net/stream.h"
#include "transport_contract.h"
#include "engine/tcp/wire.h"

#define NREGION_PAGES 16

struct message {
	struct tcp_frame frame;
	struct tcp_desc desc[LM_WRITE_MAX];
	uint8_t data[2 * LM_PAGE_SIZE];
	unsigned ndesc;
	size_t ndata;
};

static inline struct tcp_desc desc(uint32_t region, uint32_t kind, uint64_t offset, uint64_t len)
{
	return (struct tcp_desc){ lm_le32(region), lm_le32(kind), lm_le64(offset), lm_le64(len) };
}

/* Connect to the rig's listener. */
struct lm_stream *dial(struct rig *rig);
void say(struct lm_stream *s, const void *p, size_t len);
void message_say(struct lm_stream *s, const struct message *m);
/* The preamble that the rig's destination expects. */
struct tcp_preamble preamble(const struct rig *rig, unsigned lane);
/* A destination with one lane whose other end is a bare socket. */
struct lm_stream *rig_by_hand(struct rig *rig);
/* Whether the peer hangs up within some seconds. */
bool hangs_up(struct lm_stream *s);

#endif
