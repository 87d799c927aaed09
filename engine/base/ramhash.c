/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <xxhash.h>
#include "ramhash.h"
#include "zero.h"

/* Non-zero pages only, each with its place: a hole and a page of zeros hash alike. */
static int hash_region(XXH3_state_t *state, const struct lm_region *r, unsigned index, struct lm_error *err)
{
	struct lm_bitmap existing;
	uint64_t pos = 0, first, n;
	int e = lm_bitmap_init(&existing, lm_region_npages(r));

	if (e)
		return lm_err(err, e, LM_SCOPE_SESSION, "out of memory");
	e = lm_region_existing(r, 0, existing.nbits, &existing, err);
	while (!e && (n = lm_bitmap_next_run(&existing, pos, existing.nbits, &first))) {
		for (pos = first; pos < first + n; pos++) {
			const uint8_t *page = r->host + (pos << LM_PAGE_SHIFT);
			uint64_t place[2] = { index, pos };

			if (lm_page_is_zero(page))
				continue;
			XXH3_128bits_update(state, place, sizeof(place));
			XXH3_128bits_update(state, page, LM_PAGE_SIZE);
		}
	}
	lm_bitmap_fini(&existing);
	return e;
}

int lm_ram_hash(const struct lm_ram *ram, uint8_t ret[static 16], struct lm_error *err)
{
	XXH3_state_t *state = XXH3_createState();
	XXH128_canonical_t out;
	int r = 0;

	if (!state)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	XXH3_128bits_reset(state);
	for (unsigned i = 0; !r && i < ram->nregions; i++)
		r = hash_region(state, &ram->regions[i], i, err);
	XXH128_canonicalFromHash(&out, XXH3_128bits_digest(state));
	memcpy(ret, out.digest, 16);
	XXH3_freeState(state);
	return r;
}
