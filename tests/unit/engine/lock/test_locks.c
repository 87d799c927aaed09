/* SPDX-License-Identifier: Apache-2.0 */
/* A set of locks over storage that fails when told to: order, races, and what is given back. */
#include "fakelock.h"
#include "engine/lock/locks.h"
#include "unit.h"

#define N 3
#define SOON lm_deadline_after(200 * LM_NS_PER_MS)

static const char *const uris[] = { "fake:0", "fake:1", "fake:2" };

/* Two hosts with the same three locks. */
struct two {
	struct fakelock_storage *storage;
	struct lm_locks a, b;
	struct lm_lock_notes announce, answer, offer;
	struct lm_error err;
};

static void open_as(const char *host, struct lm_locks *ret)
{
	const struct lm_lock_params p = { .host = host, .deadline_ns = SOON };
	struct lm_error err = { 0 };

	assert_ok(lm_locks_open(uris, N, &p, ret, &err), err);
	assert_int_equal(ret->n, N);
}

static struct two *two_new(void)
{
	struct two *t = calloc(1, sizeof(*t));

	assert_non_null(t);
	t->storage = fakelock_reset();
	open_as("a", &t->a);
	open_as("b", &t->b);
	return t;
}

/* Up to and with the offer: then either may have them. */
static struct two *two_offered(void)
{
	struct two *t = two_new();

	assert_ok(lm_locks_acquire(&t->a, SOON, &t->err), t->err);
	assert_ok(lm_locks_announce(&t->a, &t->announce, SOON, &t->err), t->err);
	assert_ok(lm_locks_prepare(&t->b, &t->announce, &t->answer, SOON, &t->err), t->err);
	assert_ok(lm_locks_offer(&t->a, &t->answer, true, &t->offer, SOON, &t->err), t->err);
	t->storage->log[0] = 0;
	return t;
}

static void two_free(struct two *t)
{
	lm_locks_close(&t->a);
	lm_locks_close(&t->b);
	free(t);
}

static void a_set_is_handed_over_in_order(void **state)
{
	struct two *t = two_offered();

	(void)state;
	assert_ok(lm_locks_take(&t->b, &t->offer, SOON, &t->err), t->err);
	assert_string_equal(t->storage->log, "b take 0 0;b take 1 0;b take 2 0;");
	assert_true(fakelock_owns("b", N));
	assert_fails(lm_locks_reclaim(&t->a, false, SOON, &t->err), -EBUSY, t->err);
	assert_int_equal(t->a.failed, 0);
	/* The one that was asked first said no: the others are not asked. */
	assert_string_equal(t->storage->log, "b take 0 0;b take 1 0;b take 2 0;a acquire 0 -16;");
	two_free(t);
}

static void reclaimed_locks_cannot_be_taken(void **state)
{
	struct two *t = two_offered();

	(void)state;
	assert_ok(lm_locks_reclaim(&t->a, false, SOON, &t->err), t->err);
	assert_true(fakelock_owns("a", N));
	assert_fails(lm_locks_take(&t->b, &t->offer, SOON, &t->err), -ESTALE, t->err);
	assert_true(lm_locks_final(-ESTALE));
	assert_true(fakelock_owns("a", N));
	two_free(t);
}

static void the_first_lock_decides_a_race(void **state)
{
	struct two *t = two_offered();
	struct lm_lock *first[] = { t->b.lock[0] };
	struct lm_error err = { 0 };

	(void)state;
	/* b has the first one, when a begins. */
	assert_ok(lm_lock_take(first[0], t->offer.note[0], NULL, SOON, &err), err);
	assert_fails(lm_locks_reclaim(&t->a, false, SOON, &t->err), -EBUSY, t->err);
	assert_ok(lm_locks_take(&t->b, &t->offer, SOON, &t->err), t->err);
	assert_true(fakelock_owns("b", N));
	two_free(t);
}

