/* SPDX-License-Identifier: Apache-2.0 */
/* A lease in a directory that two processes share as two hosts would. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "lock_contract.h"

static char dir[] = "lock-lease.XXXXXX";
static char where[512];
static unsigned number;

static bool lease_start(char *why, size_t size)
{
	if (!mkdtemp(dir) || !realpath(dir, where)) {
		snprintf(why, size, "no directory here");
		return false;
	}
	return true;
}

static void lease_stop(void)
{
	char path[600];

	for (unsigned i = 0; i <= number; i++) {
		snprintf(path, sizeof(path), "%s/%u.lease", where, i);
		unlink(path);
	}
	rmdir(where);
}

static void lease_fresh(char uri[LM_LOCK_URI_MAX])
{
	snprintf(uri, LM_LOCK_URI_MAX, "lease:%s/%u.lease?local=yes", where, ++number);
}

static void lease_enter(unsigned host)
{
	(void)host;
}

const struct world lease_world = {
	.name = "lease", .start = lease_start, .stop = lease_stop, .fresh = lease_fresh, .enter = lease_enter,
	.names_next = true, .sees_life = true, .rule = "lock-sector",
};
