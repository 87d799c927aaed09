/* SPDX-License-Identifier: Apache-2.0 */
/* A process with threads that touch shared memory when told: the VM of the pager's tests. */
#ifndef PAGER_VM_H
#define PAGER_VM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define VM_THREADS 8 /* number 0 is the main thread, into which calls are injected */

enum touch {
	TOUCH_READ,      /* value: the word at addr */
	TOUCH_WRITE,     /* the word at addr becomes value */
	TOUCH_SUM,       /* value: of all words of [addr, addr + len), each multiplied by its place */
	TOUCH_SYS_READ,  /* read(2) of value from a pipe to addr: the kernel writes */
	TOUCH_SYS_WRITE, /* value: write(2) of the word at addr to a pipe: the kernel reads */
	TOUCH_DROP,      /* MADV_DONTNEED of [addr, addr + len) */
	TOUCH_RANDOM,    /* value words at places of [addr, addr + len): value becomes the number of bad ones */
};

/* What TOUCH_RANDOM expects, and what memory is filled with: in every word, by its address. */
static inline uint64_t pattern(uint64_t addr)
{
	return addr * UINT64_C(0x9E3779B97F4A7C15) | 1;
}

uint64_t words_sum(const volatile uint64_t *words, uint64_t len);

struct vm_thread {
	_Atomic uint32_t told, done; /* counts */
	enum touch what;
	uint64_t addr, len, value;
	_Atomic pid_t tid;
};

struct vm {
	pid_t pid;
	struct vm_thread *threads; /* shared with it */
};

void vm_start(struct vm *vm); /* inherits all mappings of the caller */
void vm_kill(struct vm *vm);
void vm_end(struct vm *vm);
void vm_tell(struct vm *vm, unsigned thread, enum touch what, uint64_t addr, uint64_t len, uint64_t value);
/* Whether it has done what it was told, within ms. */
bool vm_done(struct vm *vm, unsigned thread, unsigned ms);

#endif
