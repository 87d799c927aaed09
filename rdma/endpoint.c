/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "rails.h"

static struct rd_wire_rail rail_put(const struct rd_rail *r)
{
	bool v6 = r->addr.sa.sa_family == AF_INET6;
	struct rd_wire_rail ret = {
		.family = lm_le16(v6 ? 6 : 4), .port = lm_le16(rd_addr_port(&r->addr)), .mbps = lm_le32(r->mbps),
	};

	if (v6)
		memcpy(ret.address, &r->addr.v6.sin6_addr, 16);
	else
		memcpy(ret.address, &r->addr.v4.sin_addr, 4);
	return ret;
}

void rd_endpoint_put(const struct rd_rail *rails, unsigned n, uint8_t ret[static LM_ENDPOINT_SIZE])
{
	struct rd_wire_endpoint e = { .magic = lm_le64(RDMA_ENDPOINT_MAGIC), .version = lm_le16(RDMA_VERSION),
					.count = lm_le16((uint16_t)n) };

	for (unsigned i = 0; i < n; i++)
		e.rails[i] = rail_put(&rails[i]);
	memcpy(ret, &e, sizeof(e));
}

static bool all_zero(const void *p, size_t n)
{
	const uint8_t *b = p;

	while (n && !*b) {
		b++;
		n--;
	}
	return !n;
}

/* Only addresses that a listener can have and a packet can be routed to. */
static bool address_usable(const struct rd_rail *r)
{
	if (r->addr.sa.sa_family == AF_INET) {
		uint32_t a = ntohl(r->addr.v4.sin_addr.s_addr);

		return a >> 24 && a >> 24 != 127 && a >> 28 != 14 && a != UINT32_MAX;
	}
	return !IN6_IS_ADDR_UNSPECIFIED(&r->addr.v6.sin6_addr) && !IN6_IS_ADDR_LOOPBACK(&r->addr.v6.sin6_addr) &&
	       !IN6_IS_ADDR_MULTICAST(&r->addr.v6.sin6_addr) && !IN6_IS_ADDR_LINKLOCAL(&r->addr.v6.sin6_addr) &&
	       !IN6_IS_ADDR_V4MAPPED(&r->addr.v6.sin6_addr);
}

static bool rail_get(const struct rd_wire_rail *w, struct rd_rail *ret)
{
	unsigned family = lm_le16_get(w->family);

	*ret = (struct rd_rail){ .gid = -1, .mbps = lm_le32_get(w->mbps) };
	if (family == 4) {
		ret->addr.v4.sin_family = AF_INET;
		memcpy(&ret->addr.v4.sin_addr, w->address, 4);
		if (!all_zero(w->address + 4, 12))
			return false;
	} else if (family == 6) {
		ret->addr.v6.sin6_family = AF_INET6;
		memcpy(&ret->addr.v6.sin6_addr, w->address, 16);
	} else {
		return false;
	}
	rd_addr_set_port(&ret->addr, lm_le16_get(w->port));
	return lm_le16_get(w->port) && address_usable(ret);
}

int rd_endpoint_get(const uint8_t blob[static LM_ENDPOINT_SIZE], struct rd_rail ret[static RDMA_RAILS_MAX],
		      unsigned *ret_n, struct lm_error *err)
{
	struct rd_wire_endpoint e;
	unsigned n;

	memcpy(&e, blob, sizeof(e));
	n = lm_le16_get(e.count);
	if (lm_le64_get(e.magic) != RDMA_ENDPOINT_MAGIC || lm_le16_get(e.version) != RDMA_VERSION ||
	    lm_le32_get(e.reserved) || !n || n > RDMA_RAILS_MAX ||
	    !all_zero(&e.rails[n], (RDMA_RAILS_MAX - n) * sizeof(e.rails[0])))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination's RDMA endpoint is not one of version %d",
			      RDMA_VERSION);
	for (unsigned i = 0; i < n; i++)
		if (!rail_get(&e.rails[i], &ret[i]))
			return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "rail %u of the destination's RDMA endpoint makes no sense",
				      i);
	*ret_n = n;
	return 0;
}
