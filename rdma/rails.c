/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include "rails.h"

/* ---- --rail ---- */

/* A number at *at, up to the next colon or the end; -1 when there is none. */
static long number_at(const char **at, long max)
{
	char *end;
	long v;

	if (**at < '0' || **at > '9')
		return -1;
	errno = 0;
	v = strtol(*at, &end, 10);
	if (errno || v > max || (*end && *end != ':'))
		return -1;
	*at = end;
	return v;
}

int rd_rail_spec_parse(const char *text, struct rd_rail_spec *ret, struct lm_error *err)
{
	size_t len = strcspn(text, ":");
	const char *at = text + len;
	long port = 0, gid = -1;

	if (!len || len >= sizeof(ret->dev))
		goto bad;
	if (*at == ':') {
		at++;
		port = number_at(&at, 255);
		if (port < 1)
			goto bad;
	}
	if (*at == ':') {
		at++;
		gid = number_at(&at, 65535);
		if (gid < 0)
			goto bad;
	}
	if (*at)
		goto bad;
	memcpy(ret->dev, text, len);
	ret->dev[len] = 0;
	ret->port = (unsigned)port;
	ret->gid = (int)gid;
	return 0;
bad:
	return lm_err(err, -EINVAL, LM_SCOPE_OPERATION,
		      "rail '%.80s' is not DEVICE[:PORT[:GID]], such as mlx5_0:1:3 (ports count from 1)", text);
}

static bool spec_means(const struct rd_rail_spec *s, const struct rd_rail *r)
{
	return !strcmp(s->dev, r->dev) && (!s->port || s->port == r->port) && (s->gid < 0 || s->gid == r->gid);
}

unsigned rd_rails_select(struct rd_rail *rails, unsigned nrails, const struct rd_rail_spec *specs,
			   unsigned n, struct lm_error *err)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < n; i++) {
		unsigned before = kept;

		for (unsigned k = kept; k < nrails; k++) {
			struct rd_rail found = rails[k];

			if (!spec_means(&specs[i], &found))
				continue;
			rails[k] = rails[kept];
			rails[kept++] = found;
		}
		if (kept == before) {
			lm_err(err, -ENODEV, LM_SCOPE_SESSION,
			       "rail %s: no active RDMA port with an address is left for it; `migrate-rdma transports` "
			       "lists devices, ports and GIDs", specs[i].dev);
			return 0;
		}
	}
	return n ? kept : nrails;
}

/* ---- pairs ---- */

static const uint8_t *addr_bytes(const union rd_addr *a)
{
	return a->sa.sa_family == AF_INET6 ? (const uint8_t *)&a->v6.sin6_addr : (const uint8_t *)&a->v4.sin_addr;
}

bool rd_addr_same_net(const union rd_addr *a, const union rd_addr *b, unsigned prefix)
{
	unsigned bits = a->sa.sa_family == AF_INET6 ? 128 : 32, whole, rest;
	const uint8_t *x = addr_bytes(a), *y = addr_bytes(b);

	if (a->sa.sa_family != b->sa.sa_family)
		return false;
	prefix = prefix > bits ? bits : prefix;
	whole = prefix / 8;
	rest = prefix % 8;
	if (memcmp(x, y, whole))
		return false;
	return !rest || !((x[whole] ^ y[whole]) >> (8 - rest));
}

static uint32_t pair_mbps(const struct rd_pair *p, const struct rd_rail *local, const struct rd_rail *peer)
{
	uint32_t far = peer[p->peer].mbps, near = p->local < 0 ? far : local[p->local].mbps;

	return near < far ? near : far;
}

/* Stable, and n is small. */
static void pairs_sort(struct rd_pair *pairs, unsigned n, const struct rd_rail *local,
		       const struct rd_rail *peer)
{
	for (unsigned i = 1; i < n; i++) {
		struct rd_pair p = pairs[i];
		unsigned k = i;

		for (; k && pair_mbps(&pairs[k - 1], local, peer) < pair_mbps(&p, local, peer); k--)
			pairs[k] = pairs[k - 1];
		pairs[k] = p;
	}
}

/* The rail on the peer's network that has the fewest pairs so far, or -1. */
static int neighbour(const struct rd_rail *local, unsigned nlocal, const struct rd_rail *peer,
		     const unsigned *used)
{
	int best = -1;

	for (unsigned i = 0; i < nlocal; i++)
		if (rd_addr_same_net(&local[i].addr, &peer->addr, local[i].prefix) &&
		    (best < 0 || used[i] < used[best]))
			best = (int)i;
	return best;
}

unsigned rd_pairs_make(const struct rd_rail *local, unsigned nlocal, bool named,
			 const struct rd_rail *peer, unsigned npeer,
			 struct rd_pair ret[static RDMA_PAIRS_MAX])
{
	unsigned used[RDMA_RAILS_MAX] = { 0 }, n = 0;

	for (unsigned i = 0; i < npeer && n < RDMA_PAIRS_MAX; i++) {
		int near = neighbour(local, nlocal, &peer[i], used);

		if (near >= 0 || !named) {
			ret[n++] = (struct rd_pair){ .local = near, .peer = i };
			if (near >= 0)
				used[near]++;
			continue;
		}
		for (unsigned k = 0; k < nlocal && n < RDMA_PAIRS_MAX; k++)
			if (local[k].addr.sa.sa_family == peer[i].addr.sa.sa_family)
				ret[n++] = (struct rd_pair){ .local = (int)k, .peer = i };
	}
	pairs_sort(ret, n, local, peer);
	return n;
}

int rd_pair_choose(const struct rd_pair *pairs, unsigned npairs, unsigned lane, unsigned attempt)
{
	if (attempt >= npairs)
		return -1;
	for (unsigned i = 0; i < npairs; i++) {
		unsigned k = (lane + attempt + i) % npairs;

		if (!pairs[k].dead)
			return (int)k;
	}
	return -1;
}
