/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that come when they are touched, in a process with threads; each test on every kind of memory. */
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

/* ---- faults and what is placed ---- */

static void a_touch_waits_until_its_page_is_placed(void **state)
{
	struct world *w = world_of(state);
	struct lm_page_fault f;

	for (unsigned region = 0; region < 2; region++)
		fill(w, region, 0, w->nunits);
	arm(w);
	for (unsigned region = 0; region < 2; region++) {
		uint64_t unit = w->nunits - 1 - region;

		tell(w, 1, TOUCH_READ, region, unit, 0);
		f = fault_wait(w);
		assert_int_equal(f.region, region);
		assert_int_equal(f.page, unit * per_unit(w));
		assert_false(f.write);
		assert_int_equal(f.tid, w->vm.threads[1].tid);
		assert_waits(w, 1);
		assert_no_fault(w);
		place(w, region, unit, 1);
		assert_int_equal(done(w, 1), pattern(unit_addr(w, region, unit)));
	}
	tell(w, 2, TOUCH_WRITE, 0, 1, 4711);
	f = fault_wait(w);
	assert_true(f.write);
	assert_int_equal(*(uint64_t *)(uintptr_t)unit_addr(w, 0, 1), pattern(unit_addr(w, 0, 1)));
	place(w, 0, 1, 1);
	done(w, 2);
	assert_int_equal(*(uint64_t *)(uintptr_t)unit_addr(w, 0, 1), 4711);
	assert_no_fault(w);
}

static void a_touch_anywhere_in_a_page_is_of_that_page(void **state)
{
	struct world *w = world_of(state);

	arm(w);
	vm_tell(&w->vm, 1, TOUCH_READ, unit_addr(w, 1, 2) - 8, 8, 0);
	assert_int_equal(fault_wait(w).page, per_unit(w));
	place(w, 1, 1, 1);
	done(w, 1);
}

static void a_hole_waits_too_and_reads_as_zeros(void **state)
{
	struct world *w = world_of(state);

	/* what the memory of the new page was used for before must not be seen */
	fill(w, 0, 0, w->nunits);
	assert_int_equal(fallocate(w->regions[0].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, REGION_SIZE), 0);
	arm(w);
	for (uint64_t unit = 0; unit < 3; unit++) {
		tell(w, 1, TOUCH_SUM, 0, unit, 0);
		assert_int_equal(fault_wait(w).page, unit * per_unit(w));
		assert_waits(w, 1);
		place(w, 0, unit, 1);
		assert_int_equal(done(w, 1), 0);
	}
}

static void a_range_of_data_and_holes_is_placed_at_once(void **state)
{
	struct world *w = world_of(state);
	uint64_t half = w->nunits / 2;

	for (unsigned region = 0; region < 2; region++)
		for (uint64_t unit = region; unit < w->nunits; unit += 3)
			fill(w, region, unit, 1);
	arm(w);
	for (unsigned region = 0; region < 2; region++) {
		const struct lm_region *r = &w->regions[region];

		place(w, region, 0, half);
		vm_tell(&w->vm, 1, TOUCH_SUM, r->vm_addr, r->size / 2, 0);
		assert_int_equal(done(w, 1), words_sum((void *)r->host, r->size / 2));
		assert_no_fault(w);
		tell(w, 1, TOUCH_READ, region, half, 0);
		fault_wait(w);
		place(w, region, half, w->nunits - half);
		done(w, 1);
		vm_tell(&w->vm, 1, TOUCH_SUM, r->vm_addr, r->size, 0);
		assert_int_equal(done(w, 1), words_sum((void *)r->host, r->size));
	}
}

static void what_was_mapped_before_arming_waits_again(void **state)
{
	struct world *w = world_of(state);
	const struct lm_region *r = &w->regions[0];

	fill(w, 0, 0, w->nunits);
	vm_tell(&w->vm, 1, TOUCH_SUM, r->vm_addr, r->size, 0);
	done(w, 1);
	if (w->memory == &memory_thp && !huge_mapped_kib(w->vm.pid))
		print_message("no transparent huge pages here: this is the same as tmpfs\n");
	arm(w);
	assert_int_equal(huge_mapped_kib(w->vm.pid), 0);
	tell(w, 1, TOUCH_READ, 0, 1, 0);
	tell(w, 2, TOUCH_WRITE, 0, 2, 1);
	fault_wait(w);
	assert_waits(w, 1);
	assert_waits(w, 2);
	/* one page of a transparent huge page shows nothing of the others */
	place(w, 0, 1, 1);
	assert_int_equal(done(w, 1), pattern(unit_addr(w, 0, 1)));
	assert_waits(w, 2);
	place(w, 0, 2, 1);
	done(w, 2);
	tell(w, 1, TOUCH_READ, 0, 3, 0);
	assert_waits(w, 1);
	place(w, 0, 0, w->nunits);
	assert_int_equal(done(w, 1), pattern(unit_addr(w, 0, 3)));
}

