/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "fakeverbs.h"

#define RULES 16

int fake_status;
unsigned fake_rejected, fake_unacked_cm;
struct rd_hello fake_hello;

struct event {
	struct rdma_cm_event event; /* first */
	struct event *next;
	uint8_t private_data[64];
};

struct channel {
	struct rdma_event_channel channel; /* first */
	struct event *events;
	unsigned nids;
};

struct id {
	struct rdma_cm_id id; /* first */
	struct id *next;
	bool listens, requested;
	unsigned unacked;
};

static struct id *ids;
static struct rule {
	enum rdma_cm_event_type due, instead[2];
	int net;
	unsigned times;
} rules[RULES];
static unsigned nrules;

static struct id *id_of(struct rdma_cm_id *id)
{
	return (struct id *)id;
}

static struct channel *channel_of(struct rdma_event_channel *c)
{
	return (struct channel *)c;
}

/* ---- events ---- */

static void add_event(struct rdma_event_channel *to, struct event *e)
{
	struct event **at = &channel_of(to)->events;
	uint64_t one = 1;

	while (*at)
		at = &(*at)->next;
	*at = e;
	fake_must(write(to->fd, &one, sizeof(one)) == sizeof(one));
}

static bool is_good(enum rdma_cm_event_type type)
{
	return type == RDMA_CM_EVENT_ADDR_RESOLVED || type == RDMA_CM_EVENT_ROUTE_RESOLVED ||
	       type == RDMA_CM_EVENT_CONNECT_REQUEST || type == RDMA_CM_EVENT_ESTABLISHED;
}

void fake_event(struct rdma_cm_id *id, enum rdma_cm_event_type type)
{
	struct event *e = calloc(1, sizeof(*e));

	fake_must(e);
	e->event = (struct rdma_cm_event){ .id = id, .event = type, .status = is_good(type) ? 0 : fake_status };
	fake_lock();
	add_event(id->channel, e);
	fake_unlock();
}

void fake_instead(enum rdma_cm_event_type due, int net, unsigned times, enum rdma_cm_event_type first,
		  enum rdma_cm_event_type second)
{
	fake_must(nrules < RULES);
	rules[nrules++] = (struct rule){ due, { first, second }, net, times };
}

/* What comes of a call that was right, or what the test wants instead. */
static void answer(struct rdma_cm_id *id, enum rdma_cm_event_type due, const struct sockaddr *where)
{
	for (struct rule *r = rules; r < rules + nrules; r++) {
		if (r->due != due || !r->times || (r->net != FAKE_ANY && (uint32_t)r->net != fake_net_of(where)))
			continue;
		r->times--;
		for (unsigned i = 0; i < 2; i++)
			if (r->instead[i] != FAKE_NOTHING)
				fake_event(id, r->instead[i]);
		return;
	}
	fake_event(id, due);
}

/* Those of one id, out of the channel; or all (id NULL). */
static struct event *take_events(struct channel *c, const struct rdma_cm_id *id)
{
	struct event **at = &c->events, *ret = NULL, **end = &ret;
	uint64_t one;

	while (*at) {
		struct event *e = *at;

		if (id && e->event.id != id) {
			at = &e->next;
			continue;
		}
		*at = e->next;
		e->next = NULL;
		*end = e;
		end = &e->next;
		fake_must(read(c->channel.fd, &one, sizeof(one)) == sizeof(one));
	}
	return ret;
}

/* Non-blocking, or the code that waits here waits for ever. */
int __wrap_rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **ret);
int __wrap_rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **ret)
{
	struct channel *c = channel_of(channel);
	struct event *e;
	uint64_t one;

	fake_must(fcntl(channel->fd, F_GETFL) & O_NONBLOCK && fcntl(channel->fd, F_GETFD) & FD_CLOEXEC);
	if (!c->events) {
		errno = EAGAIN;
		return -1;
	}
	if (fake_may_fail("rdma_get_cm_event"))
		return -1;
	fake_lock();
	e = c->events;
	c->events = e->next;
	fake_must(read(channel->fd, &one, sizeof(one)) == sizeof(one));
	id_of(e->event.id)->unacked++;
	fake_unacked_cm++;
	fake_unlock();
	*ret = &e->event;
	return 0;
}

int __wrap_rdma_ack_cm_event(struct rdma_cm_event *e);
int __wrap_rdma_ack_cm_event(struct rdma_cm_event *e)
{
	id_of(e->id)->unacked--;
	fake_unacked_cm--;
	free(e);
	return fake_may_fail("rdma_ack_cm_event") ? -1 : 0;
}

/* ---- channels and ids ---- */

struct rdma_event_channel *__wrap_rdma_create_event_channel(void);
struct rdma_event_channel *__wrap_rdma_create_event_channel(void)
{
	struct channel *c = fake_make("rdma_create_event_channel", sizeof(*c));

