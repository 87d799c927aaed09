/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "engine/base/cleanup.h"
#include "fakevm.h"

struct fakevm {
	struct lm_vm base;
	struct lm_vm_ops ops;
	struct fakevm_state *st;
	int state_fd;
	unsigned regions_calls;
};

struct fake_dirty {
	struct lm_dirty base;
	struct fakevm_state *st;
};

/* ---- tracker ---- */

static int dirty_start(struct lm_dirty *d, struct lm_error *err)
{
	(void)err;
	(void)d;
	return 0;
}

static int dirty_collect(struct lm_dirty *d, unsigned index, uint64_t first, uint64_t n,
			 struct lm_bitmap *written, struct lm_bitmap *absent, struct lm_error *err)
{
	struct fakevm_state *st = ((struct fake_dirty *)d)->st;

	(void)err;
	for (uint64_t i = first; i < first + n; i++) {
		if (atomic_exchange(&st->written[index][i], 0))
			lm_bitmap_set(written, i);
		if (absent) /* anything may be absent: the engine asks the file */
			lm_bitmap_set(absent, i);
	}
	return 0;
}

static void dirty_close(struct lm_dirty *d)
{
	free(d);
}

static const struct lm_dirty_ops fake_dirty_ops = { "fake", dirty_start, dirty_collect, dirty_close };

/* ---- the guest ---- */

/* Guest RAM is read while the guest writes it: that is what the engine is for, and no race to report. */
__attribute__((no_sanitize("thread")))
static void guest_write(struct fakevm_state *st, uint64_t *x)
{
	unsigned region = (unsigned)(*x >> 60) % st->config.nregions;
	uint64_t page = (*x >> 8) % st->npages[region];

	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	/* Write, then mark: as the hardware's order is seen from outside, a store during a collect shows later. */
	memcpy(st->ram[region] + page * LM_PAGE_SIZE + (*x % 500) * 8, x, 8);
	atomic_store(&st->written[region][page], 1);
}

static void *guest_main(void *arg)
{
	struct fakevm_state *st = arg;
	uint64_t x = 88172645463325252u;

	while (!atomic_load(&st->stop_guest)) {
		struct timespec t = { 0, 1000000 };

		atomic_store(&st->guest_idle, false);
		if (atomic_load(&st->running))
			for (unsigned i = 0; i < st->config.writes_per_ms; i++)
				guest_write(st, &x);
		atomic_store(&st->guest_idle, true);
		nanosleep(&t, NULL);
	}
	return NULL;
}

/* Stopped means that no store comes any more. */
static void guest_stop(struct fakevm_state *st)
{
	atomic_store(&st->running, false);
	while (!atomic_load(&st->guest_idle))
		sched_yield();
	/* The thread may have read `running` just before: one more turn settles it. */
	struct timespec t = { 0, 3000000 };

	nanosleep(&t, NULL);
	while (!atomic_load(&st->guest_idle))
		sched_yield();
}

/* ---- vm ---- */

static struct fakevm *fake_of(struct lm_vm *vm)
{
	return (struct fakevm *)vm;
}

struct fakevm_state *fakevm_state_of(struct lm_vm *vm)
{
	return fake_of(vm)->st;
}

static int inject(int *fault, const char *what, struct lm_error *err)
{
	int e = *fault;

	*fault = 0;
	return e ? lm_err(err, -e, LM_SCOPE_SESSION, "injected failure of %s", what) : 0;
}

static int vm_regions(struct lm_vm *vm, struct lm_ram *ram, struct lm_error *err)
{
	struct fakevm *f = fake_of(vm);
	const struct fakevm_config *c = &f->st->config;

	(void)err;
	ram->nregions = c->nregions;
	ram->may_discard = true;
	ram->regions = calloc(c->nregions, sizeof(*ram->regions));
	for (unsigned i = 0; i < c->nregions; i++) {
		struct lm_region *r = &ram->regions[i];

		snprintf(r->name, sizeof(r->name), "ram%u", i);
		r->size = c->region_bytes[i] + (c->layout_changes && f->regions_calls ? LM_PAGE_SIZE : 0);
		r->page_size = LM_PAGE_SIZE;
		r->fd = dup(f->st->fd[i]);
	}
	f->regions_calls++;
	return 0;
}

