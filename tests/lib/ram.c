/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files that hold guest RAM.  They are read with pread() and never mapped:
 * a look at a hole through a mapping would put a page there.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include "internal.h"

#define SHM_DIR		"/dev/shm"
#define SHM_PREFIX	"rig-"
#define CHUNK		(UINT64_C(1) << 20)
#define PAGE		4096u
#define HUGE_FILE	"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

static void add_file(struct rig_vm *vm, const char *dir, const char *id, uint64_t mb)
{
	struct rig_file *f = &vm->ram[vm->nram++];
	int n;

	snprintf(f->id, sizeof(f->id), "%s", id);
	n = snprintf(f->path, sizeof(f->path), "%s/" SHM_PREFIX "%d-%u-%s-%s", dir, getpid(),
		     vm->rig->serial, vm->name, id);
	assert_true(n > 0 && (size_t)n < sizeof(f->path));
	f->size = mb << 20;
	f->fd = -1;
}

void rig_ram_paths(struct rig_vm *vm, const struct rig_config *c)
{
	const char *dir = c->hugepages ? vm->rig->huge : SHM_DIR;
	unsigned mb = c->mb ? c->mb : 64;
	char id[16];

	if (c->backing == RIG_NO_BACKEND || c->backing == RIG_MEMFD)
		return;
	for (unsigned i = 0; i < c->nodes; i++) {
		snprintf(id, sizeof(id), "ram%u", i);
		add_file(vm, dir, id, mb / c->nodes);
	}
	if (!c->nodes)
		add_file(vm, dir, "ram0", mb);
	if (c->dimm_mb)
		add_file(vm, dir, "dimm0", c->dimm_mb);
}

void rig_ram_open(struct rig_vm *vm)
{
	for (unsigned i = 0; i < vm->nram; i++) {
		if (vm->ram[i].fd < 0)
			vm->ram[i].fd = open(vm->ram[i].path, O_RDWR | O_CLOEXEC);
	}
}

void rig_ram_remove(struct rig_vm *vm)
{
	for (unsigned i = 0; i < vm->nram; i++) {
		if (vm->ram[i].fd >= 0)
			close(vm->ram[i].fd);
		vm->ram[i].fd = -1;
		unlink(vm->ram[i].path);
	}
}

/* What a test program that was killed has left: its pid is in the name. */
void rig_ram_sweep(void)
{
	DIR *d = opendir(SHM_DIR);
	struct dirent *e;
	int pid;

	while (d && (e = readdir(d))) {
		if (sscanf(e->d_name, SHM_PREFIX "%d-", &pid) == 1 && kill(pid, 0) < 0 && errno == ESRCH)
			unlinkat(dirfd(d), e->d_name, 0);
	}
	if (d)
		closedir(d);
}

static uint64_t next_data(int fd, uint64_t at, uint64_t size)
{
	off_t o = lseek(fd, (off_t)at, SEEK_DATA);

	return o < 0 ? size : (uint64_t)o;
}

static void read_chunk(int fd, uint8_t *buf, uint64_t at, uint64_t n)
{
	if (pread(fd, buf, n, (off_t)at) != (ssize_t)n)
		fail_msg("cannot read guest RAM at %#lx: %s", (unsigned long)at, strerror(errno));
}

static uint64_t first_difference(const uint8_t *x, const uint8_t *y, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		if (x[i] != y[i])
			return i;
	}
	return n;
}

static bool file_equal(const struct rig_file *a, const struct rig_file *b, char *where, size_t size)
{
	static uint8_t x[CHUNK], y[CHUNK];
	uint64_t at = 0, n, da, db;

	while (at < a->size) {
		da = next_data(a->fd, at, a->size);
		db = next_data(b->fd, at, b->size);
		at = (da < db ? da : db) & ~(CHUNK - 1);
		if (at >= a->size)
			break;
		n = a->size - at < CHUNK ? a->size - at : CHUNK;
		read_chunk(a->fd, x, at, n);
		read_chunk(b->fd, y, at, n);
		if (memcmp(x, y, n)) {
			uint64_t d = first_difference(x, y, n);

			snprintf(where, size, "%s differs at %#lx: %02x and %02x", a->id,
				 (unsigned long)(at + d), x[d], y[d]);
			return false;
		}
		at += n;
	}
	return true;
}

bool rig_ram_equal(const struct rig_vm *a, const struct rig_vm *b, char *where, size_t size)
{
	assert_int_equal(a->nram, b->nram);
	for (unsigned i = 0; i < a->nram; i++) {
		assert_int_equal(a->ram[i].size, b->ram[i].size);
		if (!file_equal(&a->ram[i], &b->ram[i], where, size))
			return false;
	}
	return true;
}

void rig_assert_ram_equal(const struct rig_vm *a, const struct rig_vm *b)
{
	char where[128];

	if (!rig_ram_equal(a, b, where, sizeof(where)))
		fail_msg("RAM of %s and %s: %s", a->name, b->name, where);
}

uint64_t rig_ram_allocated(const struct rig_vm *vm)
{
	uint64_t bytes = 0;
	struct stat st;

	for (unsigned i = 0; i < vm->nram; i++) {
		if (!fstat(vm->ram[i].fd, &st))
			bytes += (uint64_t)st.st_blocks * 512;
	}
	return bytes;
}

void rig_ram_discard(const struct rig_vm *vm, unsigned file, uint64_t offset, uint64_t len)
{
	if (fallocate(vm->ram[file].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		      (off_t)len) < 0)
		fail_msg("cannot punch a hole: %s", strerror(errno));
}

void rig_ram_fill(const struct rig_vm *vm, unsigned file, uint64_t offset, uint64_t len, int byte)
{
	uint8_t page[PAGE];

	memset(page, byte, sizeof(page));
	for (uint64_t at = 0; at < len; at += PAGE)
		assert_int_equal(pwrite(vm->ram[file].fd, page, PAGE, (off_t)(offset + at)), PAGE);
}

static long get_hugepages(void)
{
	char *text = rig_read_file(HUGE_FILE);
	long n = text ? atol(text) : -1;

	free(text);
	return n;
}

static void set_hugepages(long n)
{
	int fd = open(HUGE_FILE, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	dprintf(fd, "%ld\n", n);
	close(fd);
}

void rig_hugepages_restore(struct rig *rig)
{
	if (rig->huge[0])
		umount2(rig->huge, MNT_DETACH);
	if (rig->huge_saved >= 0)
		set_hugepages(rig->huge_saved);
	rig->huge_saved = -1;
	rig->huge[0] = 0;
}

void rig_private_mounts(struct rig *rig)
{
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		rig_skip(rig, "no mount namespace of its own: needs root");
}

const char *rig_hugepages(struct rig *rig, unsigned mb)
{
	long want;

	rig_private_mounts(rig);
	rig_path(rig, rig->huge, "huge");
	mkdir(rig->huge, 0700);
	if (mount("rig", rig->huge, "hugetlbfs", 0, "pagesize=2M") < 0) {
		rig->huge[0] = 0;
		rig_skip(rig, "no hugetlbfs with 2 MiB pages");
	}
	rig->huge_saved = get_hugepages();
	want = rig->huge_saved + mb / 2;
	set_hugepages(want);
	if (get_hugepages() < want)
		rig_skip(rig, "not enough contiguous memory for huge pages");
	return rig->huge;
}