	if (!c)
		return NULL;
	c->channel.fd = eventfd(0, EFD_SEMAPHORE);
	return &c->channel;
}

static struct id *id_new(struct rdma_event_channel *c, const char *name)
{
	struct id *id = fake_make(name, sizeof(*id));

	if (!id)
		return NULL;
	id->id.channel = c;
	channel_of(c)->nids++;
	fake_lock();
	id->next = ids;
	ids = id;
	fake_unlock();
	return id;
}

static void id_drop(struct rdma_cm_id *id)
{
	fake_lock();
	for (struct id **at = &ids; *at; at = &(*at)->next)
		if (*at == id_of(id)) {
			*at = id_of(id)->next;
			break;
		}
	fake_live--;
	fake_unlock();
	channel_of(id->channel)->nids--;
	free(id);
}

/* A request that nobody has heard of goes with its event. */
static void free_events(struct event *e)
{
	while (e) {
		struct event *next = e->next;

		if (e->event.event == RDMA_CM_EVENT_CONNECT_REQUEST)
			id_drop(e->event.id);
		free(e);
		e = next;
	}
}

void __wrap_rdma_destroy_event_channel(struct rdma_event_channel *c);
void __wrap_rdma_destroy_event_channel(struct rdma_event_channel *c)
{
	free_events(take_events(channel_of(c), NULL));
	fake_must(!channel_of(c)->nids);
	close(c->fd);
	fake_drop("rdma_destroy_event_channel", c);
}

int __wrap_rdma_create_id(struct rdma_event_channel *c, struct rdma_cm_id **ret, void *opaque, enum rdma_port_space ps);
int __wrap_rdma_create_id(struct rdma_event_channel *c, struct rdma_cm_id **ret, void *opaque, enum rdma_port_space ps)
{
	struct id *id = id_new(c, "rdma_create_id");

	(void)opaque;
	fake_must(ps == RDMA_PS_TCP);
	if (!id)
		return -1;
	*ret = &id->id;
	return 0;
}

/* The real one waits until the id's events are acknowledged, and leaves a queue pair behind. */
int __wrap_rdma_destroy_id(struct rdma_cm_id *id);
int __wrap_rdma_destroy_id(struct rdma_cm_id *id)
{
	fake_must(!id_of(id)->unacked && !id->qp);
	free_events(take_events(channel_of(id->channel), id));
	id_drop(id);
	return fake_may_fail("rdma_destroy_id") ? -1 : 0;
}

int __wrap_rdma_migrate_id(struct rdma_cm_id *id, struct rdma_event_channel *to);
int __wrap_rdma_migrate_id(struct rdma_cm_id *id, struct rdma_event_channel *to)
{
	struct event *e;

	if (fake_may_fail("rdma_migrate_id"))
		return -1;
	e = take_events(channel_of(id->channel), id);
	channel_of(id->channel)->nids--;
	channel_of(to)->nids++;
	id->channel = to;
	while (e) {
		struct event *next = e->next;

		e->next = NULL;
		add_event(to, e);
		e = next;
	}
	return 0;
}

struct rdma_cm_id *fake_id(void)
{
	struct rdma_cm_id *id = calloc(1, sizeof(*id));

	id->verbs = fake_context(0);
	id->port_num = 1;
	id->route.addr.src_sin = fake_address(0, 1);
	return id;
}

/* ---- what they are told to do ---- */

static bool bind_to(struct rdma_cm_id *id, uint32_t net, const char *name)
{
	uint32_t device = net < FAKE_DEVICES && net < fake_ndevices ? fake_at[net] : FAKE_GONE;

	if (fake_may_fail(name))
		return false;
	if (device == FAKE_GONE) {
		errno = ENODEV;
		return false;
	}
	id->verbs = fake_context(device);
	id->port_num = 1;
	return true;
}

int __wrap_rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *a);
int __wrap_rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *a)
{
	if (!bind_to(id, fake_net_of(a), "rdma_bind_addr"))
		return -1;
	id->route.addr.src_sin = *(struct sockaddr_in *)a;
	return 0;
}

int __wrap_rdma_resolve_addr(struct rdma_cm_id *id, struct sockaddr *from, struct sockaddr *to, int timeout_ms);
int __wrap_rdma_resolve_addr(struct rdma_cm_id *id, struct sockaddr *from, struct sockaddr *to, int timeout_ms)
{
	fake_must(timeout_ms > 0);
	if (from && fake_net_of(from) != fake_net_of(to)) {
		errno = ENETUNREACH;
		return -1;
	}
	if (!bind_to(id, fake_net_of(to), "rdma_resolve_addr"))
		return -1;
	id->route.addr.dst_sin = *(struct sockaddr_in *)to;
	id->route.addr.src_sin = fake_address(fake_net_of(to), 1);
	answer(id, RDMA_CM_EVENT_ADDR_RESOLVED, to);
	return 0;
}

