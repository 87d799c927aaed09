/* SPDX-License-Identifier: Apache-2.0 */
/* How memory is registered: what the user wants against what is possible and safe. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "rdma/plan.h"

#define GIB (UINT64_C(1) << 30)

static const struct rd_plan sparse = {
	.pin = LM_PIN_AUTO, .side = LM_DEST, .odp = true, .memlock = UINT64_MAX, .ram_bytes = 16 * GIB, .present_bytes = GIB,
};

static void auto_goes_on_demand_where_memory_is_sparse(void **state)
{
	struct rd_plan p = sparse;

	(void)state;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_ODP);
	p.odp = false;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_CHUNK);
}

static void auto_registers_all_where_memory_is_there(void **state)
{
	struct rd_plan p = sparse;

	(void)state;
	p.present_bytes = 16 * GIB;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_ALL);
	p.memlock = 8 * GIB;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_ODP);
	p.odp = false;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_CHUNK);
}

static void what_the_user_says_is_done_where_it_can_be(void **state)
{
	struct rd_plan p = sparse;

	(void)state;
	p.pin = LM_PIN_ALL;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_ALL);
	p.pin = LM_PIN_CHUNK;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_CHUNK);
	p.pin = LM_PIN_ODP;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_ODP);
	p.odp = false;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_CHUNK);
}

static void a_guest_that_can_give_memory_back_is_never_pinned_at_the_source(void **state)
{
	struct rd_plan p = sparse;

	(void)state;
	p.side = LM_SOURCE;
	p.may_discard = true;
	p.present_bytes = p.ram_bytes;
	for (enum lm_pin pin = LM_PIN_AUTO; pin <= LM_PIN_ODP; pin++) {
		p.pin = pin;
		p.odp = true;
		assert_true(rd_plan_mode(&p) == RDMA_MODE_ODP || rd_plan_mode(&p) == RDMA_MODE_COPY);
		p.odp = false;
		assert_int_equal(rd_plan_mode(&p), RDMA_MODE_COPY);
	}
	p.direction = LM_PULL; /* it stands still when it is asked for pages, not before */
	p.pin = LM_PIN_ALL;
	assert_int_equal(rd_plan_mode(&p), RDMA_MODE_CHUNK);
	p.direction = LM_PUSH;
	p.side = LM_DEST; /* it does not run there */
	assert_int_not_equal(rd_plan_mode(&p), RDMA_MODE_COPY);
}

static void chunks_are_large_and_few(void **state)
{
	(void)state;
	for (uint64_t size = LM_PAGE_SIZE; size <= 16 * GIB; size *= 2) {
		unsigned shift = rd_plan_shift(size, LM_PAGE_SIZE, false, UINT64_MAX);

		assert_in_range(shift, 23, 28);
		assert_in_range(rd_plan_nchunks(size, shift), 1, 64);
	}
	assert_int_equal(rd_plan_shift(UINT64_C(1) << 46, LM_PAGE_SIZE, false, UINT64_MAX), 28);
	assert_int_equal(rd_plan_nchunks(3 * GIB + LM_PAGE_SIZE, 28), 13);
}

static void whole_means_one_unless_the_device_says_less(void **state)
{
	unsigned shift = rd_plan_shift(5 * GIB, LM_PAGE_SIZE, true, UINT64_MAX);

	(void)state;
	assert_int_equal(rd_plan_nchunks(5 * GIB, shift), 1);
	shift = rd_plan_shift(5 * GIB, LM_PAGE_SIZE, true, 2 * GIB);
	assert_int_equal(shift, 31);
	assert_int_equal(rd_plan_nchunks(5 * GIB, shift), 3);
	/* A chunk never cuts a huge page. */
	assert_int_equal(rd_plan_shift(8 * GIB, GIB, false, UINT64_MAX), 30);
}

static void chunks_of_sparse_memory_are_small(void **state)
{
	(void)state;
	assert_int_equal(rd_plan_shift_sparse(GIB, UINT64_MAX), 21);
	assert_int_equal(rd_plan_shift_sparse(32 * GIB, UINT64_MAX), 21);
	assert_int_equal(rd_plan_shift_sparse(256 * GIB, UINT64_MAX), 24);
	assert_int_equal(rd_plan_shift_sparse(GIB, GIB / 1024), 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(auto_goes_on_demand_where_memory_is_sparse),
		cmocka_unit_test(auto_registers_all_where_memory_is_there),
		cmocka_unit_test(what_the_user_says_is_done_where_it_can_be),
		cmocka_unit_test(a_guest_that_can_give_memory_back_is_never_pinned_at_the_source),
		cmocka_unit_test(chunks_are_large_and_few),
		cmocka_unit_test(whole_means_one_unless_the_device_says_less),
		cmocka_unit_test(chunks_of_sparse_memory_are_small),
	};

	return cmocka_run_group_tests_name("rdma plan", tests, NULL, NULL);
}
