/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include "region.h"
#include "zero.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef bool zero_fn(const uint8_t *page);

struct zero_impl {
	const char *name;
	zero_fn *is_zero;
	bool (*usable)(void);
};

static inline uint64_t load64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static inline uint64_t or_line(const uint8_t *p)
{
	return load64(p) | load64(p + 8) | load64(p + 16) | load64(p + 24) | load64(p + 32) |
	       load64(p + 40) | load64(p + 48) | load64(p + 56);
}

static bool portable_is_zero(const uint8_t *page)
{
	const uint8_t *end = page + LM_PAGE_SIZE;

	if (or_line(page))
		return false;
	for (const uint8_t *p = page; p < end; p += 256)
		if (or_line(p) | or_line(p + 64) | or_line(p + 128) | or_line(p + 192))
			return false;
	return true;
}

static bool always(void)
{
	return true;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static inline __m256i or4_avx2(const uint8_t *p)
{
	const __m256i *v = (const __m256i *)p;

	return _mm256_or_si256(_mm256_or_si256(_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)),
			       _mm256_or_si256(_mm256_loadu_si256(v + 2), _mm256_loadu_si256(v + 3)));
}

__attribute__((target("avx2"))) static bool avx2_is_zero(const uint8_t *page)
{
	const uint8_t *end = page + LM_PAGE_SIZE;

	if (or_line(page))
		return false;
	for (const uint8_t *p = page; p < end; p += 256) {
		__m256i v = _mm256_or_si256(or4_avx2(p), or4_avx2(p + 128));

		if (!_mm256_testz_si256(v, v))
			return false;
	}
	return true;
}

static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2");
}

__attribute__((target("avx512f"))) static bool avx512_is_zero(const uint8_t *page)
{
	const uint8_t *end = page + LM_PAGE_SIZE;

	if (or_line(page))
		return false;
	for (const uint8_t *p = page; p < end; p += 256) {
		__m512i v = _mm512_or_si512(
			_mm512_or_si512(_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64)),
			_mm512_or_si512(_mm512_loadu_si512(p + 128), _mm512_loadu_si512(p + 192)));

		if (_mm512_test_epi64_mask(v, v))
			return false;
	}
	return true;
}

static bool has_avx512(void)
{
	return __builtin_cpu_supports("avx512f");
}
#endif

/* Best first. */
static const struct zero_impl impls[] = {
#if defined(__x86_64__)
	{ "avx512", avx512_is_zero, has_avx512 },
	{ "avx2", avx2_is_zero, has_avx2 },
#endif
	{ "portable", portable_is_zero, always },
};

static const struct zero_impl *best_impl(void)
{
	const struct zero_impl *i = impls;

	while (!i->usable())
		i++;
	return i;
}

static bool resolve_is_zero(const uint8_t *page);

/* Threads that meet here first all store the same value. */
static _Atomic(zero_fn *) current = resolve_is_zero;

static bool resolve_is_zero(const uint8_t *page)
{
	zero_fn *fn = best_impl()->is_zero;

	atomic_store_explicit(&current, fn, memory_order_relaxed);
	return fn(page);
}

bool lm_page_is_zero(const void *page)
{
	return atomic_load_explicit(&current, memory_order_relaxed)(page);
}

uint64_t lm_zero_mask(const void *pages, unsigned npages)
{
	zero_fn *fn = atomic_load_explicit(&current, memory_order_relaxed);
	const uint8_t *p = pages;
	uint64_t mask = 0;

	for (unsigned i = 0; i < npages; i++)
		mask |= (uint64_t)fn(p + i * LM_PAGE_SIZE) << i;
	return mask;
}

const char *lm_zero_impl_list(unsigned index)
{
	for (size_t i = 0; i < sizeof(impls) / sizeof(impls[0]); i++)
		if (impls[i].usable() && !index--)
			return impls[i].name;
	return NULL;
}

const char *lm_zero_impl_name(void)
{
	zero_fn *fn = atomic_load_explicit(&current, memory_order_relaxed);

	for (size_t i = 0; i < sizeof(impls) / sizeof(impls[0]); i++)
		if (impls[i].is_zero == fn)
			return impls[i].name;
	return best_impl()->name;
}

int lm_zero_force(const char *name)
{
	for (size_t i = 0; i < sizeof(impls) / sizeof(impls[0]); i++) {
		if (strcmp(impls[i].name, name) || !impls[i].usable())
			continue;
		atomic_store_explicit(&current, impls[i].is_zero, memory_order_relaxed);
		return 0;
	}
	return -ENOENT;
}
