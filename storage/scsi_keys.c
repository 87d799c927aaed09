/* SPDX-License-Identifier: Apache-2.0 */
/* scsi-pr: what a key says. */
#include <string.h>
#include <xxhash.h>
#include "scsi_state.h"

#define KEY_MAGIC UINT64_C(0x4c4d)
#define EPOCH_BITS 24
#define EPOCH_MAX ((UINT64_C(1) << EPOCH_BITS) - 1)

uint32_t pr_host_part(const char *host)
{
	return XXH3_64bits(host, strlen(host)) & 0xffffff;
}

uint64_t lm_pr_key(const char *host, uint64_t epoch)
{
	return KEY_MAGIC << 48 | (uint64_t)pr_host_part(host) << EPOCH_BITS | (epoch & EPOCH_MAX);
}

bool pr_key_is_lm(uint64_t key)
{
	return key >> 48 == KEY_MAGIC;
}

uint64_t pr_key_epoch(uint64_t key)
{
	return key & EPOCH_MAX;
}

uint32_t pr_key_host(uint64_t key)
{
	return (uint32_t)(key >> EPOCH_BITS) & 0xffffff;
}

bool pr_key_of_host(uint64_t key, const char *host)
{
	return pr_key_is_lm(key) && pr_key_host(key) == pr_host_part(host);
}

uint64_t pr_epoch_seen(const struct lm_pr_view *v)
{
	uint64_t max = 0;

	for (unsigned i = 0; i < v->nkeys; i++)
		if (pr_key_is_lm(v->keys[i]) && pr_key_epoch(v->keys[i]) > max)
			max = pr_key_epoch(v->keys[i]);
	return max;
}

uint64_t pr_epoch_next(const struct scsi_pr *s, const struct lm_pr_view *v)
{
	uint64_t max = pr_epoch_seen(v);

	if (s->lock.epoch > max)
		max = s->lock.epoch;
	return max ? max + 1 : lm_lock_epoch_first();
}

int pr_epoch_valid(uint64_t epoch, struct lm_error *err)
{
	return epoch <= EPOCH_MAX ? 0 : lm_err(err, -ERANGE, LM_SCOPE_OPERATION, "the epoch does not fit into a key");
}

bool pr_type_ours(const struct lm_pr_view *v)
{
	return v->type == 5 || v->type == 6;
}

int pr_held_by(const struct scsi_pr *s, const struct lm_pr_view *v, int code, struct lm_error *err)
{
	if (!v->held)
		return lm_err(err, code, LM_SCOPE_OPERATION, "nobody holds the reservation any more");
	if (!pr_key_is_lm(v->holder) || !pr_type_ours(v))
		return lm_err(err, code, LM_SCOPE_OPERATION, "a reservation that is not of this program is there: key "
			      "%016llx, type %u", (unsigned long long)v->holder, v->type);
	return lm_err(err, code, LM_SCOPE_OPERATION, "%s host holds it: key %016llx, epoch %llu",
		      pr_key_of_host(v->holder, s->host) ? "this" : "another", (unsigned long long)v->holder,
		      (unsigned long long)pr_key_epoch(v->holder));
}
