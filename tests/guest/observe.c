// SPDX-License-Identifier: Apache-2.0
#include "observe.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

/*
 * A look interrupts a guest that runs on the same CPU.  A KVM without hardware
 * help needs some 50 us to get its guest going again: with a look every 20 us
 * at real-time priority the guest never ran (measured).  So the pause is
 * longer than that, and the longer the longer nothing moves: should the
 * observer hold up the guest all the same, it stops doing so.
 */
#define PAUSE_MIN_NS	100000ll
#define PAUSE_MAX_NS	1000000ll
#define PAUSE_SHARE	64	/* of the time without progress */

struct observer {
	pthread_t thread;
	const volatile struct guest_beat *a;
	void *map;		/* of A's file, around it */
	size_t map_len;
	char *path_b;
	int fd_b;
	atomic_bool stop;
	atomic_bool saw_b;
	uint64_t progress;	/* the greatest beat seen */
	int64_t t_progress;	/* when */
	int64_t t_sample;
	struct observer_result r;
};

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* 0 while there is no file, no page or no guest's magic word. */
static uint64_t read_b(struct observer *o)
{
	struct {
		uint64_t magic, beat;
	} head;

	if (o->fd_b < 0 && o->path_b)
		o->fd_b = open(o->path_b, O_RDONLY | O_CLOEXEC);
	if (o->fd_b < 0 ||
	    pread(o->fd_b, &head, sizeof(head), GUEST_BEAT_GPA) != sizeof(head))
		return 0;
	return head.magic == GUEST_BEAT_MAGIC ? head.beat : 0;
}

/* A's page may be taken away once A has ended: the last beat stays. */
static uint64_t read_a(const struct observer *o)
{
	if (o->a->magic != GUEST_BEAT_MAGIC)
		return o->r.beat_a;
	return o->a->beat;
}

static void note_gap(struct observer *o, int64_t t)
{
	if (o->t_progress && t - o->t_progress > o->r.max_gap_ns) {
		o->r.max_gap_ns = t - o->t_progress;
		o->r.max_gap_start = o->t_progress;
	}
}

static void progressed(struct observer *o, uint64_t beat, int64_t t)
{
	note_gap(o, t);
	o->progress = beat;
	o->t_progress = t;
}

/*
 * The order of the two reads matters: B first.  Had A been read first, A could
 * go on between the reads, be copied, and B would look ahead of A.
 */
static void sample(struct observer *o)
{
	uint64_t b = read_b(o);
	uint64_t a = read_a(o);
	int64_t t = now_ns();

	if (o->t_sample && t - o->t_sample > o->r.max_sample_ns)
		o->r.max_sample_ns = t - o->t_sample;
	o->t_sample = t;
	o->r.samples++;
	if (a != o->r.beat_a)
		o->r.t_last_a = t;
	if (b > a && a && !o->r.t_first_b) {
		o->r.t_first_b = t;
		atomic_store(&o->saw_b, true);
	}
	o->r.beat_a = a;
	o->r.beat_b = b;
	if (a > o->progress || b > o->progress)
		progressed(o, a > b ? a : b, t);
}

static void nap(const struct observer *o)
{
	int64_t ns = (o->t_sample - o->t_progress) / PAUSE_SHARE;
	struct timespec t = { 0 };

	if (ns < PAUSE_MIN_NS)
		ns = PAUSE_MIN_NS;
	if (ns > PAUSE_MAX_NS)
		ns = PAUSE_MAX_NS;
	t.tv_nsec = ns;
	nanosleep(&t, NULL);
}

/*
 * Real-time priority where it is allowed: the guests under test load all CPUs,
 * and a look that comes late is a gap that was none.
 */
static void *watch(void *arg)
{
	struct sched_param param = { .sched_priority = 1 };
	struct observer *o = arg;

	pthread_setschedparam(pthread_self(), SCHED_FIFO, &param);
	prctl(PR_SET_TIMERSLACK, 1);
	while (!atomic_load(&o->stop)) {
		sample(o);
		nap(o);
	}
	return NULL;
}

/* hugetlbfs maps whole huge pages only: their size is what it calls its block size. */
static int map_beat(struct observer *o, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	size_t at = 0;

	o->map = MAP_FAILED;
	if (fd >= 0 && !fstat(fd, &st)) {
		o->map_len = st.st_blksize > (long)GUEST_PAGE_SIZE ?
			     (size_t)st.st_blksize : GUEST_PAGE_SIZE;
		at = GUEST_BEAT_GPA % o->map_len;
		o->map = mmap(NULL, o->map_len, PROT_READ, MAP_SHARED, fd,
			      (off_t)(GUEST_BEAT_GPA - at));
	}
	if (o->map == MAP_FAILED)
		fprintf(stderr, "observer: cannot map the heartbeat of %s: "
			"%s\n", path, strerror(errno));
	else
		o->a = (const void *)((const char *)o->map + at);
	if (fd >= 0)
		close(fd);
	return o->map == MAP_FAILED ? -1 : 0;
}

static void release(struct observer *o)
{
	if (o->a)
		munmap(o->map, o->map_len);
	if (o->fd_b >= 0)
		close(o->fd_b);
	free(o->path_b);
	free(o);
}

struct observer *observer_start(const char *path_a, const char *path_b)
{
	struct observer *o = calloc(1, sizeof(*o));
	int err;

	if (!o)
		return NULL;
	o->fd_b = -1;
	o->path_b = path_b ? strdup(path_b) : NULL;
	if (map_beat(o, path_a)) {
		release(o);
		return NULL;
	}
	err = pthread_create(&o->thread, NULL, watch, o);
	if (err) {
		fprintf(stderr, "observer: no thread: %s\n", strerror(err));
		release(o);
		return NULL;
	}
	return o;
}

bool observer_saw_b(const struct observer *o)
{
	return atomic_load(&o->saw_b);
}

void observer_stop(struct observer *o, struct observer_result *result)
{
	atomic_store(&o->stop, true);
	pthread_join(o->thread, NULL);
	note_gap(o, o->t_sample);	/* one that has not ended yet */
	o->r.blackout_ns = -1;
	if (o->r.t_first_b && o->r.t_last_a)
		o->r.blackout_ns = o->r.t_first_b - o->r.t_last_a;
	*result = o->r;
	release(o);
}
