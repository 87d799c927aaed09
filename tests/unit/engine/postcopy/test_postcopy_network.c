/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copies whose network, peer or pager fails after COMMIT. */
#include <sys/eventfd.h>
#include <unistd.h>
#include "pcpair.h"

/* ---- the network fails after COMMIT ---- */

static void cut_before_the_answer(struct pair *p, const struct lm_event *e)
{
	if (pair_is_stage(e, "resumed"))
		netrelay_cut(p->relay);
}

static void an_answer_to_commit_that_is_lost_is_made_up_for(void **state)
{
	struct pair *p = pair_new(&pair_small);

	(void)state;
	p->on_dst = cut_before_the_answer;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_true(p->src_sum.postcopy.recoveries >= 1);
	pair_free(p);
}

static void cut_now_and_then(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_POSTCOPY && e->u.postcopy.missing_pages && p->count++ < 3)
		netrelay_cut(p->relay);
}

static void a_network_that_is_cut_again_and_again_costs_no_page(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	p->on_dst = cut_now_and_then;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_true(p->dst_sum.postcopy.recoveries >= 2);
	assert_true(p->src_sum.postcopy.recoveries >= 2);
	pair_free(p);
}

static void *silence_main(void *arg)
{
	struct pair *p = arg;

	unit_sleep_ms(2000);
	netrelay_cut(p->relay); /* what hung in the network is gone */
	atomic_store(&p->relay->silent, false);
	return NULL;
}

static void fall_silent(struct pair *p, const struct lm_event *e)
{
	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages || p->count++)
		return;
	atomic_store(&p->relay->silent, true);
	pthread_create(&p->helper, NULL, silence_main, p);
	p->has_helper = true;
}

static void a_network_that_falls_silent_is_given_up_and_found_again(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	p->src_opt.peer_timeout_ns = p->dst_opt.peer_timeout_ns = 1200 * LM_NS_PER_MS;
	p->on_dst = fall_silent;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_true(p->dst_sum.postcopy.recoveries >= 1);
	pair_free(p);
}

static void cut_for_good(struct pair *p, const struct lm_event *e)
{
	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages)
		return;
	atomic_store(&p->relay->refuses, true);
	netrelay_cut(p->relay);
}

/* What an engine does that is started anew: from the state that the one before has left. */
static struct lm_session *recover_session(struct pair *p, enum lm_side side)
{
	struct lm_options *o = malloc(sizeof(*o));
	struct fakevm_state *st = side == LM_SOURCE ? p->a : p->b;
	struct lm_session *s = NULL;
	struct lm_pager *pager = NULL;
	struct lm_error err = { 0 };
	struct lm_pcstate pc;
	struct lm_ram ram;

	*o = side == LM_SOURCE ? p->src_opt : p->dst_opt;
	assert_ok(lm_pcstate_open(&pc, side, getpid(), &err), err);
	assert_int_equal(pc.head->committed, side == LM_SOURCE ? LM_PC_ANSWERED : LM_PC_NONE);
	assert_ok(lm_pcstate_ram(&pc, &ram, &err), err);
	for (unsigned i = 0; i < ram.nregions; i++)
		ram.regions[i].fd = dup(st->fd[i]);
	if (side == LM_DEST)
		assert_ok(fakevm_pager_reopen(st, &ram, &pager, &err), err);
	assert_ok(lm_session_new_recover(o, side, fakevm_new(st), eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), &ram, pager,
					 &pc, &s, &err), err);
	return s;
}

/* What made it stop is over. */
static void go_on_with_new_engines(struct pair *p)
{
	lm_session_free(p->src);
	lm_session_free(p->dst);
	p->on_dst = NULL;
	p->src_opt.recover_timeout_ns = p->dst_opt.recover_timeout_ns = 8 * LM_NS_PER_S;
	p->dst = recover_session(p, LM_DEST);
	netrelay_retarget(p->relay, lm_session_address(p->dst));
	p->src = recover_session(p, LM_SOURCE);
	pair_go(p);
	pair_assert_moved(p);
	pair_assert_left_nothing(p);
}

