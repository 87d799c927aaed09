/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of struct lm_dirty_ops, for every tracker and kind of memory. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "dirty_contract_world.h"
#include "kvm-glue/uffd_wp.h"

static const struct tracker_kind uffd_wp = { "uffd-wp", lm_uffd_wp_new };
static const struct memory_kind tmpfs = { "tmpfs", LM_PAGE_SIZE, file_tmpfs };
static const struct memory_kind thp = { "tmpfs with huge pages", LM_PAGE_SIZE, file_thp };
static const struct memory_kind hugetlb = { "hugetlbfs", HUGE_SIZE, file_hugetlb };

/* ---- what is reported ---- */

static void nothing_is_reported_of_an_idle_vm(void **state)
{
	struct world *w = world_of(state);

	order(w, ORDER_WRITE, 0, NPAGES / 2, 1);
	tracker_start(w);
	collect(w);
	assert_count(w, 0);
	collect(w);
	assert_count(w, 0);
}

static void holes_and_reads_are_not_reported_as_written(void **state)
{
	struct world *w = world_of(state);

	tracker_start(w);
	order(w, ORDER_READ, 512, 512, 3);
	collect(w);
	assert_count(w, 0);
}

static void every_write_is_reported_once(void **state)
{
	struct world *w = world_of(state);

	order(w, ORDER_WRITE, 0, NPAGES / 2, 1);
	tracker_start(w);
	order(w, ORDER_WRITE, 0, NPAGES, 1);
	collect(w);
	assert_int_equal(lm_bitmap_count(&w->written), NPAGES);
	collect(w);
	assert_count(w, 0);
}

static void scattered_writes_are_reported_exactly(void **state)
{
	struct world *w = world_of(state);
	uint64_t unit = w->region.page_size >> LM_PAGE_SHIFT;

	tracker_start(w);
	for (uint64_t step = unit * 7, round = 0; round < 5; round++) {
		uint64_t n = NPAGES / step;

		order(w, ORDER_WRITE, round, n, step);
		collect(w);
		assert_written(w, round, n, step);
		assert_count(w, n);
	}
}

static void writes_by_the_kernel_are_reported(void **state)
{
	struct world *w = world_of(state);
	uint64_t step = 512;

	order(w, ORDER_WRITE, 0, NPAGES / 2, 1);
	tracker_start(w);
	order(w, ORDER_KERNEL_WRITE, 3, NPAGES / step, step);
	collect(w);
	assert_written(w, 3, NPAGES / step, step);
	assert_count(w, NPAGES / step);
}

static void a_range_reports_nothing_of_its_neighbours(void **state)
{
	struct world *w = world_of(state);
	uint64_t third = NPAGES / 4;

	tracker_start(w);
	order(w, ORDER_WRITE, 0, NPAGES, 1);
	ok(w, lm_dirty_collect(w->dirty, 0, third, third, &w->written, NULL, &w->err));
	assert_int_equal(lm_bitmap_count(&w->written), third);
	assert_int_equal(lm_bitmap_count_range(&w->written, third, third), third);
	collect(w);
	assert_int_equal(lm_bitmap_count(&w->written), NPAGES - third);
}

/* Ranges that cut huge pages: together they still report everything. */
static void small_ranges_together_report_everything(void **state)
{
	struct world *w = world_of(state);

	tracker_start(w);
	order(w, ORDER_WRITE, 0, NPAGES, 1);
	for (uint64_t at = 0; at < NPAGES; at += 64)
		ok(w, lm_dirty_collect(w->dirty, 0, at, 64, &w->written, &w->absent, &w->err));
	assert_int_equal(lm_bitmap_count(&w->written), NPAGES);
	assert_int_equal(count_discarded(w, 0, NPAGES), 0);
}

static void discarded_pages_are_reported_as_absent(void **state)
{
	struct world *w = world_of(state);
	uint64_t first = NPAGES / 4, n = 1024;

	order(w, ORDER_WRITE, 0, NPAGES, 1);
	tracker_start(w);
	collect(w);
	assert_int_equal(count_discarded(w, 0, NPAGES), 0);
	order(w, ORDER_DISCARD, first, n, 1);
	collect(w);
	assert_int_equal(count_discarded(w, first, n), n);
	assert_int_equal(count_discarded(w, 0, NPAGES), n);
}

