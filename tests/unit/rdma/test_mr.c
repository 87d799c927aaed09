/* SPDX-License-Identifier: Apache-2.0 */
/* Registered memory: in the background, shared, counted; what happens when the device refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "fakeverbs.h"

#define MIB (UINT64_C(1) << 20)
#define SHIFT 23

static struct lm_error err;
static uint8_t memory[LM_PAGE_SIZE]; /* nobody touches it */
static struct lm_region region = { .size = 64 * MIB, .page_size = LM_PAGE_SIZE, .fd = -1, .host = memory };

static struct rd_device *device_new(struct rdma_cm_id **ret_id)
{
	struct rd_device *d;

	fake_reset();
	*ret_id = fake_id();
	assert_int_equal(rd_device_get(*ret_id, &d, &err), 0);
	return d;
}

static void device_end(struct rd_device *d, struct rdma_cm_id *id)
{
	rd_device_put(d);
	free(id);
	assert_int_equal(fake_live, 0);
}

static struct rd_mem *mem_new(struct rd_device *d, unsigned access, enum rd_mode mode)
{
	struct rd_mem *m;

	assert_int_equal(rd_mem_get(d, &region, access, SHIFT, mode, &m, &err), 0);
	return m;
}

static void sleep_ms(long ms)
{
	nanosleep(&(struct timespec){ 0, ms * 1000000 }, NULL);
}

static void all_means_every_chunk(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	int before = fake_live;
	struct rd_mem *m = mem_new(d, IBV_ACCESS_REMOTE_WRITE, RDMA_MODE_ALL);

	(void)state;
	assert_int_equal(rd_mem_all(m, NULL, NULL, &err), 0);
	assert_int_equal(fake_live, before + 8);
	for (uint32_t i = 0; i < 8; i++) {
		assert_int_equal(rd_mem_state(m, i), RDMA_CHUNK_READY);
		assert_ptr_equal(rd_mem_mr(m, i)->addr, memory + i * 8 * MIB);
		assert_int_equal(rd_mem_mr(m, i)->length, 8 * MIB);
	}
	rd_mem_put(m);
	assert_int_equal(fake_live, before);
	device_end(d, id);
}

static bool is_odd(const void *opaque, uint32_t chunk)
{
	return *(const uint32_t *)opaque == chunk % 2;
}

static void all_but_what_is_skipped(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct rd_mem *m = mem_new(d, 0, RDMA_MODE_ALL);
	uint32_t odd = 1;

	(void)state;
	assert_int_equal(rd_mem_shift(d, &region), SHIFT);
	assert_int_equal(rd_mem_all(m, is_odd, &odd, &err), 0);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(rd_mem_state(m, i), i % 2 ? RDMA_CHUNK_NONE : RDMA_CHUNK_READY);
	rd_mem_put(m);
	assert_int_equal(rd_mem_shift(d, &region), 0);
	device_end(d, id);
}

static void only_chunks_that_are_wanted_are_registered(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct rd_mem *m = mem_new(d, 0, RDMA_MODE_CHUNK);

	(void)state;
	rd_mem_want(m, 5);
	rd_mem_want(m, 5);
	for (int i = 0; i < 500 && rd_mem_state(m, 5) != RDMA_CHUNK_READY; i++)
		sleep_ms(1);
	assert_int_equal(rd_mem_want(m, 5), RDMA_CHUNK_READY);
	for (uint32_t i = 0; i < 8; i++)
		if (i != 5)
			assert_int_equal(rd_mem_state(m, i), RDMA_CHUNK_NONE);
	rd_mem_put(m);
	device_end(d, id);
}

static void the_same_memory_is_registered_once(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id), *again;
	struct rd_mem *push = mem_new(d, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, RDMA_MODE_CHUNK);
	struct rd_mem *pull = mem_new(d, IBV_ACCESS_LOCAL_WRITE, RDMA_MODE_CHUNK), *more;

	(void)state;
	assert_ptr_equal(push, pull);
	more = mem_new(d, IBV_ACCESS_REMOTE_READ, RDMA_MODE_CHUNK); /* more rights than it has */
	assert_ptr_not_equal(push, more);
	assert_int_equal(rd_device_get(id, &again, &err), 0);
	assert_ptr_equal(again, d);
	rd_mem_want(push, 0);
	rd_mem_put(push);
	rd_mem_put(more);
	rd_device_put(again);
	assert_int_equal(rd_mem_all(pull, NULL, NULL, &err), 0);
	rd_mem_put(pull);
	device_end(d, id);
}

static void on_demand_that_is_refused_becomes_chunks(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct rd_mem *m = mem_new(d, 0, RDMA_MODE_ODP);

	(void)state;
	assert_non_null(m->whole);
	assert_int_equal(rd_mem_want(m, 7), RDMA_CHUNK_READY);
	rd_mem_put(m);
	fake_no_odp = true;
	m = mem_new(d, 0, RDMA_MODE_ODP);
	assert_int_equal(m->mode, RDMA_MODE_CHUNK);
	assert_int_equal(rd_mem_state(m, 7), RDMA_CHUNK_NONE);
	rd_mem_put(m);
	device_end(d, id);
}

/* A file of 64 MiB whose second chunk has data at its begin and in its middle. */
static struct lm_region sparse_region(void)
{
	struct lm_region r = region;

