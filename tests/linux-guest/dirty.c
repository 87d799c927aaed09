// SPDX-License-Identifier: Apache-2.0
/*
 * Dirties memory at a rate and checks all of it over and over.  Page format
 * and versions are the test guest's (content.h).
 */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "content.h"

#define WORDS		CONTENT_WORDS
#define VERIFY_SLICE	16
#define WRITE_SLICE	64
#define PAUSE_NS	200000
#define TICK_NS		500000000ull
#define SECOND_NS	1000000000ull

static struct {
	uint64_t *memory;
	uint32_t *versions;
	uint64_t pages, rate;
	uint64_t writes, passes, bad, cursor;
	uint64_t random;
	uint64_t since;		/* the rate counts from here */
	uint64_t owed;		/* writes made since then */
	uint64_t last, max_gap;
} d;

static void report(uint64_t page)
{
	const uint64_t *data = d.memory + page * WORDS;
	uint32_t want = d.versions[page];

	if (d.bad++ < 16)
		say("BAD page=%llu want=%u got=%llu kind=%s",
		    (unsigned long long)page, want,
		    (unsigned long long)content_seen(data, want),
		    content_kind(data, page, want));
}

static void write_page(void)
{
	uint64_t page, *data;

	d.random ^= d.random << 13;
	d.random ^= d.random >> 7;
	d.random ^= d.random << 17;
	page = (d.random >> 32) * d.pages >> 32;
	data = d.memory + page * WORDS;
	if (!content_stamps_ok(data, page, d.versions[page])) {
		report(page);
		content_fill(data, page, d.versions[page]);
	}
	content_stamp(data, page, ++d.versions[page]);
	d.writes++;
}

/* After a pause of a second and more the arrears are forgiven. */
static void write_due(uint64_t now)
{
	uint64_t passed = now - d.since, due = passed * d.rate / SECOND_NS;

	for (int n = 0; n < WRITE_SLICE && d.owed < due; n++, d.owed++)
		write_page();
	if (passed > SECOND_NS) {
		d.since = now;
		d.owed = 0;
	}
}

static void verify(void)
{
	for (int n = 0; n < VERIFY_SLICE; n++) {
		uint64_t page = d.cursor, *data = d.memory + page * WORDS;

		if (!content_page_ok(data, page, d.versions[page])) {
			report(page);
			content_fill(data, page, d.versions[page]);
		}
		if (++d.cursor == d.pages) {
			d.cursor = 0;
			d.passes++;
		}
	}
}

static void tick(void)
{
	static unsigned long n;

	say("tick %lu writes=%llu passes=%llu bad=%llu maxgap_us=%llu", ++n,
	    (unsigned long long)d.writes, (unsigned long long)d.passes,
	    (unsigned long long)d.bad, (unsigned long long)d.max_gap / 1000);
}

static void *run(void *arg)
{
	struct timespec pause = { .tv_nsec = PAUSE_NS };
	uint64_t next = now_ns() + TICK_NS;

	(void)arg;
	d.last = d.since = now_ns();
	for (;;) {
		uint64_t now = now_ns();

		if (now - d.last > d.max_gap)
			d.max_gap = now - d.last;
		d.last = now;
		write_due(now);
		verify();
		if (now >= next) {
			tick();
			next = now + TICK_NS;
		}
		nanosleep(&pause, NULL);
	}
	return NULL;
}

void dirty_start(const struct config *c)
{
	pthread_t thread;
	int err;

	d.pages = c->mb * 256;
	d.rate = c->rate;
	d.random = CONTENT_STEP;
	d.memory = get_memory(d.pages * WORDS * 8);
	d.versions = get_memory(d.pages * sizeof(*d.versions));
	for (uint64_t i = 0; i < d.pages; i++) {
		d.versions[i] = 1;
		content_fill(d.memory + i * WORDS, i, 1);
	}
	err = pthread_create(&thread, NULL, run, NULL);
	if (err)
		say("FAILED no thread: %s", strerror(err));
}
