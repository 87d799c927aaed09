/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bitmaps over pages: one bit per 4 KiB page, whatever the backing page size.
 *
 * Plain words, no locks: a bitmap, or a range of whole words of it, belongs to
 * one thread at a time.  Bits past nbits in the last word are always clear.
 */
#ifndef LM_BITMAP_H
#define LM_BITMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

struct lm_bitmap {
	uint64_t nbits;
	uint64_t *words;
};

static inline uint64_t lm_bitmap_nwords(uint64_t nbits)
{
	return nbits / 64 + (nbits % 64 != 0);
}

/* 0 or -ENOMEM.  All bits clear.  The memory comes from mmap, so untouched words cost nothing. */
int lm_bitmap_init(struct lm_bitmap *b, uint64_t nbits);
/* Takes a zeroed or half-built bitmap. */
void lm_bitmap_fini(struct lm_bitmap *b);
void lm_bitmap_clear_all(struct lm_bitmap *b);

static inline bool lm_bitmap_test(const struct lm_bitmap *b, uint64_t bit)
{
	return b->words[bit / 64] >> (bit % 64) & 1;
}

static inline void lm_bitmap_set(struct lm_bitmap *b, uint64_t bit)
{
	b->words[bit / 64] |= UINT64_C(1) << (bit % 64);
}

static inline void lm_bitmap_clear(struct lm_bitmap *b, uint64_t bit)
{
	b->words[bit / 64] &= ~(UINT64_C(1) << (bit % 64));
}

/* Ranges are [first, first + n), must lie inside the bitmap; n may be 0. */
void lm_bitmap_set_range(struct lm_bitmap *b, uint64_t first, uint64_t n);
void lm_bitmap_clear_range(struct lm_bitmap *b, uint64_t first, uint64_t n);
uint64_t lm_bitmap_count(const struct lm_bitmap *b);
uint64_t lm_bitmap_count_range(const struct lm_bitmap *b, uint64_t first, uint64_t n);
/* All of the same size; dst may be one of the others. */
void lm_bitmap_or(struct lm_bitmap *dst, const struct lm_bitmap *src);                                 /* dst |= src */
void lm_bitmap_and(struct lm_bitmap *dst, const struct lm_bitmap *a, const struct lm_bitmap *b);       /* a & b */
void lm_bitmap_and_not(struct lm_bitmap *dst, const struct lm_bitmap *a, const struct lm_bitmap *b);   /* a & ~b */
void lm_bitmap_keep_either(struct lm_bitmap *dst, const struct lm_bitmap *a, const struct lm_bitmap *b); /* dst &= a | b */

/*
 * Next run of set bits in [from, end): its first bit in *ret_first, its length
 * in the return value (0: none left).
 */
uint64_t lm_bitmap_next_run(const struct lm_bitmap *b, uint64_t from, uint64_t end, uint64_t *ret_first);

#endif
