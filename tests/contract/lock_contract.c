/* SPDX-License-Identifier: Apache-2.0 */
/* What engine/lock/lock.h promises, for every backend and with real storage. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lock_contract_steps.h"

#define SKIP 77

const struct world *world;

static void acquire_excludes(void **state)
{
	struct hosts t;
	uint64_t epoch;

	(void)state;
	hosts_start(&t, world);
	shown(A, LM_LOCK_FREE, "");
	assert_ok(TELL(A, ACQUIRE));
	only(&t, A);
	assert_error(TELL(B, ACQUIRE), -EBUSY);
	stranger_refused(&t);
	shown(A, LM_LOCK_HELD_HERE, "host-a");
	shown(B, LM_LOCK_HELD_ELSEWHERE, "");
	epoch = TELL(A, SHOW).info.epoch;
	assert_error(TELL(B, RELEASE), -EPERM);
	only(&t, A);
	assert_ok(TELL(A, RELEASE));
	shown(B, LM_LOCK_FREE, "");
	assert_ok(TELL(B, ACQUIRE));
	only(&t, B);
	assert_true(TELL(B, SHOW).info.epoch > epoch);
	assert_error(TELL(A, ACQUIRE), -EBUSY);
	hosts_stop(&t);
}

static void acquiring_again_changes_nothing(void **state)
{
	struct hosts t;
	struct reply first, second;

	(void)state;
	hosts_start(&t, world);
	first = TELL(A, ACQUIRE);
	second = TELL(A, ACQUIRE);
	assert_ok(first);
	assert_ok(second);
	assert_int_equal(first.epoch, second.epoch);
	only(&t, A);
	hosts_stop(&t);
}

static void offer_and_take_hand_over(void **state)
{
	struct hosts t;
	struct reply taken;
	uint64_t epoch;

	(void)state;
	hosts_start(&t, world);
	epoch = TELL(A, ACQUIRE).epoch;
	assert_ok(TELL(A, ANNOUNCE));
	only(&t, A);
	assert_ok(TELL_NOTE(B, PREPARE, A));
	only(&t, A);
	stranger_refused(&t);
	assert_ok(TELL_NOTE(A, OFFER, B));
	assert_int_not_equal(TELL(B, WRITE).r, 0);
	stranger_refused(&t);
	taken = TELL_NOTE(B, TAKE, A);
	assert_ok(taken);
	assert_true(taken.epoch > epoch);
	only(&t, B);
	stranger_refused(&t);
	assert_error(TELL(A, RECLAIM), -EBUSY);
	only(&t, B);
	shown(A, LM_LOCK_HELD_ELSEWHERE, "");
	shown(B, LM_LOCK_HELD_HERE, "host-b");
	hosts_stop(&t);
}

static void take_may_be_called_again(void **state)
{
	struct hosts t;
	struct reply first, second;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	offered(A, B);
	first = TELL_NOTE(B, TAKE, A);
	second = TELL_NOTE(B, TAKE, A);
	assert_ok(first);
	assert_ok(second);
	assert_int_equal(first.epoch, second.epoch);
	only(&t, B);
	hosts_stop(&t);
}

static void what_was_reclaimed_cannot_be_taken(void **state)
{
	struct hosts t;
	struct reply back;
	uint64_t epoch;

	(void)state;
	hosts_start(&t, world);
	epoch = TELL(A, ACQUIRE).epoch;
	offered(A, B);
	back = TELL(A, RECLAIM);
	assert_ok(back);
	assert_true(back.epoch > epoch);
	assert_int_not_equal(TELL_NOTE(B, TAKE, A).r, 0);
	only(&t, A);
	stranger_refused(&t);
	handed_over(A, B); /* and a clean retry works */
	only(&t, B);
	hosts_stop(&t);
}

/* B took the lock, ran the guest to its end and released it: A's guest is older than that. */
static void what_was_taken_and_released_is_not_reclaimed(void **state)
{
	struct hosts t;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	handed_over(A, B);
	assert_ok(TELL(B, RELEASE));
	assert_error(TELL(A, RECLAIM), -ESTALE);
	host_restart(&t, A);
	assert_error(TELL(A, RECLAIM), -ESTALE);
	shown(A, LM_LOCK_FREE, "");
	assert_ok(host_do(A, RECLAIM, NULL, NULL, "lock-free"));
	only(&t, A);
	hosts_stop(&t);
}

static void an_earlier_offer_cannot_be_taken(void **state)
{
	struct hosts t;
	struct host earlier;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	offered(A, B);
	earlier = *A;
	assert_ok(TELL(A, RECLAIM));
	offered(A, B);
	assert_int_not_equal(TELL_NOTE(B, TAKE, &earlier).r, 0);
	assert_ok(TELL_NOTE(B, TAKE, A));
	only(&t, B);
	hosts_stop(&t);
}

