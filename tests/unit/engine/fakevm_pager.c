/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Demand paging of a fake VM's RAM: a userfaultfd in this very process, on the mapping
 * that the "guest" uses.  The engine has a mapping of its own, which nobody watches.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../../kvm-glue/uapi.h"
#include "engine/base/cleanup.h"
#include "fakevm.h"

struct fake_pager {
	struct lm_pager base;
	struct fakevm_state *st;
};

static struct fakevm_state *state_of(const struct lm_pager *p)
{
	return ((const struct fake_pager *)p)->st;
}

static int arm(struct lm_pager *p, struct lm_error *err)
{
	struct fakevm_state *st = state_of(p);

	for (unsigned i = 0; i < st->config.nregions; i++) {
		struct uffdio_register reg = {
			.range = { (uintptr_t)st->ram[i], st->config.region_bytes[i] },
			.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
		};

		if (ioctl(p->fd, UFFDIO_REGISTER, &reg) ||
		    madvise(st->ram[i], st->config.region_bytes[i], MADV_DONTNEED))
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "fake pager: arm");
	}
	return 0;
}

static struct lm_page_fault locate(const struct fakevm_state *st, uint64_t address)
{
	for (unsigned i = 0; i < st->config.nregions; i++)
		if (address - (uintptr_t)st->ram[i] < st->config.region_bytes[i])
			return (struct lm_page_fault){ i, (address - (uintptr_t)st->ram[i]) / LM_PAGE_SIZE, false, 0 };
	abort();
}

static int faults(struct lm_pager *p, struct lm_page_fault *ret, unsigned n, struct lm_error *err)
{
	struct uffd_msg msg[64];
	ssize_t got = read(p->fd, msg, (n < 64 ? n : 64) * sizeof(msg[0]));
	unsigned found = 0;

	if (got < 0)
		return errno == EAGAIN ? 0 : lm_err_errno(err, -errno, LM_SCOPE_VM, "fake pager: read");
	for (size_t i = 0; i < (size_t)got / sizeof(msg[0]); i++)
		if (msg[i].event == UFFD_EVENT_PAGEFAULT)
			ret[found++] = locate(state_of(p), msg[i].arg.pagefault.address);
	return (int)found;
}

/* One page at a time: those that are there already are skipped. */
static int place(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	struct fakevm_state *st = state_of(p);
	int e = atomic_exchange(&st->fail_place, 0);

	if (e)
		return lm_err(err, -e, LM_SCOPE_SESSION, "injected failure of place");
	for (uint64_t at = first; at < first + n;) {
		struct uffdio_range range = { (uintptr_t)st->ram[region] + at * LM_PAGE_SIZE, LM_PAGE_SIZE };
		struct uffdio_continue c = { .range = range };

		if (!ioctl(p->fd, UFFDIO_CONTINUE, &c) || errno == ENOENT || /* released */
		    (errno == EEXIST && !ioctl(p->fd, UFFDIO_WAKE, &range))) {
			at++;
			continue;
		}
		if (errno == EFAULT && !fallocate(st->fd[region], FALLOC_FL_KEEP_SIZE, (off_t)(at * LM_PAGE_SIZE),
						  LM_PAGE_SIZE))
			continue;
		if (errno != EAGAIN && errno != EINTR)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "fake pager: place");
	}
	return 0;
}

static int release(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	struct uffdio_range range = { (uintptr_t)state_of(p)->ram[region] + first * LM_PAGE_SIZE, n * LM_PAGE_SIZE };

	return ioctl(p->fd, UFFDIO_UNREGISTER, &range) ?
		       lm_err_errno(err, -errno, LM_SCOPE_SESSION, "fake pager: release") : 0;
}

static int wake(struct lm_pager *p, struct lm_error *err)
{
	struct fakevm_state *st = state_of(p);

	for (unsigned i = 0; i < st->config.nregions; i++) {
		struct uffdio_range range = { (uintptr_t)st->ram[i], st->config.region_bytes[i] };

		if (ioctl(p->fd, UFFDIO_WAKE, &range))
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "fake pager: wake");
	}
	return 0;
}

static int finish(struct lm_pager *p, struct lm_error *err)
{
	struct fakevm_state *st = state_of(p);
	int r = 0;

	for (unsigned i = 0; !r && i < st->config.nregions; i++)
		r = release(p, i, 0, st->npages[i], err);
	lm_close_fd(&st->uffd);
	lm_close_fd(&p->fd); /* nobody may be in any other call by now */
	atomic_fetch_add(&st->finishes, 1);
	return r;
}

static void pager_close(struct lm_pager *p)
{
	lm_close_fd(&p->fd);
	free(p);
}

static const struct lm_pager_ops fake_pager_ops = {
	.name = "fake", .arm = arm, .faults = faults, .place = place, .release = release, .wake = wake,
	.finish = finish, .close = pager_close,
};

int fakevm_pager_reopen(struct fakevm_state *st, const struct lm_ram *ram, struct lm_pager **ret,
			struct lm_error *err)
{
	struct fake_pager *p = calloc(1, sizeof(*p));

	p->base.ops = &fake_pager_ops;
	p->base.ram = ram;
	p->base.vm_fd = st->uffd;
	p->base.fd = fcntl(st->uffd, F_DUPFD_CLOEXEC, 0);
	p->st = st;
	if (p->base.fd < 0) {
		free(p);
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "fake pager: reopen");
	}
	*ret = &p->base;
	return 0;
}

static int uffd_new(void)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_MISSING_SHMEM | LM_UFFD_FEATURE_MINOR_SHMEM };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api))
		lm_close_fd(&fd);
	return fd;
}

int fakevm_pager(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err)
{
	struct fakevm_state *st = fakevm_state_of(vm);

	st->uffd = uffd_new();
	if (st->uffd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "fake pager: userfaultfd");
	atomic_fetch_add(&st->pagers, 1);
	return fakevm_pager_reopen(st, ram, ret, err);
}

bool fakevm_pager_works(void)
{
	int fd = uffd_new();
	bool works = fd >= 0;

	lm_close_fd(&fd);
	return works;
}
