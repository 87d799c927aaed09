/* SPDX-License-Identifier: Apache-2.0 */
/* Devices in use: shared by all transports of the process, watched by a thread. */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include "engine/base/cleanup.h"
#include "rdma.h"
#include "engine/base/thread.h"

#define RXE_VENDOR 0xffffff

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct rd_device *registry;

/* ---- asynchronous events ---- */

/* Whether this event ends the lane, and how to say so; NULL: it does not. */
static const char *event_ends(const struct ibv_async_event *e, const struct rd_lane *l)
{
	switch (e->event_type) {
	case IBV_EVENT_PORT_ERR:
		return e->element.port_num == l->id->port_num ? "its port went down: check cable, switch and `ip link`" : NULL;
	case IBV_EVENT_DEVICE_FATAL:
		return "the RDMA device has failed or was removed: see the kernel's log";
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
		return e->element.qp == l->id->qp ? "the device reports an error of the connection (a write that is not "
						    "allowed, or a fault of the device): see the kernel's log" : NULL;
	case IBV_EVENT_CQ_ERR:
		return e->element.cq == l->cq ? "its completion queue has failed: see the kernel's log" : NULL;
	default:
		return NULL;
	}
}

static void event_handle(struct rd_device *d, const struct ibv_async_event *e)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&d->mutex);

	for (struct rd_lane *l = d->lanes; l; l = l->next_on_device) {
		const char *why = event_ends(e, l);

		if (why)
			rd_lane_fail(l, why); /* no waiting: its thread may want our mutex */
	}
}

static void *watcher_main(void *arg)
{
	struct rd_device *d = arg;
	struct pollfd p[2] = { { .fd = d->verbs->async_fd, .events = POLLIN }, { .fd = d->stop_fd, .events = POLLIN } };

	for (;;) {
		struct ibv_async_event e;

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return NULL;
		if (p[1].revents)
			return NULL;
		if (!p[0].revents)
			continue;
		if (!ibv_get_async_event(d->verbs, &e)) {
			event_handle(d, &e);
			ibv_ack_async_event(&e);
		} else if (p[0].revents & (POLLERR | POLLHUP) || (errno != EAGAIN && errno != EINTR)) {
			p[0].fd = -1; /* the device is gone; rdma_cm tells the lanes */
		}
	}
}

void rd_device_add_lane(struct rd_device *d, struct rd_lane *l)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&d->mutex);

	l->next_on_device = d->lanes;
	d->lanes = l;
}

void rd_device_remove_lane(struct rd_device *d, struct rd_lane *l)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&d->mutex);
	struct rd_lane **at = &d->lanes;

	while (*at && *at != l)
		at = &(*at)->next_on_device;
	if (*at)
		*at = l->next_on_device;
	l->next_on_device = NULL;
}

/* ---- life ---- */

/*
 * Soft-RoCE on demand copies every packet to the beginning of its page (Linux 7.3):
 * right only where a packet is a whole page.
 */
bool rd_device_odp_needs_4k(const struct rd_device *d)
{
	return d->attr.orig_attr.vendor_id == RXE_VENDOR && !d->iwarp;
}

bool rd_device_odp(const struct rd_device *d)
{
	const uint32_t need = IBV_ODP_SUPPORT_WRITE | IBV_ODP_SUPPORT_READ | IBV_ODP_SUPPORT_SEND;

	return d->attr.odp_caps.general_caps & IBV_ODP_SUPPORT &&
	       (d->attr.odp_caps.per_transport_caps.rc_odp_caps & need) == need;
}