static void interrupt(struct pair *p)
{
	p->src_opt.recover_timeout_ns = p->dst_opt.recover_timeout_ns = 500 * LM_NS_PER_MS;
	p->on_dst = cut_for_good;
	pair_run(p);
	assert_int_equal(p->src_sum.outcome, LM_OUTCOME_INTERRUPTED);
	assert_int_equal(p->dst_sum.outcome, LM_OUTCOME_INTERRUPTED);
	assert_false(p->a->running);
	assert_true(p->b->running);
	assert_true(p->dst_sum.guest_runs_here && !p->src_sum.guest_runs_here);
	assert_int_equal(p->b->finishes, 0);
}

static void a_peer_that_stays_away_interrupts_and_new_engines_go_on(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	interrupt(p);
	atomic_store(&p->relay->refuses, false);
	go_on_with_new_engines(p);
	pair_free(p);
}

/* A pager that fails: the guest is at the destination for good, and waits. */
static void fail_a_place(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_POSTCOPY && e->u.postcopy.missing_pages)
		atomic_store(&p->b->fail_place, EIO);
}

static void pages_that_cannot_be_shown_interrupt_and_can_be_gone_on_with(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	p->src_opt.recover_timeout_ns = p->dst_opt.recover_timeout_ns = 500 * LM_NS_PER_MS;
	p->on_dst = fail_a_place;
	pair_run(p);
	assert_int_equal(p->src_sum.outcome, LM_OUTCOME_INTERRUPTED);
	assert_int_equal(p->dst_sum.outcome, LM_OUTCOME_INTERRUPTED);
	assert_non_null(strstr(p->dst_err.msg, "injected"));
	go_on_with_new_engines(p);
	pair_free(p);
}

static void cut_once(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_POSTCOPY && e->u.postcopy.missing_pages && !p->count++)
		netrelay_cut(p->relay);
}

/* Whoever is at it pings: neither the opening, nor the switchover, nor a recovery fails for it. */
static void registering_memory_may_take_longer_than_the_peer_timeout(void **state)
{
	struct fakevm_config c = pair_small;
	struct pair *p;

	(void)state;
	c.nregions = 1;
	p = pair_new(&c);
	p->src_opt.max_bandwidth_bytes_per_s = 4u << 20;
	p->nap_every = 1;
	p->nap_ms = 50;
	p->src_opt.peer_timeout_ns = p->dst_opt.peer_timeout_ns = 1300 * LM_NS_PER_MS;
	p->src_opt.qmp_timeout_ns = p->dst_opt.qmp_timeout_ns = 100 * LM_NS_PER_MS;
	p->on_dst = cut_once;
	setenv("LM_TRANSPORT_FAULT", "action=register=1800", 1);
	pair_run(p);
	unsetenv("LM_TRANSPORT_FAULT");
	pair_assert_postcopied(p);
	assert_int_equal(p->dst_sum.postcopy.recoveries, 1);
	pair_free(p);
}

/* After a recovery, as before, there is nothing that a cancel could undo. */
static void cut_then_cancel(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_POSTCOPY && e->u.postcopy.missing_pages && !p->count++)
		netrelay_cut(p->relay);
	if (pair_is_stage(e, "recovered")) {
		lm_session_cancel(p->dst);
		lm_session_cancel(p->src);
	}
}

static void a_cancel_has_no_effect_after_commit(void **state)
{
	struct pair *p = pair_slow();

	(void)state;
	p->on_dst = cut_then_cancel;
	pair_run(p);
	pair_assert_postcopied(p);
	pair_free(p);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_answer_to_commit_that_is_lost_is_made_up_for),
		cmocka_unit_test(a_network_that_is_cut_again_and_again_costs_no_page),
		cmocka_unit_test(a_network_that_falls_silent_is_given_up_and_found_again),
		cmocka_unit_test(a_peer_that_stays_away_interrupts_and_new_engines_go_on),
		cmocka_unit_test(pages_that_cannot_be_shown_interrupt_and_can_be_gone_on_with),
		cmocka_unit_test(a_cancel_has_no_effect_after_commit),
		cmocka_unit_test(registering_memory_may_take_longer_than_the_peer_timeout),
	};

	return pair_main(argc, argv, tests);
}