static void a_write_that_is_discarded_is_absent(void **state)
{
	struct world *w = world_of(state);
	uint64_t n = 1024;

	order(w, ORDER_WRITE, 0, NPAGES, 1);
	tracker_start(w);
	order(w, ORDER_WRITE, 0, n, 1);
	order(w, ORDER_DISCARD, 0, n, 1);
	collect(w);
	assert_int_equal(count_discarded(w, 0, n), n);
	order(w, ORDER_WRITE, 0, n, 1);
	collect(w);
	assert_int_equal(lm_bitmap_count_range(&w->written, 0, n), n);
	assert_int_equal(count_discarded(w, 0, NPAGES), 0);
}

/*
 * The child writes every other page only, so the page table keeps the markers of the pages between them.
 * A page of hugetlbfs leaves the page table only when it is discarded.
 */
static void a_write_that_left_the_page_table_is_reported(void **state)
{
	struct world *w = world_of(state);

	if (w->region.page_size > LM_PAGE_SIZE)
		return;
	order(w, ORDER_WRITE, 0, NPAGES, 1);
	tracker_start(w);
	order(w, ORDER_WRITE, 0, NPAGES / 2, 2);
	order(w, ORDER_DROP, 0, NPAGES, 1);
	collect(w);
	assert_written(w, 0, NPAGES / 2, 2);
}

/* ---- never lost: collect and copy while the child hammers, then compare ---- */

#define SCANNERS 4

struct scanner {
	struct world *w;
	uint8_t *copy;
	uint64_t first, n;
	_Atomic bool *stop;
	struct lm_error err;
};

static void scan_copy(struct scanner *s)
{
	struct lm_bitmap *b = &s->w->written;
	uint64_t pos = s->first, run, len;

	if (lm_dirty_collect(s->w->dirty, 0, s->first, s->n, b, NULL, &s->err))
		return;
	while ((len = lm_bitmap_next_run(b, pos, s->first + s->n, &run))) {
		memcpy(s->copy + (run << LM_PAGE_SHIFT), s->w->region.host + (run << LM_PAGE_SHIFT),
		       len << LM_PAGE_SHIFT);
		pos = run + len;
	}
	lm_bitmap_clear_range(b, s->first, s->n);
}

static void *scanner(void *arg)
{
	struct scanner *s = arg;

	while (!*s->stop && !s->err.code)
		scan_copy(s);
	return NULL;
}

static void no_write_is_lost_while_threads_scan(void **state)
{
	struct world *w = world_of(state);
	const struct timespec while_hammering = { .tv_nsec = 700 * LM_NS_PER_MS };
	struct scanner s[SCANNERS];
	pthread_t threads[SCANNERS];
	_Atomic bool stop = false;
	uint8_t *copy = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(copy, MAP_FAILED);
	tracker_start(w);
	order(w, ORDER_HAMMER, 0, 0, 0);
	for (unsigned i = 0; i < SCANNERS; i++) {
		s[i] = (struct scanner){ w, copy, NPAGES / SCANNERS * i, NPAGES / SCANNERS, &stop, { 0 } };
		assert_int_equal(pthread_create(&threads[i], NULL, scanner, &s[i]), 0);
	}
	nanosleep(&while_hammering, NULL);
	order(w, ORDER_REST, 0, 0, 0);
	stop = true;
	for (unsigned i = 0; i < SCANNERS; i++) {
		pthread_join(threads[i], NULL);
		scan_copy(&s[i]); /* the last round, while the VM stands still */
		if (s[i].err.code)
			fail_msg("%s", s[i].err.msg);
	}
	assert_memory_equal(copy, w->region.host, RAM_SIZE);
	munmap(copy, RAM_SIZE);
}

/* ---- life and death ---- */

static void the_vm_runs_on_after_close(void **state)
{
	struct world *w = world_of(state);

	tracker_start(w);
	order(w, ORDER_HAMMER, 0, 0, 0);
	lm_dirty_close(w->dirty);
	w->dirty = NULL;
	order(w, ORDER_REST, 0, 0, 0);
	order(w, ORDER_WRITE, 0, NPAGES, 1);
	tracker_start(w); /* and can be tracked again */
	order(w, ORDER_WRITE, 7, 1, 1);
	collect(w);
	assert_written(w, 7, 1, 1);
	assert_count(w, 1);
}

static unsigned count_lines(pid_t pid, const char *name)
{
	char path[64];
	LM_AUTO_FILE FILE *f = NULL;
	unsigned n = 0;
	int c;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	f = fopen(path, "re");
	assert_non_null(f);
	while ((c = fgetc(f)) != EOF)
		n += c == '\n';
	return n;
}

