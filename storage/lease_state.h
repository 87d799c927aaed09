/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of lease: share: the handle, and how its file is opened.  lease.c has the rules. */
#ifndef LM_LEASE_STATE_H
#define LM_LEASE_STATE_H

#include "lease_record.h"

struct lease {
	struct lm_lock lock;
	int fd;      /* -1: the file was not there yet */
	bool locked; /* the OFD lock is ours */
	bool local;  /* the file system need not be shared */
	int32_t holder_pid;
	char path[LM_LOCK_URI_MAX];
};

static inline struct lease *lease_of(struct lm_lock *l)
{
	return (struct lease *)l;
}

/* --- lease_open.c --- */

/* Opens the file when it is there; 0 with fd -1 when it is not. */
int lease_attach(struct lease *s, struct lm_error *err);
/* Opens it, and makes it when it is not there. */
int lease_create(struct lease *s, struct lm_error *err);
/* A member of lm_lock_ops. */
void lease_close(struct lm_lock *l);

/* fcntl(F_OFD_*) of the lock's byte; for F_OFD_GETLK -EBUSY when another open file has it. */
int lease_ofd(int fd, int command, short type);

/* lease_show.c: a member of lm_lock_ops. */
int lease_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err);

#endif