static void memory_that_the_vm_has_locked_waits_too(void **state)
{
	struct world *w = world_of(state);
	const struct lm_region *r = &w->regions[0];
	struct lm_inject_call call = { .nr = SYS_mlock, .args = { r->vm_addr, r->size } };

	fill(w, 0, 0, w->nunits);
	ok(w, lm_inject(w->vm.pid, &call, 1, NULL, &w->err));
	assert_int_equal(call.ret, 0);
	arm(w);
	tell(w, 1, TOUCH_READ, 0, 1, 0);
	assert_waits(w, 1);
	place(w, 0, 1, 1);
	assert_int_equal(done(w, 1), pattern(unit_addr(w, 0, 1)));
}

static void pages_that_are_placed_already_are_skipped(void **state)
{
	struct world *w = world_of(state);

	fill(w, 0, 0, w->nunits);
	arm(w);
	for (uint64_t unit = 1; unit < w->nunits; unit += 2)
		place(w, 0, unit, 1);
	place(w, 0, 0, w->nunits);
	place(w, 0, 0, w->nunits);
	vm_tell(&w->vm, 1, TOUCH_SUM, w->regions[0].vm_addr, REGION_SIZE, 0);
	done(w, 1);
	assert_no_fault(w);
}

/* As reclaim and the collapse into huge pages do it: the engine may be asked for a page that it has placed. */
static void a_page_that_left_the_page_table_is_asked_for_again(void **state)
{
	struct world *w = world_of(state);

	fill(w, 0, 0, w->nunits);
	arm(w);
	place(w, 0, 0, w->nunits);
	tell(w, 1, TOUCH_DROP, 0, 1, 0);
	done(w, 1);
	tell(w, 1, TOUCH_READ, 0, 1, 0);
	assert_int_equal(fault_wait(w).page, per_unit(w));
	place(w, 0, 1, 1);
	assert_int_equal(done(w, 1), pattern(unit_addr(w, 0, 1)));
}

static void many_threads_fault_at_once(void **state)
{
	struct world *w = world_of(state);
	const struct lm_region *r = &w->regions[1];
	struct lm_page_fault f[VM_THREADS];
	unsigned got = 0;

	fill(w, 1, 0, w->nunits);
	arm(w);
	/* one page: each thread has a fault of its own, one placing wakes them all */
	for (unsigned t = 0; t < VM_THREADS; t++)
		tell(w, t, TOUCH_READ, 1, 2, 0);
	for (int i = 0; got < VM_THREADS && i < SOON; i++) {
		int n = lm_pager_faults(w->pager, f + got, VM_THREADS - got, &w->err);

		ok(w, n);
		got += (unsigned)n;
		usleep(1000);
	}
	assert_int_equal(got, VM_THREADS);
	place(w, 1, 2, 1);
	for (unsigned t = 0; t < VM_THREADS; t++)
		assert_int_equal(done(w, t), pattern(unit_addr(w, 1, 2)));
	/* any page */
	serve(w, SERVERS);
	for (unsigned t = 0; t < VM_THREADS; t++)
		vm_tell(&w->vm, t, TOUCH_RANDOM, r->vm_addr, r->size, 20000);
	for (unsigned t = 0; t < VM_THREADS; t++)
		assert_int_equal(done(w, t), 0);
	assert_int_equal(w->server_failed, 0);
}

static void *place_all(void *arg)
{
	struct world *w = arg;
	struct lm_error err;
	uint64_t chunk = per_unit(w) * (w->nunits >= 64 ? 64 : 2);

	for (uint64_t at = 0; at < w->nunits * per_unit(w); at += chunk)
		for (unsigned region = 0; region < 2; region++)
			if (lm_pager_place(w->pager, region, at, chunk, &err))
				w->server_failed = err.code;
	return NULL;
}

