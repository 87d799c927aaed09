/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "fakeverbs.h"

#undef ibv_reg_mr

int fake_live, fake_errno;
unsigned fake_calls, fake_fail_at, fake_reg_ms, fake_ndevices;
const char *fake_failed, *fake_fail_call;
uint32_t fake_at[FAKE_DEVICES];
enum ibv_port_state fake_port_state;
bool fake_no_odp;
struct ibv_sge fake_advised[FAKE_ADVISED_MAX];
unsigned fake_nadvised;
enum ibv_advise_mr_advice fake_advice;
uint32_t fake_advise_flags;
int fake_advise_error;

#define ASYNC_MAX 64

static struct device {
	struct ibv_device device;
	struct verbs_context verbs;
	struct ibv_async_event events[ASYNC_MAX];
	unsigned nevents, taken;
	_Atomic unsigned acked;
} devices[FAKE_DEVICES];

static _Thread_local struct device *took; /* whose event this thread has to acknowledge */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

void fake_lock(void)
{
	pthread_mutex_lock(&mutex);
}

void fake_unlock(void)
{
	pthread_mutex_unlock(&mutex);
}

/* ---- counting and failing ---- */

void *fake_make(const char *name, size_t size)
{
	void *p = NULL;

	fake_lock();
	if (++fake_calls != fake_fail_at && (!fake_fail_call || strcmp(name, fake_fail_call))) {
		p = calloc(1, size);
		fake_live++;
	} else {
		fake_failed = name;
	}
	fake_unlock();
	errno = p ? errno : fake_errno;
	return p;
}

static void forget(void *p)
{
	fake_lock();
	fake_live--;
	fake_unlock();
	free(p);
}

int fake_may_fail(const char *name)
{
	void *p = fake_make(name, 1);

	if (!p)
		return fake_errno ? fake_errno : -1;
	forget(p);
	return 0;
}

int fake_drop(const char *name, void *p)
{
	forget(p);
	return fake_may_fail(name);
}

/* ---- devices ---- */

struct ibv_context *fake_context(unsigned device)
{
	return &devices[device].verbs.context;
}

static int advise(struct ibv_pd *pd, enum ibv_advise_mr_advice advice, uint32_t flags, struct ibv_sge *sge, uint32_t n)
{
	(void)pd;
	if (fake_advise_error)
		return fake_advise_error;
	fake_advice = advice;
	fake_advise_flags |= flags;
	for (uint32_t i = 0; i < n && fake_nadvised < FAKE_ADVISED_MAX; i++)
		fake_advised[fake_nadvised++] = sge[i];
	return 0;
}

static int query_port(struct ibv_context *c, uint8_t port, struct ibv_port_attr *a, size_t len)
{
	(void)c;
	memset(a, 0, len);
	if (port != 1)
		return EINVAL;
	a->state = fake_port_state;
	a->gid_tbl_len = 2;
	a->active_mtu = IBV_MTU_4096;
	a->max_msg_sz = UINT32_C(1) << 31;
	a->active_width = 2;
	a->active_speed = 32;
	a->link_layer = IBV_LINK_LAYER_ETHERNET;
	return fake_may_fail("ibv_query_port");
}

static void device_reset(struct device *d)
{
	int fd = d->verbs.context.device ? d->verbs.context.async_fd : eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE | EFD_NONBLOCK);
	uint64_t one;

	while (read(fd, &one, sizeof(one)) > 0)
		;
	d->device = (struct ibv_device){ .transport_type = IBV_TRANSPORT_IB };
	snprintf(d->device.name, sizeof(d->device.name), "fake%u", (unsigned)(d - devices));
	d->verbs = (struct verbs_context){
		.sz = sizeof(struct verbs_context), .advise_mr = advise, .query_port = query_port,
		.context = { .device = &d->device, .async_fd = fd, .num_comp_vectors = 1,
			     .abi_compat = __VERBS_ABI_IS_EXTENDED },
	};
	fake_queue_ops(&d->verbs);
	d->nevents = d->taken = 0;
	atomic_store(&d->acked, 0);
}

void fake_reset(void)
{
	if (fake_live) {
		fprintf(stderr, "%d objects are left of a test that failed: the others cannot run\n", fake_live);
		exit(1);
	}
	fake_calls = fake_fail_at = fake_reg_ms = 0;
	fake_failed = fake_fail_call = NULL;
	fake_errno = ENOMEM;
	fake_no_odp = false;
	fake_ndevices = 1;
	fake_port_state = IBV_PORT_ACTIVE;
	fake_nadvised = 0;
	fake_advise_error = 0;
	fake_advise_flags = 0;
	for (unsigned i = 0; i < FAKE_DEVICES; i++) {
		fake_at[i] = i;
		device_reset(&devices[i]);
	}
	fake_cm_reset();
	fake_host_reset();
}

const char *__wrap_ibv_get_device_name(struct ibv_device *d);
const char *__wrap_ibv_get_device_name(struct ibv_device *d)
{
	return d->name;
}

struct ibv_device **__wrap_ibv_get_device_list(int *n);
struct ibv_device **__wrap_ibv_get_device_list(int *n)
{
	struct ibv_device **list = fake_make("ibv_get_device_list", (FAKE_DEVICES + 1) * sizeof(*list));

	*n = list ? (int)fake_ndevices : 0;
	for (unsigned i = 0; list && i < fake_ndevices; i++)
		list[i] = &devices[i].device;
	return list;
}

