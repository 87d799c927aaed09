/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * Guest RAM is a shared file.  The engine fills the file; what the VM sees of it
 * is decided by the VM's page table.  A userfaultfd that was made inside the VM
 * and registered for missing and minor faults hands every touch of an empty page
 * table entry to us, whether the file has a page there (minor) or not (missing).
 * UFFDIO_CONTINUE maps the file's page into the VM and wakes who waits.
 *
 * Arming: register first, then drop the entries that exist (the VM has touched
 * some of its RAM, or all of it with prealloc=on).  In the other order a touch
 * between the two would map a page that nobody watches.  Dropping is
 * MADV_DONTNEED, which on a shared file takes away the mapping and never the
 * data; the kernel lets only the process itself do that, so it is injected.  The
 * other advices may leave pages mapped (MADV_PAGEOUT those that others have
 * mapped, too) or take the data (MADV_REMOVE).  _LOCKED: QEMU may have locked its
 * memory.  KVM's own page tables follow by the MMU notifier, huge mappings of
 * transparent huge pages go as a whole, and from then on are made of small pages.
 *
 * The VM keeps the descriptor: a registration ends with the last copy of its
 * userfaultfd, and with ours alone a VM whose engine dies would read pages that
 * have not come.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include "engine/base/cleanup.h"
#include "inject.h"
#include "engine/base/testhook.h"
#include "uapi.h"
#include "uffd_pager_priv.h"

#define MESSAGES 64 /* per read: 2 KiB of stack */
/*
 * Per injected call.  Dropping a GiB that is all mapped takes 15 to 40 ms, and the
 * calls of one injection have 2 s.
 */
#define DROP_STEP (UINT64_C(1) << 30)

/* ---- the descriptor ---- */

/* THREAD_ID is older than the others. */
static uint64_t features_wanted(const struct lm_ram *ram)
{
	uint64_t f = UFFD_FEATURE_THREAD_ID;

	for (unsigned i = 0; i < ram->nregions; i++)
		f |= ram->regions[i].page_size == LM_PAGE_SIZE ?
			     UFFD_FEATURE_MISSING_SHMEM | LM_UFFD_FEATURE_MINOR_SHMEM :
			     UFFD_FEATURE_MISSING_HUGETLBFS | LM_UFFD_FEATURE_MINOR_HUGETLBFS;
	return f;
}

static int api_negotiate(struct uffd_pager *u, struct lm_error *err)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features_wanted(u->base.ram) };
	uint64_t wanted = api.features;

	if (ioctl(u->base.fd, UFFDIO_API, &api))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
				    "this kernel has no minor faults for the guest's memory: post-copy needs Linux "
				    "5.18 or newer");
	if ((api.features & wanted) != wanted)
		return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION,
			      "this kernel lacks something that post-copy needs: use Linux 5.18 or newer");
	return 0;
}

static int make_error(const struct uffd_pager *u, int code, struct lm_error *err)
{
	if (code == -EPERM)
		return lm_err(err, code, LM_SCOPE_SESSION,
			      "process %d runs without privileges and may not make a userfaultfd that the kernel "
			      "waits for, too: sysctl vm.unprivileged_userfaultfd=1", (int)u->pid);
	if (code == -EMFILE || code == -ENFILE)
		return lm_err_errno(err, code, LM_SCOPE_SESSION, "process %d has no descriptor left (ulimit -n)",
				    (int)u->pid);
	return lm_err_errno(err, code, LM_SCOPE_SESSION,
			    "userfaultfd is not available in process %d (forbidden by a seccomp filter, or kernel "
			    "without CONFIG_USERFAULTFD)", (int)u->pid);
}