static void nothing_is_left_behind(void **state)
{
	struct world *w = world_of(state);
	unsigned before;

	order(w, ORDER_WRITE, 0, NPAGES, 1);
	before = count_lines(w->pid, "maps");
	tracker_start(w);
	collect(w);
	lm_dirty_close(w->dirty);
	w->dirty = NULL;
	assert_int_equal(count_lines(w->pid, "maps"), before);
}

static void a_tracker_that_was_not_started_changes_nothing(void **state)
{
	struct world *w = world_of(state);

	ok(w, w->kind->tracker->make(w->pid, &w->ram, &w->dirty, &w->err));
	order(w, ORDER_WRITE, 0, NPAGES, 1);
	assert_int_equal(lm_dirty_collect(w->dirty, 0, 0, NPAGES, &w->written, NULL, &w->err), -EINVAL);
}

static void a_second_tracker_is_refused(void **state)
{
	struct world *w = world_of(state);
	struct lm_dirty *second = NULL;

	tracker_start(w);
	ok(w, w->kind->tracker->make(w->pid, &w->ram, &second, &w->err));
	assert_int_equal(lm_dirty_start(second, &w->err), -EBUSY);
	assert_non_null(strstr(w->err.msg, "another userfaultfd"));
	lm_dirty_close(second);
	order(w, ORDER_WRITE, 9, 1, 1);
	collect(w);
	assert_written(w, 9, 1, 1);
}

static void a_vm_that_died_is_an_error(void **state)
{
	struct world *w = world_of(state);

	tracker_start(w);
	child_end(w);
	assert_int_equal(lm_dirty_collect(w->dirty, 0, 0, NPAGES, &w->written, NULL, &w->err), -ESRCH);
	assert_int_equal(w->err.scope, LM_SCOPE_VM);
}

static void a_vm_that_does_not_exist_is_an_error(void **state)
{
	struct world *w = world_of(state);
	pid_t pid = w->pid;

	child_end(w);
	assert_int_equal(w->kind->tracker->make(pid, &w->ram, &w->dirty, &w->err), -ESRCH);
	assert_int_equal(w->err.scope, LM_SCOPE_VM);
	assert_null(w->dirty);
}

static void memory_that_is_not_mapped_any_more_is_an_error(void **state)
{
	struct world *w = world_of(state);

	w->region.vm_addr += UINT64_C(1) << 40;
	ok(w, w->kind->tracker->make(w->pid, &w->ram, &w->dirty, &w->err));
	assert_true(lm_dirty_start(w->dirty, &w->err) < 0);
}

static int run(const struct kind *k)
{
#define T(name) { #name, name, setup, teardown, (void *)k }
	const struct CMUnitTest tests[] = {
		T(nothing_is_reported_of_an_idle_vm),
		T(holes_and_reads_are_not_reported_as_written),
		T(every_write_is_reported_once),
		T(scattered_writes_are_reported_exactly),
		T(writes_by_the_kernel_are_reported),
		T(a_range_reports_nothing_of_its_neighbours),
		T(small_ranges_together_report_everything),
		T(discarded_pages_are_reported_as_absent),
		T(a_write_that_is_discarded_is_absent),
		T(a_write_that_left_the_page_table_is_reported),
		T(no_write_is_lost_while_threads_scan),
		T(the_vm_runs_on_after_close),
		T(nothing_is_left_behind),
		T(a_tracker_that_was_not_started_changes_nothing),
		T(a_second_tracker_is_refused),
		T(a_vm_that_died_is_an_error),
		T(a_vm_that_does_not_exist_is_an_error),
		T(memory_that_is_not_mapped_any_more_is_an_error),
	};
#undef T
	char name[64];

	snprintf(name, sizeof(name), "%s on %s", k->tracker->name, k->memory->name);
	return _cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof(*tests), NULL, NULL);
}

int main(void)
{
	static const struct kind kinds[] = {
		{ &uffd_wp, &tmpfs }, { &uffd_wp, &thp }, { &uffd_wp, &hugetlb },
	};
	long before = hugepages(-1);
	int failed = 0;

	if (before >= 0)
		hugepages(before + (long)(RAM_SIZE / HUGE_SIZE) * 2);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
		failed += run(&kinds[i]);
	if (before >= 0)
		hugepages(before);
	return failed;
}
