/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The "VM" of dirty_contract.c: a child process with a shared file mapped that does
 * what it is told over a socket, and the kinds of memory for it.
 */
#ifndef DIRTY_CONTRACT_VM_H
#define DIRTY_CONTRACT_VM_H

#include <stdint.h>

#define HUGE_SIZE (UINT64_C(2) << 20)
#define RAM_SIZE (UINT64_C(64) << 20)
#define NPAGES (RAM_SIZE >> 12)

/* Descriptors of empty files, -1 where this host has none. */
int file_tmpfs(void);
int file_thp(void);     /* on a tmpfs of transparent huge pages */
int file_hugetlb(void); /* of 2 MiB pages */

/* The number of huge pages of this host, -1 where it has none; sets it when set >= 0. */
long hugepages(long set);

enum order { ORDER_WRITE, ORDER_READ, ORDER_KERNEL_WRITE, ORDER_DISCARD, ORDER_DROP, ORDER_HAMMER, ORDER_REST,
	     ORDER_EXIT };

struct command {
	enum order order;
	uint64_t first, n, step; /* pages */
};

/* In the child: obey commands on sock until it ends; each is answered by one byte. */
void child_main(int sock, uint8_t *mem, int file) __attribute__((noreturn));

#endif