/* Not in user mode only: KVM, vhost and read(2) must wait for pages, too. */
static int uffd_make(struct uffd_pager *u, int vm_device, struct lm_error *err)
{
	struct lm_inject_call call = {
		.nr = SYS_userfaultfd, .args = { O_CLOEXEC | O_NONBLOCK }, .result = LM_INJECT_COPY_FD,
	};
	struct lm_inject_call by_device = {
		.nr = SYS_ioctl,
		.args = { (uint64_t)vm_device, LM_USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK },
		.result = LM_INJECT_COPY_FD,
	};
	int r;

	if (vm_device >= 0)
		call = by_device;
	r = lm_inject(u->pid, &call, 1, NULL, err);
	if (r)
		return r;
	if (call.ret < 0)
		return make_error(u, (int)call.ret, err);
	u->base.fd = call.fd;
	u->base.vm_fd = (int)call.ret;
	return uffd_pager_is_alive(u) ? api_negotiate(u, err) : uffd_pager_gone(u, err);
}

static bool is_userfaultfd(pid_t pid, int fd)
{
	char path[64], target[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
	n = readlink(path, target, sizeof(target) - 1);
	target[n > 0 ? n : 0] = 0;
	return !strcmp(target, "anon_inode:[userfaultfd]");
}

/* If the number now belongs to something else, it must not be closed. */
static int vm_fd_close(struct uffd_pager *u, struct lm_error *err)
{
	struct lm_inject_call call = { .nr = SYS_close, .args = { (uint64_t)u->base.vm_fd } };
	int r;

	if (!uffd_pager_is_alive(u))
		return uffd_pager_gone(u, err);
	if (u->base.vm_fd >= 0 && is_userfaultfd(u->pid, u->base.vm_fd)) {
		r = lm_inject(u->pid, &call, 1, NULL, err);
		if (r)
			return r;
	}
	u->base.vm_fd = -1;
	return 0;
}

/* ---- arming ---- */

static int region_register(const struct uffd_pager *u, const struct lm_region *r, struct lm_error *err)
{
	struct uffdio_register reg = {
		.range = { r->vm_addr, r->size },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
	};

	if (!ioctl(u->base.fd, UFFDIO_REGISTER, &reg))
		return 0;
	if (errno == EBUSY)
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
			      "memory backend %s: another userfaultfd is at work in process %d (QEMU's own "
			      "post-copy, or another migrate-rdma)", r->name, (int)u->pid);
	return uffd_pager_error(u, "registering", r, err);
}

static int regions_unregister(const struct uffd_pager *u, struct lm_error *err)
{
	for (unsigned i = 0; i < u->base.ram->nregions; i++) {
		const struct lm_region *r = &u->base.ram->regions[i];
		struct uffdio_range range = { r->vm_addr, r->size };

		if (ioctl(u->base.fd, UFFDIO_UNREGISTER, &range))
			return uffd_pager_error(u, "no longer watching", r, err);
	}
	return 0;
}

static struct lm_inject_call drop_call(const struct lm_region *r, uint64_t at)
{
	uint64_t len = r->size - at < DROP_STEP ? r->size - at : DROP_STEP;

	return (struct lm_inject_call){
		.nr = SYS_madvise,
		.args = { r->vm_addr + at, len, LM_MADV_DONTNEED_LOCKED },
	};
}

static int drops_run(const struct uffd_pager *u, struct lm_inject_call *calls, unsigned n, struct lm_error *err)
{
	int r = lm_inject(u->pid, calls, n, NULL, err);

	for (unsigned i = 0; !r && i < n; i++)
		if (calls[i].ret < 0)
			r = lm_err_errno(err, (int)calls[i].ret, LM_SCOPE_SESSION,
					 "dropping the mappings of process %d%s", (int)u->pid,
					 calls[i].ret == -EINVAL ? " (needs Linux 5.18 or newer)" : "");
	return r;
}

/* Drop what the process has mapped of its RAM, so that it must fault it in again. */
static int mappings_drop(const struct uffd_pager *u, struct lm_error *err)
{
	struct lm_inject_call calls[LM_INJECT_MAX];
	unsigned n = 0;
	int r = 0;

	for (unsigned i = 0; i < u->base.ram->nregions; i++) {
		const struct lm_region *region = &u->base.ram->regions[i];

		for (uint64_t at = 0; !r && at < region->size; at += DROP_STEP) {
			calls[n++] = drop_call(region, at);
			if (n == LM_INJECT_MAX) {
				r = drops_run(u, calls, n, err);
				n = 0;
			}
		}
	}
	return r || !n ? r : drops_run(u, calls, n, err);
}

