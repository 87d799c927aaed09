/* SPDX-License-Identifier: Apache-2.0 */
/* The workload inside the Linux guest. */
#ifndef LINUX_GUEST_WORKLOAD_H
#define LINUX_GUEST_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>

struct config {
	uint64_t mb;		/* memory to dirty */
	uint64_t rate;		/* pages per second */
	uint64_t used_mb;	/* memory to fill and give back before anything else */
	uint64_t reads;		/* disk reads in flight; 0: no disk */
	uint64_t pages;		/* per read */
	uint64_t pool_mb;	/* memory to read into */
	uint64_t pause_ms;	/* of a reader between two reads */
	uint64_t writes;	/* disk writes in flight; 0: none */
	uint64_t threads;	/* that touch pages at full speed; 0: none */
	uint64_t storm_mb;	/* memory for them */
	const char *disk;
};

/* One whole line to the console, in one piece. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t now_ns(void);

/* Zeroed private memory, never huge pages; ends the program on failure. */
void *get_memory(uint64_t bytes);

/* dirty.c: runs for ever in a thread of its own. */
void dirty_start(const struct config *c);

/* storm.c: threads that never end. */
void storm_start(const struct config *c);

/* write.c */
void write_start(const struct config *c);
void write_report(void);

/* hole.c */
void hole_start(const struct config *c);
void hole_check(void);
void hole_report(void);

#endif
