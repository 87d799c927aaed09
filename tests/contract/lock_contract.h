/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hosts for the lock contract: processes that each play one host and do what the
 * test tells them, one call at a time.  They can be killed inside a call.
 */
#ifndef LOCK_CONTRACT_H
#define LOCK_CONTRACT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <cmocka.h>
#include "engine/lock/lock.h"

#define NHOSTS 3

/* What the locks lie on: one per backend. */
struct world {
	const char *name;
	/* Make the storage, and the daemons that serve it; false: cannot run here, why says it. */
	bool (*start)(char *why, size_t size);
	void (*stop)(void);
	/* A fresh lock; every test has its own. */
	void (*fresh)(char uri[LM_LOCK_URI_MAX]);
	/* In a host's process, before anything else. */
	void (*enter)(unsigned host);
	/*
	 * In a host's process: try to write to what is locked.  0: it could be done.
	 * NULL: there is nothing to write to; then show is asked.
	 */
	int (*write)(struct lm_lock *l);
	bool names_next; /* the storage itself says whom it was offered to */
	bool sees_life;  /* break is refused while the holder's process lives */
	bool sees_hosts; /* break is refused while the holder's host lives */
	/* LM_BREAK rule without which a stale note is taken. */
	const char *rule;
};
extern const struct world lease_world;
#ifdef HAVE_LIBISCSI
extern const struct world scsi_world;
#endif
#ifdef HAVE_SGUTILS
extern const struct world map_world, disk_world;
#endif
#ifdef HAVE_SANLOCK
extern const struct world sanlock_world;
#endif

enum op { OPEN, ACQUIRE, ANNOUNCE, PREPARE, OFFER, TAKE, RECLAIM, RELEASE, SHOW, BREAK, WRITE, CLOSE };

struct reply {
	int r;               /* of the call; DIED: the host was killed in it */
	uint64_t epoch;
	enum lm_lock_state state;
	struct lm_error err;
	struct lm_lock_info info;
	char remark[512];
	uint8_t note[LM_LOCK_NOTE_SIZE];
	int64_t ns;          /* how long the call took */
};
#define DIED (-9999)

struct host {
	pid_t pid;
	int fd;
	unsigned index;
	uint8_t note[LM_LOCK_NOTE_SIZE]; /* the last that it gave */
};

/* All hosts of a test, with handles on one fresh lock; they are gone after hosts_stop(). */
struct hosts {
	const struct world *world;
	char uri[LM_LOCK_URI_MAX];
	struct host h[NHOSTS];
};

void hosts_start(struct hosts *t, const struct world *world);
void hosts_stop(struct hosts *t);
void host_kill(struct host *h);
/* A new process on the same host, with a new handle. */
void host_restart(struct hosts *t, struct host *h);

/* fault: LM_FAULT for this call; broken: LM_BREAK; both may be NULL.  peer: whose last note is its argument. */
struct reply host_do(struct host *h, enum op op, const struct host *peer, const char *fault, const char *broken);
/* Start it and do not wait. */
void host_begin(struct host *h, enum op op, const struct host *peer);
struct reply host_end(struct host *h);

#define assert_ok(got) do { struct reply r_ = (got); if (r_.r) fail_msg("%d: %s", r_.r, r_.err.msg); } while (0)
#define assert_error(got, code) do { struct reply r_ = (got); if (r_.r != (code)) \
	fail_msg("%d instead of %d: %s", r_.r, (code), r_.err.msg); } while (0)

#endif
