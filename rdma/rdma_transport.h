/* SPDX-License-Identifier: Apache-2.0 */
/* The RDMA transport, for the registry and for tests; in builds with libibverbs and librdmacm. */
#ifndef LM_RDMA_TRANSPORT_H
#define LM_RDMA_TRANSPORT_H

#include "engine/transport/registry.h"

extern const struct lm_transport_info lm_transport_rdma;
/* lm_transport_rdma.make */
struct lm_transport *lm_transport_rdma_new(void);

#endif
