/* SPDX-License-Identifier: Apache-2.0 */
/* Every implementation that this CPU can run, forced in turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "engine/base/region.h"
#include "engine/base/zero.h"

#define PAGE LM_PAGE_SIZE

static uint8_t buf[66 * LM_PAGE_SIZE] __attribute__((aligned(4096)));

static void for_each_impl(void (*check)(void))
{
	unsigned n = 0;

	for (const char *name; (name = lm_zero_impl_list(n)); n++) {
		assert_int_equal(lm_zero_force(name), 0);
		assert_string_equal(lm_zero_impl_name(), name);
		check();
	}
	assert_true(n >= 1);
	assert_int_equal(lm_zero_force(lm_zero_impl_list(0)), 0);
}

/* First in the file: nothing has been forced yet. */
static void the_best_implementation_is_taken_by_itself(void **state)
{
	(void)state;
	assert_string_equal(lm_zero_impl_name(), lm_zero_impl_list(0));
	assert_true(lm_page_is_zero(buf));
	assert_string_equal(lm_zero_impl_name(), lm_zero_impl_list(0));
}

static void check_every_byte(void)
{
	for (size_t i = 0; i < PAGE; i++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			buf[i] = (uint8_t)(1u << bit);
			assert_false(lm_page_is_zero(buf));
		}
		buf[i] = 0;
		assert_true(lm_page_is_zero(buf));
	}
}

static void a_single_bit_anywhere_is_found(void **state)
{
	(void)state;
	for_each_impl(check_every_byte);
}

/* Bytes around the page do not count, wherever it begins. */
static void check_unaligned(void)
{
	for (size_t shift = 0; shift < 130; shift++) {
		memset(buf, 0xff, 2 * PAGE);
		memset(buf + shift, 0, PAGE);
		assert_true(lm_page_is_zero(buf + shift));
		buf[shift] = 1;
		assert_false(lm_page_is_zero(buf + shift));
		buf[shift] = 0;
		buf[shift + PAGE - 1] = 0x80;
		assert_false(lm_page_is_zero(buf + shift));
	}
	memset(buf, 0, sizeof(buf));
}

static void a_page_may_begin_at_any_byte_and_neighbours_do_not_count(void **state)
{
	(void)state;
	for_each_impl(check_unaligned);
}

static void check_edge(void)
{
	uint8_t *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(munmap(p + PAGE, PAGE), 0);
	assert_true(lm_page_is_zero(p)); /* a byte more would crash */
	munmap(p, PAGE);
}

static void not_a_byte_beyond_the_page_is_read(void **state)
{
	(void)state;
	for_each_impl(check_edge);
}

static void check_mask(void)
{
	uint64_t want = 0;

	for (unsigned i = 0; i < 64; i++) {
		bool zero = i % 3 == 0 || i > 60;

		buf[i * PAGE + i * 64 % PAGE] = zero ? 0 : 9;
		want |= (uint64_t)zero << i;
	}
	assert_true(lm_zero_mask(buf, 64) == want);
	assert_true(lm_zero_mask(buf, 5) == (want & 0x1f));
	assert_true(lm_zero_mask(buf, 0) == 0);
	memset(buf, 0, sizeof(buf));
}

static void the_mask_has_a_bit_for_every_zero_page(void **state)
{
	(void)state;
	for_each_impl(check_mask);
}

static void check_against_a_loop(void)
{
	unsigned seed = 12345;

	for (int round = 0; round < 2000; round++) {
		bool want = true;

		memset(buf, 0, PAGE);
		for (int k = rand_r(&seed) % 3; k > 0; k--)
			buf[(unsigned)rand_r(&seed) % PAGE] = (uint8_t)rand_r(&seed);
		for (size_t i = 0; i < PAGE; i++)
			want = want && !buf[i];
		assert_int_equal(lm_page_is_zero(buf), want);
	}
	memset(buf, 0, sizeof(buf));
}

static void random_pages_are_classified_as_by_a_plain_loop(void **state)
{
	(void)state;
	for_each_impl(check_against_a_loop);
}

static void an_unknown_implementation_cannot_be_forced(void **state)
{
	(void)state;
	assert_int_equal(lm_zero_force("abacus"), -ENOENT);
	assert_string_equal(lm_zero_impl_name(), lm_zero_impl_list(0));
}

static void *look(void *arg)
{
	for (int i = 0; i < 1000; i++)
		*(int *)arg += lm_page_is_zero(buf + i % 64 * PAGE);
	return NULL;
}

static void many_threads_may_look_at_once(void **state)
{
	pthread_t t[4];
	int n[4] = { 0 };

	(void)state;
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, look, &n[i]), 0);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
		assert_int_equal(n[i], 1000);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_best_implementation_is_taken_by_itself),
		cmocka_unit_test(many_threads_may_look_at_once),
		cmocka_unit_test(a_single_bit_anywhere_is_found),
		cmocka_unit_test(a_page_may_begin_at_any_byte_and_neighbours_do_not_count),
		cmocka_unit_test(not_a_byte_beyond_the_page_is_read),
		cmocka_unit_test(the_mask_has_a_bit_for_every_zero_page),
		cmocka_unit_test(random_pages_are_classified_as_by_a_plain_loop),
		cmocka_unit_test(an_unknown_implementation_cannot_be_forced),
	};

	return cmocka_run_group_tests_name("zero pages", tests, NULL, NULL);
}
