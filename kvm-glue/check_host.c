/* SPDX-License-Identifier: Apache-2.0 */
/* lm_check_host(): what this host can do, found out by trying. */
#include <fcntl.h>
#include <dirent.h>
#include <linux/capability.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include "engine/base/cleanup.h"
#include "engine/base/memlock.h"
#include "engine/base/region.h"
#include "qemu.h"
#include "uapi.h"

/* Fills status, found and advice (preset: OK, ""). */
struct probe {
	const char *name;
	void (*fn)(struct lm_check *c);
};

__attribute__((format(printf, 2, 3))) static void found(struct lm_check *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->found, sizeof(c->found), fmt, ap);
	va_end(ap);
}

static void advise(struct lm_check *c, enum lm_check_status status, const char *text)
{
	c->status = status;
	snprintf(c->advice, sizeof(c->advice), "%s", text);
}

/* First line of a small file, false when there is none. */
static bool line_read(const char *path, char *ret, size_t size)
{
	LM_AUTO_FILE FILE *f = fopen(path, "re");

	if (!f || !fgets(ret, (int)size, f))
		return false;
	ret[strcspn(ret, "\n")] = 0;
	return true;
}

static long number_read(const char *path, long missing)
{
	char line[64];

	return line_read(path, line, sizeof(line)) ? strtol(line, NULL, 10) : missing;
}

static unsigned entries_count(const char *path, const char *prefix, char *ret_names, size_t size)
{
	DIR *d = opendir(path);
	struct dirent *e;
	unsigned n = 0;
	size_t len = 0;

	ret_names[0] = 0;
	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.' || strncmp(e->d_name, prefix, strlen(prefix)))
			continue;
		if (len < size)
			len += (size_t)snprintf(ret_names + len, size - len, "%s%s", n ? ", " : "", e->d_name);
		n++;
	}
	if (d)
		closedir(d);
	return n;
}

static bool has_cap(int cap)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { { 0 } };

	if (syscall(SYS_capget, &h, d))
		return false;
	return d[cap / 32].effective >> (cap % 32) & 1;
}

static void probe_kernel(struct lm_check *c)
{
	struct utsname u;
	int major = 0, minor = 0;

	uname(&u);
	found(c, "Linux %s", u.release);
	if (sscanf(u.release, "%d.%d", &major, &minor) == 2 && (major < 6 || (major == 6 && minor < 7)))
		advise(c, LM_CHECK_FAIL, "a source needs Linux 6.7 or newer to see a running guest's writes");
}

static int uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | LM_UFFD_USER_MODE_ONLY);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api))
		lm_close_fd(&fd);
	return fd;
}

/* The tracker's own way, on four pages of ours: of them one is written. */
static int tracking_try(int uffd, int pagemap, uint8_t *mem)
{
	struct uffdio_register reg = { .range = { (uintptr_t)mem, 4 * LM_PAGE_SIZE }, .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct lm_page_region hit = { 0 };
	struct lm_pm_scan_arg arg = {
		.size = sizeof(arg), .flags = LM_PM_SCAN_WP_MATCHING | LM_PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)mem, .end = (uintptr_t)mem + 4 * LM_PAGE_SIZE, .vec = (uintptr_t)&hit, .vec_len = 1,
		.category_mask = LM_PAGE_IS_WRITTEN, .return_mask = LM_PAGE_IS_WRITTEN,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg) || ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		return -errno;
	*(volatile uint8_t *)(mem + 2 * LM_PAGE_SIZE) = 1;
	if (ioctl(pagemap, LM_PAGEMAP_SCAN, &arg) != 1)
		return -errno;
	return hit.start == (uintptr_t)mem + 2 * LM_PAGE_SIZE ? 0 : -EIO;
}