static void without_its_rule_a_stale_note_is_taken(void **state)
{
	struct hosts t;
	struct host earlier;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	offered(A, B);
	earlier = *A;
	assert_ok(TELL(A, RECLAIM));
	if (world->sees_hosts) {
		offered(A, B); /* sanlock itself refuses what a living host holds */
		assert_ok(host_do(B, TAKE, &earlier, NULL, world->rule));
		hosts_stop(&t);
		return;
	}
	/* The storage must not refuse for another reason than the rule: where it sees that A lives, A is killed. */
	if (world->sees_life) {
		host_kill(A);
		shown(C, LM_LOCK_HELD_ELSEWHERE, "host-a");
	}
	assert_ok(host_do(B, TAKE, &earlier, NULL, world->rule));
	if (world->write) {
		assert_ok(TELL(A, WRITE));
		assert_ok(TELL(B, WRITE));
	}
	hosts_stop(&t);
}

static void take_and_reclaim_at_once_give_one_owner(void **state)
{
	struct hosts t;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	for (unsigned i = 0; i < 20; i++) {
		struct reply back, taken;

		offered(A, B);
		if (i % 2)
			host_begin(A, RECLAIM, NULL);
		host_begin(B, TAKE, A);
		if (i % 2 == 0)
			host_begin(A, RECLAIM, NULL);
		back = host_end(A);
		taken = host_end(B);
		if (!back.r == !taken.r)
			fail_msg("round %u: reclaim %d (%s), take %d (%s)", i, back.r, back.err.msg, taken.r, taken.err.msg);
		only(&t, taken.r ? A : B);
		if (!taken.r)
			handed_over(B, A);
	}
	hosts_stop(&t);
}

static void the_destination_can_give_it_back(void **state)
{
	struct hosts t;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	handed_over(A, B);
	handed_over(B, A);
	only(&t, A);
	hosts_stop(&t);
}

static void twenty_times_back_and_forth(void **state)
{
	struct hosts t;
	uint64_t epoch;

	(void)state;
	hosts_start(&t, world);
	epoch = TELL(A, ACQUIRE).epoch;
	for (unsigned i = 0; i < 20; i++) {
		struct host *from = i % 2 ? B : A, *to = i % 2 ? A : B;
		struct reply taken;

		offered(from, to);
		taken = TELL_NOTE(to, TAKE, from);
		assert_ok(taken);
		assert_true(taken.epoch > epoch);
		epoch = taken.epoch;
		only(&t, to);
		stranger_refused(&t);
	}
	hosts_stop(&t);
}

int main(int argc, char *argv[])
{
	static const struct world *const worlds[] = {
		&lease_world,
#ifdef HAVE_LIBISCSI
		&scsi_world,
#endif
#ifdef HAVE_SGUTILS
		&map_world,
		&disk_world,
#endif
#ifdef HAVE_SANLOCK
		&sanlock_world,
#endif
	};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(acquire_excludes),
		cmocka_unit_test(acquiring_again_changes_nothing),
		cmocka_unit_test(offer_and_take_hand_over),
		cmocka_unit_test(take_may_be_called_again),
		cmocka_unit_test(what_was_reclaimed_cannot_be_taken),
		cmocka_unit_test(what_was_taken_and_released_is_not_reclaimed),
		cmocka_unit_test(an_earlier_offer_cannot_be_taken),
		cmocka_unit_test(without_its_rule_a_stale_note_is_taken),
		cmocka_unit_test(take_and_reclaim_at_once_give_one_owner),
		cmocka_unit_test(the_destination_can_give_it_back),
		cmocka_unit_test(twenty_times_back_and_forth),
		cmocka_unit_test(a_crash_at_any_point_leaves_one_owner),
		cmocka_unit_test(what_a_dead_host_held_stays_until_it_is_broken),
		cmocka_unit_test(a_new_process_of_the_host_goes_on),
		cmocka_unit_test(a_spoilt_note_takes_nothing),
		cmocka_unit_test(notes_of_another_kind_or_to_oneself_are_refused),
		cmocka_unit_test(another_storage_is_noticed),
	};
	char why[256] = "";
	int failed;

	for (size_t i = 0; argc > 1 && i < sizeof(worlds) / sizeof(worlds[0]); i++)
		if (!strcmp(worlds[i]->name, argv[1]))
			world = worlds[i];
	if (!world) {
		printf("no such backend in this build\n");
		return SKIP;
	}
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	if (!world->start(why, sizeof(why))) {
		printf("skipped: %s\n", why);
		world->stop();
		return SKIP;
	}
	failed = cmocka_run_group_tests_name(world->name, tests, NULL, NULL);
	world->stop();
	return failed;
}
