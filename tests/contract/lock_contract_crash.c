/* SPDX-License-Identifier: Apache-2.0 */
/* A host dies, inside a call or between calls: the lock has one owner afterwards, or stays with the dead host. */
#include <stdlib.h>
#include <string.h>
#include "lock_contract_steps.h"

/*
 * A host is killed inside a call.  Afterwards either side may try first.  Exactly one gets the lock and
 * shows it: the one that tried first, or the only one that may have it.
 */
static const struct crash {
	enum op op;
	const char *fault;
	bool source_may, dest_may; /* this side gets the lock when it is the first to try */
} crashes[] = {
	{ ACQUIRE, "lock-owning:kill", true, false },
	{ ACQUIRE, "lock-owned:kill", true, false },
	{ OFFER, "lock-offering:kill", true, false },
	{ OFFER, "lock-offered:kill", true, true },
	{ TAKE, "lock-owning:kill", true, true },
	{ TAKE, "lock-owned:kill", false, true },
	{ RECLAIM, "lock-owning:kill", true, true },
	{ RECLAIM, "lock-owned:kill", true, false },
	{ RELEASE, "lock-released:kill", true, true },
};

static void crash_in(struct hosts *t, const struct crash *c, struct host *a, struct host *b)
{
	struct host *victim = c->op == TAKE ? b : a;
	struct reply died;

	if (c->op != ACQUIRE)
		assert_ok(TELL(a, ACQUIRE));
	if (c->op == OFFER)
		prepared(a, b);
	if (c->op == TAKE || c->op == RECLAIM)
		offered(a, b);
	died = host_do(victim, c->op, victim == b ? a : b, c->fault, NULL);
	if (died.r != DIED)
		fail_msg("%s was not reached (%d %s)", c->fault, died.r, died.err.msg);
	host_restart(t, victim);
}

/* The destination takes the lock when the source lived to send its offer; else it tries as `lock acquire` does. */
static struct reply dest_tries(const struct crash *c, struct host *a, struct host *b)
{
	if (c->op == TAKE || c->op == RECLAIM)
		return TELL_NOTE(b, TAKE, a);
	return TELL(b, ACQUIRE);
}

/* Without an offer the lock may be free. */
static struct reply source_tries(const struct crash *c, struct host *a)
{
	if (c->op == ACQUIRE || c->op == RELEASE)
		return TELL(a, ACQUIRE);
	return TELL(a, RECLAIM);
}

static void one_crash(const struct crash *c, bool source_first)
{
	struct hosts t;
	struct reply source, dest;
	bool dest_may = c->dest_may && (world->names_next || c->op != OFFER);
	bool by_source = source_first ? c->source_may : !dest_may;

	hosts_start(&t, world);
	if (c->op == ACQUIRE && !source_first)
		goto out; /* the source held nothing yet, so the first to try gets it */
	crash_in(&t, c, A, B);
	if (c->op != RELEASE && c->op != ACQUIRE)
		stranger_refused(&t);
	if (source_first)
		source = source_tries(c, A);
	dest = dest_tries(c, A, B);
	if (!source_first)
		source = source_tries(c, A);
	if (!source.r != by_source || !dest.r == by_source)
		fail_msg("%s, %s first: source %d (%s), destination %d (%s)", c->fault,
			 source_first ? "source" : "destination", source.r, source.err.msg, dest.r, dest.err.msg);
	only(&t, by_source ? A : B);
	shown(by_source ? A : B, LM_LOCK_HELD_HERE, by_source ? "host-a" : "host-b");
	handed_over(by_source ? A : B, by_source ? B : A); /* a hand-over works as without the crash */
	only(&t, by_source ? B : A);
out:
	hosts_stop(&t);
}

void a_crash_at_any_point_leaves_one_owner(void **state)
{
	const char *only_fault = getenv("LOCK_CRASH");

	(void)state;
	for (size_t i = 0; i < sizeof(crashes) / sizeof(crashes[0]); i++) {
		if (only_fault && !strstr(crashes[i].fault, only_fault))
			continue;
		/* Sanlock has no state in which a third host could not be first after a release or a lost take. */
		one_crash(&crashes[i], true);
		one_crash(&crashes[i], false);
	}
}

void what_a_dead_host_held_stays_until_it_is_broken(void **state)
{
	struct hosts t;
	uint64_t epoch;

	(void)state;
	hosts_start(&t, world);
	epoch = TELL(A, ACQUIRE).epoch;
	if (world->sees_life) {
		assert_error(TELL(B, BREAK), -EBUSY);
		only(&t, A);
	}
	host_kill(A);
	assert_error(TELL(B, ACQUIRE), -EBUSY);
	shown(B, LM_LOCK_HELD_ELSEWHERE, "");
	if (world->sees_hosts) {
		assert_error(TELL(B, BREAK), -EBUSY);
		goto out;
	}
	assert_ok(TELL(B, BREAK));
	shown(B, LM_LOCK_FREE, "");
	assert_ok(TELL(B, ACQUIRE));
	assert_true(TELL(B, SHOW).info.epoch > epoch);
	host_restart(&t, A);
	assert_error(TELL(A, ACQUIRE), -EBUSY);
	only(&t, B);
out:
	hosts_stop(&t);
}

void a_new_process_of_the_host_goes_on(void **state)
{
	struct hosts t;

	(void)state;
	hosts_start(&t, world);
	assert_ok(TELL(A, ACQUIRE));
	host_restart(&t, A);
	assert_error(TELL(B, ACQUIRE), -EBUSY);
	assert_ok(TELL(A, ACQUIRE));
	only(&t, A);
	handed_over(A, B);
	only(&t, B);
	hosts_stop(&t);
}
