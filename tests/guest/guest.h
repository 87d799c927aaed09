/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The freestanding test guest: what its parts offer one another.
 *
 * struct work is all the state of one worker over one range of pages: each vCPU
 * has one.  The first one does all the rest as well.
 */
#ifndef TEST_GUEST_H
#define TEST_GUEST_H

#include <stdbool.h>
#include <stdint.h>
#include "layout.h"

/* boot.S */
extern uint64_t boot_pdpt[512];
void enter_user(void (*function)(uint64_t), uint64_t argument) __attribute__((noreturn));
extern const uint8_t ap_start[], ap_start_end[];
#define CPUS_MAX 16	/* as in boot.S */

/* options.c */
enum pattern { PATTERN_RANDOM, PATTERN_SEQ, PATTERN_HOT };
enum fill { FILL_ALL, FILL_NONE, FILL_HALF };

struct options {
	uint64_t mb;		/* 0: all there is */
	uint64_t start_mb;
	uint64_t rate;
	enum pattern pattern;
	enum fill fill;
	bool verify;
	uint64_t cpus;
};

/* The word that is not understood, or NULL. */
const char *options_parse(struct options *o, const char *line);

/* memory.c */
struct memory {
	struct guest_segment segment[GUEST_MAX_SEGMENTS];
	unsigned int nsegments;
	uint64_t pages;
	uint32_t *versions;	/* one per page, zeroed */
};

void memory_map_apic(void);
/* After memory_map_apic().  NULL, or what is wrong. */
const char *memory_init(struct memory *m, uint32_t multiboot_info,
			const struct options *o);
const char *memory_cmdline(uint32_t multiboot_info);
void *memory_page(const struct memory *m, uint64_t page);

/* clock.c */
struct clock {
	uint64_t tsc_hz;
	const char *reference;	/* what tsc_hz was measured against */
	uint64_t tsc;		/* last read */
	bool has_cmos;
	uint64_t looked;	/* TSC of the last look at the CMOS clock */
	uint64_t seconds;	/* seen there */
	uint64_t edge;		/* TSC when its second last changed, 0: not yet */
	uint64_t longest;	/* TSC ticks of its longest second */
	uint64_t gap;		/* largest of this tick, nanoseconds */
	uint64_t max_gap;
};

void clock_init(struct clock *c);
void clock_start(struct clock *c);
void clock_read(struct clock *c);
uint64_t clock_take_gap(struct clock *c);
uint64_t clock_ticks(const struct clock *c, uint64_t microseconds);

/* serial.c */
void serial_init(void);
void serial_pump(void);
void serial_flush(void);
/* Knows %u (64-bit), %x (64-bit) and %s.  A line that does not fit is lost. */
void say(const char *format, ...);

/* work.c */
struct work {
	const struct memory *mem;
	struct options opt;
	uint64_t first, pages;	/* its slice */
	uint64_t usable;	/* pages it may write */
	uint64_t random;	/* generator state */
	uint64_t next;		/* of the sequential pattern */
	uint64_t writes;
	uint64_t passes;
	uint64_t bad;
	uint64_t bad_page, bad_want, bad_got;
	uint64_t sum;		/* over the version table, kept at each write */
	uint64_t cursor;	/* of the check, in usable pages */
	uint64_t pass_sum;	/* of the pages the check has behind it */
	uint64_t paid;		/* writes up to which the rate was obeyed */
	uint64_t paid_tsc;
};

/* cpu: from 0 on, of o->cpus; on that very vCPU. */
void work_init(struct work *w, const struct memory *m,
	       const struct options *o, uint64_t cpu);
void work_fill(struct work *w);
void work_write_due(struct work *w, const struct clock *c);
void work_verify(struct work *w);
void work_set_rate(struct work *w, uint64_t rate, uint64_t tsc);

/* cpus.c */
struct totals {
	uint64_t writes, passes, bad;	/* passes: the smallest */
	uint64_t bad_page, bad_want, bad_got;
};

/* In ring 0; they wait for their memory.  What it is given is used for ever. */
void cpus_wake(const struct options *o, const struct clock *c);
/* False: some did not come up. */
bool cpus_start(const struct memory *m);
/* The others follow; rate: of all vCPUs together. */
void cpus_set(uint64_t rate, bool verify);
uint64_t cpus_usable(void);
/* To what the first one has. */
void cpus_add(struct totals *t);

#endif
