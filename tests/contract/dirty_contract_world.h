/* SPDX-License-Identifier: Apache-2.0 */
/* A tracker over the memory of a child that writes when the test orders it to; one world per test. */
#ifndef DIRTY_CONTRACT_WORLD_H
#define DIRTY_CONTRACT_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "engine/vm/dirty.h"
#include "dirty_contract_vm.h"

struct tracker_kind {
	const char *name;
	int (*make)(pid_t pid, const struct lm_ram *ram, struct lm_dirty **ret, struct lm_error *err);
};

struct memory_kind {
	const char *name;
	uint64_t page_size;
	int (*file)(void); /* a descriptor, -1 where this host has none */
};

struct kind {
	const struct tracker_kind *tracker;
	const struct memory_kind *memory;
};

struct world {
	const struct kind *kind;
	pid_t pid;
	int sock;
	struct lm_region region;
	struct lm_ram ram;
	struct lm_dirty *dirty;
	struct lm_bitmap written, absent;
	struct lm_error err;
};

/* For cmocka: *state is a struct kind, then the world, or NULL where the host lacks the memory. */
int setup(void **state);
int teardown(void **state);
/* Skips the test where the host lacks the memory. */
struct world *world_of(void **state);

/* The child does it, and the call returns after that. */
void order(struct world *w, enum order o, uint64_t first, uint64_t n, uint64_t step);
void child_end(struct world *w);
/* Fails the test with the world's error. */
void ok(struct world *w, int r);
void tracker_start(struct world *w);
/* One round over all pages, into w->written and w->absent. */
void collect(struct world *w);
void assert_written(struct world *w, uint64_t first, uint64_t n, uint64_t step);
/* The tracker may report more pages than were written, but only whole backing pages. */
void assert_count(struct world *w, uint64_t nwritten);
/* Absent pages that the file does not hold either: the engine takes these for zero. */
uint64_t count_discarded(struct world *w, uint64_t first, uint64_t n);

#endif
