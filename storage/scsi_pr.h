/* SPDX-License-Identifier: Apache-2.0 */
/* The state machine of scsi-pr: over any kind of paths; and what tests need to see of it. */
#ifndef LM_SCSI_PR_H
#define LM_SCSI_PR_H

#include "engine/lock/lock.h"
#include "scsi_path.h"

/*
 * The key of a host with an epoch: 'L' 'M', 24 bits of a hash of the host's name, 24
 * bits of epoch.  Keys that do not begin so are somebody else's.
 */
uint64_t lm_pr_key(const char *host, uint64_t epoch);

struct lm_scsi_pr_options {
	uint8_t type;  /* 5: write exclusive, registrants only; 6: exclusive access, registrants only */
	bool early;    /* prepare registers; then the destination could write before it takes the lock */
	bool no_abort; /* no PREEMPT AND ABORT, even if the target says that it has it */
	/* The paths that there are now, as lm_scsi_sg_paths() gives them for `where`; NULL: always the same. */
	int (*find)(const char *where, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *ret_n,
		    struct lm_error *err);
	char where[LM_LOCK_URI_MAX];
};

/* Takes the paths over, also when it fails. */
int lm_scsi_pr_new(struct lm_scsi_path *const *paths, unsigned npaths, const struct lm_scsi_pr_options *options,
		   const char *host, int64_t deadline_ns, struct lm_lock **ret, struct lm_error *err);
/* The paths of a scsi-pr lock. */
struct lm_scsi_path *const *lm_scsi_pr_paths(const struct lm_lock *l, unsigned *ret_n);

#endif
