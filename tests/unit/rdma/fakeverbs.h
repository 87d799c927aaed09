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
extern unsigned fake_reg_ms;    /* how long registering takes */
extern uint64_t fake_posted;    /* work requests given to the device */

void fake_reset(void);
/* An id that is bound to the fake device. */
struct rdma_cm_id *fake_id(void);

#endif
