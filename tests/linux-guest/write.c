// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that a device reads and the CPU does not.
 *
 * The pages of a pool are filled once at the start with what the blocks of the
 * disk hold, and from then on only written to the disk with O_DIRECT, over and
 * over: page k of the pool to block k.  slowfs refuses a block that is not what it
 * should be, so a device that got a page which had not come fails the write.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pattern.h"

#define POOL_MIB	16
#define PAGES		8	/* per write */
#define SLOTS		(POOL_MIB * 256 / PAGES)
#define DISK_WAIT_MS	10000
#define PAUSE_NS	2000000

static struct {
	int fd;
	uint64_t *pool;
	atomic_ullong next, done, failed;
} w;

static void pause_ns(long ns)
{
	struct timespec t = { 0, ns };

	nanosleep(&t, NULL);
}

static void write_slot(uint64_t slot)
{
	const size_t len = PAGES * PATTERN_BLOCK;
	const char *data = (const char *)w.pool + slot * len;

	if (pwrite(w.fd, data, len, (off_t)(slot * len)) == (ssize_t)len) {
		atomic_fetch_add(&w.done, PAGES);
		return;
	}
	atomic_fetch_add(&w.failed, PAGES);
	say("WRITE of slot %llu failed: %s", (unsigned long long)slot, strerror(errno));
}

static void *writer(void *arg)
{
	(void)arg;
	for (;;) {
		write_slot(atomic_fetch_add(&w.next, 1) % SLOTS);
		pause_ns(PAUSE_NS);
	}
	return NULL;
}

void write_report(void)
{
	say("WRITES done=%llu failed=%llu rounds=%llu", (unsigned long long)w.done,
	    (unsigned long long)w.failed, (unsigned long long)w.done / (SLOTS * PAGES));
}

static bool prepare(const char *disk)
{
	w.fd = -1;
	for (int i = 0; i < DISK_WAIT_MS / 50 && w.fd < 0; i++) {
		w.fd = open(disk, O_WRONLY | O_DIRECT | O_CLOEXEC);
		if (w.fd < 0)
			pause_ns(50000000);
	}
	if (w.fd < 0) {
		say("WRITE FAILED to open %s: %s", disk, strerror(errno));
		return false;
	}
	w.pool = get_memory((uint64_t)POOL_MIB << 20);
	for (uint64_t i = 0; i < SLOTS * PAGES; i++)
		pattern_fill(w.pool + i * PATTERN_WORDS, i);
	return true;
}

void write_start(const struct config *c)
{
	pthread_t thread;

	if (!prepare(c->disk))
		return;
	for (uint64_t i = 0; i < c->writes; i++) {
		int err = pthread_create(&thread, NULL, writer, NULL);

		if (err)
			say("WRITE FAILED no thread: %s", strerror(err));
	}
}
