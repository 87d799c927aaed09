/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <linux/mount.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "engine/base/cleanup.h"
#include "dirty_contract_vm.h"
#include "engine/base/region.h"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif
#define NR_HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

int file_tmpfs(void)
{
	return memfd_create("dirty-contract", MFD_CLOEXEC);
}

/* The tmpfs is mounted nowhere and goes with the file. */
int file_thp(void)
{
	LM_AUTO_FD int fs = (int)syscall(SYS_fsopen, "tmpfs", 1 /* FSOPEN_CLOEXEC */);
	LM_AUTO_FD int mnt = -1;

	if (fs < 0 || syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "huge", "always", 0) ||
	    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -1;
	mnt = (int)syscall(SYS_fsmount, fs, 1 /* FSMOUNT_CLOEXEC */, 0);
	return mnt < 0 ? -1 : openat(mnt, "ram", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

int file_hugetlb(void)
{
	return memfd_create("dirty-contract", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
}

long hugepages(long set)
{
	LM_AUTO_FILE FILE *f = fopen(NR_HUGEPAGES, set < 0 ? "re" : "we");
	long n = -1;

	if (!f)
		return -1;
	if (set >= 0)
		return fprintf(f, "%ld", set) < 0 ? -1 : 0;
	return fscanf(f, "%ld", &n) == 1 ? n : -1;
}

#define HAMMERS 3

static struct {
	uint8_t *mem;
	int file;
	_Atomic bool hammering;
	pthread_t threads[HAMMERS];
} child;

static void page_write(uint64_t page)
{
	_Atomic uint64_t *word = (void *)(child.mem + (page << LM_PAGE_SHIFT));

	atomic_fetch_add(word + page % 512, 1);
}

static void *hammer(void *seed)
{
	uint64_t x = (uintptr_t)seed * UINT64_C(0x9E3779B97F4A7C15) + 1;

	while (child.hammering) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		page_write(x % NPAGES);
	}
	return NULL;
}

/* As a device emulation does it: the kernel copies into guest memory. */
static void kernel_write(uint64_t page)
{
	static const char text[64] = "written by the kernel";
	int p[2];

	if (pipe(p) || write(p[1], text, sizeof(text)) != sizeof(text) ||
	    read(p[0], child.mem + (page << LM_PAGE_SHIFT) + 100, sizeof(text)) != sizeof(text))
		_exit(2);
	close(p[0]);
	close(p[1]);
}

/* As a balloon does it in QEMU. */
static void discard(uint64_t page, uint64_t n)
{
	off_t at = (off_t)(page << LM_PAGE_SHIFT), len = (off_t)(n << LM_PAGE_SHIFT);

	if (fallocate(child.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len) ||
	    madvise(child.mem + at, (size_t)len, MADV_DONTNEED))
		_exit(3);
}

/* Out of the page table, as reclaim does it: the file keeps the data. */
static void drop(uint64_t page, uint64_t n)
{
	if (madvise(child.mem + (page << LM_PAGE_SHIFT), n << LM_PAGE_SHIFT, MADV_DONTNEED))
		_exit(5);
}

static void hammer_set(bool on)
{
	child.hammering = on;
	for (uintptr_t i = 0; i < HAMMERS; i++) {
		if (on && pthread_create(&child.threads[i], NULL, hammer, (void *)(i + 1)))
			_exit(4);
		if (!on)
			pthread_join(child.threads[i], NULL);
	}
}

static void obey_page(enum order order, uint64_t page)
{
	if (order == ORDER_WRITE)
		page_write(page);
	else if (order == ORDER_READ)
		(void)*(volatile uint8_t *)(child.mem + (page << LM_PAGE_SHIFT));
	else if (order == ORDER_KERNEL_WRITE)
		kernel_write(page);
}

static void obey(const struct command *c)
{
	if (c->order == ORDER_EXIT)
		_exit(0);
	if (c->order == ORDER_DROP)
		drop(c->first, c->n);
	else if (c->order == ORDER_DISCARD)
		discard(c->first, c->n);
	else if (c->order == ORDER_HAMMER || c->order == ORDER_REST)
		hammer_set(c->order == ORDER_HAMMER);
	else
		for (uint64_t i = 0; i < c->n; i++)
			obey_page(c->order, c->first + i * c->step);
}

void child_main(int sock, uint8_t *mem, int file)
{
	struct command c;

	child.mem = mem;
	child.file = file;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(sock, &c, sizeof(c)) == sizeof(c)) {
		obey(&c);
		if (write(sock, "k", 1) != 1)
			break;
	}
	_exit(0);
}
