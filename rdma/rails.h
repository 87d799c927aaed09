/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rails: which device, port and address of this host talk to which of the peer.
 * Nothing here calls verbs; find.c fills in what there is.
 */
#ifndef LM_RDMA_RAILS_H
#define LM_RDMA_RAILS_H

#include <netinet/in.h>
#include "wire.h"

#define RDMA_RAILS_MAX 10
#define RDMA_PAIRS_MAX 32
#define RDMA_DEV_MAX 64

union rd_addr {
	struct sockaddr sa;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* An address of an RDMA port. */
struct rd_rail {
	char dev[RDMA_DEV_MAX]; /* "" at the peer */
	unsigned port;          /* of the device, from 1 */
	int gid;                /* index of the GID of this address; -1: not known */
	unsigned prefix;        /* length of the network's */
	uint32_t mbps;
	union rd_addr addr;   /* port 0, but at the peer */
};

/* Which address to connect from, and to. */
struct rd_pair {
	int local; /* index; -1: the kernel's routing decides */
	unsigned peer;
	bool dead; /* no route, or nobody answered */
};

/* "DEV[:PORT[:GID]]" */
struct rd_rail_spec {
	char dev[RDMA_DEV_MAX];
	unsigned port; /* 0: any */
	int gid;       /* -1: any */
};

int rd_rail_spec_parse(const char *text, struct rd_rail_spec *ret, struct lm_error *err);
/*
 * Keep those rails that one of the specs means, in the specs' order; n specs, 0: all stay.
 * Returns how many are left; 0 with an error that names a spec without a rail.
 */
unsigned rd_rails_select(struct rd_rail *rails, unsigned nrails, const struct rd_rail_spec *specs,
			   unsigned n, struct lm_error *err);

/*
 * Who connects to whom, the best first: by the lesser speed of the two ends.  A peer's
 * address on a network of ours is reached from there; the others by routing, or,
 * when the rails were named, from each of them.
 */
unsigned rd_pairs_make(const struct rd_rail *local, unsigned nlocal, bool named,
			 const struct rd_rail *peer, unsigned npeer,
			 struct rd_pair ret[static RDMA_PAIRS_MAX]);
/* The pair for a lane at its first, second, ... attempt; -1: none is left. */
int rd_pair_choose(const struct rd_pair *pairs, unsigned npairs, unsigned lane, unsigned attempt);

void rd_endpoint_put(const struct rd_rail *rails, unsigned n, uint8_t ret[static LM_ENDPOINT_SIZE]);
/* Believes nothing. */
int rd_endpoint_get(const uint8_t blob[static LM_ENDPOINT_SIZE], struct rd_rail ret[static RDMA_RAILS_MAX],
		      unsigned *ret_n, struct lm_error *err);

static inline uint16_t rd_addr_port(const union rd_addr *a)
{
	return ntohs(a->sa.sa_family == AF_INET6 ? a->v6.sin6_port : a->v4.sin_port);
}

static inline void rd_addr_set_port(union rd_addr *a, uint16_t port)
{
	if (a->sa.sa_family == AF_INET6)
		a->v6.sin6_port = htons(port);
	else
		a->v4.sin_port = htons(port);
}

/* Whether the first bits of the two are the same; port and scope do not count. */
bool rd_addr_same_net(const union rd_addr *a, const union rd_addr *b, unsigned prefix);

#endif
