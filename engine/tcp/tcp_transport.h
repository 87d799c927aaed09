/* SPDX-License-Identifier: Apache-2.0 */
/* The TCP transport, for the registry and for tests. */
#ifndef LM_TCP_TRANSPORT_H
#define LM_TCP_TRANSPORT_H

#include "engine/transport/registry.h"

extern const struct lm_transport_info lm_transport_tcp;
/* lm_transport_tcp.make */
struct lm_transport *lm_transport_tcp_new(void);

#endif
