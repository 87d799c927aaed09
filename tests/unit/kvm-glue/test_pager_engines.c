/* SPDX-License-Identifier: Apache-2.0 */
/* The pager: engines come and go, what goes wrong, and ptrace while threads wait. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "kvm-glue/inject.h"
#include "pager_rig.h"
#include "kvm-glue/qemu.h"
#include "kvm-glue/uffd_wp.h"
#include "../../lib/skip.h"

static uint64_t per_unit(const struct world *w)
{
	return w->memory->page_size / LM_PAGE_SIZE;
}

/* ---- engines come and go ---- */

static void reopen(struct world *w, int vm_fd)
{
	ok(w, lm_uffd_pager_reopen(w->vm.pid, &w->ram, vm_fd, &w->pager, &w->err));
}

static void without_an_engine_the_vm_waits_and_the_next_one_goes_on(void **state)
{
	struct world *w = world_of(state);
	int vm_fd;

	fill(w, 0, 0, w->nunits);
	arm(w);
	place(w, 0, 4 % w->nunits, 1);
	vm_fd = w->pager->vm_fd;
	tell(w, 0, TOUCH_READ, 0, 1, 0); /* the main thread: nothing can be injected now */
	fault_wait(w); /* and the engine dies with it in hand */
	lm_pager_close(w->pager);
	w->pager = NULL;
	assert_waits(w, 0);
	tell(w, 2, TOUCH_WRITE, 0, 2, 1);
	assert_waits(w, 2);

	reopen(w, vm_fd);
	assert_int_equal(fault_wait(w).page, 2 * per_unit(w));
	assert_no_fault(w);
	ok(w, lm_pager_wake(w->pager, &w->err));
	for (int i = 0; i < 2; i++)
		fault_wait(w); /* both, whoever had been told of them before */
	assert_waits(w, 0);
	place(w, 0, 0, w->nunits);
	assert_int_equal(done(w, 0), pattern(unit_addr(w, 0, 1)));
	done(w, 2);
	tell(w, 1, TOUCH_READ, 1, 0, 0);
	fault_wait(w);
	ok(w, lm_pager_finish(w->pager, &w->err));
	done(w, 1);
	assert_false(is_watched(w->vm.pid));
}

/* Why the VM keeps the descriptor: with ours alone the death of the engine shows what was not placed. */
static void without_the_descriptor_in_the_vm_it_reads_on_when_the_engine_dies(void **state)
{
	struct world *w = world_of(state);
	int vm_fd;

	setenv("LM_BREAK", "pager-close", 1);
	arm(w);
	unsetenv("LM_BREAK");
	vm_fd = w->pager->vm_fd;
	tell(w, 1, TOUCH_READ, 0, 1, 1);
	assert_waits(w, 1);
	lm_pager_close(w->pager);
	w->pager = NULL;
	assert_int_equal(done(w, 1), 0);
	assert_err(w, lm_uffd_pager_reopen(w->vm.pid, &w->ram, vm_fd, &w->pager, &w->err), -EBADF, LM_SCOPE_SESSION,
		   "no userfaultfd");
}

static void finish_leaves_no_trace(void **state)
{
	struct world *w = world_of(state);
	unsigned fds = count_fds(w->vm.pid);

	fill(w, 0, 0, w->nunits);
	arm(w);
	assert_int_equal(count_fds(w->vm.pid), fds + 1);
	assert_true(is_watched(w->vm.pid));
	place(w, 0, 0, w->nunits);
	place(w, 1, 0, w->nunits / 2);
	ok(w, lm_pager_finish(w->pager, &w->err));
	assert_int_equal(count_fds(w->vm.pid), fds);
	assert_false(is_watched(w->vm.pid));
	ok(w, lm_pager_finish(w->pager, &w->err));
	for (unsigned region = 0; region < 2; region++) {
		vm_tell(&w->vm, 1, TOUCH_SUM, w->regions[region].vm_addr, REGION_SIZE, 0);
		assert_int_equal(done(w, 1), words_sum((void *)w->regions[region].host, REGION_SIZE));
	}
	assert_int_equal(count_fds(w->vm.pid), fds);
}

static void a_pager_that_was_not_armed_leaves_no_trace(void **state)
{
	struct world *w = world_of(state);
	unsigned fds = count_fds(w->vm.pid);
	struct lm_pager *second = NULL;

	ok(w, lm_uffd_pager_new(w->vm.pid, &w->ram, &w->pager, &w->err));
	tell(w, 1, TOUCH_READ, 0, 0, 0);
	done(w, 1);
	lm_pager_close(w->pager);
	w->pager = NULL;
	assert_int_equal(count_fds(w->vm.pid), fds);
	/* there is one already: the second one cannot be armed, and does no harm to the first */
	arm(w);
	ok(w, lm_uffd_pager_new(w->vm.pid, &w->ram, &second, &w->err));
	assert_err(w, lm_pager_arm(second, &w->err), -EBUSY, LM_SCOPE_SESSION, "another userfaultfd");
	lm_pager_close(second);
	assert_int_equal(count_fds(w->vm.pid), fds + 1);
	tell(w, 1, TOUCH_READ, 0, 0, 0);
	fault_wait(w);
	place(w, 0, 0, 1);
	done(w, 1);
}