int __wrap_rdma_resolve_route(struct rdma_cm_id *id, int timeout_ms);
int __wrap_rdma_resolve_route(struct rdma_cm_id *id, int timeout_ms)
{
	fake_must(timeout_ms > 0);
	if (fake_may_fail("rdma_resolve_route"))
		return -1;
	answer(id, RDMA_CM_EVENT_ROUTE_RESOLVED, &id->route.addr.dst_addr);
	return 0;
}

int __wrap_rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *p);
int __wrap_rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *p)
{
	fake_must(id->qp && p->private_data_len == sizeof(fake_hello));
	if (fake_may_fail("rdma_connect"))
		return -1;
	memcpy(&fake_hello, p->private_data, sizeof(fake_hello));
	answer(id, RDMA_CM_EVENT_ESTABLISHED, &id->route.addr.dst_addr);
	return 0;
}

int __wrap_rdma_listen(struct rdma_cm_id *id, int backlog);
int __wrap_rdma_listen(struct rdma_cm_id *id, int backlog)
{
	if (fake_may_fail("rdma_listen"))
		return -1;
	fake_must(backlog > 0 && id->verbs);
	if (!id->route.addr.src_sin.sin_port)
		id->route.addr.src_sin.sin_port = htons((uint16_t)(18515 + fake_net_of(&id->route.addr.src_addr)));
	id_of(id)->listens = true;
	return 0;
}

__be16 __wrap_rdma_get_src_port(struct rdma_cm_id *id);
__be16 __wrap_rdma_get_src_port(struct rdma_cm_id *id)
{
	return id->route.addr.src_sin.sin_port;
}

int __wrap_rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *p);
int __wrap_rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *p)
{
	fake_must(id->qp && p->retry_count && id_of(id)->requested);
	if (fake_may_fail("rdma_accept"))
		return -1;
	answer(id, RDMA_CM_EVENT_ESTABLISHED, &id->route.addr.src_addr);
	return 0;
}

int __wrap_rdma_reject(struct rdma_cm_id *id, const void *data, uint8_t len);
int __wrap_rdma_reject(struct rdma_cm_id *id, const void *data, uint8_t len)
{
	(void)data;
	(void)len;
	fake_must(id_of(id)->requested);
	fake_rejected++;
	return fake_may_fail("rdma_reject") ? -1 : 0;
}

int __wrap_rdma_disconnect(struct rdma_cm_id *id);
int __wrap_rdma_disconnect(struct rdma_cm_id *id)
{
	(void)id;
	return fake_may_fail("rdma_disconnect") ? -1 : 0;
}

int __wrap_rdma_set_option(struct rdma_cm_id *id, int level, int name, void *value, size_t len);
int __wrap_rdma_set_option(struct rdma_cm_id *id, int level, int name, void *value, size_t len)
{
	(void)id;
	(void)value;
	fake_must(level == RDMA_OPTION_ID && name == RDMA_OPTION_ID_ACK_TIMEOUT && len == 1);
	return fake_may_fail("rdma_set_option") ? -1 : 0;
}

/* ---- the peer ---- */

struct rdma_cm_id *fake_listener(unsigned net)
{
	struct id *id = ids;

	while (id && (!id->listens || fake_net_of(&id->id.route.addr.src_addr) != net))
		id = id->next;
	return id ? &id->id : NULL;
}

bool fake_request(unsigned net, const void *private_data, size_t len)
{
	struct rdma_cm_id *listener = fake_listener(net);
	unsigned fail_at = fake_fail_at;
	struct event *e;
	struct id *id;

	if (!listener)
		return false;
	fake_fail_at = 0; /* this is the peer's call */
	id = id_new(listener->channel, "");
	fake_fail_at = fail_at;
	e = calloc(1, sizeof(*e));
	fake_must(id && e && len <= sizeof(e->private_data));
	fake_calls--;
	id->requested = true;
	id->id.verbs = listener->verbs;
	id->id.port_num = 1;
	id->id.route.addr = listener->route.addr;
	e->event = (struct rdma_cm_event){ .id = &id->id, .listen_id = listener, .event = RDMA_CM_EVENT_CONNECT_REQUEST };
	if (len)
		memcpy(e->private_data, private_data, len);
	e->event.param.conn.private_data = len ? e->private_data : NULL;
	e->event.param.conn.private_data_len = (uint8_t)len;
	fake_lock();
	add_event(listener->channel, e);
	fake_unlock();
	return true;
}

void fake_cm_reset(void)
{
	nrules = 0;
	fake_status = -EHOSTUNREACH;
	fake_rejected = fake_unacked_cm = 0;
	memset(&fake_hello, 0, sizeof(fake_hello));
}
