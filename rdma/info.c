/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include "engine/net/address.h"
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/base/memlock.h"
#include "rdma.h"

#define ROUTE_NS (2 * LM_NS_PER_S)
/* Less than this may be pinned: not even the buffers of the lanes. */
#define MEMLOCK_LEAST (UINT64_C(64) << 20)

/* ---- usable ---- */

/* The address resolves to a device of ours. */
static bool is_reached(const struct sockaddr *to)
{
	int64_t until = lm_now_ns() + ROUTE_NS;
	struct rdma_event_channel *channel;
	struct rdma_cm_id *id;
	struct rd_event e = { .type = RDMA_CM_EVENT_ADDR_ERROR };
	struct pollfd p = { .events = POLLIN };

	if (rd_channel_make(&channel))
		return false;
	if (rdma_create_id(channel, &id, NULL, RDMA_PS_TCP)) {
		rdma_destroy_event_channel(channel);
		return false;
	}
	p.fd = channel->fd;
	if (!rdma_resolve_addr(id, NULL, (struct sockaddr *)to, (int)(ROUTE_NS / LM_NS_PER_MS)))
		while (rd_event_next(channel, &e) == -EAGAIN && lm_now_ns() < until)
			poll(&p, 1, lm_deadline_poll_ms(until));
	rdma_destroy_id(id);
	rdma_destroy_event_channel(channel);
	return e.type == RDMA_CM_EVENT_ADDR_RESOLVED;
}

static bool peer_reached(const char *peer, char *ret_why, size_t size)
{
	struct addrinfo *all = NULL;
	struct lm_error err;
	bool local = false, ok = false;

	if (lm_address_resolve(peer, false, &all, &err)) {
		snprintf(ret_why, size, "%s", err.msg);
		return false;
	}
	for (const struct addrinfo *i = all; i && !ok; i = i->ai_next) {
		local |= lm_address_is_loopback(i->ai_addr);
		ok = !lm_address_is_loopback(i->ai_addr) && is_reached(i->ai_addr);
	}
	freeaddrinfo(all);
	if (!ok)
		snprintf(ret_why, size, local ? "%s is this host itself" :
			 "no RDMA device routes to %s: name the peer by an address of its RDMA network, or say --rail", peer);
	return ok;
}

bool lm_rdma_usable(const char *peer, const char *const *rails, unsigned nrails, char *ret_why, size_t size)
{
	struct rd_rail found[RDMA_RAILS_MAX];
	struct lm_error err = { 0 };
	unsigned n = 0;

	if (rd_rails_find(rails, nrails, found, &n, &err)) {
		snprintf(ret_why, size, "%s", err.msg);
		return false;
	}
	if (lm_memlock_limit() < MEMLOCK_LEAST) {
		snprintf(ret_why, size, "only %llu KiB of memory may be locked: raise the limit (`ulimit -l unlimited`, "
			 "LimitMEMLOCK=infinity)", (unsigned long long)lm_memlock_limit() >> 10);
		return false;
	}
	return !peer || nrails || peer_reached(peer, ret_why, size);
}

/* ---- check ---- */

static const char *link_name(const struct ibv_context *v, const struct ibv_port_attr *a)
{
	if (v->device->transport_type == IBV_TRANSPORT_IWARP)
		return "iWARP";
	return a->link_layer == IBV_LINK_LAYER_ETHERNET ? "RoCE" : "InfiniBand";
}

static unsigned gids_in_use(struct ibv_context *v, unsigned port, int len)
{
	struct ibv_gid_entry e;
	unsigned n = 0;

	for (int i = 0; i < len; i++)
		n += !ibv_query_gid_ex(v, port, (uint32_t)i, &e, 0);
	return n;
}

static bool can_odp(const struct ibv_device_attr_ex *a)
{
	const uint32_t need = IBV_ODP_SUPPORT_WRITE | IBV_ODP_SUPPORT_READ | IBV_ODP_SUPPORT_SEND;

	return a->odp_caps.general_caps & IBV_ODP_SUPPORT &&
	       (a->odp_caps.per_transport_caps.rc_odp_caps & need) == need;
}

static const struct rd_rail *rail_of(const struct rd_rail *rails, unsigned n, const char *dev, unsigned port)
{
	for (unsigned i = 0; i < n; i++)
		if (!strcmp(rails[i].dev, dev) && rails[i].port == port)
			return &rails[i];
	return NULL;
}

static void address_text(const struct rd_rail *r, char *ret, size_t size)
{
	char text[INET6_ADDRSTRLEN];
	const void *at = r->addr.sa.sa_family == AF_INET6 ? (const void *)&r->addr.v6.sin6_addr :
							   (const void *)&r->addr.v4.sin_addr;

	inet_ntop(r->addr.sa.sa_family, at, text, sizeof(text));
	snprintf(ret, size, "%s (GID %d)", text, r->gid);
}

