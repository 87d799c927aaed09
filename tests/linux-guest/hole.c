// SPDX-License-Identifier: Apache-2.0
/*
 * The DMA hole: memory that a device writes and the CPU does not.
 *
 * A read of the disk with O_DIRECT lands in guest RAM by the emulated device
 * alone.  If a migration misses such a page, nothing in the guest notices
 * before the data are used.  So: each page of a pool is poisoned once at the
 * start, read into once, and not touched again until the check.
 *
 * Page k of the pool gets block k of the disk.  Reads that are under way when
 * the guest moves are the interesting ones, so there are several at a time and
 * the disk should be slow.  A pool is finite: when it is used up the reading
 * stops, and says so.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>

#include "pattern.h"

#define POISON		0xa5a5a5a5a5a5a5a5ull
#define DISK_WAIT_MS	10000
#define MAX_REPORTS	8

enum state { FRESH, UNDER_WAY, DONE, FAILED };

static struct {
	struct config c;
	int fd;
	uint64_t blocks;	/* of the disk */
	uint64_t *pool;
	uint64_t slots;		/* of c.pages pages each */
	_Atomic uint8_t *state;	/* of each slot */
	atomic_ullong next;	/* slot to be read into */
	atomic_ullong under_way, done, failed;
	atomic_bool stop, told;
} h;

static void pause_ms(uint64_t ms)
{
	struct timespec t = {
		(time_t)(ms / 1000), (long)(ms % 1000) * 1000000,
	};

	nanosleep(&t, NULL);
}

static uint64_t *slot_memory(uint64_t slot)
{
	return h.pool + slot * h.c.pages * PATTERN_WORDS;
}

/* Slots wrap around a disk smaller than the pool. */
static uint64_t slot_block(uint64_t slot)
{
	return slot % (h.blocks / h.c.pages) * h.c.pages;
}

static void read_slot(uint64_t slot)
{
	size_t len = h.c.pages * PATTERN_BLOCK;
	off_t at = (off_t)(slot_block(slot) * PATTERN_BLOCK);
	ssize_t n;

	h.state[slot] = UNDER_WAY;
	atomic_fetch_add(&h.under_way, 1);
	n = pread(h.fd, slot_memory(slot), len, at);
	h.state[slot] = n == (ssize_t)len ? DONE : FAILED;
	atomic_fetch_add(n == (ssize_t)len ? &h.done : &h.failed, 1);
	atomic_fetch_sub(&h.under_way, 1);
	if (n != (ssize_t)len)
		say("HOLE read of block %lld failed: %s",
		    (long long)slot_block(slot),
		    n < 0 ? strerror(errno) : "short");
}

static void *reader(void *arg)
{
	(void)arg;
	while (!atomic_load(&h.stop)) {
		uint64_t slot = atomic_fetch_add(&h.next, 1);

		if (slot >= h.slots)
			break;
		read_slot(slot);
		if (h.c.pause_ms)
			pause_ms(h.c.pause_ms);
	}
	if (!atomic_load(&h.stop) && !atomic_exchange(&h.told, true))
		say("HOLE pool used up");
	return NULL;
}

void hole_report(void)
{
	say("HOLE slots=%llu done=%llu under_way=%llu failed=%llu",
	    (unsigned long long)h.slots, (unsigned long long)h.done,
	    (unsigned long long)h.under_way, (unsigned long long)h.failed);
}

static bool poisoned(const uint64_t *data)
{
	for (unsigned int i = 0; i < PATTERN_WORDS; i++) {
		if (data[i] != POISON)
			return false;
	}
	return true;
}

static const char *kind(const uint64_t *data)
{
	if (poisoned(data))
		return "never-written";
	return content_is_zero(data) ? "zero" : "other";
}

/* Slots that were never read into must still hold the poison. */
static bool page_ok(const uint64_t *data, uint64_t block, enum state state)
{
	return state == DONE ? pattern_ok(data, block) : poisoned(data);
}

static uint64_t check_slot(uint64_t slot, uint64_t *bad)
{
	enum state state = h.state[slot];

	if (state == FAILED || state == UNDER_WAY)
		return 0;
	for (uint64_t i = 0; i < h.c.pages; i++) {
		const uint64_t *data = slot_memory(slot) + i * PATTERN_WORDS;
		uint64_t block = slot_block(slot) + i;

		if (page_ok(data, block, state))
			continue;
		if ((*bad)++ < MAX_REPORTS)
			say("HOLE bad slot=%llu page=%llu block=%llu kind=%s",
			    (unsigned long long)slot, (unsigned long long)i,
			    (unsigned long long)block, kind(data));
	}
	return state == DONE ? h.c.pages : 0;
}

/* Stops the reading for good: the check touches what must not be touched. */
void hole_check(void)
{
	uint64_t checked = 0, bad = 0;

	if (!h.slots) {
		say("HOLE nothing to check: reads=0, or no disk");
		return;
	}
	atomic_store(&h.stop, true);
	while (atomic_load(&h.under_way))
		pause_ms(10);
	for (uint64_t i = 0; i < h.slots; i++)
		checked += check_slot(i, &bad);
	say("HOLE checked=%llu bad=%llu failed=%llu",
	    (unsigned long long)checked, (unsigned long long)bad,
	    (unsigned long long)h.failed);
}

/* The controller is probed while the program starts. */
static int open_disk(const char *path)
{
	int fd = -1;

	for (int i = 0; i < DISK_WAIT_MS / 50; i++) {
		fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
		if (fd >= 0 || (errno != ENOENT && errno != ENXIO))
			break;
		pause_ms(50);
	}
	return fd;
}

static bool prepare(void)
{
	uint64_t bytes = h.c.pool_mb << 20, size = 0;

	h.fd = open_disk(h.c.disk);
	if (h.fd < 0 || ioctl(h.fd, BLKGETSIZE64, &size)) {
		say("HOLE FAILED to open %s: %s", h.c.disk, strerror(errno));
		return false;
	}
	h.blocks = size / PATTERN_BLOCK;
	if (!h.c.pages || h.blocks < h.c.pages) {
		say("HOLE FAILED: the disk is smaller than a read");
		return false;
	}
	h.slots = bytes / (h.c.pages * PATTERN_BLOCK);
	h.pool = get_memory(bytes);
	h.state = get_memory(h.slots);
	for (uint64_t i = 0; i < bytes / 8; i++)
		h.pool[i] = POISON;
	return true;
}

void hole_start(const struct config *c)
{
	pthread_t thread;

	h.c = *c;
	if (!prepare())
		return;
	for (uint64_t i = 0; i < c->reads; i++) {
		int err = pthread_create(&thread, NULL, reader, NULL);

		if (err)
			say("HOLE FAILED no thread: %s", strerror(err));
	}
}
