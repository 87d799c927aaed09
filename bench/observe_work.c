// SPDX-License-Identifier: Apache-2.0
/*
 * observe-work RAM-FILE-A RAM-FILE-B AFTER-MS: what the test guest gets done while it
 * moves from A to B, seen from outside by its heartbeat page.  Says "watching", and
 * ends AFTER-MS after the guest ran on B.  Then, one per line: blackout_us,
 * longest_blink_us, switch_us (when A last moved), and every 5 ms
 *
 *	work TIME_US BEATS WRITES PASSES
 *
 * in microseconds of CLOCK_REALTIME, which QEMU's events have, too.  A beat is one
 * turn of the guest's main loop.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "layout.h"
#include "observe.h"

#define STEP_NS     5000000
#define SAMPLES_MAX 60000 /* five minutes */

struct head {
	uint64_t magic, beat, writes, passes;
};

struct sample {
	long long us;
	struct head head;
};

static struct sample samples[SAMPLES_MAX];

static long long now_us(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static struct head look(int fd)
{
	struct head h = { 0 };

	if (pread(fd, &h, sizeof(h), GUEST_BEAT_GPA) != sizeof(h) || h.magic != GUEST_BEAT_MAGIC)
		return (struct head){ 0 };
	return h;
}

/* The guest is where the beat is greater; copies of the page have at most A's (observe.h). */
static struct sample take(int a, int b)
{
	struct head of_b = look(b), of_a = look(a);

	return (struct sample){ now_us(CLOCK_REALTIME), of_b.beat > of_a.beat ? of_b : of_a };
}

static unsigned watch(struct observer *o, int a, int b, long long after_us)
{
	struct timespec next;
	unsigned n = 0;
	long long end = 0;

	clock_gettime(CLOCK_MONOTONIC, &next);
	while (n < SAMPLES_MAX) {
		samples[n++] = take(a, b);
		if (!end && observer_saw_b(o))
			end = samples[n - 1].us + after_us;
		if (end && samples[n - 1].us > end)
			break;
		next.tv_nsec += STEP_NS;
		if (next.tv_nsec >= 1000000000) {
			next.tv_nsec -= 1000000000;
			next.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
	return n;
}

static void print(const struct observer_result *r, unsigned n)
{
	long long offset = now_us(CLOCK_REALTIME) - now_us(CLOCK_MONOTONIC);

	printf("blackout_us %lld\nlongest_blink_us %lld\nswitch_us %lld\n", (long long)r->blackout_ns / 1000,
	       (long long)r->max_sample_ns / 1000, (long long)r->t_last_a / 1000 + offset);
	for (unsigned i = 0; i < n; i++)
		printf("work %lld %llu %llu %llu\n", samples[i].us, (unsigned long long)samples[i].head.beat,
		       (unsigned long long)samples[i].head.writes, (unsigned long long)samples[i].head.passes);
}

int main(int argc, char *argv[])
{
	int a = argc == 4 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
	int b = argc == 4 ? open(argv[2], O_RDONLY | O_CLOEXEC) : -1;
	struct observer *observer = a >= 0 && b >= 0 ? observer_start(argv[1], argv[2]) : NULL;
	struct observer_result result;
	unsigned n;

	if (!observer) {
		fprintf(stderr, "usage: observe-work RAM-FILE-A RAM-FILE-B AFTER-MS\n");
		return 1;
	}
	puts("watching");
	fflush(stdout);
	n = watch(observer, a, b, atoll(argv[3]) * 1000);
	observer_stop(observer, &result);
	print(&result, n);
	return result.blackout_ns < 0;
}
