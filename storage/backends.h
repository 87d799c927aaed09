/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LM_STORAGE_BACKENDS_H
#define LM_STORAGE_BACKENDS_H

#include "engine/lock/lock.h"

/* lm_lock_backend.open of each scheme. */
int lm_lease_open(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err);
int lm_scsi_pr_open(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err);
int lm_sanlock_open(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err);

#endif