/* An id of our own on the same address: librdmacm closes a removed device when its last id goes. */
static int anchor_drop(struct rd_device *d, struct rdma_cm_id *id)
{
	union rd_addr a;
	int r;

	memset(&a, 0, sizeof(a));
	memcpy(&a, rdma_get_local_addr(id), rdma_get_local_addr(id)->sa_family == AF_INET6 ? sizeof(a.v6) : sizeof(a.v4));
	rd_addr_set_port(&a, 0);
	r = rd_channel_make(&d->anchor_channel);
	if (r)
		return r;
	if (rdma_create_id(d->anchor_channel, &d->anchor, NULL, RDMA_PS_TCP)) {
		d->anchor = NULL;
		return rd_errno();
	}
	if (rdma_bind_addr(d->anchor, &a.sa))
		return rd_errno();
	return d->anchor->verbs == d->verbs ? 0 : -ENODEV;
}

static void device_free(struct rd_device *d)
{
	if (d->pd)
		ibv_dealloc_pd(d->pd);
	if (d->anchor)
		rdma_destroy_id(d->anchor);
	if (d->anchor_channel)
		rdma_destroy_event_channel(d->anchor_channel);
	lm_close_fd(&d->stop_fd);
	pthread_mutex_destroy(&d->mutex);
	pthread_cond_destroy(&d->work);
	pthread_cond_destroy(&d->idle);
	free(d);
}

static int device_open(struct rd_device *d, struct rdma_cm_id *id, const char **ret_what)
{
	int r;

	d->verbs = id->verbs;
	d->name = ibv_get_device_name(d->verbs->device);
	d->iwarp = d->verbs->device->transport_type == IBV_TRANSPORT_IWARP;
	*ret_what = "bind to its address";
	r = anchor_drop(d, id);
	if (r)
		return r;
	*ret_what = "query the device";
	r = rd_result(ibv_query_device_ex(d->verbs, NULL, &d->attr));
	if (r)
		return r;
	*ret_what = "allocate a protection domain";
	d->pd = ibv_alloc_pd(d->verbs);
	if (!d->pd)
		return rd_errno();
	*ret_what = "start a thread";
	d->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->stop_fd < 0)
		return -errno;
	fcntl(d->verbs->async_fd, F_SETFL, fcntl(d->verbs->async_fd, F_GETFL) | O_NONBLOCK);
	return lm_thread_start(&d->watcher, watcher_main, d);
}

static struct rd_device *registry_find(const struct ibv_context *verbs)
{
	struct rd_device *d = registry;

	while (d && d->verbs != verbs)
		d = d->next;
	return d;
}

int rd_device_get(struct rdma_cm_id *id, struct rd_device **ret, struct lm_error *err)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&registry_mutex);
	struct rd_device *d = registry_find(id->verbs);
	const char *what = "";
	int r;

	if (d) {
		d->refs++;
		*ret = d;
		return 0;
	}
	d = calloc(1, sizeof(*d));
	if (!d)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	d->refs = 1;
	d->stop_fd = -1;
	d->jobs_end = &d->jobs;
	pthread_mutex_init(&d->mutex, NULL);
	pthread_cond_init(&d->work, NULL);
	pthread_cond_init(&d->idle, NULL);
	r = device_open(d, id, &what);
	if (r) {
		lm_err_errno(err, r, LM_SCOPE_SESSION, "RDMA device %s: cannot %s",
			     ibv_get_device_name(id->verbs->device), what);
		device_free(d);
		return r;
	}
	d->next = registry;
	registry = d;
	*ret = d;
	return 0;
}

static void threads_stop(struct rd_device *d)
{
	uint64_t one = 1;

	pthread_mutex_lock(&d->mutex);
	d->stop = true;
	pthread_cond_broadcast(&d->work);
	pthread_mutex_unlock(&d->mutex);
	for (unsigned i = 0; i < d->nworkers; i++)
		pthread_join(d->workers[i], NULL);
	if (write(d->stop_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(d->watcher, NULL);
}

void rd_device_put(struct rd_device *d)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&registry_mutex);
	struct rd_device **at = &registry;

	if (!d || --d->refs)
		return;
	while (*at != d)
		at = &(*at)->next;
	*at = d->next;
	threads_stop(d);
	device_free(d);
}
