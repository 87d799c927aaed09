/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RDMA without a device: the calls of libibverbs and librdmacm that open things are
 * wrapped by the linker and answered here.  Every object is counted; any one call can
 * be made to fail.
 */
#ifndef FAKEVERBS_H
#define FAKEVERBS_H

#include "rdma.h"

extern int fake_live;           /* objects that were made and not destroyed */
extern unsigned fake_calls;     /* that could fail, so far */
extern unsigned fake_fail_at;   /* the call that fails with ENOMEM; 0: none */
extern const char *fake_failed; /* its name */
extern bool fake_no_odp;        /* registering on demand is refused */
/* What ibv_advise_mr() was told, and the errno that it gives. */
#define FAKE_ADVISED_MAX 64
extern struct ibv_sge fake_advised[FAKE_ADVISED_MAX];
extern unsigned fake_nadvised;
extern enum ibv_advise_mr_advice fake_advice;
extern uint32_t fake_advise_flags;
extern int fake_advise_error;
extern unsigned fake_reg_ms;    /* how long registering takes */
extern uint64_t fake_posted;    /* work requests given to the device */

void fake_reset(void);
/* An id that is bound to the fake device. */
struct rdma_cm_id *fake_id(void);

#endif
