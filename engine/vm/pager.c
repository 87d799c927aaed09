/* SPDX-License-Identifier: Apache-2.0 */
#include "pager.h"

static int check_range(const struct lm_pager *p, unsigned region, uint64_t first, uint64_t n,
		       struct lm_error *err)
{
	uint64_t npages, unit;

	if (region >= p->ram->nregions)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "pager: region %u of %u", region, p->ram->nregions);
	npages = lm_region_npages(&p->ram->regions[region]);
	unit = p->ram->regions[region].page_size >> LM_PAGE_SHIFT;
	if (!n || first >= npages || n > npages - first || first % unit || n % unit)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "pager: a range that is no whole pages of its region");
	return 0;
}

int lm_pager_arm(struct lm_pager *p, struct lm_error *err)
{
	return p->ops->arm(p, err);
}

int lm_pager_faults(struct lm_pager *p, struct lm_page_fault *ret, unsigned n, struct lm_error *err)
{
	return p->ops->faults(p, ret, n, err);
}

int lm_pager_place(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	int r = check_range(p, region, first, n, err);

	return r ? r : p->ops->place(p, region, first, n, err);
}

int lm_pager_release(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	int r = check_range(p, region, first, n, err);

	return r ? r : p->ops->release(p, region, first, n, err);
}

int lm_pager_wake(struct lm_pager *p, struct lm_error *err)
{
	return p->ops->wake(p, err);
}

int lm_pager_finish(struct lm_pager *p, struct lm_error *err)
{
	return p->ops->finish(p, err);
}

void lm_pager_close(struct lm_pager *p)
{
	if (p)
		p->ops->close(p);
}
