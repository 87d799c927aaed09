// SPDX-License-Identifier: Apache-2.0
/*
 * A storm of touches: threads, one for each vCPU, that touch random pages as fast
 * as they can and check what they read.
 *
 * Half of the memory is common: written once at the start, then only read, by
 * all threads at a time, so that several vCPUs wait for the same page.  The
 * other half is cut into slices with one owner each, who checks a page, writes
 * its next version, and remembers that.  A page that came late, twice, or from
 * another moment than the rest does not hold what its owner wrote last.
 *
 * Besides, each thread goes over its slice and the common pages in order; a pass
 * is complete when all of them have been checked.  A thread that hangs shows as
 * a number of passes that does not grow: what is said is the smallest.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "content.h"

#define WORDS		CONTENT_WORDS
#define THREADS_MAX	64
#define TOUCHES		32	/* between two looks at pages in order */
#define TICK_NS		500000000
#define MAX_REPORTS	16

struct stormer {
	unsigned int number;
	uint64_t *own;		/* its pages */
	uint32_t *versions;	/* of them */
	uint64_t random, cursor;
	atomic_ullong touches, passes, bad;
} __attribute__((aligned(64)));

static struct {
	uint64_t *common;
	uint64_t pages;		/* common ones, and of all slices together */
	uint64_t slice;
	unsigned int threads;
	struct stormer stormer[THREADS_MAX];
} s;

/* Pages of different owners have different numbers, so that none passes for another. */
static uint64_t number_of(const struct stormer *t, uint64_t i)
{
	return s.pages * (1 + t->number) + i;
}

static void report(struct stormer *t, const uint64_t *data, uint64_t page,
		   uint32_t want)
{
	if (atomic_fetch_add(&t->bad, 1) < MAX_REPORTS)
		say("BAD thread=%u page=%llu want=%u got=%llu kind=%s",
		    t->number, (unsigned long long)page, want,
		    (unsigned long long)content_seen(data, want),
		    content_kind(data, page, want));
}

static void check_common(struct stormer *t, uint64_t i)
{
	const uint64_t *data = s.common + i * WORDS;

	if (!content_page_ok(data, i, 1))
		report(t, data, i, 1);
}

static void check_own(struct stormer *t, uint64_t i)
{
	uint64_t *data = t->own + i * WORDS, page = number_of(t, i);

	if (content_page_ok(data, page, t->versions[i]))
		return;
	report(t, data, page, t->versions[i]);
	content_fill(data, page, t->versions[i]);
}

static void write_own(struct stormer *t, uint64_t i)
{
	uint64_t *data = t->own + i * WORDS, page = number_of(t, i);

	if (!content_stamps_ok(data, page, t->versions[i])) {
		report(t, data, page, t->versions[i]);
		content_fill(data, page, t->versions[i]);
	}
	content_stamp(data, page, ++t->versions[i]);
}

static uint64_t random_below(struct stormer *t, uint64_t limit)
{
	t->random ^= t->random << 13;
	t->random ^= t->random >> 7;
	t->random ^= t->random << 17;
	return (t->random >> 32) * limit >> 32;
}

static void touch(struct stormer *t)
{
	uint64_t i = random_below(t, 2 * s.pages);

	if (i < s.pages)
		check_common(t, i);
	else
		write_own(t, i % s.slice);
	atomic_fetch_add_explicit(&t->touches, 1, memory_order_relaxed);
}

static void check_next(struct stormer *t)
{
	if (t->cursor < s.slice)
		check_own(t, t->cursor);
	else
		check_common(t, t->cursor - s.slice);
	if (++t->cursor < s.slice + s.pages)
		return;
	t->cursor = 0;
	atomic_fetch_add(&t->passes, 1);
}

static void stay_on(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

static void *storm(void *arg)
{
	struct stormer *t = arg;

	stay_on(t->number % (unsigned int)sysconf(_SC_NPROCESSORS_ONLN));
	for (;;) {
		for (unsigned int n = 0; n < TOUCHES; n++)
			touch(t);
		for (unsigned int n = 0; n < TOUCHES; n++)
			check_next(t);
	}
	return NULL;
}

static void tick(unsigned long n)
{
	unsigned long long touches = 0, passes = ~0ull, bad = 0;

	for (unsigned int i = 0; i < s.threads; i++) {
		struct stormer *t = &s.stormer[i];

		touches += t->touches;
		bad += t->bad;
		if (t->passes < passes)
			passes = t->passes;
	}
	say("storm %lu touches=%llu passes=%llu bad=%llu", n, touches, passes, bad);
}

static void *talk(void *arg)
{
	struct timespec pause = { .tv_nsec = TICK_NS };

	(void)arg;
	for (unsigned long n = 1;; n++) {
		nanosleep(&pause, NULL);
		tick(n);
	}
	return NULL;
}

static void start(void *(*function)(void *), void *arg)
{
	pthread_t thread;
	int err = pthread_create(&thread, NULL, function, arg);

	if (err)
		say("FAILED no thread: %s", strerror(err));
}

static void prepare(struct stormer *t, unsigned int number)
{
	t->number = number;
	t->random = CONTENT_STEP * (number + 1);
	t->own = get_memory(s.slice * WORDS * 8);
	t->versions = get_memory(s.slice * sizeof(*t->versions));
	for (uint64_t i = 0; i < s.slice; i++) {
		t->versions[i] = 1;
		content_fill(t->own + i * WORDS, number_of(t, i), 1);
	}
}

void storm_start(const struct config *c)
{
	s.threads = c->threads < THREADS_MAX ? (unsigned int)c->threads : THREADS_MAX;
	s.slice = c->storm_mb * 128 / s.threads;
	s.pages = s.slice * s.threads;
	s.common = get_memory(s.pages * WORDS * 8);
	for (uint64_t i = 0; i < s.pages; i++)
		content_fill(s.common + i * WORDS, i, 1);
	for (unsigned int i = 0; i < s.threads; i++)
		prepare(&s.stormer[i], i);
	for (unsigned int i = 0; i < s.threads; i++)
		start(storm, &s.stormer[i]);
	start(talk, NULL);
}
