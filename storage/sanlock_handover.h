/* SPDX-License-Identifier: Apache-2.0 */
/* sanlock: members of lm_lock_ops for the hand-over. */
#ifndef LM_SANLOCK_HANDOVER_H
#define LM_SANLOCK_HANDOVER_H

#include "engine/lock/lock.h"

int san_offer(struct lm_lock *l, const struct lm_lock_note *answer, struct lm_lock_note *note,
	      int64_t deadline_ns, struct lm_error *err);
int san_prepare(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
		int64_t deadline_ns, struct lm_error *err);
int san_take(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns, struct lm_error *err);

#endif
