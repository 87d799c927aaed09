/* SPDX-License-Identifier: Apache-2.0 */
/* What scsi-pr has to do with a real target beyond the contract: writes in flight, restarts, dead paths, others' keys. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "storage/scsi_pr.h"
#include "tgt.h"

#define SKIP 77
#define OLD 0xaa
#define NEW 0xbb
#define ok(call) do { struct lm_error err = { 0 }; int r_ = (call); if (r_) fail_msg("%d: %s", r_, err.msg); } while (0)

/* libiscsi forgets a few bytes when a login that has begun is given up. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:libiscsi.so";
}

static char uri[LM_LOCK_URI_MAX];

static int64_t soon(void)
{
	return lm_now_ns() + 10 * LM_NS_PER_S;
}

static struct lm_lock *host(const char *name)
{
	struct lm_lock_params p = { .host = name, .deadline_ns = soon() };
	struct lm_lock *l = NULL;

	ok(lm_lock_open(uri, &p, &l, &err));
	return l;
}

static struct lm_scsi_path *path(struct lm_lock *l, unsigned i)
{
	unsigned n;

	return lm_scsi_pr_paths(l, &n)[i];
}

static int transfer(struct lm_scsi_path *p, bool write, uint8_t block[static 512])
{
	struct lm_scsi_cmd cmd = {
		.cdb = { write ? 0x2a : 0x28, [8] = 1 }, .cdb_len = 10,
		.direction = write ? LM_SCSI_DATA_OUT : LM_SCSI_DATA_IN, .data = block, .len = 512,
	};

	return lm_scsi_exec(p, &cmd, soon(), NULL);
}

static int write_block(struct lm_scsi_path *p, uint8_t fill)
{
	uint8_t block[512];

	memset(block, fill, sizeof(block));
	return transfer(p, true, block);
}

static uint8_t on_disk(struct lm_scsi_path *p)
{
	uint8_t block[512] = { 0 };

	assert_int_equal(transfer(p, false, block), 0);
	return block[0];
}

static void offer(struct lm_lock *from, struct lm_lock *to, bool disks_idle, uint8_t note[static LM_LOCK_NOTE_SIZE])
{
	uint8_t announce[LM_LOCK_NOTE_SIZE], answer[LM_LOCK_NOTE_SIZE];

	ok(lm_lock_announce(from, announce, soon(), &err));
	ok(lm_lock_prepare(to, announce, answer, soon(), &err));
	ok(lm_lock_offer(from, answer, disks_idle, note, soon(), &err));
}

static void fresh(void **state)
{
	(void)state;
	unsetenv("LM_BREAK");
	tgt_lun(uri, sizeof(uri));
}

/* --- writes in flight -------------------------------------------------------------- */

static void *old_write(void *opaque)
{
	write_block(opaque, OLD);
	return NULL;
}

/* How often, of n, the old host's write lands after the new host's. */
static unsigned landed_late(unsigned n)
{
	unsigned late = 0;

	for (unsigned i = 0; i < n; i++) {
		struct lm_lock *a, *b;
		uint8_t note[LM_LOCK_NOTE_SIZE];
		pthread_t thread;

		tgt_lun(uri, sizeof(uri));
		a = host("host-a");
		b = host("host-b");
		ok(lm_lock_acquire(a, soon(), &err));
		offer(a, b, false, note);
		assert_int_equal(pthread_create(&thread, NULL, old_write, path(a, 0)), 0);
		usleep(8000);
		ok(lm_lock_take(b, note, NULL, soon(), &err));
		assert_int_equal(write_block(path(b, 1), NEW), 0);
		pthread_join(thread, NULL);
		usleep(50000);
		late += on_disk(path(b, 0)) != NEW;
		lm_lock_close(a);
		lm_lock_close(b);
	}
	return late;
}

static void writes_in_flight_never_land_after_take(void **state)
{
	fresh(state);
	assert_int_equal(landed_late(5), 0);
}

static void without_abort_or_reset_they_do(void **state)
{
	fresh(state);
	setenv("LM_BREAK", "lock-abort", 1);
	assert_int_not_equal(landed_late(5), 0);
	unsetenv("LM_BREAK");
}

/* --- paths and the target ---------------------------------------------------------- */

static void a_path_that_died_is_not_needed(void **state)
{
	struct lm_lock *a, *b;
	uint8_t note[LM_LOCK_NOTE_SIZE];

	fresh(state);
	a = host("host-a");
	b = host("host-b");
	ok(lm_lock_acquire(a, soon(), &err));
	offer(a, b, true, note);
	path(b, 0)->up = false;
	path(a, 0)->up = false;
	ok(lm_lock_take(b, note, NULL, soon(), &err));
	assert_int_equal(write_block(path(b, 1), NEW), 0);
	path(a, 0)->up = true;
	assert_int_equal(write_block(path(a, 0), OLD), -EBUSY);
	assert_int_equal(write_block(path(a, 1), OLD), -EBUSY);
	/* It comes back as a nexus that is not registered: announce sees to that. */
	offer(b, a, true, note);
	assert_int_equal(write_block(path(b, 0), NEW), 0);
	ok(lm_lock_reclaim(b, false, soon(), &err));
	assert_int_equal(write_block(path(b, 0), NEW), 0);
	assert_int_equal(write_block(path(b, 1), NEW), 0);
	lm_lock_close(a);
	lm_lock_close(b);
}