/* A device that is there but does not answer is listed, too. */
static void no_answer(const char *dev, int code, const char *advice, lm_check_fn *fn, void *opaque)
{
	struct lm_check c = { .status = LM_CHECK_WARN, .name = "RDMA port" };

	snprintf(c.found, sizeof(c.found), "%s: %s", dev, strerror(-code));
	snprintf(c.advice, sizeof(c.advice), "%s", advice);
	fn(opaque, &c);
}

static void check_port(struct ibv_context *v, const struct ibv_device_attr_ex *dev, unsigned port,
		       const struct rd_rail *rail, lm_check_fn *fn, void *opaque)
{
	struct ibv_port_attr a;
	struct lm_check c = { .status = LM_CHECK_OK, .name = "RDMA port" };
	char address[INET6_ADDRSTRLEN + 16] = "no address", mr[32];
	int r = rd_result(ibv_query_port(v, (uint8_t)port, &a));

	if (r) {
		no_answer(ibv_get_device_name(v->device), r, "its port cannot be queried: see the kernel's log", fn, opaque);
		return;
	}
	if (rail)
		address_text(rail, address, sizeof(address));
	snprintf(mr, sizeof(mr), "max MR %llu GiB", (unsigned long long)dev->orig_attr.max_mr_size >> 30);
	snprintf(c.found, sizeof(c.found), "%s:%u %s, %s, MTU %u, %u Gb/s, %s, %u GIDs, %s, %s",
		 ibv_get_device_name(v->device), port, link_name(v, &a), ibv_port_state_str(a.state), 128u << a.active_mtu,
		 rail ? rail->mbps / 1000 : 0, address, gids_in_use(v, port, a.gid_tbl_len),
		 can_odp(dev) ? "ODP" : "no ODP", dev->orig_attr.max_mr_size >> 40 ? "any MR size" : mr);
	if (a.state != IBV_PORT_ACTIVE) {
		c.status = LM_CHECK_WARN;
		snprintf(c.advice, sizeof(c.advice), "the port is not active: check cable and switch, `ip link set ... up`");
	} else if (!rail) {
		c.status = LM_CHECK_WARN;
		snprintf(c.advice, sizeof(c.advice), "rdma_cm finds no address of it here: give its network interface one "
			 "(`ip address add`), in this network namespace");
	} else if (a.active_mtu < IBV_MTU_1024) {
		c.status = LM_CHECK_WARN;
		snprintf(c.advice, sizeof(c.advice), "raise the MTU of its network interface: 4200 or more gives 4096 here");
	}
	fn(opaque, &c);
}

static void check_device(struct ibv_device *device, const struct rd_rail *rails, unsigned n, lm_check_fn *fn,
			 void *opaque)
{
	struct ibv_context *v = ibv_open_device(device);
	const char *name = ibv_get_device_name(device);
	struct ibv_device_attr_ex attr;
	int r;

	if (!v) {
		no_answer(name, rd_errno(), "open /dev/infiniband/uverbs* for this user", fn, opaque);
		return;
	}
	r = rd_result(ibv_query_device_ex(v, NULL, &attr));
	if (r)
		no_answer(name, r, "the device cannot be queried: see the kernel's log", fn, opaque);
	for (unsigned p = 1; !r && p <= attr.orig_attr.phys_port_cnt; p++)
		check_port(v, &attr, p, rail_of(rails, n, name, p), fn, opaque);
	ibv_close_device(v);
}

static void check_memlock(lm_check_fn *fn, void *opaque)
{
	struct lm_check c = { .status = LM_CHECK_OK, .name = "locked memory" };
	uint64_t limit = lm_memlock_limit();

	if (limit == UINT64_MAX) {
		snprintf(c.found, sizeof(c.found), "no limit: guests of any size can be registered");
	} else {
		c.status = LM_CHECK_WARN;
		snprintf(c.found, sizeof(c.found), "at most %llu MiB may be registered with an RDMA device",
			 (unsigned long long)limit >> 20);
		snprintf(c.advice, sizeof(c.advice), "a guest with more memory needs a higher limit (`ulimit -l unlimited`, "
			 "LimitMEMLOCK=infinity in the unit), or --pin odp, which locks nothing, where the device can");
	}
	fn(opaque, &c);
}

void lm_rdma_check(lm_check_fn *fn, void *opaque)
{
	struct rd_rail rails[RDMA_RAILS_MAX];
	struct ibv_device **list;
	struct lm_error err = { 0 };
	unsigned nrails = 0;
	int n = 0;

	if (rd_rails_find(NULL, 0, rails, &nrails, &err))
		nrails = 0;
	list = ibv_get_device_list(&n);
	if (!n) {
		struct lm_check c = { .status = LM_CHECK_ABSENT, .name = "RDMA port" };

		snprintf(c.found, sizeof(c.found), "no RDMA device; migrations go over TCP");
		snprintf(c.advice, sizeof(c.advice), "with hardware: load its driver, ib_uverbs and rdma_ucm; without: `rdma link "
			 "add rxe0 type rxe netdev ...` emulates one");
		fn(opaque, &c);
	}
	for (int i = 0; i < n; i++)
		check_device(list[i], rails, nrails, fn, opaque);
	if (list)
		ibv_free_device_list(list);
	if (n)
		check_memlock(fn, opaque);
}
