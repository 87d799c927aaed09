/* SPDX-License-Identifier: Apache-2.0 */
/* Persistent reservations of a real iSCSI target over two paths; writing is a real WRITE. */
#include <errno.h>
#include "engine/base/clock.h"
#include "lock_contract.h"
#include "storage/scsi_pr.h"
#include "tgt.h"

static bool scsi_start(char *why, size_t size)
{
	return tgt_start(NULL, why, size);
}

static void scsi_fresh(char uri[LM_LOCK_URI_MAX])
{
	tgt_lun(uri, LM_LOCK_URI_MAX);
}

static void scsi_enter(unsigned host)
{
	(void)host;
}

static int write_block(struct lm_scsi_path *p)
{
	uint8_t block[512] = { 0x55 };
	struct lm_scsi_cmd cmd = {
		.cdb = { 0x2a, [8] = 1 }, .cdb_len = 10, .direction = LM_SCSI_DATA_OUT, .data = block, .len = sizeof(block),
	};

	return lm_scsi_exec(p, &cmd, lm_now_ns() + 5 * LM_NS_PER_S, NULL);
}

/* 0 when a path takes it; a conflict on every path else. */
static int scsi_write(struct lm_lock *l)
{
	unsigned n;
	struct lm_scsi_path *const *paths = lm_scsi_pr_paths(l, &n);
	int ret = -ENOLINK;

	for (unsigned i = 0; i < n; i++) {
		int r = paths[i]->up ? write_block(paths[i]) : -ENOLINK;

		if (!r)
			return 0;
		if (r == -EBUSY)
			ret = r;
	}
	return ret;
}

const struct world scsi_world = {
	.name = "scsi-pr", .start = scsi_start, .stop = tgt_stop, .fresh = scsi_fresh, .enter = scsi_enter,
	.write = scsi_write, .rule = "lock-proof",
};
