/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by inject.c (the caller's side) and inject_helper.c (the tracer). */
#ifndef LM_INJECT_PRIV_H
#define LM_INJECT_PRIV_H

#include "inject_arch.h"

struct inject_job {
	pid_t pid;
	const struct lm_inject_arch *arch;
	uint64_t insn_addr;
	const struct lm_inject_call *calls;
	unsigned ncalls;
};

/* One message from the helper, with the descriptors of the calls that have_fd. */
struct inject_answer {
	struct lm_error err; /* code 0: the process was traced and released correctly */
	long ret[LM_INJECT_MAX];
	bool has_fd[LM_INJECT_MAX];
	int64_t held_ns;
};

/* The helper's life: trace, answer on sock, exit. */
void inject_helper(const struct inject_job *job, int sock) __attribute__((noreturn));

#endif