static void a_path_that_comes_back_is_waited_for(void **state)
{
	struct two *t = two_offered();

	(void)state;
	fakelock_fail(1, FAKE_TAKE, "b", -EIO, 2);
	assert_ok(lm_locks_take(&t->b, &t->offer, lm_deadline_after(5 * LM_NS_PER_S), &t->err), t->err);
	assert_true(fakelock_owns("b", N));
	two_free(t);
}

static void what_was_taken_is_given_back_the_first_one_last(void **state)
{
	struct two *t = two_offered();

	(void)state;
	fakelock_fail(2, FAKE_TAKE, "b", -EIO, 1000);
	assert_fails(lm_locks_take(&t->b, &t->offer, SOON, &t->err), -EIO, t->err);
	assert_false(lm_locks_final(-EIO));
	assert_int_equal(t->b.failed, 2);
	t->storage->log[0] = 0;
	assert_ok(lm_locks_give_back(&t->b, SOON, &t->err), t->err);
	/* The third is the source's to give: it was never taken. */
	assert_string_equal(t->storage->log, "b release 2 -1;b release 1 0;b release 0 0;");
	assert_ok(lm_locks_reclaim(&t->a, true, SOON, &t->err), t->err);
	assert_true(fakelock_owns("a", N));
	assert_fails(lm_locks_take(&t->b, &t->offer, SOON, &t->err), -ESTALE, t->err);
	two_free(t);
}

/* The destination had them, ran the guest, and it ended there. */
static void locks_that_became_free_are_not_taken_back(void **state)
{
	struct two *t = two_offered();

	(void)state;
	assert_ok(lm_locks_take(&t->b, &t->offer, SOON, &t->err), t->err);
	assert_ok(lm_locks_release(&t->b, SOON, &t->err), t->err);
	assert_fails(lm_locks_reclaim(&t->a, false, SOON, &t->err), -ESTALE, t->err);
	assert_false(fakelock_owns("a", 1));
	assert_ok(lm_locks_reclaim(&t->a, true, SOON, &t->err), t->err);
	assert_true(fakelock_owns("a", N));
	two_free(t);
}

static void without_that_rule_an_old_guest_gets_them(void **state)
{
	struct two *t = two_offered();

	(void)state;
	assert_ok(lm_locks_take(&t->b, &t->offer, SOON, &t->err), t->err);
	assert_ok(lm_locks_release(&t->b, SOON, &t->err), t->err);
	setenv("LM_BREAK", "lock-free", 1);
	assert_ok(lm_locks_reclaim(&t->a, false, SOON, &t->err), t->err);
	unsetenv("LM_BREAK");
	two_free(t);
}

static void giving_back_ends_at_a_lock_that_does_not_answer(void **state)
{
	struct two *t = two_offered();

	(void)state;
	fakelock_fail(2, FAKE_TAKE, "b", -EIO, 1000);
	fakelock_fail(1, FAKE_RELEASE, "b", -EIO, 1);
	assert_fails(lm_locks_take(&t->b, &t->offer, SOON, &t->err), -EIO, t->err);
	assert_fails(lm_locks_give_back(&t->b, SOON, &t->err), -EIO, t->err);
	/* The first stays with b: a must not think that it can have all. */
	assert_fails(lm_locks_reclaim(&t->a, true, SOON, &t->err), -EBUSY, t->err);
	assert_ok(lm_locks_give_back(&t->b, SOON, &t->err), t->err);
	assert_ok(lm_locks_reclaim(&t->a, true, SOON, &t->err), t->err);
	two_free(t);
}

static void another_holder_refuses_the_set_and_is_named(void **state)
{
	struct two *t = two_new();

	(void)state;
	assert_ok(lm_lock_acquire(t->b.lock[1], SOON, &t->err), t->err);
	assert_fails(lm_locks_acquire(&t->a, SOON, &t->err), -EBUSY, t->err);
	assert_int_equal(t->a.failed, 1);
	assert_non_null(strstr(t->err.msg, "fake:1: b holds it"));
	assert_string_equal(t->storage->log, "b acquire 1 0;a acquire 0 0;a acquire 1 -16;");
	two_free(t);
}

