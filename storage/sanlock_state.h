/* SPDX-License-Identifier: Apache-2.0 */
/* The handle, which all files of sanlock: share.  sanlock.c has the rules. */
#ifndef LM_SANLOCK_STATE_H
#define LM_SANLOCK_STATE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* The headers of sanlock do not include what they need: stdint.h and stdio.h come before them. */
#include <sanlock.h>
#include <sanlock_admin.h>
#include <sanlock_resource.h>
#include <sanlock_rv.h>
#include "engine/lock/lock.h"

#define SANLOCK_RETRY_US 2000
#define SANLOCK_TRIES 20

struct san {
	struct lm_lock lock;
	int sock;             /* registered with the daemon; the lease is of this connection */
	bool have;            /* this connection holds it */
	char lockspace[SANLK_NAME_LEN], resource[SANLK_NAME_LEN];
	char name[SANLK_NAME_LEN]; /* under which it is held */
	struct sanlk_disk disk;
	uint64_t self;        /* number of this host in the lockspace */
};

/* As the lease is on the disk. */
struct on_disk {
	char name[SANLK_NAME_LEN + 1];
	bool handover;        /* it has a name of the form RESOURCE#FROM-TO */
	uint64_t from, to;
	uint64_t epoch;
	uint64_t owner;       /* 0: none */
};

static inline struct san *san_of(struct lm_lock *l)
{
	return (struct san *)l;
}

#endif
