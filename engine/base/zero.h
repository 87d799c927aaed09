/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is a page all zeros?
 *
 * A page of guest memory that is not zero nearly always shows it in its first
 * cache line, so the first 64 bytes are looked at before anything else; the rest is
 * read in blocks of 256 bytes, each with one branch.  A zero page costs a read of
 * its 4 KiB, which the memory bandwidth bounds, not the instructions.
 *
 * The page may change while it is read (the guest runs): the answer is then about
 * no single moment, and the page is dirty and comes again.
 */
#ifndef LM_ZERO_H
#define LM_ZERO_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* page: 4096 bytes, aligned to 64 or not.  Any thread. */
bool lm_page_is_zero(const void *page);

/* npages <= 64 pages one after the other: bit i is set when page i is all zeros. */
uint64_t lm_zero_mask(const void *pages, unsigned npages);

/*
 * The implementations that this CPU can run, best first: name of the index-th, or
 * NULL.  lm_zero_force() (0 or -ENOENT) is for tests and benchmarks and must not run
 * while other threads look at pages.
 */
const char *lm_zero_impl_list(unsigned index);
const char *lm_zero_impl_name(void);
int lm_zero_force(const char *name);

#ifdef __cplusplus
}
#endif

#endif
