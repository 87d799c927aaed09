/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "fakeverbs.h"

#define COMPLETIONS 1024
#define RECEIVES 64

uint64_t fake_posted;
bool fake_completes;
unsigned fake_unacked_cq;

struct cq {
	struct ibv_cq cq;
	struct ibv_wc wc[COMPLETIONS]; /* ring */
	unsigned first, n;
	bool armed;
};

struct channel {
	struct ibv_comp_channel channel;
	struct ibv_cq *told;
};

struct qp {
	struct ibv_qp qp;
	struct { uint64_t wr_id, addr; } receive[RECEIVES]; /* ring */
	unsigned first, n;
};

/* ---- completions ---- */

static void tell(struct cq *cq)
{
	uint64_t one = 1;

	cq->armed = false;
	((struct channel *)cq->cq.channel)->told = &cq->cq;
	fake_must(write(cq->cq.channel->fd, &one, sizeof(one)) == sizeof(one));
}

static void add(struct ibv_cq *to, struct ibv_wc wc)
{
	struct cq *cq = (struct cq *)to;

	fake_lock();
	fake_must(cq->n < COMPLETIONS);
	cq->wc[(cq->first + cq->n++) % COMPLETIONS] = wc;
	if (cq->armed)
		tell(cq);
	fake_unlock();
}

void fake_complete(struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status)
{
	add(cq, (struct ibv_wc){ .wr_id = wr_id, .status = status, .vendor_err = 0x77 });
}

void fake_receive(struct ibv_qp *to, const void *msg, size_t len)
{
	struct qp *qp = (struct qp *)to;
	struct ibv_wc wc = { .byte_len = (uint32_t)len };

	fake_lock();
	fake_must(qp->n);
	wc.wr_id = qp->receive[qp->first].wr_id;
	memcpy((void *)(uintptr_t)qp->receive[qp->first].addr, msg, len);
	qp->first = (qp->first + 1) % RECEIVES;
	qp->n--;
	fake_unlock();
	add(qp->qp.recv_cq, wc);
}

static int poll_cq(struct ibv_cq *from, int max, struct ibv_wc *ret)
{
	struct cq *cq = (struct cq *)from;
	int n = 0;

	if (fake_may_fail("ibv_poll_cq"))
		return -1;
	fake_lock();
	for (; n < max && cq->n; n++) {
		ret[n] = cq->wc[cq->first];
		cq->first = (cq->first + 1) % COMPLETIONS;
		cq->n--;
	}
	fake_unlock();
	return n;
}

static int req_notify_cq(struct ibv_cq *cq, int solicited)
{
	int r = fake_may_fail("ibv_req_notify_cq");

	(void)solicited;
	fake_lock();
	((struct cq *)cq)->armed |= !r;
	fake_unlock();
	return r;
}

struct ibv_comp_channel *__wrap_ibv_create_comp_channel(struct ibv_context *c);
struct ibv_comp_channel *__wrap_ibv_create_comp_channel(struct ibv_context *c)
{
	struct channel *ch = fake_make("ibv_create_comp_channel", sizeof(*ch));

	if (!ch)
		return NULL;
	ch->channel = (struct ibv_comp_channel){ .context = c, .fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE) };
	return &ch->channel;
}

int __wrap_ibv_destroy_comp_channel(struct ibv_comp_channel *ch);
int __wrap_ibv_destroy_comp_channel(struct ibv_comp_channel *ch)
{
	close(ch->fd);
	return fake_drop("ibv_destroy_comp_channel", ch);
}

struct ibv_cq *__wrap_ibv_create_cq(struct ibv_context *c, int n, void *opaque, struct ibv_comp_channel *ch, int v);
struct ibv_cq *__wrap_ibv_create_cq(struct ibv_context *c, int n, void *opaque, struct ibv_comp_channel *ch, int v)
{
	struct cq *cq = fake_make("ibv_create_cq", sizeof(*cq));

