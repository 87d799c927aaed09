/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state machine of scsi-pr against a unit in memory: a path dies at each of the
 * commands of each operation, before or after the command was done; targets that
 * refuse, flood with unit attentions, or lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "scsi_double.h"
#include "storage/scsi_pr.h"

#define ok(call) do { struct lm_error err = { 0 }; int r_ = (call); if (r_) fail_msg("%d: %s", r_, err.msg); } while (0)

struct pair {
	struct unit unit;
	struct lm_lock *a, *b;
	uint8_t note[LM_LOCK_NOTE_SIZE];
};

static int64_t soon(void)
{
	return lm_now_ns() + 5 * LM_NS_PER_S;
}

static struct lm_lock *host(struct unit *u, const char *name)
{
	static const struct lm_scsi_pr_options options = { .type = 5 };
	struct lm_scsi_path *paths[2] = { unit_path(u, "one"), unit_path(u, "two") };
	struct lm_lock *l = NULL;

	ok(lm_scsi_pr_new(paths, 2, &options, name, soon(), &l, &err));
	snprintf(l->host, sizeof(l->host), "%s", name);
	snprintf(l->uri, sizeof(l->uri), "double");
	return l;
}

static bool writes(struct unit *u, struct lm_lock *l)
{
	unsigned n;
	struct lm_scsi_path *const *p = lm_scsi_pr_paths(l, &n);

	return unit_writes(u, p[0]) || unit_writes(u, p[1]);
}

static void mend(struct lm_lock *l)
{
	unsigned n;
	struct lm_scsi_path *const *p = lm_scsi_pr_paths(l, &n);

	unit_mend(p[0]);
	unit_mend(p[1]);
}

static void pair_start(struct pair *t)
{
	unit_init(&t->unit);
	t->a = host(&t->unit, "host-a");
	t->b = host(&t->unit, "host-b");
}

static void pair_stop(struct pair *t)
{
	t->unit.die_at = -1;
	lm_lock_close(t->a);
	lm_lock_close(t->b);
}

static void offered(struct pair *t, bool disks_idle)
{
	uint8_t announce[LM_LOCK_NOTE_SIZE], answer[LM_LOCK_NOTE_SIZE];

	ok(lm_lock_announce(t->a, announce, soon(), &err));
	ok(lm_lock_prepare(t->b, announce, answer, soon(), &err));
	ok(lm_lock_offer(t->a, answer, disks_idle, t->note, soon(), &err));
}

static void only(struct pair *t, struct lm_lock *owner, const char *when, int at)
{
	if (!writes(&t->unit, owner))
		fail_msg("%s, command %d: the owner cannot write", when, at);
	if (writes(&t->unit, owner == t->a ? t->b : t->a))
		fail_msg("%s, command %d: the other can write, too", when, at);
}

/* --- a path dies at every command ------------------------------------------------------ */

static int do_take(struct pair *t)
{
	return lm_lock_take(t->b, t->note, NULL, soon(), NULL);
}

static int do_reclaim(struct pair *t)
{
	return lm_lock_reclaim(t->a, false, soon(), NULL);
}

static int do_release(struct pair *t)
{
	return lm_lock_release(t->a, soon(), NULL);
}

static int do_break(struct pair *t)
{
	return lm_lock_break(t->b, soon(), NULL);
}

static int do_announce(struct pair *t)
{
	uint8_t note[LM_LOCK_NOTE_SIZE];

	return lm_lock_announce(t->a, note, soon(), NULL);
}

static const struct step {
	const char *name;
	bool offer; /* made before */
	bool disks_idle;
	int (*run)(struct pair *t);
} steps[] = {
	{ "take", true, true, do_take },
	{ "take, writes in flight", true, false, do_take },
	{ "reclaim", true, true, do_reclaim },
	{ "release", false, true, do_release },
	{ "announce", false, true, do_announce },
	{ "break", false, false, do_break },
};

