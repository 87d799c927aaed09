/* SPDX-License-Identifier: Apache-2.0 */
/* Which RDMA ports of this host have an address that rdma_cm can use. */
#include <ifaddrs.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "rdma.h"

/* Lanes times Gb/s, as the enumerations of the InfiniBand specification say. */
static uint32_t speed_mbps(const struct ibv_port_attr *a)
{
	unsigned lanes = a->active_width == 2 ? 4 : a->active_width == 4 ? 8 : a->active_width == 8 ? 12 :
			 a->active_width == 16 ? 2 : 1;
	uint32_t each;

	switch (a->active_speed) {
	case 1: each = 2500; break;
	case 2: each = 5000; break;
	case 4: case 8: each = 10000; break;
	case 16: each = 14000; break;
	case 32: each = 25000; break;
	case 64: each = 50000; break;
	case 128: each = 100000; break;
	default: each = 2500; break;
	}
	return lanes * each;
}

static unsigned prefix_of(const struct sockaddr *mask, int family)
{
	const uint8_t *b;
	unsigned n = 0, bytes = family == AF_INET6 ? 16 : 4;

	if (!mask)
		return bytes * 8;
	b = family == AF_INET6 ? (const uint8_t *)&((const struct sockaddr_in6 *)mask)->sin6_addr :
				 (const uint8_t *)&((const struct sockaddr_in *)mask)->sin_addr;
	while (n < bytes * 8 && b[n / 8] >> (7 - n % 8) & 1)
		n++;
	return n;
}

/* The index of the address among the port's GIDs; RoCE version 2 if it is there twice. */
static int gid_of(struct ibv_context *verbs, unsigned port, const union rd_addr *a)
{
	struct ibv_gid_entry e;
	uint8_t want[16] = { [10] = 0xff, [11] = 0xff };
	struct ibv_port_attr attr;
	int found = -1;

	if (ibv_query_port(verbs, (uint8_t)port, &attr))
		return -1;
	if (a->sa.sa_family == AF_INET6)
		memcpy(want, &a->v6.sin6_addr, 16);
	else
		memcpy(want + 12, &a->v4.sin_addr, 4);
	for (int i = 0; i < attr.gid_tbl_len; i++) {
		if (ibv_query_gid_ex(verbs, port, (uint32_t)i, &e, 0) || memcmp(e.gid.raw, want, 16))
			continue;
		if (found < 0 || e.gid_type == IBV_GID_TYPE_ROCE_V2)
			found = i;
	}
	return found;
}

static bool address_take(const struct ifaddrs *i, union rd_addr *ret)
{
	if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK)
		return false;
	memset(ret, 0, sizeof(*ret));
	if (i->ifa_addr->sa_family == AF_INET) {
		memcpy(&ret->v4, i->ifa_addr, sizeof(ret->v4));
		return true;
	}
	if (i->ifa_addr->sa_family != AF_INET6)
		return false;
	memcpy(&ret->v6, i->ifa_addr, sizeof(ret->v6));
	return !IN6_IS_ADDR_LINKLOCAL(&ret->v6.sin6_addr);
}

/* Whether an active port of an RDMA device has this address; fills *r. */
static bool rail_probe(struct rdma_event_channel *channel, const struct ifaddrs *i, struct rd_rail *r)
{
	struct ibv_port_attr attr;
	struct rdma_cm_id *id;
	bool ok = false;

	*r = (struct rd_rail){ .gid = -1 };
	if (!address_take(i, &r->addr) || rdma_create_id(channel, &id, NULL, RDMA_PS_TCP))
		return false;
	if (!rdma_bind_addr(id, &r->addr.sa) && id->verbs && !ibv_query_port(id->verbs, id->port_num, &attr) &&
	    attr.state == IBV_PORT_ACTIVE) {
		snprintf(r->dev, sizeof(r->dev), "%s", ibv_get_device_name(id->verbs->device));
		r->port = id->port_num;
		r->gid = gid_of(id->verbs, r->port, &r->addr);
		r->prefix = prefix_of(i->ifa_netmask, r->addr.sa.sa_family);
		r->mbps = speed_mbps(&attr);
		ok = true;
	}
	rdma_destroy_id(id);
	return ok;
}

/* One address per port: the first, of IPv4 if there is one. */
static unsigned one_per_port(struct rd_rail *rails, unsigned n)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < n; i++) {
		unsigned k = 0;

		while (k < kept && (strcmp(rails[k].dev, rails[i].dev) || rails[k].port != rails[i].port))
			k++;
		if (k == kept)
			rails[kept++] = rails[i];
		else if (rails[k].addr.sa.sa_family == AF_INET6 && rails[i].addr.sa.sa_family == AF_INET)
			rails[k] = rails[i];
	}
	return kept;
}

static int nothing_found(struct lm_error *err)
{
	int n = 0;
	struct ibv_device **list = ibv_get_device_list(&n);

	if (list)
		ibv_free_device_list(list);
	if (!n)
		return lm_err(err, -ENODEV, LM_SCOPE_SESSION, "this host has no RDMA device that user programs can use (is the "
			      "driver loaded, and are ib_uverbs and rdma_ucm?)");
	return lm_err(err, -ENODEV, LM_SCOPE_SESSION, "no active port of an RDMA device has an IP address here: bring its "
		      "network interface up and give it one (`rdma link`, `ip address`)");
}

#define CANDIDATES_MAX 64

int rd_rails_find(const char *const *names, unsigned n, struct rd_rail ret[static RDMA_RAILS_MAX],
		    unsigned *ret_n, struct lm_error *err)
{
	struct rd_rail_spec specs[RDMA_RAILS_MAX];
	struct rd_rail rails[CANDIDATES_MAX];
	struct rdma_event_channel *channel;
	struct ifaddrs *all = NULL;
	unsigned found = 0;
	int r;

	if (n > RDMA_RAILS_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "%u rails: at most %d", n, RDMA_RAILS_MAX);
	for (unsigned i = 0; i < n; i++)
		if (rd_rail_spec_parse(names[i], &specs[i], err))
			return -EINVAL;
	r = rd_channel_make(&channel);
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "no connection manager (is the module rdma_ucm loaded, and "
				    "may we open /dev/infiniband/rdma_cm?)");
	if (!getifaddrs(&all)) {
		for (const struct ifaddrs *i = all; i && found < CANDIDATES_MAX; i = i->ifa_next)
			found += rail_probe(channel, i, &rails[found]);
		freeifaddrs(all);
	}
	rdma_destroy_event_channel(channel);
	if (!found)
		return nothing_found(err);
	found = rd_rails_select(rails, found, specs, n, err);
	if (!found)
		return -ENODEV;
	found = one_per_port(rails, found);
	*ret_n = found < RDMA_RAILS_MAX ? found : RDMA_RAILS_MAX;
	memcpy(ret, rails, *ret_n * sizeof(*ret));
	return 0;
}