	(void)opaque;
	(void)v;
	if (!cq)
		return NULL;
	cq->cq.context = c;
	cq->cq.channel = ch;
	cq->cq.cqe = n;
	return &cq->cq;
}

/* The real one waits until all its events are acknowledged: here that is a failure. */
int __wrap_ibv_destroy_cq(struct ibv_cq *cq);
int __wrap_ibv_destroy_cq(struct ibv_cq *cq)
{
	fake_must(cq->comp_events_completed == 0);
	return fake_drop("ibv_destroy_cq", cq);
}

int __wrap_ibv_get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **ret, void **context);
int __wrap_ibv_get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **ret, void **context)
{
	uint64_t one;

	if (fake_may_fail("ibv_get_cq_event") || read(ch->fd, &one, sizeof(one)) < 0)
		return -1;
	*ret = ((struct channel *)ch)->told;
	*context = NULL;
	(*ret)->comp_events_completed++; /* those that wait for an acknowledgement, here */
	fake_unacked_cq++;
	return 0;
}

void __wrap_ibv_ack_cq_events(struct ibv_cq *cq, unsigned n);
void __wrap_ibv_ack_cq_events(struct ibv_cq *cq, unsigned n)
{
	cq->comp_events_completed -= n;
	fake_unacked_cq -= n;
}

/* ---- work ---- */

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	int r = fake_may_fail("ibv_post_send");

	*bad = wr;
	for (; !r && wr; wr = wr->next) {
		fake_posted++;
		if (fake_completes && wr->send_flags & IBV_SEND_SIGNALED)
			fake_complete(qp->send_cq, wr->wr_id, IBV_WC_SUCCESS);
	}
	return r;
}

static int post_recv(struct ibv_qp *to, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct qp *qp = (struct qp *)to;
	int r = fake_may_fail("ibv_post_recv");

	*bad = wr;
	fake_lock();
	if (!r) {
		fake_must(qp->n < RECEIVES);
		qp->receive[(qp->first + qp->n) % RECEIVES].wr_id = wr->wr_id;
		qp->receive[(qp->first + qp->n++) % RECEIVES].addr = wr->sg_list->addr;
	}
	fake_unlock();
	return r;
}

void fake_queue_ops(struct verbs_context *v)
{
	fake_posted = 0;
	fake_completes = true;
	fake_unacked_cq = 0;
	v->context.ops.post_send = post_send;
	v->context.ops.post_recv = post_recv;
	v->context.ops.poll_cq = poll_cq;
	v->context.ops.req_notify_cq = req_notify_cq;
}

/* ---- queue pairs ---- */

int __wrap_rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *a);
int __wrap_rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
	struct qp *qp = fake_make("rdma_create_qp", sizeof(*qp));

	if (!qp)
		return -1;
	fake_must(!id->qp && id->verbs == pd->context);
	qp->qp.context = id->verbs;
	qp->qp.pd = pd;
	qp->qp.send_cq = a->send_cq;
	qp->qp.recv_cq = a->recv_cq;
	id->qp = &qp->qp;
	return 0;
}

void __wrap_rdma_destroy_qp(struct rdma_cm_id *id);
void __wrap_rdma_destroy_qp(struct rdma_cm_id *id)
{
	fake_drop("rdma_destroy_qp", id->qp);
	id->qp = NULL;
}

int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask);
int __wrap_ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask)
{
	int r = fake_may_fail("ibv_modify_qp");

	if (mask & IBV_QP_STATE)
		qp->state = a->qp_state;
	return r;
}

int __wrap_ibv_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask, struct ibv_qp_init_attr *init);
int __wrap_ibv_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask, struct ibv_qp_init_attr *init)
{
	(void)qp;
	(void)mask;
	(void)init;
	a->path_mtu = IBV_MTU_4096;
	return fake_may_fail("ibv_query_qp");
}
