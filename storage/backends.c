/* SPDX-License-Identifier: Apache-2.0 */
#include "backends.h"

#ifdef HAVE_SANLOCK
#define SANLOCK NULL, lm_sanlock_open
#else
#define SANLOCK "libsanlock was not there", NULL
#endif

const struct lm_lock_backend lm_lock_backends[] = {
	{ "lease", "/PATH: a file on a shared file system whose locks reach all hosts", NULL, lm_lease_open },
	{ "scsi-pr", "iscsi://PORTAL[,PORTAL...]/IQN/LUN or /dev/X: a persistent reservation of a whole LUN", NULL,
	  lm_scsi_pr_open },
	{ "sanlock", "LOCKSPACE:RESOURCE:/PATH:OFFSET: a resource lease of sanlock", SANLOCK },
	{ NULL, NULL, NULL, NULL },
};