static void a_target_that_forgot_is_told_again(void **state)
{
	struct lm_lock *a, *b;
	uint8_t note[LM_LOCK_NOTE_SIZE];

	fresh(state);
	a = host("host-a");
	b = host("host-b");
	ok(lm_lock_acquire(a, soon(), &err));
	tgt_kill();
	assert_true(tgt_again());
	ok(lm_lock_announce(a, note, soon(), &err));
	if (!strstr(a->remark, "restarted"))
		fail_msg("nothing was said: '%s'", a->remark);
	assert_int_equal(write_block(path(a, 0), NEW), 0);
	assert_int_equal(write_block(path(a, 1), NEW), 0);
	assert_int_equal(lm_lock_acquire(b, soon(), NULL), -EBUSY);
	assert_int_equal(write_block(path(b, 0), NEW), -EBUSY);
	lm_lock_close(a);
	lm_lock_close(b);
}

static void a_restart_between_offer_and_take_leaves_it_to_the_source(void **state)
{
	struct lm_lock *a, *b;
	uint8_t note[LM_LOCK_NOTE_SIZE];

	fresh(state);
	a = host("host-a");
	b = host("host-b");
	ok(lm_lock_acquire(a, soon(), &err));
	offer(a, b, true, note);
	tgt_kill();
	assert_true(tgt_again());
	assert_int_equal(lm_lock_take(b, note, NULL, soon(), NULL), -ESTALE);
	/* It cannot be told from one that was taken and released: the peer's word is needed. */
	assert_int_equal(lm_lock_reclaim(a, false, soon(), NULL), -ESTALE);
	ok(lm_lock_reclaim(a, true, soon(), &err));
	assert_int_equal(write_block(path(a, 0), NEW), 0);
	assert_int_equal(write_block(path(b, 0), NEW), -EBUSY);
	lm_lock_close(a);
	lm_lock_close(b);
}

static void a_target_that_hangs_costs_no_more_than_the_deadline(void **state)
{
	struct lm_lock *a;
	int64_t begin;
	int r;

	fresh(state);
	a = host("host-a");
	ok(lm_lock_acquire(a, soon(), &err));
	tgt_pause(true);
	begin = lm_now_ns();
	r = lm_lock_release(a, begin + 300 * LM_NS_PER_MS, NULL);
	tgt_pause(false);
	assert_int_not_equal(r, 0);
	assert_true(lm_now_ns() - begin < 3 * LM_NS_PER_S);
	ok(lm_lock_release(a, soon(), &err));
	lm_lock_close(a);
}

/* The session of the second path is with the first portal then, and lives when the second is closed. */
static void a_redirection_is_followed(void **state)
{
	struct lm_lock *a;

	fresh(state);
	assert_true(tgt_redirect());
	a = host("host-a");
	tgt_portal(1, false);
	ok(lm_lock_acquire(a, soon(), &err));
	assert_int_equal(write_block(path(a, 0), NEW), 0);
	assert_int_equal(write_block(path(a, 1), NEW), 0);
	lm_lock_close(a);
	tgt_kill();
	assert_true(tgt_again());
}

/* --- others ------------------------------------------------------------------------ */

static unsigned count_key(struct lm_scsi_path *p, uint64_t key)
{
	struct lm_pr_view v;
	unsigned n = 0;

	assert_int_equal(lm_pr_view(p, &v, soon(), NULL), 0);
	for (unsigned i = 0; i < v.nkeys; i++)
		n += v.keys[i] == key;
	return n;
}

static void keys_of_others_stay(void **state)
{
	static const uint64_t theirs = 0xabc123;
	struct lm_lock *a, *b, *c;
	uint8_t note[LM_LOCK_NOTE_SIZE];

	fresh(state);
	a = host("host-a");
	b = host("host-b");
	c = host("host-c");
	assert_int_equal(lm_pr_out(path(c, 0), LM_PR_REGISTER, 0, 0, theirs, false, soon(), NULL), 0);
	ok(lm_lock_acquire(a, soon(), &err));
	offer(a, b, false, note);
	ok(lm_lock_take(b, note, NULL, soon(), &err));
	ok(lm_lock_release(b, soon(), &err));
	ok(lm_lock_break(c, soon(), &err));
	assert_int_equal(count_key(path(c, 0), theirs), 1);
	lm_lock_close(a);
	lm_lock_close(b);
	lm_lock_close(c);
}

