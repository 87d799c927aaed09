/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scan, drain, copy: data of a device lands in a page that was pinned long before,
 * without a fault, at the latest when the VM is drained.
 */
#include <pthread.h>
#include <stdatomic.h>
#include "unit.h"
#include "fakevm.h"
#include "newsession.h"

#define PINNED 77 /* the page that the device fills */

struct rig {
	struct fakevm_state *a, *b;
	struct lm_vm *vm_a;
	struct lm_vm_ops ops;
	struct lm_session *src, *dst;
	struct lm_error err_a, err_b;
	unsigned land_at; /* number of the drain at which the data lands; as often, its page was faulted in before */
	unsigned drains;
	bool landed;
	int (*pause_wait)(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err);
};

static struct rig *rig; /* the table's functions have no room for it */

static void land(void)
{
	if (!rig->landed)
		memset(rig->a->ram[0] + PINNED * LM_PAGE_SIZE, 0xd7, LM_PAGE_SIZE);
	rig->landed = true;
}

static int landing_drain(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	(void)vm;
	(void)deadline_ns;
	(void)err;
	if (++rig->drains == rig->land_at)
		land();
	/* The next request pins its page: a fault, which allocates it and which the scan after it reports. */
	if (rig->drains + 1 == rig->land_at) {
		*(volatile uint8_t *)(rig->a->ram[0] + PINNED * LM_PAGE_SIZE) = 0;
		atomic_store(&rig->a->written[0][PINNED], 1);
	}
	return 0;
}

/* A guest that stops has no I/O in flight any more. */
static int landing_pause_wait(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err)
{
	int r = rig->pause_wait(vm, timeout_ms, ret, err);

	if (!r)
		land();
	return r;
}

static void *dest_main(void *arg)
{
	struct rig *g = arg;

	lm_session_run(g->dst, &g->err_b);
	return NULL;
}

/* Whether the destination has what the device wrote. */
static bool lands_at(unsigned drain)
{
	struct fakevm_config config = { .nregions = 1, .region_bytes = { 1u << 20 }, .source = true };
	struct lm_options o;
	pthread_t dest;
	bool equal;

	rig = calloc(1, sizeof(*rig));
	rig->a = fakevm_state_new(&config);
	config.source = false;
	rig->b = fakevm_state_new(&config);
	rig->land_at = drain;
	rig->vm_a = fakevm_new(rig->a);
	rig->ops = *rig->vm_a->ops;
	rig->pause_wait = rig->ops.pause_wait;
	rig->ops.drain = landing_drain;
	rig->ops.pause_wait = landing_pause_wait;
	rig->vm_a->ops = &rig->ops;
	lm_options_default(&o);
	o.guardian = false;
	o.address = "127.0.0.1:0";
	o.max_downtime_ns = 1; /* some rounds */
	o.on_stall = LM_STALL_FORCE;
	rig->dst = unit_session(&o, LM_DEST, fakevm_new(rig->b));
	o.address = lm_session_address(rig->dst);
	rig->src = unit_session(&o, LM_SOURCE, rig->vm_a);
	pthread_create(&dest, NULL, dest_main, rig);
	assert_ok(lm_session_run(rig->src, &rig->err_a), rig->err_a);
	pthread_join(dest, NULL);
	assert_true(rig->landed);
	equal = fakevm_ram_equal(rig->a, rig->b);
	lm_session_free(rig->src);
	lm_session_free(rig->dst);
	fakevm_state_free(rig->a);
	fakevm_state_free(rig->b);
	free(rig);
	return equal;
}

static void data_that_was_in_flight_when_tracking_began_is_copied(void **state)
{
	(void)state;
	assert_true(lands_at(1));
}

static void data_that_was_in_flight_at_a_scan_is_copied(void **state)
{
	(void)state;
	assert_true(lands_at(2));
	assert_true(lands_at(3));
}

static void without_the_drain_it_is_lost(void **state)
{
	(void)state;
	setenv("LM_BREAK", "drain", 1);
	assert_false(lands_at(1));
	unsetenv("LM_BREAK");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(data_that_was_in_flight_when_tracking_began_is_copied),
		cmocka_unit_test(data_that_was_in_flight_at_a_scan_is_copied),
		cmocka_unit_test(without_the_drain_it_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