void __wrap_ibv_free_device_list(struct ibv_device **list);
void __wrap_ibv_free_device_list(struct ibv_device **list)
{
	forget(list);
}

struct ibv_context *__wrap_ibv_open_device(struct ibv_device *device);
struct ibv_context *__wrap_ibv_open_device(struct ibv_device *device)
{
	struct device *d = (struct device *)device;

	if (fake_may_fail("ibv_open_device"))
		return NULL;
	fake_live++;
	return &d->verbs.context;
}

int __wrap_ibv_close_device(struct ibv_context *c);
int __wrap_ibv_close_device(struct ibv_context *c)
{
	(void)c;
	return fake_drop("ibv_close_device", NULL);
}

int __wrap_ibv_query_device(struct ibv_context *c, struct ibv_device_attr *a);
int __wrap_ibv_query_device(struct ibv_context *c, struct ibv_device_attr *a)
{
	(void)c;
	memset(a, 0, sizeof(*a));
	a->max_qp_wr = 1024;
	a->max_cqe = 4096;
	a->max_mr_size = UINT64_MAX;
	a->phys_port_cnt = 1;
	return fake_may_fail("ibv_query_device");
}

/* The address of this network is its second GID. */
int __wrap__ibv_query_gid_ex(struct ibv_context *c, uint32_t port, uint32_t index, struct ibv_gid_entry *e, uint32_t flags,
			     size_t size);
int __wrap__ibv_query_gid_ex(struct ibv_context *c, uint32_t port, uint32_t index, struct ibv_gid_entry *e, uint32_t flags,
			     size_t size)
{
	unsigned device = (unsigned)((struct device *)c->device - devices);

	(void)flags;
	memset(e, 0, size);
	e->gid_index = index;
	e->port_num = port;
	e->gid_type = IBV_GID_TYPE_ROCE_V2;
	if (index == 1)
		memcpy(e->gid.raw, (uint8_t[16]){ 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 168, (uint8_t)device, 1 }, 16);
	return fake_may_fail("ibv_query_gid_ex");
}

/* ---- asynchronous events ---- */

static struct device *device_of(struct ibv_context *c)
{
	return (struct device *)c->device;
}

bool fake_async(unsigned device, struct ibv_async_event e)
{
	struct device *d = &devices[device];
	uint64_t one = 1;
	bool ok;

	fake_lock();
	ok = d->nevents < ASYNC_MAX;
	if (ok)
		d->events[d->nevents++] = e;
	fake_unlock();
	return ok && write(d->verbs.context.async_fd, &one, sizeof(one)) == sizeof(one);
}

int __wrap_ibv_get_async_event(struct ibv_context *c, struct ibv_async_event *e);
int __wrap_ibv_get_async_event(struct ibv_context *c, struct ibv_async_event *e)
{
	struct device *d = device_of(c);
	uint64_t one;

	if (fake_may_fail("ibv_get_async_event") || read(c->async_fd, &one, sizeof(one)) < 0)
		return -1;
	fake_lock();
	*e = d->events[d->taken++];
	fake_unlock();
	took = d;
	return 0;
}

void __wrap_ibv_ack_async_event(struct ibv_async_event *e);
void __wrap_ibv_ack_async_event(struct ibv_async_event *e)
{
	(void)e;
	atomic_fetch_add(&took->acked, 1);
	took = NULL;
}

void fake_async_wait(unsigned device)
{
	struct device *d = &devices[device];

	for (unsigned i = 0; i < 5000 && atomic_load(&d->acked) < d->nevents; i++)
		usleep(1000);
}

/* ---- protection domains and memory ---- */

struct ibv_pd *__wrap_ibv_alloc_pd(struct ibv_context *c);
struct ibv_pd *__wrap_ibv_alloc_pd(struct ibv_context *c)
{
	struct ibv_pd *pd = fake_make("ibv_alloc_pd", sizeof(*pd));

	if (pd)
		pd->context = c;
	return pd;
}

int __wrap_ibv_dealloc_pd(struct ibv_pd *pd);
int __wrap_ibv_dealloc_pd(struct ibv_pd *pd)
{
	return fake_drop("ibv_dealloc_pd", pd);
}

struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access);
struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access)
{
	static _Atomic uint32_t keys; /* several threads register */
	uint32_t key = atomic_fetch_add(&keys, 1) + 1;
	struct ibv_mr *mr;

	(void)iova;
	usleep(fake_reg_ms * 1000);
	if (access & IBV_ACCESS_ON_DEMAND && fake_no_odp) {
		errno = EOPNOTSUPP;
		return NULL;
	}
	mr = fake_make("ibv_reg_mr", sizeof(*mr));
	if (mr)
		*mr = (struct ibv_mr){ .context = pd->context, .pd = pd, .addr = addr, .length = len,
					 .rkey = key, .lkey = key };
	return mr;
}

struct ibv_mr *__wrap_ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access);
struct ibv_mr *__wrap_ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
	return __wrap_ibv_reg_mr_iova2(pd, addr, len, (uintptr_t)addr, (unsigned)access);
}

int __wrap_ibv_dereg_mr(struct ibv_mr *mr);
int __wrap_ibv_dereg_mr(struct ibv_mr *mr)
{
	return fake_drop("ibv_dereg_mr", mr);
}