static void a_reservation_of_others_is_left_alone(void **state)
{
	static const uint64_t theirs = 0xabc124;
	struct lm_lock_info info;
	struct lm_lock *a, *c;

	fresh(state);
	a = host("host-a");
	c = host("host-c");
	assert_int_equal(lm_pr_out(path(c, 0), LM_PR_REGISTER, 0, 0, theirs, false, soon(), NULL), 0);
	assert_int_equal(lm_pr_out(path(c, 0), LM_PR_RESERVE, 1, theirs, 0, false, soon(), NULL), 0);
	assert_int_equal(lm_lock_acquire(a, soon(), NULL), -EBUSY);
	assert_int_equal(lm_lock_break(a, soon(), NULL), -EPERM);
	assert_int_equal(lm_lock_release(a, soon(), NULL), -EPERM);
	ok(lm_lock_query(a, &info, soon(), &err));
	assert_int_equal(info.state, LM_LOCK_FOREIGN);
	assert_int_equal(write_block(path(c, 0), NEW), 0);
	lm_lock_close(a);
	lm_lock_close(c);
}

static void registering_early_is_undone_when_nothing_comes_of_it(void **state)
{
	struct lm_lock *a, *b;
	uint8_t announce[LM_LOCK_NOTE_SIZE], answer[LM_LOCK_NOTE_SIZE], note[LM_LOCK_NOTE_SIZE];
	uint64_t key;

	fresh(state);
	a = host("host-a");
	strcat(uri, "?register=early");
	b = host("host-b");
	ok(lm_lock_acquire(a, soon(), &err));
	ok(lm_lock_announce(a, announce, soon(), &err));
	key = lm_pr_key("host-b", a->epoch + 1);
	ok(lm_lock_prepare(b, announce, answer, soon(), &err));
	assert_int_equal(count_key(path(a, 0), key), 2);
	lm_lock_close(b);
	assert_int_equal(count_key(path(a, 0), key), 0);
	b = host("host-b");
	offer(a, b, true, note);
	assert_int_equal(count_key(path(a, 0), key), 2);
	ok(lm_lock_take(b, note, NULL, soon(), &err));
	assert_int_equal(write_block(path(a, 0), OLD), -EBUSY);
	assert_int_equal(write_block(path(b, 0), NEW), 0);
	assert_int_equal(write_block(path(b, 1), NEW), 0);
	lm_lock_close(b);
	lm_lock_close(a);
}

/* Some administrator's tool removed the key of the destination between prepare and take. */
static void a_registration_that_vanished_is_made_again(void **state)
{
	uint8_t note[LM_LOCK_NOTE_SIZE];
	struct lm_lock *a, *b;

	fresh(state);
	a = host("host-a");
	strcat(uri, "?register=early");
	b = host("host-b");
	ok(lm_lock_acquire(a, soon(), &err));
	offer(a, b, true, note);
	ok(lm_pr_out(path(a, 0), LM_PR_PREEMPT, 5, lm_pr_key("host-a", a->epoch), lm_pr_key("host-b", a->epoch + 1), false,
		     soon(), &err));
	ok(lm_lock_take(b, note, NULL, soon(), &err));
	assert_int_equal(write_block(path(a, 0), OLD), -EBUSY);
	assert_int_equal(write_block(path(b, 0), NEW), 0);
	lm_lock_close(b);
	lm_lock_close(a);
}

static void type_6_keeps_readers_out_too(void **state)
{
	struct lm_lock *a, *b;
	uint8_t block[512];

	fresh(state);
	strcat(uri, "?type=6");
	a = host("host-a");
	b = host("host-b");
	ok(lm_lock_acquire(a, soon(), &err));
	assert_int_equal(transfer(path(b, 0), false, block), -EBUSY);
	assert_int_equal(transfer(path(a, 1), false, block), 0);
	ok(lm_lock_release(a, soon(), &err));
	assert_int_equal(transfer(path(b, 0), false, block), 0);
	lm_lock_close(a);
	lm_lock_close(b);
}

int main(int argc, char *argv[])
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writes_in_flight_never_land_after_take),
		cmocka_unit_test(without_abort_or_reset_they_do),
		cmocka_unit_test(a_path_that_died_is_not_needed),
		cmocka_unit_test(a_target_that_forgot_is_told_again),
		cmocka_unit_test(a_restart_between_offer_and_take_leaves_it_to_the_source),
		cmocka_unit_test(a_target_that_hangs_costs_no_more_than_the_deadline),
		cmocka_unit_test(a_redirection_is_followed),
		cmocka_unit_test(keys_of_others_stay),
		cmocka_unit_test(a_reservation_of_others_is_left_alone),
		cmocka_unit_test(registering_early_is_undone_when_nothing_comes_of_it),
		cmocka_unit_test(a_registration_that_vanished_is_made_again),
		cmocka_unit_test(type_6_keeps_readers_out_too),
	};
	char why[256] = "";
	int failed;

	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	if (!tgt_start(argv[1], why, sizeof(why))) {
		printf("skipped: %s\n", why);
		tgt_stop();
		return SKIP;
	}
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	tgt_stop();
	return failed;
}
