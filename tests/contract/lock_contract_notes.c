/* SPDX-License-Identifier: Apache-2.0 */
/* Notes that are damaged, of the wrong kind, or of another storage: no lock changes hands by them. */
#include "lock_contract_steps.h"

void a_spoilt_note_takes_nothing(void **state)
{
	struct hosts t;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	offered(A, B);
	for (unsigned i = 0; i < LM_LOCK_NOTE_SIZE; i += 3) {
		struct host spoilt = *A;

		spoilt.note[i] ^= 0x5a;
		if (i >= 8 && i < 12)
			continue; /* "disks_idle", which the source says of itself */
		if (world->sees_hosts && i >= 48 && i < 112)
			continue; /* sanlock tells hosts by number; the names are for people */
		if (!TELL_NOTE(B, TAKE, &spoilt).r)
			fail_msg("taken with byte %u changed", i);
	}
	hosts_stop(&t);
}

void notes_of_another_kind_or_to_oneself_are_refused(void **state)
{
	struct hosts t;
	struct host announced;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	assert_ok(TELL(A, ANNOUNCE));
	announced = *A;
	assert_error(TELL_NOTE(B, TAKE, &announced), -EPROTO);
	assert_ok(TELL_NOTE(B, PREPARE, A));
	assert_error(TELL_NOTE(A, OFFER, &announced), -EPROTO);
	only(&t, A);
	assert_ok(TELL_NOTE(A, OFFER, B));
	assert_error(TELL_NOTE(C, TAKE, B), -EPROTO);
	assert_int_not_equal(TELL_NOTE(C, OFFER, B).r, 0);
	hosts_stop(&t);
}

void another_storage_is_noticed(void **state)
{
	struct hosts t, other;

	(void)state;
	hosts_start(&t, world);
	hosts_start(&other, world);
	assert_ok(TELL(A, ACQUIRE));
	assert_ok(TELL(&other.h[2], ACQUIRE));
	assert_ok(TELL(A, ANNOUNCE));
	assert_error(TELL_NOTE(&other.h[1], PREPARE, A), -EMEDIUMTYPE);
	hosts_stop(&other);
	hosts_stop(&t);
}
