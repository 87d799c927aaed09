/* SPDX-License-Identifier: Apache-2.0 */
/* A set of pages of guest RAM: one bitmap per region. */
#ifndef LM_PAGESET_H
#define LM_PAGESET_H

#include "region.h"

struct lm_pageset {
	struct lm_bitmap *maps;
	unsigned n;
};

int lm_pageset_init(struct lm_pageset *s, const struct lm_ram *ram); /* 0 or -ENOMEM; empty */
void lm_pageset_fini(struct lm_pageset *s);                          /* takes a zeroed one */
void lm_pageset_clear_all(struct lm_pageset *s);
uint64_t lm_pageset_count(const struct lm_pageset *s);
void lm_pageset_or(struct lm_pageset *dst, const struct lm_pageset *src);

#endif
