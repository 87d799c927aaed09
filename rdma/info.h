/* SPDX-License-Identifier: Apache-2.0 */
/* What there is of RDMA on this host; for `transports` and `check`. */
#ifndef LM_RDMA_INFO_H
#define LM_RDMA_INFO_H

#include "migrate_rdma.h"

/* A line per port, and one for the memlock limit.  Nothing here is a failure: TCP remains. */
void lm_rdma_check(lm_check_fn *fn, void *opaque);

#endif