/* ---- what goes wrong ---- */

static void a_vm_that_ends_is_an_error_and_nothing_hangs(void **state)
{
	struct world *w = world_of(state);
	struct lm_page_fault f;
	int n = 0;

	arm(w);
	for (unsigned t = 0; t < 4; t++)
		tell(w, t, t % 2 ? TOUCH_READ : TOUCH_SYS_READ, 0, t, 0);
	for (unsigned t = 0; t < 4; t++)
		fault_wait(w);
	vm_kill(&w->vm);
	for (int i = 0; n == 0 && i < SOON; i++) {
		n = lm_pager_faults(w->pager, &f, 1, &w->err);
		usleep(1000);
	}
	assert_int_equal(n, -ESRCH);
	assert_int_equal(w->err.scope, LM_SCOPE_VM);
	assert_err(w, lm_pager_place(w->pager, 0, 0, per_unit(w), &w->err), -ESRCH, LM_SCOPE_VM, "has ended");
	assert_err(w, lm_pager_place(w->pager, 1, 0, per_unit(w), &w->err), -ESRCH, LM_SCOPE_VM, "has ended");
	assert_err(w, lm_pager_release(w->pager, 0, 0, per_unit(w), &w->err), -ESRCH, LM_SCOPE_VM, "has ended");
	assert_err(w, lm_pager_wake(w->pager, &w->err), -ESRCH, LM_SCOPE_VM, "has ended");
	assert_err(w, lm_pager_finish(w->pager, &w->err), -ESRCH, LM_SCOPE_VM, "has ended");
	lm_pager_close(w->pager);
	w->pager = NULL;
	assert_err(w, lm_uffd_pager_new(w->vm.pid, &w->ram, &w->pager, &w->err), -ESRCH, LM_SCOPE_VM, "has ended");
	assert_err(w, lm_uffd_pager_reopen(w->vm.pid, &w->ram, 5, &w->pager, &w->err), -ESRCH, LM_SCOPE_VM,
		   "has ended");
	assert_err(w, lm_qemu_ram_reopen(w->vm.pid, &(struct lm_ram){ 0 }, true, &w->err), -ESRCH, LM_SCOPE_VM,
		   "has ended");
}

static void what_is_not_the_pager_is_not_taken_over(void **state)
{
	struct world *w = world_of(state);
	struct lm_inject_call other = { .nr = SYS_userfaultfd, .args = { O_CLOEXEC | O_NONBLOCK },
					.result = LM_INJECT_PLAIN };
	struct lm_pager *p = NULL;
	int vm_fd;

	arm(w);
	vm_fd = w->pager->vm_fd;
	assert_err(w, lm_uffd_pager_reopen(w->vm.pid, &w->ram, 0, &p, &w->err), -EBADF, LM_SCOPE_SESSION,
		   "no userfaultfd");
	assert_err(w, lm_uffd_pager_reopen(w->vm.pid, &w->ram, -1, &p, &w->err), -EBADF, LM_SCOPE_SESSION,
		   "no userfaultfd");
	assert_err(w, lm_uffd_pager_reopen(w->vm.pid, &w->ram, 1000, &p, &w->err), -EBADF, LM_SCOPE_SESSION,
		   "no userfaultfd");
	assert_err(w, lm_uffd_pager_reopen(getpid(), &w->ram, vm_fd + 100, &p, &w->err), -EBADF, LM_SCOPE_SESSION,
		   "no userfaultfd");
	ok(w, lm_inject(w->vm.pid, &other, 1, NULL, &w->err));
	assert_true(other.ret >= 0);
	assert_err(w, lm_uffd_pager_reopen(w->vm.pid, &w->ram, (int)other.ret, &p, &w->err), -EBADF, LM_SCOPE_SESSION,
		   "not that of a post-copy");
	assert_null(p);
}

