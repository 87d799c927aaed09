/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copies that work, that are asked for, that fail before COMMIT. */
#include "pcpair.h"
#include "newsession.h"

/* ---- it works ---- */

static void a_writing_guest_moves_and_its_pages_follow(void **state)
{
	struct pair *p = pair_new(&pair_small);

	(void)state;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_int_equal(p->src_sum.sent_pages, 0); /* `now`: nothing before the switchover */
	pair_free(p);
}

static struct fakevm_config restless(void)
{
	struct fakevm_config c = pair_small;

	c.writes_per_ms = 1000;
	return c;
}

static struct pair *restless_pair(void)
{
	struct fakevm_config c = restless();
	struct pair *p = pair_new(&c);

	p->src_opt.postcopy = LM_POSTCOPY_AUTO;
	p->src_opt.max_bandwidth_bytes_per_s = 20u << 20;
	return p;
}

static void a_guest_that_does_not_converge_moves_by_postcopy(void **state)
{
	struct pair *p = restless_pair();

	(void)state;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_int_equal(p->decision, LM_DECIDE_POSTCOPY);
	assert_true(p->src_sum.sent_pages > 0);
	pair_free(p);
}

static void never_at_either_side_means_never(void **state)
{
	(void)state;
	for (int side = LM_SOURCE; side <= LM_DEST; side++) {
		struct pair *p = restless_pair();

		*(side == LM_SOURCE ? &p->src_opt.postcopy : &p->dst_opt.postcopy) = LM_POSTCOPY_NEVER;
		p->src_opt.on_stall = LM_STALL_ABORT;
		p->src_opt.max_bandwidth_bytes_per_s = 100u << 20;
		p->src_opt.max_downtime_ns = LM_NS_PER_MS;
		pair_run(p);
		pair_assert_stayed(p, LM_OUTCOME_STALLED);
		assert_int_equal(p->b->pagers, 0);
		pair_free(p);
	}
}

static void now_is_refused_by_a_side_that_says_never(void **state)
{
	struct pair *p = pair_new(&pair_small);

	(void)state;
	p->dst_opt.postcopy = LM_POSTCOPY_NEVER;
	pair_run(p);
	pair_assert_stayed(p, LM_OUTCOME_REFUSED);
	pair_free(p);
}

/* ---- asked for ---- */

static void ask_while_copying(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_PROGRESS && e->u.progress.done_pages > 100 && !p->count++)
		lm_session_postcopy(p->src);
}

static void asked_for_in_the_middle_of_the_first_pass_it_comes_soon(void **state)
{
	struct fakevm_config c = pair_small;
	struct pair *p;

	(void)state;
	c.region_bytes[0] = 48u << 20;
	p = pair_new(&c);
	p->src_opt.postcopy = LM_POSTCOPY_AUTO;
	p->src_opt.max_bandwidth_bytes_per_s = 12u << 20;
	p->on_src = ask_while_copying;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_int_equal(p->decision, LM_DECIDE_POSTCOPY);
	assert_true(p->src_sum.sent_pages < p->src_sum.existing_pages);
	assert_true(p->src_sum.postcopy.left_pages >= p->src_sum.existing_pages - p->src_sum.sent_pages);
	pair_free(p);
}

static void ask_after_first_round(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_ROUND && !e->u.round.round)
		lm_session_postcopy(p->src);
}

/* There is so little left that it is copied instead: all of it. */
static void asked_for_when_it_is_not_needed_it_loses_no_page(void **state)
{
	struct pair *p = pair_new(&pair_small);

	(void)state;
	p->src_opt.postcopy = LM_POSTCOPY_AUTO;
	p->src_opt.max_downtime_ns = 2 * LM_NS_PER_S;
	p->on_src = ask_after_first_round;
	pair_run(p);
	assert_int_equal(p->decision, LM_DECIDE_SWITCHOVER);
	pair_assert_moved(p);
	pair_free(p);
}

static void ask_at_the_decision(struct pair *p, const struct lm_event *e)
{
	/* The tick that looks at it comes with the ping, which is due: the copy is slow enough. */
	if (e->type == LM_EVENT_DECISION || pair_is_stage(e, "paused"))
		lm_session_postcopy(p->src);
}

static void asked_for_too_late_it_loses_no_page(void **state)
{
	struct fakevm_config c = pair_small;
	struct pair *p;

	(void)state;
	c.writes_per_ms = 200;
	p = pair_new(&c);
	p->src_opt.postcopy = LM_POSTCOPY_AUTO;
	p->src_opt.max_downtime_ns = 10 * LM_NS_PER_S;
	p->src_opt.max_bandwidth_bytes_per_s = 12u << 20;
	p->on_src = ask_at_the_decision;
	pair_run(p);
	assert_int_equal(p->decision, LM_DECIDE_SWITCHOVER);
	pair_assert_moved(p);
	pair_free(p);
}

