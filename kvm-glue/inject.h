/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Run system calls in another process, which notices nothing.
 *
 * The process' main thread is stopped with ptrace for about 0.2 ms, the calls run
 * in it one after the other, and it goes on where it was; its other threads are
 * not touched.  Signals that arrive meanwhile stay pending and are delivered
 * afterwards; a system call that was interrupted is restarted by the kernel.
 */
#ifndef LM_INJECT_H
#define LM_INJECT_H

#include <sys/types.h>
#include "engine/base/error.h"

#define LM_INJECT_MAX 8

enum lm_inject_fd {
	LM_INJECT_PLAIN,   /* the result is a number */
	LM_INJECT_COPY_FD, /* a descriptor: copied to this process, stays open in the other one */
	LM_INJECT_MOVE_FD, /* a descriptor: copied to this process, closed in the other one */
};

struct lm_inject_call {
	long nr; /* of the system call */
	uint64_t args[6];
	enum lm_inject_fd result;
	long ret; /* out: what it returned, negative errno for a failure */
	int fd;   /* out: this process' copy (close-on-exec), -1 for none; the caller's */
};

/*
 * n calls (at most LM_INJECT_MAX) in order; the first that fails ends the row, with 0
 * returned here and its errno in its ret; the calls after it have ret -ECANCELED.
 * Errors are about the process: gone, not ours to trace, traced by a debugger,
 * 32-bit, does not stop in time.  *ret_held_ns (may be NULL): how long its main
 * thread was held.
 */
int lm_inject(pid_t pid, struct lm_inject_call *calls, unsigned n, int64_t *ret_held_ns,
	      struct lm_error *err);

#endif