static void ram_is_found_again_from_its_description(void **state)
{
	struct world *w = world_of(state);
	struct lm_region copy[2];
	struct lm_ram ram = { copy, 2, false };
	uint64_t word = 0;

	fill(w, 1, 0, 1);
	arm(w);
	ok(w, lm_pager_release(w->pager, 1, 0, per_unit(w), &w->err));
	for (int wrong = 0; wrong < 6; wrong++) {
		for (unsigned i = 0; i < 2; i++) {
			copy[i] = w->regions[i];
			copy[i].fd = -1;
			copy[i].host = NULL;
		}
		copy[1].vm_addr += wrong == 1 ? w->memory->page_size : 0;
		copy[1].size += wrong == 2 ? w->memory->page_size : 0;
		copy[1].ino += wrong == 3;
		copy[1].file_offset -= wrong == 4 ? w->memory->page_size : 0;
		copy[1].page_size += wrong == 5 ? w->memory->page_size : 0;
		if (wrong) {
			assert_err(w, lm_qemu_ram_reopen(w->vm.pid, &ram, true, &w->err), -ESTALE, LM_SCOPE_SESSION,
				   "ram1");
			assert_int_equal(copy[0].fd, -1);
			assert_int_equal(copy[1].fd, -1);
			continue;
		}
		ok(w, lm_qemu_ram_reopen(w->vm.pid, &ram, true, &w->err));
		assert_true(lm_ram_same(&ram, &w->ram));
		ok(w, lm_ram_map(&ram, true, &w->err));
		memcpy(&word, copy[1].host, sizeof(word));
		assert_int_equal(word, pattern(unit_addr(w, 1, 0)));
		for (unsigned i = 0; i < 2; i++) {
			munmap(copy[i].host, copy[i].size);
			close(copy[i].fd);
		}
	}
}

static void no_room_for_a_hole_is_said(void **state)
{
	struct world *w = world_of(state);

	if (w->memory == &memory_hugetlb)
		skip_because("huge pages are reserved with the mapping");
	arm(w);
	close(w->regions[0].fd);
	w->regions[0].fd = tmpfs_file("size", "64k");
	assert_true(w->regions[0].fd >= 0);
	assert_err(w, lm_pager_place(w->pager, 0, 0, 256, &w->err), -ENOSPC, LM_SCOPE_SESSION, "make its tmpfs larger");
	/* a file in which filling a hole does not help */
	assert_err(w, lm_pager_place(w->pager, 0, 0, 1, &w->err), -EBUSY, LM_SCOPE_SESSION, "cannot be mapped");
}

/* ---- ptrace and waiting threads: what kvm-glue/README.md says ---- */

static void calls_can_be_injected_while_the_main_thread_waits_for_a_page(void **state)
{
	struct world *w = world_of(state);
	struct lm_inject_call call = { .nr = SYS_getpid };
	int64_t held;

	arm(w);
	tell(w, 0, TOUCH_READ, 0, 1, 1);
	fault_wait(w);
	ok(w, lm_inject(w->vm.pid, &call, 1, &held, &w->err));
	assert_int_equal(call.ret, w->vm.pid);
	assert_waits(w, 0);
	fault_wait(w); /* it has touched its page once more */
	place(w, 0, 1, 1);
	assert_int_equal(done(w, 0), 0);
}

static void injection_gives_up_while_the_kernel_waits_for_a_page_in_the_main_thread(void **state)
{
	struct world *w = world_of(state);
	struct lm_inject_call call = { .nr = SYS_getpid };

	arm(w);
	tell(w, 0, TOUCH_SYS_READ, 0, 1, 4711);
	fault_wait(w);
	assert_err(w, lm_inject(w->vm.pid, &call, 1, NULL, &w->err), -ETIMEDOUT, LM_SCOPE_SESSION, "does not stop");
	assert_waits(w, 0);
	place(w, 0, 1, 1);
	done(w, 0);
	assert_int_equal(*(uint64_t *)(uintptr_t)unit_addr(w, 0, 1), 4711);
	ok(w, lm_inject(w->vm.pid, &call, 1, NULL, &w->err));
}

static int run(const struct memory *m)
{
	const struct CMUnitTest tests[] = {
		PAGER_TEST(without_an_engine_the_vm_waits_and_the_next_one_goes_on),
		PAGER_TEST(without_the_descriptor_in_the_vm_it_reads_on_when_the_engine_dies),
		PAGER_TEST(finish_leaves_no_trace),
		PAGER_TEST(a_pager_that_was_not_armed_leaves_no_trace),
		PAGER_TEST(a_vm_that_ends_is_an_error_and_nothing_hangs),
		PAGER_TEST(what_is_not_the_pager_is_not_taken_over),
		PAGER_TEST(ram_is_found_again_from_its_description),
		PAGER_TEST(no_room_for_a_hole_is_said),
		PAGER_TEST(calls_can_be_injected_while_the_main_thread_waits_for_a_page),
		PAGER_TEST(injection_gives_up_while_the_kernel_waits_for_a_page_in_the_main_thread),
	};

	return _cmocka_run_group_tests(m->name, tests, sizeof(tests) / sizeof(*tests), NULL, NULL);
}

int main(int argc, char **argv)
{
	return pager_main(argc, argv, run);
}
