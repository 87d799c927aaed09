/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include "pageset.h"

int lm_pageset_init(struct lm_pageset *s, const struct lm_ram *ram)
{
	s->n = ram->nregions;
	s->maps = calloc(s->n ? s->n : 1, sizeof(*s->maps));
	if (!s->maps)
		goto fail;
	for (unsigned i = 0; i < s->n; i++)
		if (lm_bitmap_init(&s->maps[i], lm_region_npages(&ram->regions[i])))
			goto fail;
	return 0;
fail:
	lm_pageset_fini(s);
	return -ENOMEM;
}

void lm_pageset_fini(struct lm_pageset *s)
{
	for (unsigned i = 0; s->maps && i < s->n; i++)
		lm_bitmap_fini(&s->maps[i]);
	free(s->maps);
	s->maps = NULL;
	s->n = 0;
}

void lm_pageset_clear_all(struct lm_pageset *s)
{
	for (unsigned i = 0; i < s->n; i++)
		lm_bitmap_clear_all(&s->maps[i]);
}

uint64_t lm_pageset_count(const struct lm_pageset *s)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < s->n; i++)
		sum += lm_bitmap_count(&s->maps[i]);
	return sum;
}

void lm_pageset_or(struct lm_pageset *dst, const struct lm_pageset *src)
{
	for (unsigned i = 0; i < dst->n; i++)
		lm_bitmap_or(&dst->maps[i], &src->maps[i]);
}
