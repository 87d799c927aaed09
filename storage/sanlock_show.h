/* SPDX-License-Identifier: Apache-2.0 */
/* sanlock: the state of the lease and of its hosts, in words. */
#ifndef LM_SANLOCK_SHOW_H
#define LM_SANLOCK_SHOW_H

#include "sanlock_state.h"

/* SANLK_HOST_... of that host of the lockspace. */
uint32_t san_host_state(const struct san *s, uint64_t id);
const char *san_state_words(uint32_t state);
/* A member of lm_lock_ops. */
int san_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err);

#endif