static int pager_arm(struct lm_pager *p, struct lm_error *err)
{
	struct uffd_pager *u = uffd_pager_of(p);
	int r = 0;

	for (unsigned i = 0; !r && i < p->ram->nregions; i++)
		r = region_register(u, &p->ram->regions[i], err);
	if (!r)
		r = mappings_drop(u, err);
	if (r) {
		regions_unregister(u, NULL);
		return r;
	}
	u->armed = true;
	return lm_broken("pager-close") ? vm_fd_close(u, err) : 0;
}

/* ---- faults ---- */

static int fault_locate(const struct uffd_pager *u, const struct uffd_msg *m, struct lm_page_fault *ret,
			struct lm_error *err)
{
	uint64_t addr = m->arg.pagefault.address;

	for (unsigned i = 0; i < u->base.ram->nregions; i++) {
		const struct lm_region *r = &u->base.ram->regions[i];

		if (addr < r->vm_addr || addr - r->vm_addr >= r->size)
			continue;
		*ret = (struct lm_page_fault){
			.region = i,
			.page = (addr - r->vm_addr) / r->page_size * (r->page_size >> LM_PAGE_SHIFT),
			.write = m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE,
			.tid = (int32_t)m->arg.pagefault.feat.ptid,
		};
		return 0;
	}
	return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "process %d waits for a page at %llx, which is not guest RAM",
		      (int)u->pid, (unsigned long long)addr);
}

static int pager_faults(struct lm_pager *p, struct lm_page_fault *ret, unsigned n, struct lm_error *err)
{
	const struct uffd_pager *u = uffd_pager_of(p);
	struct uffd_msg msg[MESSAGES];
	ssize_t got = read(p->fd, msg, (n < MESSAGES ? n : MESSAGES) * sizeof(*msg));
	int found = 0;

	if (got < 0 && errno != EAGAIN && errno != EINTR)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "reading the page faults of process %d",
				    (int)u->pid);
	/* a process that has ended has no faults, and that is all that the descriptor says */
	if (got <= 0)
		return uffd_pager_is_alive(u) ? 0 : uffd_pager_gone(u, err);
	for (size_t i = 0; i < (size_t)got / sizeof(*msg); i++) {
		int r;

		if (msg[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		r = fault_locate(u, &msg[i], &ret[found], err);
		if (r)
			return r;
		found++;
	}
	return found;
}

/* ---- the rest of the table ---- */

static int pager_release(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	const struct lm_region *r = &p->ram->regions[region];
	struct uffdio_range range = { r->vm_addr + (first << LM_PAGE_SHIFT), n << LM_PAGE_SHIFT };

	if (ioctl(p->fd, UFFDIO_UNREGISTER, &range))
		return uffd_pager_error(uffd_pager_of(p), "no longer watching part of", r, err);
	return 0;
}

static int pager_wake(struct lm_pager *p, struct lm_error *err)
{
	const struct uffd_pager *u = uffd_pager_of(p);

	for (unsigned i = 0; i < p->ram->nregions; i++) {
		const struct lm_region *r = &p->ram->regions[i];
		struct uffdio_range range = { r->vm_addr, r->size };

		if (ioctl(p->fd, UFFDIO_WAKE, &range))
			return uffd_pager_error(u, "waking who waits for", r, err);
	}
	return uffd_pager_is_alive(u) ? 0 : uffd_pager_gone(u, err);
}

/* May be called again when it failed: it goes on with what is left. */
static int pager_finish(struct lm_pager *p, struct lm_error *err)
{
	struct uffd_pager *u = uffd_pager_of(p);
	int r = p->fd >= 0 ? regions_unregister(u, err) : 0;

	if (r)
		return r;
	u->armed = false;
	r = vm_fd_close(u, err);
	if (!r)
		lm_close_fd(&p->fd);
	return r;
}

/* Try to close the descriptor, which watches nothing now; if that fails, it does the VM no harm. */
static void pager_close(struct lm_pager *p)
{
	struct uffd_pager *u = uffd_pager_of(p);

	if (!u->armed && p->vm_fd >= 0)
		vm_fd_close(u, NULL);
	lm_close_fd(&p->fd);
	lm_close_fd(&u->pagemap);
	free(u);
}

static const struct lm_pager_ops uffd_pager_ops = {
	.name = "uffd",
	.arm = pager_arm,
	.faults = pager_faults,
	.place = uffd_pager_place,
	.release = pager_release,
	.wake = pager_wake,
	.finish = pager_finish,
	.close = pager_close,
};

/* ---- making one ---- */

static int pagemap_open(struct uffd_pager *u, struct lm_error *err)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)u->pid);
	u->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (u->pagemap < 0 && (errno == ENOENT || errno == ESRCH))
		return uffd_pager_gone(u, err);
	if (u->pagemap < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot open %s", path);
	return uffd_pager_is_alive(u) ? 0 : uffd_pager_gone(u, err);
}