static void overlapping_ranges_are_placed_by_several_threads_while_pages_are_touched(void **state)
{
	struct world *w = world_of(state);
	pthread_t pushers[3];

	for (unsigned region = 0; region < 2; region++)
		fill(w, region, 0, w->nunits);
	arm(w);
	for (unsigned t = 0; t < VM_THREADS; t++)
		vm_tell(&w->vm, t, TOUCH_RANDOM, w->regions[t % 2].vm_addr, REGION_SIZE, 20000);
	serve(w, 1);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&pushers[i], NULL, place_all, w), 0);
	for (unsigned t = 0; t < VM_THREADS; t++)
		assert_int_equal(done(w, t), 0);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(pushers[i], NULL);
	assert_int_equal(w->server_failed, 0);
}

static void a_touch_by_the_kernel_waits_too(void **state)
{
	struct world *w = world_of(state);

	fill(w, 0, 0, w->nunits);
	arm(w);
	tell(w, 1, TOUCH_SYS_READ, 0, 1, 4711);
	assert_int_equal(fault_wait(w).page, per_unit(w));
	assert_waits(w, 1);
	place(w, 0, 1, 1);
	done(w, 1);
	assert_int_equal(*(uint64_t *)(uintptr_t)unit_addr(w, 0, 1), 4711);
	tell(w, 2, TOUCH_SYS_WRITE, 0, 2, 0);
	fault_wait(w);
	assert_waits(w, 2);
	place(w, 0, 2, 1);
	assert_int_equal(done(w, 2), pattern(unit_addr(w, 0, 2)));
}

/* ---- released ranges ---- */

static void a_released_range_is_free(void **state)
{
	struct world *w = world_of(state);
	uint64_t half = w->nunits / 2;

	fill(w, 0, 0, w->nunits);
	arm(w);
	tell(w, 1, TOUCH_READ, 0, half, 0); /* waits when it is released */
	fault_wait(w);
	ok(w, lm_pager_release(w->pager, 0, half * per_unit(w), (w->nunits - half) * per_unit(w), &w->err));
	ok(w, lm_pager_release(w->pager, 0, half * per_unit(w), (w->nunits - half) * per_unit(w), &w->err));
	assert_int_equal(done(w, 1), pattern(unit_addr(w, 0, half)));
	vm_tell(&w->vm, 1, TOUCH_SUM, unit_addr(w, 0, half), REGION_SIZE / 2, 0);
	done(w, 1);
	assert_no_fault(w);
	tell(w, 1, TOUCH_READ, 0, half - 1, 0);
	assert_waits(w, 1);
	/* across the border, and inside */
	place(w, 0, 0, w->nunits);
	place(w, 0, half, w->nunits - half);
	done(w, 1);
	assert_no_fault(w); /* nobody read it, and nobody waits any more */
}

/* Every second one: the mapping is in as many pieces as there are pages. */
static void a_range_in_pieces_is_placed(void **state)
{
	struct world *w = world_of(state);

	fill(w, 0, 0, w->nunits);
	arm(w);
	for (uint64_t unit = 0; unit < w->nunits; unit += 2)
		ok(w, lm_pager_release(w->pager, 0, unit * per_unit(w), per_unit(w), &w->err));
	place(w, 0, 0, w->nunits);
	vm_tell(&w->vm, 1, TOUCH_SUM, w->regions[0].vm_addr, REGION_SIZE, 0);
	assert_int_equal(done(w, 1), words_sum((void *)w->regions[0].host, REGION_SIZE));
	assert_no_fault(w);
	ok(w, lm_pager_finish(w->pager, &w->err));
}

static int run(const struct memory *m)
{
	const struct CMUnitTest tests[] = {
		PAGER_TEST(a_touch_waits_until_its_page_is_placed),
		PAGER_TEST(a_touch_anywhere_in_a_page_is_of_that_page),
		PAGER_TEST(a_hole_waits_too_and_reads_as_zeros),
		PAGER_TEST(a_range_of_data_and_holes_is_placed_at_once),
		PAGER_TEST(what_was_mapped_before_arming_waits_again),
		PAGER_TEST(memory_that_the_vm_has_locked_waits_too),
		PAGER_TEST(pages_that_are_placed_already_are_skipped),
		PAGER_TEST(a_page_that_left_the_page_table_is_asked_for_again),
		PAGER_TEST(many_threads_fault_at_once),
		PAGER_TEST(overlapping_ranges_are_placed_by_several_threads_while_pages_are_touched),
		PAGER_TEST(a_touch_by_the_kernel_waits_too),
		PAGER_TEST(a_released_range_is_free),
		PAGER_TEST(a_range_in_pieces_is_placed),
	};

	return _cmocka_run_group_tests(m->name, tests, sizeof(tests) / sizeof(*tests), NULL, NULL);
}

int main(int argc, char **argv)
{
	return pager_main(argc, argv, run);
}
