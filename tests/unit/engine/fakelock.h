/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storage that is a page of memory, which forked processes share: locks "fake:0" to
 * "fake:7" with the rules of lock.h, faults on demand and a record of what was called.
 * Whoever links it has lm_lock_backends[] from here and none of the real ones.
 */
#ifndef FAKELOCK_H
#define FAKELOCK_H

#include <pthread.h>
#include "engine/lock/lock.h"

#define FAKELOCK_MAX 8
#define FAKELOCK_LOG 4096

enum fakelock_op { FAKE_ACQUIRE, FAKE_ANNOUNCE, FAKE_PREPARE, FAKE_OFFER, FAKE_TAKE, FAKE_RELEASE, FAKE_SHOW, FAKE_OPS };

struct fakelock_record {
	enum { FAKE_FREE, FAKE_OWNED, FAKE_OFFERED } state;
	char owner[LM_LOCK_HOST_MAX], next[LM_LOCK_HOST_MAX];
	uint64_t epoch;
	/* The next `times` calls of this operation, of this host ("" any), fail with this code. */
	struct { int code; unsigned times; char host[LM_LOCK_HOST_MAX]; } fault[FAKE_OPS];
};

struct fakelock_storage {
	pthread_mutex_t mutex; /* of all below; shared between processes */
	struct fakelock_record lock[FAKELOCK_MAX];
	char log[FAKELOCK_LOG]; /* "HOST OPERATION NUMBER RESULT;" for each call that changes or could */
	/* Called with the mutex, in the process of the caller, before a change; NULL: not. */
	void (*before)(void *opaque, const char *host, enum fakelock_op op, unsigned number);
	void *opaque;
};

/* All free, no faults, empty log. */
struct fakelock_storage *fakelock_reset(void);
void fakelock_fail(unsigned number, enum fakelock_op op, const char *host, int code, unsigned times);
/* Whether this host may write to all of the first n. */
bool fakelock_owns(const char *host, unsigned n);

#endif