/* The one path of the two left must do.  false: the operation has fewer commands than that. */
static bool path_dies(const struct step *s, int at, bool after, bool no_abort)
{
	struct pair t;
	bool reached;
	int r;

	pair_start(&t);
	t.unit.no_abort = t.unit.no_aptpl = no_abort;
	ok(lm_lock_acquire(t.a, soon(), &err));
	if (s->offer)
		offered(&t, s->disks_idle);
	t.unit.count = 0;
	t.unit.die_at = at;
	t.unit.die_after = after;
	r = s->run(&t);
	reached = t.unit.count > at;
	if (r)
		fail_msg("%s: command %d of path one dies %s it was done: %d", s->name, at, after ? "after" : "before", r);
	if (!s->disks_idle && !t.unit.resets && !t.unit.aborts)
		fail_msg("%s, command %d: what was in flight goes on", s->name, at);
	if (s->run == do_take)
		only(&t, t.b, s->name, at);
	else if (s->run != do_release && s->run != do_break)
		only(&t, t.a, s->name, at);
	else
		ok(lm_lock_acquire(t.b, soon(), &err));
	/* The path comes back and all of it goes on. */
	mend(t.a);
	mend(t.b);
	t.unit.die_at = -1;
	if (s->run == do_reclaim || s->run == do_announce) {
		offered(&t, true);
		ok(lm_lock_take(t.b, t.note, NULL, soon(), &err));
		only(&t, t.b, s->name, at);
	}
	pair_stop(&t);
	return reached;
}

static void one_path_may_die_at_any_command(void **state)
{
	unsigned n = 0;

	(void)state;
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		for (int at = 0; path_dies(&steps[i], at, false, false) && path_dies(&steps[i], at, true, false) &&
		     path_dies(&steps[i], at, true, true); at++)
			n++;
	assert_true(n > 20);
}

/* Both paths die, so the operation fails; whatever had been done, one of both gets it afterwards. */
static bool all_paths_die(const struct step *s, int at, bool after, bool source_first)
{
	struct pair t;
	int first, second;

	pair_start(&t);
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, true);
	t.unit.count = 0;
	t.unit.die_at = at;
	t.unit.die_after = after;
	unsigned n;
	struct lm_scsi_path *const *p = lm_scsi_pr_paths(s->run == do_take ? t.b : t.a, &n);

	p[1]->up = false;
	first = s->run(&t);
	if (!first && t.unit.count <= at) {
		pair_stop(&t);
		return false;
	}
	t.unit.die_at = -1;
	mend(t.a);
	mend(t.b);
	first = source_first ? do_reclaim(&t) : do_take(&t);
	second = source_first ? do_take(&t) : do_reclaim(&t);
	if (!first == !second)
		fail_msg("%s, command %d: %d and then %d", s->name, at, first, second);
	only(&t, source_first == !first ? t.a : t.b, s->name, at);
	pair_stop(&t);
	return true;
}

static void after_all_paths_died_one_of_both_gets_it(void **state)
{
	unsigned n = 0;

	(void)state;
	for (size_t i = 0; i < 3; i++)
		for (int at = 0; all_paths_die(&steps[i], at, false, false) && all_paths_die(&steps[i], at, true, false) &&
		     all_paths_die(&steps[i], at, false, true) && all_paths_die(&steps[i], at, true, true) && at < 100; at++)
			n++;
	assert_true(n > 10);
}

/* --- targets ------------------------------------------------------------------------ */

static void bursts_of_unit_attentions_are_sat_out(void **state)
{
	struct pair t;

	(void)state;
	pair_start(&t);
	t.unit.attentions = 12;
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, false);
	ok(lm_lock_take(t.b, t.note, NULL, soon(), &err));
	only(&t, t.b, "bursts", 0);
	pair_stop(&t);
}

static void endless_unit_attentions_end_in_an_error(void **state)
{
	struct pair t;

	(void)state;
	pair_start(&t);
	t.unit.nexus[0].attentions = t.unit.nexus[1].attentions = 1000000;
	assert_int_not_equal(lm_lock_acquire(t.a, soon(), NULL), 0);
	pair_stop(&t);
}

static void a_preempt_that_was_not_done_is_noticed(void **state)
{
	struct pair t;

	(void)state;
	pair_start(&t);
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, true);
	t.unit.lies = true;
	assert_int_not_equal(lm_lock_take(t.b, t.note, NULL, soon(), NULL), 0);
	t.unit.lies = false;
	ok(lm_lock_reclaim(t.a, false, soon(), &err));
	lm_lock_close(t.b);
	t.b = host(&t.unit, "host-b");
	only(&t, t.a, "lies", 0);
	pair_stop(&t);
}