static int vm_tracker(struct lm_vm *vm, const struct lm_ram *ram, struct lm_dirty **ret, struct lm_error *err)
{
	struct fake_dirty *d = calloc(1, sizeof(*d));

	(void)err;
	d->base.ops = &fake_dirty_ops;
	d->base.ram = ram;
	d->st = fake_of(vm)->st;
	*ret = &d->base;
	return 0;
}

static int vm_drain(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	(void)deadline_ns;
	return inject(&fake_of(vm)->st->config.fail_drain, "drain", err);
}

static int vm_pause_start(struct lm_vm *vm, int state_fd, struct lm_error *err)
{
	struct fakevm *f = fake_of(vm);

	f->state_fd = dup(state_fd);
	vm->info.running = !f->st->config.stopped_meanwhile;
	return inject(&f->st->config.fail_pause, "pause", err);
}

static int vm_pause_wait(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err)
{
	struct fakevm *f = fake_of(vm);

	(void)timeout_ms;
	(void)err;
	guest_stop(f->st);
	atomic_store(&f->st->paused_by_migration, true);
	ret->stopped_ns = lm_clock_ns(CLOCK_REALTIME);
	return 0;
}

static int vm_state_save(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	struct fakevm *f = fake_of(vm);
	uint8_t *buf = malloc(FAKE_STATE_BYTES);
	size_t done = 0;

	(void)deadline_ns;
	for (unsigned i = 0; i < FAKE_STATE_BYTES; i++)
		buf[i] = (uint8_t)(i * 7);
	while (done < FAKE_STATE_BYTES) {
		ssize_t n = send(f->state_fd, buf + done, FAKE_STATE_BYTES - done, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		done += (size_t)n;
	}
	free(buf);
	lm_close_fd(&f->state_fd);
	if (done < FAKE_STATE_BYTES)
		return lm_err(err, -EPIPE, LM_SCOPE_SESSION, "the state was not taken");
	return inject(&f->st->config.fail_save, "save", err);
}

static void *load_writes(void *arg)
{
	struct fakevm *f = arg;
	char byte;

	if (recv(f->state_fd, &byte, 1, MSG_PEEK) == 1)
		f->st->ram[0][0] ^= 1;
	return NULL;
}

static void loader_end(struct fakevm *f)
{
	if (f->st->loading)
		pthread_join(f->st->loader, NULL);
	f->st->loading = false;
}

static int vm_state_load(struct lm_vm *vm, int state_fd, struct lm_error *err)
{
	struct fakevm *f = fake_of(vm);

	f->state_fd = dup(state_fd);
	if (f->st->config.load_writes)
		f->st->loading = !pthread_create(&f->st->loader, NULL, load_writes, f);
	return inject(&f->st->config.fail_load, "load", err);
}

static int vm_state_wait(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	struct fakevm *f = fake_of(vm);
	uint8_t buf[4096];
	size_t done = 0;
	ssize_t n;

	(void)deadline_ns;
	loader_end(f);
	while ((n = read(f->state_fd, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i++)
			if (buf[i] != (uint8_t)((done + (size_t)i) * 7))
				return lm_err(err, -EBADMSG, LM_SCOPE_SESSION, "device state differs at %zu", done);
		done += (size_t)n;
	}
	if (done != FAKE_STATE_BYTES)
		return lm_err(err, -EPIPE, LM_SCOPE_SESSION, "device state has %zu bytes", done);
	return inject(&f->st->config.fail_wait, "wait", err);
}

static int vm_resume(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err)
{
	struct fakevm *f = fake_of(vm);
	int r = inject(&f->st->config.fail_resume, "resume", err);

	(void)deadline_ns;
	if (r)
		return r;
	if (ret)
		ret->stopped_ns = lm_clock_ns(CLOCK_REALTIME);
	atomic_fetch_add(&f->st->resumes, 1);
	atomic_store(&f->st->running, true);
	return 0;
}

static struct fakevm_state *force_target[1024]; /* by guardian_fd: the table has no object there */

static int vm_force(int guardian_fd, int pidfd, enum lm_force what, int64_t deadline_ns, struct lm_error *err)
{
	struct fakevm_state *st = force_target[guardian_fd];

	(void)pidfd;
	(void)deadline_ns;
	(void)err;
	if (what == LM_FORCE_END)
		atomic_store(&st->ended, true);
	else if (what != LM_FORCE_UNDO)
		atomic_store(&st->running, true);
	return 0;
}

static void vm_detach(struct lm_vm *vm)
{
	struct fakevm *f = fake_of(vm);

	atomic_fetch_add(&f->st->detaches, 1);
	loader_end(f);
	lm_close_fd(&f->state_fd);
	free(f);
}

static const struct lm_vm_ops fake_ops = {
	.name = "fake", .regions = vm_regions, .tracker = vm_tracker, .drain = vm_drain,
	.pause_start = vm_pause_start, .pause_wait = vm_pause_wait, .state_save = vm_state_save,
	.state_load = vm_state_load, .state_wait = vm_state_wait, .resume = vm_resume,
	.force = vm_force, .detach = vm_detach,
};

struct lm_vm *fakevm_new(struct fakevm_state *st)
{
	struct fakevm *f = calloc(1, sizeof(*f));

	f->ops = fake_ops;
	if (st->config.pager)
		f->ops.pager = fakevm_pager;
	f->base.ops = &f->ops;
	f->base.guardian_fd = st->exit_pipe[1];
	f->base.pid = getpid();
	f->base.pidfd = st->exit_pipe[0];
	f->st = st;
	f->state_fd = -1;
	strcpy(f->base.info.vmm, "fake");
	strcpy(f->base.info.machine, st->config.machine ? st->config.machine : "fake-1");
	f->base.info.vcpus = 1;
	f->base.info.running = st->config.source;
	force_target[st->exit_pipe[1]] = st;
	return &f->base;
}

struct fakevm_state *fakevm_state_new(const struct fakevm_config *config)
{
	struct fakevm_state *st = calloc(1, sizeof(*st));

	st->config = *config;
	st->guest_idle = true;
	st->uffd = -1;
	if (pipe2(st->exit_pipe, O_CLOEXEC))
		abort();
	for (unsigned i = 0; i < config->nregions; i++) {
		st->fd[i] = memfd_create("fakevm", MFD_CLOEXEC);
		if (ftruncate(st->fd[i], (off_t)config->region_bytes[i]))
			abort();
		st->ram[i] = mmap(NULL, config->region_bytes[i], PROT_READ | PROT_WRITE, MAP_SHARED, st->fd[i], 0);
		st->npages[i] = config->region_bytes[i] / LM_PAGE_SIZE;
		st->written[i] = calloc(st->npages[i], 1);
	}
	if (config->source) {
		st->running = true;
		pthread_create(&st->guest, NULL, guest_main, st);
	}
	return st;
}

void fakevm_state_free(struct fakevm_state *st)
{
	if (st->config.source) {
		atomic_store(&st->stop_guest, true);
		pthread_join(st->guest, NULL);
	}
	lm_close_fd(&st->uffd);
	for (unsigned i = 0; i < st->config.nregions; i++) {
		munmap(st->ram[i], st->config.region_bytes[i]);
		close(st->fd[i]);
		free((void *)st->written[i]);
	}
	close(st->exit_pipe[0]);
	close(st->exit_pipe[1]);
	free(st);
}

void fakevm_fill(struct fakevm_state *st, unsigned percent, unsigned seed)
{
	for (unsigned r = 0; r < st->config.nregions; r++)
		for (uint64_t p = 0; p < st->npages[r]; p++)
			if ((p * 2654435761u + seed) % 100 < percent)
				memset(st->ram[r] + p * LM_PAGE_SIZE, (int)(p % 255 + 1), LM_PAGE_SIZE);
}

void fakevm_scribble(struct fakevm_state *st)
{
	for (unsigned r = 0; r < st->config.nregions; r++)
		memset(st->ram[r], 0xa5, st->config.region_bytes[r] / 2);
}

void fakevm_discard(struct fakevm_state *st, unsigned region, uint64_t page, uint64_t n)
{
	if (fallocate(st->fd[region], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * LM_PAGE_SIZE),
		      (off_t)(n * LM_PAGE_SIZE)))
		abort();
}

bool fakevm_ram_equal(const struct fakevm_state *a, const struct fakevm_state *b)
{
	for (unsigned r = 0; r < a->config.nregions; r++)
		if (memcmp(a->ram[r], b->ram[r], a->config.region_bytes[r]))
			return false;
	return true;
}
