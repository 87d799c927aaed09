/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "bitmap.h"

static size_t bitmap_bytes(const struct lm_bitmap *b)
{
	return lm_bitmap_nwords(b->nbits) * sizeof(uint64_t);
}

int lm_bitmap_init(struct lm_bitmap *b, uint64_t nbits)
{
	void *p;

	b->nbits = nbits;
	b->words = NULL;
	if (!nbits)
		return 0;
	p = mmap(NULL, bitmap_bytes(b), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		b->nbits = 0;
		return -ENOMEM;
	}
	b->words = p;
	return 0;
}

void lm_bitmap_fini(struct lm_bitmap *b)
{
	if (b->words)
		munmap(b->words, bitmap_bytes(b));
	b->words = NULL;
	b->nbits = 0;
}

void lm_bitmap_clear_all(struct lm_bitmap *b)
{
	if (b->words)
		memset(b->words, 0, bitmap_bytes(b));
}

/* Bits [lo, hi) of a word, 0 <= lo < hi <= 64. */
static uint64_t word_mask(unsigned lo, unsigned hi)
{
	return (UINT64_MAX >> (64 - (hi - lo))) << lo;
}

typedef uint64_t word_fn(uint64_t *word, uint64_t mask);

static uint64_t word_set(uint64_t *word, uint64_t mask)
{
	*word |= mask;
	return 0;
}

static uint64_t word_clear(uint64_t *word, uint64_t mask)
{
	*word &= ~mask;
	return 0;
}

static uint64_t word_count(uint64_t *word, uint64_t mask)
{
	return __builtin_popcountll(*word & mask);
}

static inline uint64_t each_word(const struct lm_bitmap *b, uint64_t first, uint64_t n, word_fn *fn)
{
	uint64_t end = first + n, sum = 0;

	while (first < end) {
		unsigned lo = first % 64;
		unsigned hi = end - first < 64u - lo ? lo + (unsigned)(end - first) : 64;

		sum += fn(&b->words[first / 64], word_mask(lo, hi));
		first += hi - lo;
	}
	return sum;
}

void lm_bitmap_set_range(struct lm_bitmap *b, uint64_t first, uint64_t n)
{
	each_word(b, first, n, word_set);
}

void lm_bitmap_clear_range(struct lm_bitmap *b, uint64_t first, uint64_t n)
{
	each_word(b, first, n, word_clear);
}

uint64_t lm_bitmap_count_range(const struct lm_bitmap *b, uint64_t first, uint64_t n)
{
	return each_word(b, first, n, word_count);
}

uint64_t lm_bitmap_count(const struct lm_bitmap *b)
{
	return lm_bitmap_count_range(b, 0, b->nbits);
}

void lm_bitmap_or(struct lm_bitmap *dst, const struct lm_bitmap *src)
{
	for (uint64_t i = 0; i < lm_bitmap_nwords(dst->nbits); i++)
		dst->words[i] |= src->words[i];
}

void lm_bitmap_and(struct lm_bitmap *dst, const struct lm_bitmap *a, const struct lm_bitmap *b)
{
	for (uint64_t i = 0; i < lm_bitmap_nwords(dst->nbits); i++)
		dst->words[i] = a->words[i] & b->words[i];
}

void lm_bitmap_and_not(struct lm_bitmap *dst, const struct lm_bitmap *a, const struct lm_bitmap *b)
{
	for (uint64_t i = 0; i < lm_bitmap_nwords(dst->nbits); i++)
		dst->words[i] = a->words[i] & ~b->words[i];
}

void lm_bitmap_keep_either(struct lm_bitmap *dst, const struct lm_bitmap *a, const struct lm_bitmap *b)
{
	for (uint64_t i = 0; i < lm_bitmap_nwords(dst->nbits); i++)
		dst->words[i] &= a->words[i] | b->words[i];
}

/* First bit in [from, end) whose value is `value`; end when there is none. */
static uint64_t find_bit(const struct lm_bitmap *b, uint64_t from, uint64_t end, bool value)
{
	while (from < end) {
		uint64_t w = b->words[from / 64];

		if (!value)
			w = ~w;
		w &= UINT64_MAX << (from % 64);
		if (w) {
			uint64_t bit = from / 64 * 64 + (unsigned)__builtin_ctzll(w);

			return bit < end ? bit : end;
		}
		from = (from / 64 + 1) * 64;
	}
	return end;
}

uint64_t lm_bitmap_next_run(const struct lm_bitmap *b, uint64_t from, uint64_t end, uint64_t *ret_first)
{
	uint64_t first = find_bit(b, from, end, true);

	*ret_first = first;
	return first < end ? find_bit(b, first, end, false) - first : 0;
}
