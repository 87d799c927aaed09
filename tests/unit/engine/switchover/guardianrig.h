/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guardian and its engine.  The engine is a child process that does some steps and then waits to be killed;
 * the VM is a table whose force op notes what the guardian asks of it.
 */
#ifndef GUARDIANRIG_H
#define GUARDIANRIG_H

#include <stdatomic.h>
#include <sys/types.h>
#include "fakelock.h"
#include "engine/switchover/guardian.h"
#include "unit.h"

#define NOTHING (-1)

/* Shared by the test, the engine and the guardian. */
struct seen {
	_Atomic int force;        /* enum lm_force of the last call, or NOTHING */
	_Atomic unsigned calls;
	_Atomic bool force_fails;
	_Atomic pid_t guardian;
	_Atomic bool right_fds;   /* guardian_fd and pidfd were those of the VM */
	_Atomic int commit;       /* what lm_guardian_commit() returned; -1: nobody called it */
	_Atomic bool engine_ready;
};
extern struct seen *seen;
extern const struct lm_vm_ops fake_ops;

/* What the engine has done before it is killed. */
enum step { IDLE, PAUSE, PAUSE_OFFERING, PAUSE_OFFER, PAUSE_OFFER_COMMIT, PAUSE_COMMIT,
	    PAUSE_COMMIT_RUN, PAUSE_IDLE, COMMIT_UNCOMMIT, STOP };

/* What the engine gives its guardian; NULL: the guest has no locks. */
extern const struct lm_guardian_locks *locks;
extern struct lm_lock_notes notes;
/* The two locks of the guest, seen from host a and from host b. */
extern const struct lm_guardian_locks of_a, of_b;

/* pause_ns: the limit of the pause; 0: none. */
pid_t engine_fork(enum lm_side side, bool was_running, enum step step, int64_t pause_ns);
/* The engine's messages go where those of engine_fork()'s go. */
void engine_log(void);
bool engine_is_ready(void);
/* When the engine is ready. */
void engine_kill(pid_t pid);
bool forced(void);
bool wait_for(bool (*done)(void), unsigned timeout_ms);
/* Wait for the end of all processes. */
void reap_guardians(void);
/* Kill an engine after these steps: what the guardian asks of the VM. */
int killed_after(enum lm_side side, bool was_running, enum step step);
/* What the engine and its guardian have said. */
const char *log_text(void);

/* Host a has offered its locks to host b. */
void offer_locks(struct lm_locks *a, struct lm_locks *b);
void close_locks(struct lm_locks *a, struct lm_locks *b);

/* For cmocka. */
int guardian_setup(void **state);
/* A test program's main(): runs the tests; the number of failed ones. */
int guardian_run(const struct CMUnitTest *tests, size_t n);

#endif
