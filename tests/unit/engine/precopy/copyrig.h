/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A copier with everything that it needs, in one process: RAM on both sides, a
 * transport (in process, or TCP on loopback), and threads that place what arrives.
 * The source's transport goes through a decorator that can be told to fail.
 */
#ifndef COPYRIG_H
#define COPYRIG_H

#include "engine/precopy/copy.h"

#define RIG_REGIONS 3
#define RIG_LANES 3

enum rig_fault {
	RIG_OK,
	RIG_FAIL,        /* write fails */
	RIG_FAIL_MUTE,   /* write fails and does not say why */
	RIG_LOSE,        /* write succeeds, nothing arrives, the flush fails */
	RIG_FULL,        /* write says for ever that the lane is full */
	RIG_HANG_UP,     /* full, and the peer has closed the lane */
};

struct rig {
	struct lm_ram src, dst;
	struct lm_transport *source; /* the decorator */
	struct lm_transport *dest;
	struct lm_pool *pool, *placers;
	struct lm_copier copier;
	struct lm_pageset todo, holes, lost;
	_Atomic bool stop_placing;
	/* set by tests: lane i does fault[i] from its fault_write[i]-th write on (0: the first) */
	_Atomic enum rig_fault fault[RIG_LANES];
	unsigned fault_write[RIG_LANES];
	bool all_faults; /* lanes without a fault wait until every fault has shown itself */
	_Atomic bool faulted[RIG_LANES];
	bool reopens; /* lanes that are shut are as if they had been opened again since */
	unsigned writes[RIG_LANES]; /* lane's thread */
	uint64_t written_pages[RIG_LANES];
};

/* Regions of 1, 1025 and 4096 pages by default: whole chunks, parts of chunks, and less than one. */
struct rig *rig_new(bool tcp);
void rig_free(struct rig *g);
/* Fill the source: about a third of the pages zero. */
void rig_fill(struct rig *g, unsigned seed);
/* The destination holds rubbish, and `filled` says so, in about half of the pages. */
void rig_reuse_dest(struct rig *g, unsigned seed);
/* All pages into todo. */
void rig_all(struct rig *g);
/* Copy todo; lanes that die are dropped as the destination does it.  The number of redos, or the error. */
int rig_copy(struct rig *g, struct lm_error *err);
/* Copies todo, with so many redos, and both sides are equal. */
void rig_assert_copied(struct rig *g, int redos_wanted);
bool rig_equal(const struct rig *g);
uint64_t rig_blocks(const struct lm_ram *ram);
uint8_t *rig_page(const struct lm_ram *ram, unsigned region, uint64_t page);

#endif
