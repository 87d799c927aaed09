/* SPDX-License-Identifier: Apache-2.0 */
#include "dirty.h"

int lm_dirty_start(struct lm_dirty *d, struct lm_error *err)
{
	int r;

	if (d->started)
		return lm_err(err, -EALREADY, LM_SCOPE_SESSION, "tracker %s is started already", d->ops->name);
	r = d->ops->start(d, err);
	d->started = r == 0;
	return r;
}

static bool range_valid(const struct lm_dirty *d, unsigned index, uint64_t first, uint64_t n)
{
	uint64_t npages;

	if (index >= d->ram->nregions)
		return false;
	npages = lm_region_npages(&d->ram->regions[index]);
	return first <= npages && n <= npages - first && first % 64 == 0 &&
	       (n % 64 == 0 || first + n == npages);
}

int lm_dirty_collect(struct lm_dirty *d, unsigned index, uint64_t first, uint64_t n,
		     struct lm_bitmap *written, struct lm_bitmap *absent, struct lm_error *err)
{
	if (!d->started)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "tracker %s is not started", d->ops->name);
	if (!range_valid(d, index, first, n))
		return lm_err(err, -ERANGE, LM_SCOPE_SESSION,
			      "tracker %s: pages %llu+%llu of region %u are not a range of it", d->ops->name,
			      (unsigned long long)first, (unsigned long long)n, index);
	return n ? d->ops->collect(d, index, first, n, written, absent, err) : 0;
}

void lm_dirty_close(struct lm_dirty *d)
{
	if (d)
		d->ops->close(d);
}
