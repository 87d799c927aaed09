/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/user.h>
#include "inject_arch.h"

#ifdef __x86_64__

#define X86_USER64_CS 0x33

_Static_assert(sizeof(struct user_regs_struct) <= sizeof(((struct lm_inject_regs *)0)->words), "room for registers");

static struct user_regs_struct x86_regs(const struct lm_inject_regs *r)
{
	struct user_regs_struct x;

	memcpy(&x, r->words, sizeof(x));
	return x;
}

static int x86_check(const struct lm_inject_regs *r)
{
	return r->size == sizeof(struct user_regs_struct) && x86_regs(r).cs == X86_USER64_CS ? 0 : -ENOTSUP;
}

/*
 * orig_rax -1 says that the thread did not come from a system call: otherwise
 * the kernel would take our rax for the result of an interrupted one and set rip
 * back to restart it.
 */
static void x86_enter(struct lm_inject_regs *r, uint64_t insn_addr, const struct lm_inject_call *call)
{
	struct user_regs_struct x = x86_regs(r);

	x.rip = insn_addr;
	x.orig_rax = (unsigned long long)-1;
	x.rax = (unsigned long long)call->nr;
	x.rdi = call->args[0];
	x.rsi = call->args[1];
	x.rdx = call->args[2];
	x.r10 = call->args[3];
	x.r8 = call->args[4];
	x.r9 = call->args[5];
	memcpy(r->words, &x, sizeof(x));
}

static long x86_result(const struct lm_inject_regs *r)
{
	return (long)x86_regs(r).rax;
}

static const struct lm_inject_arch x86_64 = {
	.name = "x86_64",
	.insn = { 0x0f, 0x05 },
	.insn_size = 2,
	.check = x86_check,
	.enter = x86_enter,
	.result = x86_result,
};

const struct lm_inject_arch *lm_inject_arch(void)
{
	return &x86_64;
}

#else

const struct lm_inject_arch *lm_inject_arch(void)
{
	return NULL;
}

#endif