static void acquiring_has_no_patience(void **state)
{
	struct two *t = two_new();

	(void)state;
	fakelock_fail(0, FAKE_ACQUIRE, "a", -EIO, 1);
	assert_fails(lm_locks_acquire(&t->a, lm_deadline_after(60 * LM_NS_PER_S), &t->err), -EIO, t->err);
	two_free(t);
}

static void other_sets_are_refused(void **state)
{
	const struct lm_lock_params p = { .host = "a" };
	const char *many[LM_LOCKS_MAX + 1], *twice[] = { "fake:1", "fake:0", "fake:1" }, *bad[] = { "fake:1", "nfs:/x" };
	struct two *t = two_new();
	struct lm_locks l;

	(void)state;
	for (unsigned i = 0; i <= LM_LOCKS_MAX; i++)
		many[i] = "fake:0";
	assert_fails(lm_locks_open(many, LM_LOCKS_MAX + 1, &p, &l, &t->err), -EINVAL, t->err);
	assert_fails(lm_locks_open(twice, 3, &p, &l, &t->err), -EINVAL, t->err);
	assert_non_null(strstr(t->err.msg, "twice"));
	assert_fails(lm_locks_open(bad, 2, &p, &l, &t->err), -EINVAL, t->err);
	assert_int_equal(l.n, 0);
	assert_ok(lm_locks_acquire(&t->a, SOON, &t->err), t->err);
	assert_ok(lm_locks_announce(&t->a, &t->announce, SOON, &t->err), t->err);
	t->announce.n = 2;
	assert_fails(lm_locks_prepare(&t->b, &t->announce, &t->answer, SOON, &t->err), -EMEDIUMTYPE, t->err);
	t->announce.n = N;
	memcpy(t->announce.note[2], t->announce.note[1], LM_LOCK_NOTE_SIZE);
	assert_fails(lm_locks_prepare(&t->b, &t->announce, &t->answer, SOON, &t->err), -EMEDIUMTYPE, t->err);
	assert_int_equal(t->b.failed, 2);
	two_free(t);
}

static void the_one_that_is_not_held_is_shown(void **state)
{
	struct two *t = two_offered();
	struct lm_lock_info info;
	struct lm_error err = { 0 };

	(void)state;
	assert_ok(lm_lock_take(t->b.lock[0], t->offer.note[0], NULL, SOON, &err), err);
	assert_ok(lm_locks_query(&t->b, &info, SOON, &t->err), t->err);
	assert_int_equal(info.state, LM_LOCK_IN_HANDOVER);
	assert_int_equal(t->b.failed, 1);
	assert_ok(lm_locks_query(&t->a, &info, SOON, &t->err), t->err);
	assert_int_equal(info.state, LM_LOCK_HELD_ELSEWHERE);
	assert_string_equal(info.holder, "b");
	two_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_set_is_handed_over_in_order),
		cmocka_unit_test(reclaimed_locks_cannot_be_taken),
		cmocka_unit_test(the_first_lock_decides_a_race),
		cmocka_unit_test(a_path_that_comes_back_is_waited_for),
		cmocka_unit_test(what_was_taken_is_given_back_the_first_one_last),
		cmocka_unit_test(locks_that_became_free_are_not_taken_back),
		cmocka_unit_test(without_that_rule_an_old_guest_gets_them),
		cmocka_unit_test(giving_back_ends_at_a_lock_that_does_not_answer),
		cmocka_unit_test(another_holder_refuses_the_set_and_is_named),
		cmocka_unit_test(acquiring_has_no_patience),
		cmocka_unit_test(other_sets_are_refused),
		cmocka_unit_test(the_one_that_is_not_held_is_shown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
