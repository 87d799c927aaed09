/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RDMA without a device: the calls of libibverbs and librdmacm are wrapped by the linker and
 * answered here.  Every object is counted; any one call can be made to fail; events and
 * completions are those that the test queues.
 *
 *   fakeverbs.c  devices, protection domains, memory, asynchronous events
 *   fakequeue.c  queue pairs and completion queues
 *   fakecm.c     rdma_cm: ids, channels, events, and what the peer answers
 *   fakehost.c   network interfaces, and a clock that skips what nobody has to wait for
 *
 * The host has devices fake0, fake1, ... with one port each and the addresses 192.168.0.1/24,
 * 192.168.1.1/24, ...  The peer of each is .2 on that network, which is called by its number.
 */
#ifndef FAKEVERBS_H
#define FAKEVERBS_H

#include "rdma/rdma.h"

#define FAKE_DEVICES 12
#define FAKE_GONE UINT32_MAX
#define FAKE_ANY (-1)

/* From the beginning; one device. */
void fake_reset(void);

/* ---- failing ---- */
extern int fake_live;              /* objects that were made and not destroyed */
extern unsigned fake_calls;        /* that could fail, so far */
extern unsigned fake_fail_at;      /* the call that fails; 0: none */
extern const char *fake_fail_call; /* every call of this name fails; NULL: none */
extern const char *fake_failed;    /* the name of the last that failed */
extern int fake_errno;             /* what it leaves in errno; 0 as well.  Or returns: then -1 for 0 */

/* ---- devices ---- */
extern unsigned fake_ndevices;
extern uint32_t fake_at[FAKE_DEVICES]; /* which device has the address on this network; FAKE_GONE: none */
extern enum ibv_port_state fake_port_state;
extern bool fake_no_odp;               /* registering on demand is refused */
/* What ibv_advise_mr() was told, and the errno that it gives. */
#define FAKE_ADVISED_MAX 64
extern struct ibv_sge fake_advised[FAKE_ADVISED_MAX];
extern unsigned fake_nadvised;
extern enum ibv_advise_mr_advice fake_advice;
extern uint32_t fake_advise_flags;
extern int fake_advise_error;
extern unsigned fake_reg_ms;           /* how long registering takes */
struct ibv_context *fake_context(unsigned device);
/* One more asynchronous event of this device; false: 64 wait already. */
bool fake_async(unsigned device, struct ibv_async_event e);
/* Until the device's events have all been handled and acknowledged. */
void fake_async_wait(unsigned device);

/* ---- queues ---- */
extern uint64_t fake_posted;     /* work requests given to the device */
extern bool fake_completes;      /* those with a completion complete at once */
extern unsigned fake_unacked_cq; /* events of completion queues that were taken and not acknowledged */
void fake_complete(struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status);
/* A message into the next receive buffer. */
void fake_receive(struct ibv_qp *qp, const void *msg, size_t len);

/* ---- rdma_cm ---- */
#define FAKE_NOTHING ((enum rdma_cm_event_type)255)
extern int fake_status;             /* of events that tell of a failure */
extern unsigned fake_rejected;      /* requests */
extern unsigned fake_unacked_cm;    /* events that were taken and not acknowledged */
extern struct rd_hello fake_hello;  /* what the last rdma_connect() showed */
/* An id that is bound to the first device; the test frees it. */
struct rdma_cm_id *fake_id(void);
/*
 * Where this event would come from this network (FAKE_ANY), the next `times` times: these
 * two instead; FAKE_NOTHING: none.
 */
void fake_instead(enum rdma_cm_event_type due, int net, unsigned times, enum rdma_cm_event_type first,
		  enum rdma_cm_event_type second);
void fake_event(struct rdma_cm_id *id, enum rdma_cm_event_type type);
/* A request to the listener of this network; false: nobody listens there. */
bool fake_request(unsigned net, const void *private_data, size_t len);
/* The id that listens on this network, or NULL. */
struct rdma_cm_id *fake_listener(unsigned net);

/* ---- the host ---- */
/*
 * Called when the test's thread would sleep in poll(2): makes something happen, or says that
 * nothing will (false, or NULL): then it is at once as late as it wanted to sleep.  To wait for ever
 * is a failure.
 */
extern bool (*fake_idle)(void);
extern uint64_t fake_memlock; /* bytes that may be locked; UINT64_MAX: no limit, as after fake_reset() */
unsigned fake_nfds(void); /* open files of this process */
struct sockaddr_in fake_address(uint32_t net, uint32_t host); /* 192.168.net.host */

/* ---- between these files ---- */
/* Counts the call; NULL when it is one that fails. */
void *fake_make(const char *name, size_t size);
/* A call that makes nothing: 0, or what it returns. */
int fake_may_fail(const char *name);
/* A call that destroys; it does, whatever it returns. */
int fake_drop(const char *name, void *p);
/* FAKE_GONE: on none of ours. */
uint32_t fake_net_of(const struct sockaddr *a);
/* What a real device would not survive, or wait for without end, in whatever build. */
#define fake_must(x) ((x) ? (void)0 : fake_broken(#x, __FILE__, __LINE__))
_Noreturn void fake_broken(const char *what, const char *file, int line);
void fake_queue_ops(struct verbs_context *v);
void fake_cm_reset(void);
void fake_host_reset(void);
void fake_lock(void);
void fake_unlock(void);

#endif
