/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "engine/base/cleanup.h"
#include "pager_rig.h"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

static int tmpfs_make(void)
{
	return memfd_create("pager", MFD_CLOEXEC);
}

int tmpfs_file(const char *option, const char *value)
{
	LM_AUTO_FD int fs = (int)syscall(SYS_fsopen, "tmpfs", 1 /* FSOPEN_CLOEXEC */);
	LM_AUTO_FD int mnt = -1;

	if (fs < 0 || syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, option, value, 0) ||
	    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -1;
	mnt = (int)syscall(SYS_fsmount, fs, 1 /* FSMOUNT_CLOEXEC */, 0);
	return mnt < 0 ? -1 : openat(mnt, "ram", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static int thp_make(void)
{
	return tmpfs_file("huge", "always");
}

static int hugetlb_make(void)
{
	return memfd_create("pager", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
}

const struct memory memory_tmpfs = { "tmpfs", tmpfs_make, 4096 };
const struct memory memory_thp = { "tmpfs with huge=always", thp_make, 4096 };
const struct memory memory_hugetlb = { "hugetlbfs", hugetlb_make, 2 << 20 };

/* The second region begins one page into its file; both at addresses of whole huge pages. */
static int region_make(struct world *w, unsigned i)
{
	struct lm_region *r = &w->regions[i];
	uint64_t align = UINT64_C(2) << 20;
	struct stat st;
	uint8_t *hole;

	*r = (struct lm_region){ .size = REGION_SIZE, .page_size = w->memory->page_size, .fd = w->memory->make() };
	snprintf(r->name, sizeof(r->name), "ram%u", i);
	r->file_offset = i ? r->page_size : 0;
	if (r->fd < 0 || ftruncate(r->fd, (off_t)(r->file_offset + r->size)) || fstat(r->fd, &st))
		return -errno;
	hole = mmap(NULL, r->size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	hole += align - (uintptr_t)hole % align;
	r->host = mmap(hole, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r->fd, (off_t)r->file_offset);
	if (r->host == MAP_FAILED) {
		r->host = NULL;
		return -errno;
	}
	r->dev = st.st_dev;
	r->ino = st.st_ino;
	r->vm_addr = (uintptr_t)r->host; /* the VM has it at the same place */
	return 0;
}

static void regions_end(struct world *w)
{
	for (unsigned i = 0; i < 2; i++) {
		if (w->regions[i].host)
			munmap(w->regions[i].host, w->regions[i].size);
		lm_close_fd(&w->regions[i].fd);
	}
}

int world_setup(void **state)
{
	const struct memory *m = *state;
	struct world *w = calloc(1, sizeof(*w));
	int r;

	w->memory = m;
	w->regions[1].fd = -1;
	w->nunits = REGION_SIZE / m->page_size;
	r = region_make(w, 0);
	if (!r)
		r = region_make(w, 1);
	if (r) {
		print_message("no %s on this host: %s%s\n", m->name, strerror(-r),
			      m == &memory_hugetlb ? " (tools/check reserves huge pages: vm.nr_hugepages)" : "");
		regions_end(w);
		free(w);
		*state = NULL;
		return 0;
	}
	w->ram = (struct lm_ram){ w->regions, 2, false };
	vm_start(&w->vm);
	*state = w;
	return 0;
}

int world_teardown(void **state)
{
	struct world *w = *state;

	if (!w)
		return 0;
	serve_stop(w);
	lm_pager_close(w->pager);
	vm_end(&w->vm);
	regions_end(w);
	free(w);
	return 0;
}

struct world *world_of(void **state)
{
	if (!*state)
		skip();
	return *state;
}

void ok(struct world *w, int r)
{
	if (r < 0)
		fail_msg("%d: %s", r, w->err.msg);
}

uint64_t unit_addr(const struct world *w, unsigned region, uint64_t unit)
{
	return w->regions[region].vm_addr + unit * w->memory->page_size;
}

void fill(struct world *w, unsigned region, uint64_t unit, uint64_t n)
{
	uint64_t at = unit_addr(w, region, unit), end = at + n * w->memory->page_size;

	for (; at < end; at += 8)
		*(uint64_t *)(uintptr_t)at = pattern(at);
}

void arm(struct world *w)
{
	ok(w, lm_uffd_pager_new(w->vm.pid, &w->ram, &w->pager, &w->err));
	ok(w, lm_pager_arm(w->pager, &w->err));
}

void place(struct world *w, unsigned region, uint64_t unit, uint64_t n)
{
	uint64_t per_unit = w->memory->page_size / LM_PAGE_SIZE;

	ok(w, lm_pager_place(w->pager, region, unit * per_unit, n * per_unit, &w->err));
}

struct lm_page_fault fault_wait(struct world *w)
{
	struct pollfd p = { .fd = w->pager->fd, .events = POLLIN };
	struct lm_page_fault f = { 0 };
	int n = 0;

	while (!n) {
		if (poll(&p, 1, SOON) != 1)
			fail_msg("no page fault came");
		n = lm_pager_faults(w->pager, &f, 1, &w->err);
		ok(w, n);
	}
	return f;
}

void assert_no_fault(struct world *w)
{
	struct lm_page_fault f;

	assert_int_equal(lm_pager_faults(w->pager, &f, 1, &w->err), 0);
}

/* ---- threads that serve ---- */

static int serve_once(struct world *w)
{
	struct pollfd p = { .fd = w->pager->fd, .events = POLLIN };
	struct lm_page_fault f[16];
	struct lm_error err;
	int n, r = 0;

	poll(&p, 1, 10);
	n = lm_pager_faults(w->pager, f, 16, &err);
	for (int i = 0; !r && i < n; i++)
		r = lm_pager_place(w->pager, f[i].region, f[i].page, w->memory->page_size / LM_PAGE_SIZE, &err);
	w->served += n > 0 ? (unsigned)n : 0;
	return n < 0 ? n : r;
}

static void *server(void *arg)
{
	struct world *w = arg;

	while (w->serving && !w->server_failed)
		w->server_failed = serve_once(w);
	return NULL;
}

void serve(struct world *w, unsigned nservers)
{
	w->serving = true;
	for (; w->nservers < nservers; w->nservers++)
		assert_int_equal(pthread_create(&w->servers[w->nservers], NULL, server, w), 0);
}

void serve_stop(struct world *w)
{
	w->serving = false;
	while (w->nservers)
		pthread_join(w->servers[--w->nservers], NULL);
}

/* ---- what the VM does ---- */

void tell(struct world *w, unsigned thread, enum touch what, unsigned region, uint64_t unit, uint64_t value)
{
	vm_tell(&w->vm, thread, what, unit_addr(w, region, unit), w->memory->page_size, value);
}

uint64_t done(struct world *w, unsigned thread)
{
	if (!vm_done(&w->vm, thread, SOON))
		fail_msg("thread %u still waits", thread);
	return w->vm.threads[thread].value;
}

void assert_waits(struct world *w, unsigned thread)
{
	if (vm_done(&w->vm, thread, NEVER))
		fail_msg("thread %u does not wait", thread);
}

void hugepages_add(long n)
{
	LM_AUTO_FILE FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "r+e");
	long now;

	if (f) /* another test program may change the number at the same time */
		flock(fileno(f), LOCK_EX);
	if (f && fscanf(f, "%ld", &now) == 1) {
		rewind(f);
		fprintf(f, "%ld", now + n);
	}
}

unsigned count_fds(pid_t pid)
{
	char path[64];
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	while (d && readdir(d))
		n++;
	closedir(d);
	return n;
}

uint64_t huge_mapped_kib(pid_t pid)
{
	char path[64], line[512];
	LM_AUTO_FILE FILE *f = NULL;
	unsigned long sum = 0, kib;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "ShmemPmdMapped: %lu", &kib) == 1)
			sum += kib;
	return sum;
}

bool is_watched(pid_t pid)
{
	char path[64], line[512];
	LM_AUTO_FILE FILE *f = NULL;
	bool yes = false;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		yes |= !strncmp(line, "VmFlags:", 8) &&
		       (strstr(line, " um ") || strstr(line, " uw ") || strstr(line, " ui "));
	return yes;
}

int pager_main(int argc, char **argv, int (*run)(const struct memory *m))
{
	int failed;

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	failed = run(&memory_tmpfs);
	failed += run(&memory_thp);
	hugepages_add(HUGEPAGES);
	failed += run(&memory_hugetlb);
	hugepages_add(-HUGEPAGES);
	return failed;
}
