/* SPDX-License-Identifier: Apache-2.0 */
/* What injection needs to know of a CPU architecture. */
#ifndef LM_INJECT_ARCH_H
#define LM_INJECT_ARCH_H

#include <elf.h>
#include "inject.h"

/* The general registers as PTRACE_GETREGSET NT_PRSTATUS gives them. */
struct lm_inject_regs {
	uint64_t words[64];
	size_t size;
};

struct lm_inject_arch {
	const char *name;
	uint8_t insn[4]; /* the instruction that makes a system call */
	size_t insn_size;
	/* Whether a thread with these registers can be used: 0 or -ENOTSUP. */
	int (*check)(const struct lm_inject_regs *regs);
	/* Turn saved registers into those of a thread about to make the call at insn_addr. */
	void (*enter)(struct lm_inject_regs *regs, uint64_t insn_addr, const struct lm_inject_call *call);
	long (*result)(const struct lm_inject_regs *regs);
};

/* NULL on a CPU without support. */
const struct lm_inject_arch *lm_inject_arch(void);

#endif
