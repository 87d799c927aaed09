/* SPDX-License-Identifier: Apache-2.0 */
/* How much memory this process may lock: what is registered with an RDMA device counts. */
#ifndef LM_MEMLOCK_H
#define LM_MEMLOCK_H

#include <stdint.h>

/* In bytes; UINT64_MAX: no limit (none is set, or CAP_IPC_LOCK lifts it). */
uint64_t lm_memlock_limit(void);

#endif
