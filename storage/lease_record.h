/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record in a lease file: who owns the lock.  It lies in the first 512 bytes, so
 * that no disk can write half of it; 4096 are written, so that any sector size does.
 */
#ifndef LM_LEASE_RECORD_H
#define LM_LEASE_RECORD_H

#include "engine/lock/lock.h"

#define LEASE_SIZE 4096
#define LEASE_LOCK_AT LEASE_SIZE /* the locked byte: behind the record, which others may always read */

enum lease_state { LEASE_NEW, LEASE_FREE, LEASE_OWNED, LEASE_OFFERED };

struct lease_record {
	enum lease_state state;       /* LEASE_NEW: the file is empty */
	uint64_t epoch;
	char owner[LM_LOCK_HOST_MAX]; /* OWNED, OFFERED; the last one when FREE */
	char next[LM_LOCK_HOST_MAX];  /* OFFERED */
	uint8_t id[LM_LOCK_ID_SIZE];  /* of this lease, random */
	uint64_t nonce;               /* random, another one with every write */
};

/* Through fd.  -EUCLEAN: not a record, or damaged (*ret then has an epoch if one can be guessed). */
int lease_record_read(int fd, struct lease_record *ret, struct lm_error *err);
/* Written to stable storage, read again and compared.  Gives it a new nonce; a new one an id. */
int lease_record_write(int fd, struct lease_record *record, struct lm_error *err);

/* Whether locks on this file reach all hosts: 0, or -ENOTSUP with the reason.  fd may be a directory's. */
int lease_fs_check(int fd, const char *path, struct lm_error *err);

#endif