	r.fd = memfd_create("ram", 0);
	assert_int_equal(ftruncate(r.fd, 64 * MIB), 0);
	assert_int_equal(pwrite(r.fd, "x", 1, 8 * MIB), 1);
	assert_int_equal(pwrite(r.fd, "x", 1, 12 * MIB), 1);
	return r;
}

static void on_demand_what_exists_is_prefetched_once(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct lm_region r = sparse_region();
	struct rd_mem *m;

	(void)state;
	assert_int_equal(rd_mem_get(d, &r, IBV_ACCESS_LOCAL_WRITE, SHIFT, RDMA_MODE_ODP, &m, &err), 0);
	rd_mem_prefetch(m, 0); /* a hole, which must stay one */
	assert_int_equal(fake_nadvised, 0);
	for (int i = 0; i < 3; i++)
		rd_mem_prefetch(m, 1);
	rd_mem_prefetch(m, 8); /* past the end */
	assert_int_equal(fake_nadvised, 2);
	assert_true(fake_advised[0].addr == (uintptr_t)memory + 8 * MIB && fake_advised[0].length == LM_PAGE_SIZE);
	assert_true(fake_advised[1].addr == (uintptr_t)memory + 12 * MIB && fake_advised[1].length == LM_PAGE_SIZE);
	assert_int_equal(fake_advised[0].lkey, m->whole->lkey);
	assert_int_equal(fake_advice, IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE);
	assert_int_equal(fake_advise_flags, 0); /* it does not wait */
	rd_mem_put(m);
	close(r.fd);
	device_end(d, id);
}

static void advice_that_is_refused_is_not_given_again(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct lm_region r = sparse_region();
	struct rd_mem *m;

	(void)state;
	assert_int_equal(rd_mem_get(d, &r, 0, SHIFT, RDMA_MODE_ODP, &m, &err), 0);
	fake_advise_error = EOPNOTSUPP;
	rd_mem_prefetch(m, 1);
	assert_int_equal(m->prefetch_error, EOPNOTSUPP);
	fake_advise_error = 0;
	assert_int_equal(pwrite(r.fd, "x", 1, 16 * MIB), 1);
	rd_mem_prefetch(m, 2);
	assert_int_equal(fake_nadvised, 0);
	rd_mem_put(m);
	assert_int_equal(rd_mem_get(d, &r, 0, SHIFT, RDMA_MODE_CHUNK, &m, &err), 0);
	rd_mem_prefetch(m, 2); /* pinned memory needs none */
	assert_int_equal(fake_nadvised, 0);
	rd_mem_put(m);
	close(r.fd);
	device_end(d, id);
}

static void a_chunk_that_cannot_be_registered_is_told(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct rd_mem *m = mem_new(d, 0, RDMA_MODE_ALL);

	(void)state;
	fake_fail_at = fake_calls + 3;
	assert_int_equal(rd_mem_all(m, NULL, NULL, &err), -ENOMEM);
	assert_non_null(strstr(err.msg, "ulimit -l"));
	assert_non_null(strstr(err.msg, "fake0"));
	rd_mem_put(m);
	device_end(d, id);
}

static void letting_go_waits_for_what_is_under_way_and_forgets_the_rest(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct rd_mem *m = mem_new(d, 0, RDMA_MODE_CHUNK);
	unsigned before = fake_calls;

	(void)state;
	fake_reg_ms = 30;
	for (uint32_t i = 0; i < 8; i++)
		rd_mem_want(m, i);
	sleep_ms(10);
	rd_mem_put(m);
	assert_true(fake_calls - before < 8);
	device_end(d, id);
}

static int count(void *arg)
{
	++*(int *)arg;
	return 7;
}

static void holes_are_punched_only_where_nothing_is_pinned(void **state)
{
	struct rdma_cm_id *id;
	struct rd_device *d = device_new(&id);
	struct rd_mem *m = mem_new(d, 0, RDMA_MODE_CHUNK);
	int called = 0, r = 0;

	(void)state;
	assert_true(rd_mem_unless_pinned(m, 0, count, &called, &r));
	assert_int_equal(called, 1);
	assert_int_equal(r, 7);
	assert_int_equal(rd_mem_all(m, NULL, NULL, &err), 0);
	assert_false(rd_mem_unless_pinned(m, 0, count, &called, &r));
	assert_int_equal(called, 1);
	rd_mem_put(m);
	device_end(d, id);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_means_every_chunk),
		cmocka_unit_test(all_but_what_is_skipped),
		cmocka_unit_test(only_chunks_that_are_wanted_are_registered),
		cmocka_unit_test(the_same_memory_is_registered_once),
		cmocka_unit_test(on_demand_that_is_refused_becomes_chunks),
		cmocka_unit_test(on_demand_what_exists_is_prefetched_once),
		cmocka_unit_test(advice_that_is_refused_is_not_given_again),
		cmocka_unit_test(a_chunk_that_cannot_be_registered_is_told),
		cmocka_unit_test(letting_go_waits_for_what_is_under_way_and_forgets_the_rest),
		cmocka_unit_test(holes_are_punched_only_where_nothing_is_pinned),
	};

	return cmocka_run_group_tests_name("rdma memory", tests, NULL, NULL);
}
