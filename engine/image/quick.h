/* SPDX-License-Identifier: Apache-2.0 */
/* Quick migration: the source's part, and the destination's. */
#ifndef LM_QUICK_H
#define LM_QUICK_H

#include "restore.h"
#include "save.h"

int lm_quick_send(struct lm_save *sv, struct lm_error *err);
int lm_quick_receive(struct lm_restore *rs, struct lm_error *err);

#endif
