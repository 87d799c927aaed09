/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a page of the working set holds, as a function of (page, version).
 * Used by the guest to write and check, and by host tests to check a RAM file.
 *
 * A page is 64 lines of 8 words.
 *   word 0 of every line		stamp: key(page, version) + line * STEP
 *   word 1 of every 8th line		the version in plain, for the report
 *   all other words			body: base(page) + word * STEP
 *
 * A write of a new version touches only stamps and versions (72 words), so
 * that the guest dirties pages fast; the body is laid down by the first write.
 * What is found:
 *   stale page		stamps of another version than the guest's table says
 *   torn page		stamps of two versions (any tear between 64-byte lines;
 *			x86 and RDMA tear at no finer grain in practice)
 *   swapped page	key and base contain the page number
 *   zeroed page	base and key are zero for no page in practice
 * What is not: a change that keeps 64-bit words equal to a hash by chance.
 */
#ifndef TEST_GUEST_CONTENT_H
#define TEST_GUEST_CONTENT_H

#include <stdbool.h>
#include <stdint.h>

#define CONTENT_WORDS		512u
#define CONTENT_LINE		8u	/* words in a line */
#define CONTENT_LINES		64u
#define CONTENT_SECTOR		64u	/* words between two plain versions */
#define CONTENT_STEP		0x9e3779b97f4a7c15ull

/* A bijective scrambler of one word (xor-shift and odd multiplies). */
static inline uint64_t content_mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x7fb5d329728ea185ull;
	x ^= x >> 27;
	x *= 0x81dadef4bc2dd44dull;
	return x ^ (x >> 33);
}

/* Page numbers stay below 2^32 and so do versions: the pair is one word. */
static inline uint64_t content_key(uint64_t page, uint32_t version)
{
	return content_mix((page << 32 | version) + CONTENT_STEP);
}

static inline uint64_t content_base(uint64_t page)
{
	return content_mix(~page << 32);
}

static inline void content_stamp(uint64_t *w, uint64_t page, uint32_t version)
{
	uint64_t key = content_key(page, version);

	for (unsigned int i = 0; i < CONTENT_WORDS; i += CONTENT_LINE) {
		*(volatile uint64_t *)&w[i] = key;
		key += CONTENT_STEP;
	}
	for (unsigned int i = 1; i < CONTENT_WORDS; i += CONTENT_SECTOR)
		*(volatile uint64_t *)&w[i] = version;
}

static inline void content_fill(uint64_t *w, uint64_t page, uint32_t version)
{
	uint64_t body = content_base(page);

	for (unsigned int i = 0; i < CONTENT_WORDS; i++, body += CONTENT_STEP)
		*(volatile uint64_t *)&w[i] = body;
	content_stamp(w, page, version);
}

/* The stamps alone: quick, used before a page is overwritten. */
static inline bool content_stamps_ok(const uint64_t *w, uint64_t page,
				     uint32_t version)
{
	uint64_t key = content_key(page, version), diff = 0;

	for (unsigned int i = 0; i < CONTENT_WORDS; i += CONTENT_LINE) {
		diff |= *(const volatile uint64_t *)&w[i] ^ key;
		key += CONTENT_STEP;
	}
	return !diff;
}

/* Words 1..7 of a line; word 1 is the version in the first of a sector. */
static inline uint64_t content_line_diff(const uint64_t *w, unsigned int at,
					 uint64_t body, uint32_t version)
{
	const volatile uint64_t *v = w + at;
	uint64_t diff;

	if (at % CONTENT_SECTOR)
		diff = v[1] ^ (body + CONTENT_STEP);
	else
		diff = v[1] ^ version;
	for (unsigned int i = 2; i < CONTENT_LINE; i++)
		diff |= v[i] ^ (body + i * CONTENT_STEP);
	return diff;
}

/* Every word of the page. */
static inline bool content_page_ok(const uint64_t *w, uint64_t page,
				   uint32_t version)
{
	uint64_t body = content_base(page), diff = 0;

	for (unsigned int i = 0; i < CONTENT_WORDS; i += CONTENT_LINE) {
		diff |= content_line_diff(w, i, body, version);
		body += CONTENT_LINE * CONTENT_STEP;
	}
	return !diff && content_stamps_ok(w, page, version);
}

static inline bool content_is_zero(const uint64_t *w)
{
	uint64_t any = 0;

	for (unsigned int i = 0; i < CONTENT_WORDS; i++)
		any |= *(const volatile uint64_t *)&w[i];
	return !any;
}

/*
 * The first plain version in the page that is not the one wanted; the wanted
 * one if there is none (then the damage lies elsewhere).
 */
static inline uint64_t content_seen(const uint64_t *w, uint32_t want)
{
	for (unsigned int i = 1; i < CONTENT_WORDS; i += CONTENT_SECTOR) {
		if (w[i] != want)
			return w[i];
	}
	return want;
}

/* "zero", "stale" (a whole page of another version) or "torn" (all else). */
static inline const char *content_kind(const uint64_t *w, uint64_t page,
				       uint32_t want)
{
	uint64_t seen = content_seen(w, want);

	if (content_is_zero(w))
		return "zero";
	if (seen != want && seen <= UINT32_MAX &&
	    content_page_ok(w, page, (uint32_t)seen))
		return "stale";
	return "torn";
}

/*
 * One page's share of the sum over the version table.  Sums of shares tell
 * that a table entry went back although its page went back with it.
 */
static inline uint64_t content_share(uint64_t page, uint32_t version)
{
	return version ? content_key(page, version) : 0;
}

#endif
