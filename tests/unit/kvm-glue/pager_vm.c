/* SPDX-License-Identifier: Apache-2.0 */
#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "pager_vm.h"

static void futex_wait(_Atomic uint32_t *at, uint32_t seen, unsigned ms)
{
	struct timespec t = { ms / 1000, (long)(ms % 1000) * LM_NS_PER_MS };

	syscall(SYS_futex, at, FUTEX_WAIT, seen, ms == UINT_MAX ? NULL : &t, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *at)
{
	syscall(SYS_futex, at, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* The test's process decides which thread touches when.  TSan does not see that: relaxed atomics. */
static uint64_t word_load(const volatile uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

uint64_t words_sum(const volatile uint64_t *words, uint64_t len)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < len / sizeof(*words); i++)
		sum += word_load(&words[i]) * (2 * i + 1);
	return sum;
}

/* ---- in the child ---- */

/* A page as the kernel sees it, through a pipe. */
static void kernel_touch(struct vm_thread *t)
{
	void *word = (void *)(uintptr_t)t->addr;
	bool in = t->what == TOUCH_SYS_READ;
	int p[2];

	if (pipe(p) || write(p[1], in ? &t->value : word, 8) != 8 || read(p[0], in ? word : &t->value, 8) != 8)
		_exit(2);
	close(p[0]);
	close(p[1]);
}

static void random_touch(struct vm_thread *t)
{
	uint64_t x = pattern((uint64_t)t->tid), bad = 0;

	for (uint64_t i = 0; i < t->value; i++) {
		uint64_t at;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		at = t->addr + (x % t->len & ~UINT64_C(7));
		bad += word_load((void *)(uintptr_t)at) != pattern(at);
	}
	t->value = bad;
}

static void obey(struct vm_thread *t)
{
	volatile uint64_t *word = (void *)(uintptr_t)t->addr;

	switch (t->what) {
	case TOUCH_READ:
		t->value = word_load(word);
		break;
	case TOUCH_WRITE:
		__atomic_store_n(word, t->value, __ATOMIC_RELAXED);
		break;
	case TOUCH_SUM:
		t->value = words_sum(word, t->len);
		break;
	case TOUCH_SYS_READ:
	case TOUCH_SYS_WRITE:
		kernel_touch(t);
		break;
	case TOUCH_DROP:
		if (madvise((void *)word, t->len, MADV_DONTNEED))
			_exit(3);
		break;
	case TOUCH_RANDOM:
		random_touch(t);
		break;
	}
}

static void *live(void *arg)
{
	struct vm_thread *t = arg;
	uint32_t turn = 0;

	t->tid = (pid_t)syscall(SYS_gettid);
	for (;;) {
		while (t->told == turn)
			futex_wait(&t->told, turn, UINT_MAX);
		obey(t);
		t->done = ++turn;
		futex_wake(&t->done);
	}
	return NULL;
}

static void child_main(struct vm_thread *threads)
{
	pthread_t p;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (unsigned i = 1; i < VM_THREADS; i++)
		if (pthread_create(&p, NULL, live, &threads[i]))
			_exit(4);
	live(&threads[0]);
}

/* ---- in the test ---- */

void vm_start(struct vm *vm)
{
	const struct timespec ms = { .tv_nsec = LM_NS_PER_MS };

	vm->threads = mmap(NULL, sizeof(*vm->threads) * VM_THREADS, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vm->threads == MAP_FAILED)
		abort();
	vm->pid = fork();
	if (!vm->pid)
		child_main(vm->threads);
	for (unsigned i = 0; i < VM_THREADS; i++)
		while (!vm->threads[i].tid)
			nanosleep(&ms, NULL);
}

void vm_kill(struct vm *vm)
{
	kill(vm->pid, SIGKILL);
}

void vm_end(struct vm *vm)
{
	vm_kill(vm);
	waitpid(vm->pid, NULL, 0);
	munmap(vm->threads, sizeof(*vm->threads) * VM_THREADS);
}

void vm_tell(struct vm *vm, unsigned thread, enum touch what, uint64_t addr, uint64_t len, uint64_t value)
{
	struct vm_thread *t = &vm->threads[thread];

	t->what = what;
	t->addr = addr;
	t->len = len;
	t->value = value;
	t->told++;
	futex_wake(&t->told);
}

bool vm_done(struct vm *vm, unsigned thread, unsigned ms)
{
	struct vm_thread *t = &vm->threads[thread];
	int64_t deadline = lm_now_ns() + ms * LM_NS_PER_MS;

	for (;;) {
		uint32_t done = t->done;

		if (done == t->told)
			return true;
		if (lm_now_ns() >= deadline)
			return false;
		futex_wait(&t->done, done, 5);
	}
}
