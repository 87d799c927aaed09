/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Migrations of a guest whose disk is guarded by a real lock, between two hosts that are
 * processes of one machine with names of their own.
 *
 * The storage is a world of the contract suite.  The rig ends all children of a test, and
 * with them the storage's daemons: one test per process.
 */
#ifndef TRIP_H
#define TRIP_H

#include "lock_contract.h"
#include "rig.h"

#define ENGINE_MS 40000

extern const struct world *world; /* of this process */
extern const char *const hosts[NHOSTS];

struct trip {
	struct rig *rig;
	char uri[LM_LOCK_URI_MAX];
	struct rig_config config;
	char disk[128], drive[200];
	struct rig_vm *vm;  /* where the guest is */
	unsigned host, n;   /* and whose it is; VMs made so far */
	struct rig_run *send, *receive;
	int send_code, receive_code;
	const char *breaks; /* LM_BREAK of both */
	bool postcopy;
};

/* A guest with a disk runs on host 0; its lock is fresh and free. */
void trip_start(struct trip *t, struct rig *rig);
struct rig_vm *trip_next_vm(struct trip *t, enum rig_role role);
/* Both engines are started, with these faults (LM_FAULT, may be NULL). */
void trip_begin(struct trip *t, struct rig_vm *to, const char *source_fault, const char *dest_fault);
/* Both have ended, and so have their guardians. */
void trip_end(struct trip *t);
void trip_assert_moved(const struct trip *t);
/* The guest is there: forget where it came from. */
void trip_arrived(struct trip *t, struct rig_vm *to);
/* lm_lock_run() as this host; *ret is its result. */
struct lm_lock_info trip_ask(const struct trip *t, unsigned host, enum lm_lock_what what, int *ret);
/* Fails unless the guest runs where it is said to, that host holds the lock, and the other does not get it. */
void trip_assert_here(const struct trip *t);

/* The storage named in argv[1] is made, the tests that argv[2...] name are run, the storage is removed: an exit code. */
int trip_main(int argc, char **argv, const struct CMUnitTest *tests, size_t ntests);

#endif
