/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the slow disk holds: every word of a 4 KiB block is a function of the
 * block's number and the word's place.  Shared by slowfs, which serves it, and
 * by the workload, which checks what it read.
 */
#ifndef LINUX_GUEST_PATTERN_H
#define LINUX_GUEST_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

#include "content.h"	/* content_mix() of the test guest */

#define PATTERN_BLOCK	4096u
#define PATTERN_WORDS	(PATTERN_BLOCK / 8)

static inline uint64_t pattern_word(uint64_t block, unsigned int word)
{
	return content_mix(block * PATTERN_WORDS + word + 1);
}

static inline void pattern_fill(uint64_t *to, uint64_t block)
{
	for (unsigned int i = 0; i < PATTERN_WORDS; i++)
		to[i] = pattern_word(block, i);
}

static inline bool pattern_ok(const uint64_t *data, uint64_t block)
{
	for (unsigned int i = 0; i < PATTERN_WORDS; i++) {
		if (data[i] != pattern_word(block, i))
			return false;
	}
	return true;
}

#endif