/* ---- failures before COMMIT ---- */

static void a_failure_before_commit_leaves_the_guest_at_the_source_and_no_pager(void **state)
{
	static const char *const stages[] = { "postcopy-prepare", "postcopy-arm", "prepare", "prepared", "pausing",
					      "loading", "paused", "last-copy", "copied", "saved", "loaded" };

	(void)state;
	for (unsigned i = 0; i < sizeof(stages) / sizeof(stages[0]); i++) {
		struct pair *p = pair_new(&pair_small);
		char spec[64];

		snprintf(spec, sizeof(spec), "%s:error", stages[i]);
		setenv("LM_FAULT", spec, 1);
		pair_run(p);
		unsetenv("LM_FAULT");
		pair_assert_stayed(p, LM_OUTCOME_ABORTED);
		lm_session_free(p->src);
		lm_session_free(p->dst);
		p->src = p->dst = NULL;
		/* Either it is out of the VM again, or the VM has been ended. */
		if (!p->b->ended)
			pair_assert_left_nothing(p);
		assert_true(p->a->running);
		pair_free(p);
	}
}

/* ---- teeth ---- */

static struct lm_vm_ops touching_ops; /* of the destination's VM */
static int (*plain_load)(struct lm_vm *vm, int state_fd, struct lm_error *err);
static pthread_t toucher;
static uint8_t touched_value;

#define TOUCHED 77

static void *touch_main(void *arg)
{
	struct fakevm_state *st = arg;

	touched_value = *(volatile uint8_t *)(st->ram[0] + TOUCHED * LM_PAGE_SIZE);
	return NULL;
}

/* A device that reads guest memory as soon as it is loaded. */
static int touching_load(struct lm_vm *vm, int state_fd, struct lm_error *err)
{
	pthread_create(&toucher, NULL, touch_main, fakevm_state_of(vm));
	return plain_load(vm, state_fd, err);
}

/* The guest writes the page when the first LEFT is out, and before it stops. */
static void write_before_the_pause(struct pair *p, const struct lm_event *e)
{
	if (!pair_is_stage(e, "pausing"))
		return;
	unit_sleep_ms(100); /* if anybody answers the touch now, let him */
	p->a->ram[0][TOUCHED * LM_PAGE_SIZE] = 0xd7;
	atomic_store(&p->a->written[0][TOUCHED], 1);
}

static uint8_t what_a_device_reads_early(void)
{
	struct fakevm_config c = pair_small;
	struct lm_vm *vm;
	struct pair *p;

	c.writes_per_ms = 0;
	p = pair_new(&c);
	memset(p->a->ram[0] + TOUCHED * LM_PAGE_SIZE, 0x11, LM_PAGE_SIZE);
	p->on_src = write_before_the_pause;
	vm = fakevm_new(p->b);
	touching_ops = *vm->ops;
	plain_load = touching_ops.state_load;
	touching_ops.state_load = touching_load;
	vm->ops = &touching_ops;
	p->dst = unit_session(&p->dst_opt, LM_DEST, vm);
	p->relay = netrelay_new(lm_session_address(p->dst));
	p->src_opt.address = p->relay->address;
	p->src = pair_session(&p->src_opt, LM_SOURCE, p->a);
	pair_go(p);
	assert_int_equal(p->src_ret, 0);
	assert_int_equal(p->dst_ret, 0);
	pthread_join(toucher, NULL);
	pair_free(p);
	return touched_value;
}

static void nothing_is_read_before_all_that_is_left_is_named(void **state)
{
	(void)state;
	assert_int_equal(what_a_device_reads_early(), 0xd7);
}

static void without_that_rule_an_old_page_is_read(void **state)
{
	(void)state;
	setenv("LM_BREAK", "left-end", 1);
	assert_int_equal(what_a_device_reads_early(), 0x11);
	unsetenv("LM_BREAK");
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_writing_guest_moves_and_its_pages_follow),
		cmocka_unit_test(a_guest_that_does_not_converge_moves_by_postcopy),
		cmocka_unit_test(never_at_either_side_means_never),
		cmocka_unit_test(now_is_refused_by_a_side_that_says_never),
		cmocka_unit_test(asked_for_in_the_middle_of_the_first_pass_it_comes_soon),
		cmocka_unit_test(asked_for_when_it_is_not_needed_it_loses_no_page),
		cmocka_unit_test(asked_for_too_late_it_loses_no_page),
		cmocka_unit_test(a_failure_before_commit_leaves_the_guest_at_the_source_and_no_pager),
		cmocka_unit_test(nothing_is_read_before_all_that_is_left_is_named),
		cmocka_unit_test(without_that_rule_an_old_page_is_read),
	};

	return pair_main(argc, argv, tests);
}
