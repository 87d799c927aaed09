/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "fakeverbs.h"

#undef ibv_reg_mr

int fake_live;
unsigned fake_calls, fake_fail_at, fake_reg_ms;
const char *fake_failed;
bool fake_no_odp;
struct ibv_sge fake_advised[FAKE_ADVISED_MAX];
unsigned fake_nadvised;
enum ibv_advise_mr_advice fake_advice;
uint32_t fake_advise_flags;
int fake_advise_error;
uint64_t fake_posted;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct ibv_device device = { .transport_type = IBV_TRANSPORT_IB, .name = "fake0" };
static struct verbs_context extended = {
	.sz = sizeof(struct verbs_context),
	.context = { .device = &device, .async_fd = -1, .num_comp_vectors = 1, .abi_compat = __VERBS_ABI_IS_EXTENDED },
};

/* Counts the call; NULL when it is the one that fails. */
static void *make(const char *name, size_t size)
{
	void *p = NULL;

	pthread_mutex_lock(&mutex);
	errno = ENOMEM;
	if (++fake_calls != fake_fail_at) {
		p = calloc(1, size);
		fake_live++;
	} else {
		fake_failed = name;
	}
	pthread_mutex_unlock(&mutex);
	return p;
}

static int drop(void *p)
{
	pthread_mutex_lock(&mutex);
	fake_live--;
	pthread_mutex_unlock(&mutex);
	free(p);
	return 0;
}

/* A call that makes nothing. */
static int may_fail(const char *name)
{
	void *p = make(name, 1);

	if (!p)
		return ENOMEM;
	return drop(p);
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	(void)qp;
	(void)bad;
	for (; wr; wr = wr->next)
		fake_posted++;
	return 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	(void)qp;
	(void)wr;
	(void)bad;
	return may_fail("ibv_post_recv");
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	(void)cq;
	(void)n;
	(void)wc;
	return 0;
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

void fake_reset(void)
{
	fake_live = 0;
	fake_calls = fake_fail_at = fake_reg_ms = 0;
	fake_failed = NULL;
	fake_no_odp = false;
	fake_posted = 0;
	if (extended.context.async_fd < 0)
		extended.context.async_fd = eventfd(0, EFD_CLOEXEC);
	extended.context.ops.post_send = post_send;
	extended.context.ops.post_recv = post_recv;
	extended.context.ops.poll_cq = poll_cq;
	extended.advise_mr = advise;
	fake_nadvised = 0;
	fake_advise_error = 0;
	fake_advise_flags = 0;
}

struct rdma_cm_id *fake_id(void)
{
	struct rdma_cm_id *id = calloc(1, sizeof(*id));

	id->verbs = &extended.context;
	id->port_num = 1;
	id->route.addr.src_sin.sin_family = AF_INET;
	return id;
}

/* ---- libibverbs ---- */

const char *__wrap_ibv_get_device_name(struct ibv_device *d);
const char *__wrap_ibv_get_device_name(struct ibv_device *d)
{
	return d->name;
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
	return may_fail("ibv_query_device");
}

struct ibv_pd *__wrap_ibv_alloc_pd(struct ibv_context *c);
struct ibv_pd *__wrap_ibv_alloc_pd(struct ibv_context *c)
{
	struct ibv_pd *pd = make("ibv_alloc_pd", sizeof(*pd));

	if (pd)
		pd->context = c;
	return pd;
}

int __wrap_ibv_dealloc_pd(struct ibv_pd *pd);
int __wrap_ibv_dealloc_pd(struct ibv_pd *pd)
{
	return drop(pd);
}

struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access);
struct ibv_mr *__wrap_ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova, unsigned access)
{
	static _Atomic uint32_t keys; /* several threads register */
	uint32_t key = atomic_fetch_add(&keys, 1) + 1;
	struct timespec t = { 0, fake_reg_ms * 1000000L };
	struct ibv_mr *mr;

	(void)iova;
	nanosleep(&t, NULL);
	if (access & IBV_ACCESS_ON_DEMAND && fake_no_odp) {
		errno = EOPNOTSUPP;
		return NULL;
	}
	mr = make("ibv_reg_mr", sizeof(*mr));
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
	return drop(mr);
}