static int tracking_probe(void)
{
	LM_AUTO_FD int uffd = uffd_open(LM_UFFD_FEATURE_WP_ASYNC | LM_UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					LM_UFFD_FEATURE_WP_UNPOPULATED);
	LM_AUTO_FD int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	LM_AUTO_FD int memfd = memfd_create("migrate-rdma-check", MFD_CLOEXEC);
	void *mem = MAP_FAILED;
	int r;

	if (uffd < 0 || pagemap < 0 || memfd < 0 || ftruncate(memfd, 4 * LM_PAGE_SIZE))
		return -errno;
	mem = mmap(NULL, 4 * LM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (mem == MAP_FAILED)
		return -errno;
	r = tracking_try(uffd, pagemap, mem);
	munmap(mem, 4 * LM_PAGE_SIZE);
	return r;
}

static void probe_tracking(struct lm_check *c)
{
	int r = tracking_probe();

	found(c, r ? "not available: %s" : "asynchronous write protection and PAGEMAP_SCAN work", strerror(-r));
	if (r)
		advise(c, LM_CHECK_FAIL, "needs Linux 6.7 or newer with CONFIG_USERFAULTFD; in a container, a "
				"seccomp profile that allows userfaultfd. A destination does without");
}

static bool uffd_has(uint64_t features)
{
	LM_AUTO_FD int fd = uffd_open(features);

	return fd >= 0;
}

/* Of an empty range it only says whether the kernel knows the advice. */
static bool can_drop_locked(void)
{
	return !madvise(NULL, 0, LM_MADV_DONTNEED_LOCKED);
}

static void probe_minor(struct lm_check *c)
{
	bool shmem = uffd_has(UFFD_FEATURE_MISSING_SHMEM | LM_UFFD_FEATURE_MINOR_SHMEM);
	bool huge = uffd_has(UFFD_FEATURE_MISSING_HUGETLBFS | LM_UFFD_FEATURE_MINOR_HUGETLBFS);
	bool drop = can_drop_locked();

	found(c, "faults on missing pages: tmpfs %s, hugetlbfs %s%s", shmem ? "yes" : "no", huge ? "yes" : "no",
	      drop ? "" : "; mapped pages cannot be dropped");
	if (!shmem || !huge || !drop)
		advise(c, LM_CHECK_WARN, "post-copy into this host needs Linux 5.18 or newer with CONFIG_USERFAULTFD; "
				"in a container, a seccomp profile that allows userfaultfd");
}

/* QEMU makes the userfaultfd, and may do so with the privilege that it has, or with the device that we open. */
static void probe_uffd_permission(struct lm_check *c)
{
	long allowed = number_read("/proc/sys/vm/unprivileged_userfaultfd", 1);
	bool device = !access("/dev/userfaultfd", R_OK | W_OK);

	found(c, "vm.unprivileged_userfaultfd=%ld, /dev/userfaultfd %s be opened", allowed, device ? "can" : "cannot");
	if (!allowed && !device)
		advise(c, LM_CHECK_WARN, "post-copy into a QEMU without privileges needs root and Linux 6.1 or newer, "
				"or vm.unprivileged_userfaultfd=1");
}

static void probe_ptrace(struct lm_check *c)
{
	long scope = number_read("/proc/sys/kernel/yama/ptrace_scope", 0);
	bool cap = has_cap(CAP_SYS_PTRACE);

	found(c, "%s CAP_SYS_PTRACE, ptrace_scope %ld", cap ? "with" : "without", scope);
	if (scope >= 3)
		advise(c, LM_CHECK_FAIL, "kernel.yama.ptrace_scope=3 forbids it to everybody until the next "
				"boot: set it to 1");
	else if (!cap && scope > 0)
		advise(c, LM_CHECK_FAIL, "run migrate-rdma as root or with CAP_SYS_PTRACE");
	else if (!cap)
		advise(c, LM_CHECK_WARN, "only guests of this user can be migrated: run migrate-rdma as root");
}

static void probe_memlock(struct lm_check *c)
{
	uint64_t limit = lm_memlock_limit();

	if (limit == UINT64_MAX) {
		found(c, "unlimited%s", has_cap(CAP_IPC_LOCK) ? ", with CAP_IPC_LOCK" : "");
		return;
	}
	found(c, "%llu KiB", (unsigned long long)limit / 1024);
	advise(c, LM_CHECK_WARN, "RDMA pins guest RAM: raise it (ulimit -l unlimited, LimitMEMLOCK=infinity)");
}

static void huge_probe(struct lm_check *c, unsigned long kib, const char *advice)
{
	char path[128];
	long n, free_pages;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages", kib);
	n = number_read(path, -1);
	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%lukB/free_hugepages", kib);
	free_pages = number_read(path, 0);
	if (n < 0)
		found(c, "not supported by this CPU");
	else
		found(c, "%ld, %ld of them free", n, free_pages);
	if (n <= 0)
		advise(c, LM_CHECK_ABSENT, advice);
}

static void probe_huge_2m(struct lm_check *c)
{
	huge_probe(c, 2048, "only guests with RAM on hugetlbfs need them: sysctl vm.nr_hugepages=N");
}

static void probe_huge_1g(struct lm_check *c)
{
	huge_probe(c, 1048576, "only guests with RAM on hugetlbfs need them: hugepagesz=1G hugepages=N on the "
			"kernel's command line");
}

static void probe_kvm(struct lm_check *c)
{
	LM_AUTO_FD int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int version = fd >= 0 ? ioctl(fd, KVM_GET_API_VERSION, 0) : -1;

	if (version >= 0) {
		found(c, "API version %d", version);
		return;
	}
	found(c, "/dev/kvm: %s", strerror(errno));
	advise(c, errno == EACCES ? LM_CHECK_WARN : LM_CHECK_ABSENT,
	       "guests run by emulation (TCG) only: load kvm_intel or kvm_amd, join group kvm");
}

static void probe_numa(struct lm_check *c)
{
	char names[128];
	unsigned n = entries_count("/sys/devices/system/node", "node", names, sizeof(names));

	found(c, "%u", n ? n : 1);
	if (n > 1)
		found(c, "%u (%s)", n, names);
}

static void probe_shmem_thp(struct lm_check *c)
{
	char line[96];

	if (!line_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled", line, sizeof(line))) {
		found(c, "not in this kernel");
		c->status = LM_CHECK_ABSENT;
		return;
	}
	found(c, "%s", line);
}

static void probe_shm(struct lm_check *c)
{
	struct statvfs fs;

	if (statvfs("/dev/shm", &fs)) {
		found(c, "/dev/shm: %s", strerror(errno));
		advise(c, LM_CHECK_WARN, "guest RAM needs a tmpfs or hugetlbfs: mount -t tmpfs tmpfs /dev/shm");
		return;
	}
	found(c, "/dev/shm: %llu of %llu MiB free", (unsigned long long)fs.f_bavail * fs.f_frsize >> 20,
	      (unsigned long long)fs.f_blocks * fs.f_frsize >> 20);
}

static const struct probe probes[] = {
	{ "kernel", probe_kernel },
	{ "write tracking", probe_tracking },
	{ "post-copy", probe_minor },
	{ "userfaultfd permission", probe_uffd_permission },
	{ "ptrace", probe_ptrace },
	{ "locked memory", probe_memlock },
	{ "shared memory", probe_shm },
	{ "huge pages of 2 MiB", probe_huge_2m },
	{ "huge pages of 1 GiB", probe_huge_1g },
	{ "transparent huge pages for shared memory", probe_shmem_thp },
	{ "KVM", probe_kvm },
	{ "NUMA nodes", probe_numa },
};

int lm_qemu_check_host(lm_check_fn *fn, void *opaque)
{
	int failures = 0;

	for (size_t i = 0; i < sizeof(probes) / sizeof(*probes); i++) {
		struct lm_check c = { .status = LM_CHECK_OK, .name = probes[i].name };

		probes[i].fn(&c);
		failures += c.status == LM_CHECK_FAIL;
		fn(opaque, &c);
	}
	return failures;
}
