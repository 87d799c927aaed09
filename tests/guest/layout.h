/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the test guest and the host tests share: where the heartbeat page is
 * and what it holds.  Plain C, no library: the guest includes it too.
 *
 * The page lies in low RAM, where the offset in the RAM file equals the
 * guest-physical address for the first (or only) memory backend.  It is clear
 * of what the firmware and the multiboot loader use (0x500-0xa000, 0x9f000-).
 *
 * Every field is a 64-bit word written by one store, so a reader on the same
 * host never sees half a word.  Different fields are NOT a snapshot of one
 * moment; stop the guest where that matters.
 */
#ifndef TEST_GUEST_LAYOUT_H
#define TEST_GUEST_LAYOUT_H

#include <stdint.h>

#define GUEST_BEAT_GPA		0x10000ull
#define GUEST_BEAT_MAGIC	0x3154534555474d52ull	/* "RMGUEST1" */
#define GUEST_PAGE_SIZE		4096ull
#define GUEST_MAX_SEGMENTS	4

#define GUEST_RATE_MAX		UINT64_MAX	/* rate: as fast as it can */

/* Commands for guest_beat.cmd_op. */
enum guest_command {
	GUEST_CMD_NONE = 0,
	GUEST_CMD_RATE = 1,	/* cmd_arg: pages per second or GUEST_RATE_MAX */
	GUEST_CMD_VERIFY = 2,	/* cmd_arg: 1 verify, 0 do not */
};

/* Guest RAM in use by the working set: page numbers run through it in order. */
struct guest_segment {
	uint64_t gpa;
	uint64_t pages;
};

struct guest_beat {
	uint64_t magic;		/* set last: the guest runs its main loop */
	uint64_t beat;		/* one more on each turn of the main loop */
	uint64_t writes;	/* pages written since start */
	uint64_t passes;	/* complete checks of every written page */
	uint64_t bad;		/* bad pages found (each counted once) */
	uint64_t bad_page;	/* the first: page number, versions */
	uint64_t bad_want;
	uint64_t bad_got;
	uint64_t max_gap_ns;	/* by the guest's own clock, since start */
	uint64_t tsc;		/* at this beat */
	uint64_t tsc_hz;
	uint64_t rate;		/* in force */
	uint64_t pages;		/* of the working set */
	uint64_t usable;	/* of them, ones it may write (fill=half: half) */
	uint64_t version_table;	/* guest-physical; 32-bit version per page */
	uint64_t version_sum;	/* over the table, see content.h */
	uint64_t nsegments;
	struct guest_segment segment[GUEST_MAX_SEGMENTS];
	uint64_t reserved[105];

	/*
	 * Written by the host: op and arg first, then a new seq.  The guest
	 * acts when seq differs from ack and then sets ack = seq.
	 *
	 * ONLY BEFORE A MIGRATION STARTS: a store by another process is not
	 * seen by QEMU's or KVM's dirty tracking, so a page that was already
	 * sent would not be sent again on its account.
	 */
	uint64_t cmd_seq;
	uint64_t cmd_op;
	uint64_t cmd_arg;
	uint64_t cmd_ack;	/* written by the guest */
};

_Static_assert(sizeof(struct guest_beat) <= GUEST_PAGE_SIZE,
	       "the heartbeat must fit its page");

#endif