static void without_the_proof_it_is_not_noticed(void **state)
{
	struct pair t;

	(void)state;
	pair_start(&t);
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, true);
	t.unit.lies = true;
	setenv("LM_BREAK", "lock-proof", 1);
	assert_int_equal(lm_lock_take(t.b, t.note, NULL, soon(), NULL), 0);
	unsetenv("LM_BREAK");
	assert_true(writes(&t.unit, t.a) && writes(&t.unit, t.b));
	pair_stop(&t);
}

static void a_reset_follows_where_there_is_no_abort(void **state)
{
	struct pair t;

	(void)state;
	pair_start(&t);
	t.unit.no_abort = true;
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, false);
	ok(lm_lock_take(t.b, t.note, NULL, soon(), &err));
	assert_int_equal(t.unit.resets, 1);
	pair_stop(&t);
}

static void neither_abort_nor_reset_when_all_is_quiet(void **state)
{
	struct pair t;

	(void)state;
	pair_start(&t);
	t.unit.no_abort = true;
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, true);
	ok(lm_lock_take(t.b, t.note, NULL, soon(), &err));
	assert_int_equal(t.unit.resets, 0);
	pair_stop(&t);
}

static void what_the_target_says_it_cannot_is_not_tried(void **state)
{
	struct pair t;

	(void)state;
	unit_init(&t.unit);
	t.unit.says = t.unit.no_abort = t.unit.no_aptpl = true;
	t.unit.says_types = 1 << 5;
	t.a = host(&t.unit, "host-a");
	t.b = host(&t.unit, "host-b");
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, false);
	ok(lm_lock_take(t.b, t.note, NULL, soon(), &err));
	assert_int_equal(t.unit.refusals, 0);
	assert_int_equal(t.unit.resets, 1);
	pair_stop(&t);
}

static void what_it_says_it_can_is_believed_until_it_refuses(void **state)
{
	struct pair t;

	(void)state;
	unit_init(&t.unit);
	t.unit.says = t.unit.says_abort = t.unit.says_aptpl = true;
	t.unit.no_abort = t.unit.no_aptpl = true;
	t.unit.says_types = 0xff;
	t.a = host(&t.unit, "host-a");
	t.b = host(&t.unit, "host-b");
	ok(lm_lock_acquire(t.a, soon(), &err));
	offered(&t, false);
	ok(lm_lock_take(t.b, t.note, NULL, soon(), &err));
	assert_int_equal(t.unit.refusals, 3); /* APTPL once per host, and the abort */
	assert_int_equal(t.unit.resets, 1);
	pair_stop(&t);
}

static void a_target_without_the_type_is_refused(void **state)
{
	static const struct lm_scsi_pr_options options = { .type = 5 };
	struct lm_scsi_path *path;
	struct lm_lock *l = NULL;
	struct unit u;

	(void)state;
	unit_init(&u);
	u.says = true;
	u.says_types = 0xff & ~(1 << 5);
	path = unit_path(&u, "one");
	assert_int_equal(lm_scsi_pr_new(&path, 1, &options, "host-a", soon(), &l, NULL), -ENOTSUP);
	assert_null(l);
}

static void keys_say_whose_they_are(void **state)
{
	(void)state;
	assert_int_equal(lm_pr_key("host-a", 7) >> 48, 0x4c4d);
	assert_int_equal(lm_pr_key("host-a", 7) & 0xffffff, 7);
	assert_int_not_equal(lm_pr_key("host-a", 7), lm_pr_key("host-b", 7));
}

int main(int argc, char *argv[])
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_path_may_die_at_any_command),
		cmocka_unit_test(after_all_paths_died_one_of_both_gets_it),
		cmocka_unit_test(bursts_of_unit_attentions_are_sat_out),
		cmocka_unit_test(endless_unit_attentions_end_in_an_error),
		cmocka_unit_test(a_preempt_that_was_not_done_is_noticed),
		cmocka_unit_test(without_the_proof_it_is_not_noticed),
		cmocka_unit_test(a_reset_follows_where_there_is_no_abort),
		cmocka_unit_test(neither_abort_nor_reset_when_all_is_quiet),
		cmocka_unit_test(what_the_target_says_it_cannot_is_not_tried),
		cmocka_unit_test(what_it_says_it_can_is_believed_until_it_refuses),
		cmocka_unit_test(a_target_without_the_type_is_refused),
		cmocka_unit_test(keys_say_whose_they_are),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
