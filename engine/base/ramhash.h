/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LM_RAMHASH_H
#define LM_RAMHASH_H

#include "region.h"

/* Hash over the content of all RAM, which is mapped; holes count as zeros.  Reads all of it: seconds for a large guest. */
int lm_ram_hash(const struct lm_ram *ram, uint8_t ret[static 16], struct lm_error *err);

#endif