struct ibv_comp_channel *__wrap_ibv_create_comp_channel(struct ibv_context *c);
struct ibv_comp_channel *__wrap_ibv_create_comp_channel(struct ibv_context *c)
{
	struct ibv_comp_channel *ch = make("ibv_create_comp_channel", sizeof(*ch));

	if (ch)
		*ch = (struct ibv_comp_channel){ .context = c, .fd = eventfd(0, EFD_CLOEXEC) };
	return ch;
}

int __wrap_ibv_destroy_comp_channel(struct ibv_comp_channel *ch);
int __wrap_ibv_destroy_comp_channel(struct ibv_comp_channel *ch)
{
	close(ch->fd);
	return drop(ch);
}

struct ibv_cq *__wrap_ibv_create_cq(struct ibv_context *c, int n, void *opaque, struct ibv_comp_channel *ch, int v);
struct ibv_cq *__wrap_ibv_create_cq(struct ibv_context *c, int n, void *opaque, struct ibv_comp_channel *ch, int v)
{
	struct ibv_cq *cq = make("ibv_create_cq", sizeof(*cq));

	(void)opaque;
	(void)v;
	if (cq) {
		cq->context = c;
		cq->channel = ch;
		cq->cqe = n;
	}
	return cq;
}

int __wrap_ibv_destroy_cq(struct ibv_cq *cq);
int __wrap_ibv_destroy_cq(struct ibv_cq *cq)
{
	return drop(cq);
}

int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask);
int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask)
{
	(void)qp;
	(void)a;
	return mask & IBV_QP_STATE ? 0 : may_fail("ibv_modify_qp");
}

int __wrap_ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *a);
int __wrap_ibv_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *a)
{
	(void)c;
	(void)port;
	(void)a;
	return EOPNOTSUPP;
}

/* ---- librdmacm ---- */

struct rdma_event_channel *__wrap_rdma_create_event_channel(void);
struct rdma_event_channel *__wrap_rdma_create_event_channel(void)
{
	struct rdma_event_channel *c = make("rdma_create_event_channel", sizeof(*c));

	if (c)
		c->fd = eventfd(0, EFD_CLOEXEC);
	return c;
}

void __wrap_rdma_destroy_event_channel(struct rdma_event_channel *c);
void __wrap_rdma_destroy_event_channel(struct rdma_event_channel *c)
{
	close(c->fd);
	drop(c);
}

int __wrap_rdma_create_id(struct rdma_event_channel *c, struct rdma_cm_id **ret, void *opaque, enum rdma_port_space ps);
int __wrap_rdma_create_id(struct rdma_event_channel *c, struct rdma_cm_id **ret, void *opaque, enum rdma_port_space ps)
{
	struct rdma_cm_id *id = make("rdma_create_id", sizeof(*id));

	(void)opaque;
	(void)ps;
	if (!id)
		return -1;
	id->channel = c;
	id->port_num = 1;
	*ret = id;
	return 0;
}

int __wrap_rdma_destroy_id(struct rdma_cm_id *id);
int __wrap_rdma_destroy_id(struct rdma_cm_id *id)
{
	return drop(id);
}

int __wrap_rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *a);
int __wrap_rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *a)
{
	(void)a;
	id->verbs = &extended.context;
	return may_fail("rdma_bind_addr") ? -1 : 0;
}

int __wrap_rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *a);
int __wrap_rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
	(void)a;
	id->qp = make("rdma_create_qp", sizeof(*id->qp));
	if (!id->qp)
		return -1;
	id->qp->context = &extended.context;
	id->qp->pd = pd;
	return 0;
}

void __wrap_rdma_destroy_qp(struct rdma_cm_id *id);
void __wrap_rdma_destroy_qp(struct rdma_cm_id *id)
{
	drop(id->qp);
	id->qp = NULL;
}

int __wrap_rdma_disconnect(struct rdma_cm_id *id);
int __wrap_rdma_disconnect(struct rdma_cm_id *id)
{
	(void)id;
	return 0;
}