static int pager_alloc(pid_t pid, const struct lm_ram *ram, struct uffd_pager **ret, struct lm_error *err)
{
	struct uffd_pager *u = calloc(1, sizeof(*u));

	if (!u)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	u->base.ops = &uffd_pager_ops;
	u->base.ram = ram;
	u->base.fd = u->base.vm_fd = -1;
	u->pid = pid;
	u->pagemap = -1;
	*ret = u;
	return pagemap_open(u, err);
}

static int pager_done(struct uffd_pager *u, int r, struct lm_pager **ret)
{
	if (!r)
		*ret = &u->base;
	else if (u)
		pager_close(&u->base);
	return r;
}

int lm_uffd_pager_new_by(pid_t pid, const struct lm_ram *ram, int vm_device, struct lm_pager **ret,
			 struct lm_error *err)
{
	struct uffd_pager *u = NULL;
	int r = pager_alloc(pid, ram, &u, err);

	if (!r)
		r = uffd_make(u, vm_device, err);
	return pager_done(u, r, ret);
}

int lm_uffd_pager_new(pid_t pid, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err)
{
	return lm_uffd_pager_new_by(pid, ram, -1, ret, err);
}

/* The features that a userfaultfd of ours was made with; 0 when they cannot be read. */
static uint64_t features_of(int fd)
{
	unsigned long long features = 0;
	char path[64], line[128];
	LM_AUTO_FILE FILE *f = NULL;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f) && sscanf(line, "API: %*x:%llx:", &features) != 1)
		;
	return features;
}

static int vm_fd_fetch(struct uffd_pager *u, int vm_fd, struct lm_error *err)
{
	LM_AUTO_FD int pidfd = (int)syscall(SYS_pidfd_open, u->pid, 0);
	uint64_t wanted = features_wanted(u->base.ram);

	if (!is_userfaultfd(u->pid, vm_fd))
		return lm_err(err, -EBADF, LM_SCOPE_SESSION,
			      "descriptor %d of process %d is no userfaultfd that can be read: nobody waits for "
			      "pages there, or run migrate-rdma as root", vm_fd, (int)u->pid);
	u->base.fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, vm_fd, 0);
	if (u->base.fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot take descriptor %d of process %d over",
				    vm_fd, (int)u->pid);
	if ((features_of(u->base.fd) & wanted) != wanted)
		return lm_err(err, -EBADF, LM_SCOPE_SESSION,
			      "descriptor %d of process %d is a userfaultfd, but not that of a post-copy of this "
			      "guest", vm_fd, (int)u->pid);
	/* the address space that was opened first is still there: all of this was one process */
	return uffd_pager_is_alive(u) ? 0 : uffd_pager_gone(u, err);
}

int lm_uffd_pager_reopen(pid_t pid, const struct lm_ram *ram, int vm_fd, struct lm_pager **ret,
			 struct lm_error *err)
{
	struct uffd_pager *u = NULL;
	int r = pager_alloc(pid, ram, &u, err);

	if (!r)
		r = vm_fd_fetch(u, vm_fd, err);
	if (!r) {
		u->base.vm_fd = vm_fd;
		u->armed = true;
	}
	return pager_done(u, r, ret);
}
