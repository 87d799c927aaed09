/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole post-copies in one process: a guest that writes at the source, threads that touch and change
 * pages at the destination, userfaultfd between them and what has not come, and a network that is
 * cut, falls silent or lies.
 */
#include <netinet/in.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "unit.h"
#include "cleanup.h"
#include "fakevm.h"
#include "netrelay.h"
#include "session.h"

#define VCPUS 4
#define STAMP_AT (LM_PAGE_SIZE - 8)

/* ---- two sessions ---- */

struct pair;

struct vcpu {
	struct pair *p;
	unsigned index;
	uint64_t x;
	pthread_t thread;
};

struct pair {
	struct fakevm_state *a, *b;
	struct lm_session *src, *dst;
	struct lm_options src_opt, dst_opt;
	struct lm_error src_err, dst_err;
	struct lm_summary src_sum, dst_sum;
	int src_ret, dst_ret;
	struct netrelay *relay;
	enum lm_decision_kind decision;
	/* What the test does when something happens; in the thread of that side's session. */
	void (*on_src)(struct pair *p, const struct lm_event *e);
	void (*on_dst)(struct pair *p, const struct lm_event *e);
	unsigned count; /* of the test's hook */
	pthread_t helper;
	bool has_helper;
	/* the guest at the destination */
	struct vcpu vcpus[VCPUS];
	bool vcpus_run;
	_Atomic bool vcpus_stop, saw_wrong;
	_Atomic uint8_t *stamps[FAKE_REGIONS_MAX];
	_Atomic unsigned touches;
	unsigned nap_every, nap_ms; /* of a vCPU, in touches */
};

/* A page at the destination is what it was at the source when that stopped, but for our own stamp. */
static bool page_right(const struct pair *p, unsigned region, uint64_t page)
{
	const uint8_t *is = p->b->ram[region] + page * LM_PAGE_SIZE, *was = p->a->ram[region] + page * LM_PAGE_SIZE;
	uint8_t stamp = atomic_load(&p->stamps[region][page]);

	if (memcmp(is, was, STAMP_AT))
		return false;
	return stamp ? is[STAMP_AT] == stamp : !memcmp(is + STAMP_AT, was + STAMP_AT, 8);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	struct pair *p = v->p;

	while (!atomic_load(&p->vcpus_stop)) {
		unsigned region = (unsigned)(unit_random(&v->x) % p->b->config.nregions);
		uint64_t page = unit_random(&v->x) % (p->b->npages[region] / VCPUS) * VCPUS + v->index;

		if (!page_right(p, region, page))
			atomic_store(&p->saw_wrong, true);
		if (page / VCPUS % 3 == 0) {
			uint8_t stamp = (uint8_t)(unit_random(&v->x) % 255 + 1);

			p->b->ram[region][page * LM_PAGE_SIZE + STAMP_AT] = stamp;
			atomic_store(&p->stamps[region][page], stamp);
		}
		if (atomic_fetch_add(&p->touches, 1) % p->nap_every == 0)
			unit_sleep_ms(p->nap_ms);
	}
	return NULL;
}

static void vcpus_start(struct pair *p)
{
	for (unsigned i = 0; i < VCPUS; i++) {
		p->vcpus[i] = (struct vcpu){ .p = p, .index = i, .x = 88172645463325252u + i * 77777 };
		pthread_create(&p->vcpus[i].thread, NULL, vcpu_main, &p->vcpus[i]);
	}
	p->vcpus_run = true;
}

static void vcpus_end(struct pair *p)
{
	atomic_store(&p->vcpus_stop, true);
	for (unsigned i = 0; p->vcpus_run && i < VCPUS; i++)
		pthread_join(p->vcpus[i].thread, NULL);
	p->vcpus_run = false;
}

static bool is_stage(const struct lm_event *e, const char *name)
{
	return e->type == LM_EVENT_STAGE && !strcmp(e->u.stage.name, name);
}

static void src_event(void *opaque, const struct lm_event *e)
{
	struct pair *p = opaque;

	if (e->type == LM_EVENT_DECISION)
		p->decision = e->u.decision.kind;
	if (p->on_src)
		p->on_src(p, e);
}

static void dst_event(void *opaque, const struct lm_event *e)
{
	struct pair *p = opaque;

	if (is_stage(e, "resumed"))
		vcpus_start(p);
	if (p->on_dst)
		p->on_dst(p, e);
}

static const struct fakevm_config small = {
	.nregions = 2, .region_bytes = { 8u << 20, 2u << 20 }, .source = true, .writes_per_ms = 20,
};

static struct pair *pair_new(const struct fakevm_config *config)
{
	struct pair *p = calloc(1, sizeof(*p));
	struct fakevm_config b = *config;

	p->a = fakevm_state_new(config);
	b.source = false;
	b.pager = true;
	p->b = fakevm_state_new(&b);
	for (unsigned i = 0; i < config->nregions; i++)
		p->stamps[i] = calloc(p->b->npages[i], 1);
	lm_options_default(&p->src_opt);
	lm_options_default(&p->dst_opt);
	p->src_opt.guardian = p->dst_opt.guardian = false;
	p->dst_opt.address = "127.0.0.1:0";
	p->src_opt.event = src_event;
	p->dst_opt.event = dst_event;
	p->src_opt.event_opaque = p->dst_opt.event_opaque = p;
	p->src_opt.lanes = 2;
	p->src_opt.postcopy = LM_POSTCOPY_NOW;
	p->src_opt.peer_timeout_ns = p->dst_opt.peer_timeout_ns = 3 * LM_NS_PER_S;
	p->src_opt.recover_timeout_ns = p->dst_opt.recover_timeout_ns = 8 * LM_NS_PER_S;
	p->nap_every = 64;
	p->nap_ms = 1;
	fakevm_fill(p->a, 60, 1);
	return p;
}

static struct lm_session *session(const struct lm_options *o, enum lm_side side, struct fakevm_state *st)
{
	struct lm_options *copy = malloc(sizeof(*copy));
	struct lm_error err = { 0 };
	struct lm_session *s = NULL;

	*copy = *o;
	assert_ok(lm_session_new(copy, side, fakevm_new(st), eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), &s, &err), err);
	return s;
}

static void *dest_main(void *arg)
{
	struct pair *p = arg;

	p->dst_ret = lm_session_run(p->dst, &p->dst_err);
	return NULL;
}

static void pair_go(struct pair *p)
{
	pthread_t dest;

	pthread_create(&dest, NULL, dest_main, p);
	p->src_ret = lm_session_run(p->src, &p->src_err);
	pthread_join(dest, NULL);
	if (p->has_helper)
		pthread_join(p->helper, NULL);
	p->has_helper = false;
	p->src_sum = *lm_session_summary(p->src);
	p->dst_sum = *lm_session_summary(p->dst);
}

static void pair_run(struct pair *p)
{
	p->dst = session(&p->dst_opt, LM_DEST, p->b);
	p->relay = netrelay_new(lm_session_address(p->dst));
	p->src_opt.address = p->relay->address;
	p->src = session(&p->src_opt, LM_SOURCE, p->a);
	pair_go(p);
}

static void pair_free(struct pair *p)
{
	vcpus_end(p);
	lm_session_free(p->src);
	lm_session_free(p->dst);
	netrelay_free(p->relay);
	fakevm_state_free(p->a);
	for (unsigned i = 0; i < p->b->config.nregions; i++)
		free((void *)p->stamps[i]);
	fakevm_state_free(p->b);
	free(p);
}

static bool all_pages_right(struct pair *p)
{
	vcpus_end(p);
	for (unsigned r = 0; r < p->b->config.nregions; r++)
		for (uint64_t page = 0; page < p->b->npages[r]; page++)
			if (!page_right(p, r, page))
				return false;
	return !atomic_load(&p->saw_wrong);
}

static void assert_moved(struct pair *p)
{
	if (p->src_ret || p->dst_ret)
		fail_msg("source: %s; destination: %s", p->src_err.msg, p->dst_err.msg);
	assert_int_equal(p->src_sum.outcome, LM_OUTCOME_COMPLETED);
	assert_int_equal(p->dst_sum.outcome, LM_OUTCOME_COMPLETED);
	assert_false(p->a->running);
	assert_true(p->b->running);
	assert_true(all_pages_right(p));
}

/* Nothing is left: no state file, no pager. */
static void assert_left_nothing(const struct pair *p)
{
	struct lm_pcstate st;
	struct lm_error err;

	for (int side = LM_SOURCE; side <= LM_DEST; side++) {
		assert_int_equal(lm_pcstate_open(&st, side, getpid(), &err), -ENOENT);
		lm_pcstate_close(&st);
	}
	assert_int_equal(p->b->uffd, -1);
	assert_int_equal(p->b->pagers, p->b->finishes);
}

static void assert_postcopied(struct pair *p)
{
	assert_moved(p);
	assert_left_nothing(p);
	assert_int_equal(p->b->pagers, 1);
	assert_true(p->src_sum.postcopy.used && p->dst_sum.postcopy.used);
	assert_true(p->dst_sum.postcopy.left_pages > 0);
	assert_int_equal(p->dst_sum.postcopy.missing_pages, 0);
	assert_int_equal(p->src_sum.postcopy.missing_pages, 0);
}

/* The guest is at the source as before, and nowhere else. */
static void assert_stayed(const struct pair *p, enum lm_outcome outcome)
{
	assert_int_not_equal(p->src_ret, 0);
	assert_int_not_equal(p->dst_ret, 0);
	assert_int_equal(p->src_sum.outcome, outcome);
	assert_true(p->a->running);
	assert_false(p->b->running);
}

/* ---- it works ---- */

static void a_writing_guest_moves_and_its_pages_follow(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	pair_run(p);
	assert_postcopied(p);
	assert_int_equal(p->src_sum.sent_pages, 0); /* `now`: nothing before the switchover */
	pair_free(p);
}

static struct fakevm_config restless(void)
{
	struct fakevm_config c = small;

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
	assert_postcopied(p);
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
		assert_stayed(p, LM_OUTCOME_STALLED);
		assert_int_equal(p->b->pagers, 0);
		pair_free(p);
	}
}

static void now_is_refused_by_a_side_that_says_never(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->dst_opt.postcopy = LM_POSTCOPY_NEVER;
	pair_run(p);
	assert_stayed(p, LM_OUTCOME_REFUSED);
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
	struct fakevm_config c = small;
	struct pair *p;

	(void)state;
	c.region_bytes[0] = 48u << 20;
	p = pair_new(&c);
	p->src_opt.postcopy = LM_POSTCOPY_AUTO;
	p->src_opt.max_bandwidth_bytes_per_s = 12u << 20;
	p->on_src = ask_while_copying;
	pair_run(p);
	assert_postcopied(p);
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
	struct pair *p = pair_new(&small);

	(void)state;
	p->src_opt.postcopy = LM_POSTCOPY_AUTO;
	p->src_opt.max_downtime_ns = 2 * LM_NS_PER_S;
	p->on_src = ask_after_first_round;
	pair_run(p);
	assert_int_equal(p->decision, LM_DECIDE_SWITCHOVER);
	assert_moved(p);
	pair_free(p);
}

static void ask_at_the_decision(struct pair *p, const struct lm_event *e)
{
	/* The tick that looks at it comes with the ping, which is due: the copy is slow enough. */
	if (e->type == LM_EVENT_DECISION || is_stage(e, "paused"))
		lm_session_postcopy(p->src);
}

static void asked_for_too_late_it_loses_no_page(void **state)
{
	struct fakevm_config c = small;
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
	assert_moved(p);
	pair_free(p);
}

/* ---- failures before COMMIT ---- */

static void a_failure_before_commit_leaves_the_guest_at_the_source_and_no_pager(void **state)
{
	static const char *const stages[] = { "postcopy-prepare", "postcopy-arm", "prepare", "prepared", "pausing",
					      "loading", "paused", "last-copy", "copied", "saved", "loaded" };

	(void)state;
	for (unsigned i = 0; i < sizeof(stages) / sizeof(stages[0]); i++) {
		struct pair *p = pair_new(&small);
		char spec[64];

		snprintf(spec, sizeof(spec), "%s:error", stages[i]);
		setenv("LM_FAULT", spec, 1);
		pair_run(p);
		unsetenv("LM_FAULT");
		assert_stayed(p, LM_OUTCOME_ABORTED);
		lm_session_free(p->src);
		lm_session_free(p->dst);
		p->src = p->dst = NULL;
		/* Either it is out of the VM again, or the VM has been ended. */
		if (!p->b->ended)
			assert_left_nothing(p);
		assert_true(p->a->running);
		pair_free(p);
	}
}

/* ---- the network fails after COMMIT ---- */

static void cut_before_the_answer(struct pair *p, const struct lm_event *e)
{
	if (is_stage(e, "resumed"))
		netrelay_cut(p->relay);
}

static void an_answer_to_commit_that_is_lost_is_made_up_for(void **state)
{
	struct pair *p = pair_new(&small);

	(void)state;
	p->on_dst = cut_before_the_answer;
	pair_run(p);
	assert_postcopied(p);
	assert_true(p->src_sum.postcopy.recoveries >= 1);
	pair_free(p);
}

static struct pair *slow_pair(void)
{
	struct fakevm_config c = small;
	struct pair *p;

	c.region_bytes[0] = 12u << 20;
	p = pair_new(&c);
	p->src_opt.max_bandwidth_bytes_per_s = 4u << 20;
	p->nap_every = 1;
	p->nap_ms = 50; /* what the guest touches is fetched whatever the limit says */
	return p;
}

static void cut_now_and_then(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_POSTCOPY && e->u.postcopy.missing_pages && p->count++ < 3)
		netrelay_cut(p->relay);
}

static void a_network_that_is_cut_again_and_again_costs_no_page(void **state)
{
	struct pair *p = slow_pair();

	(void)state;
	p->on_dst = cut_now_and_then;
	pair_run(p);
	assert_postcopied(p);
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
	struct pair *p = slow_pair();

	(void)state;
	p->src_opt.peer_timeout_ns = p->dst_opt.peer_timeout_ns = 1200 * LM_NS_PER_MS;
	p->on_dst = fall_silent;
	pair_run(p);
	assert_postcopied(p);
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
	struct pair *p = slow_pair();

	(void)state;
	interrupt(p);
	lm_session_free(p->src);
	lm_session_free(p->dst);
	atomic_store(&p->relay->refuses, false);
	p->on_dst = NULL;
	p->src_opt.recover_timeout_ns = p->dst_opt.recover_timeout_ns = 8 * LM_NS_PER_S;
	p->dst = recover_session(p, LM_DEST);
	netrelay_retarget(p->relay, lm_session_address(p->dst));
	p->src = recover_session(p, LM_SOURCE);
	pair_go(p);
	assert_moved(p);
	assert_left_nothing(p);
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
	struct pair *p = slow_pair();

	(void)state;
	p->src_opt.recover_timeout_ns = p->dst_opt.recover_timeout_ns = 500 * LM_NS_PER_MS;
	p->on_dst = fail_a_place;
	pair_run(p);
	assert_int_equal(p->src_sum.outcome, LM_OUTCOME_INTERRUPTED);
	assert_int_equal(p->dst_sum.outcome, LM_OUTCOME_INTERRUPTED);
	assert_non_null(strstr(p->dst_err.msg, "injected"));
	lm_session_free(p->src);
	lm_session_free(p->dst);
	p->on_dst = NULL;
	p->src_opt.recover_timeout_ns = p->dst_opt.recover_timeout_ns = 8 * LM_NS_PER_S;
	p->dst = recover_session(p, LM_DEST);
	netrelay_retarget(p->relay, lm_session_address(p->dst));
	p->src = recover_session(p, LM_SOURCE);
	pair_go(p);
	assert_moved(p);
	assert_left_nothing(p);
	pair_free(p);
}

/* ---- peers that lie ---- */

struct lie {
	const char *stage; /* of the source, at which it is told */
	enum lm_msg_type type;
	const void *payload;
	size_t len;
};

static const struct lm_wire_left left_end = { .kind = { { LM_LEFT_END } } };
static const uint8_t zeros[256];
static const struct lie *lie;

static void tell_lie(struct pair *p, const struct lm_event *e)
{
	if (is_stage(e, lie->stage) && !p->count++)
		lm_control_send(&p->src->control, lie->type, lie->payload, lie->len, lm_deadline_after(LM_NS_PER_S), NULL);
}

static void messages_out_of_place_end_the_session_before_commit(void **state)
{
	static const struct lie lies[] = {
		{ "prepare", LM_MSG_LEFT, &left_end, sizeof(left_end) },         /* before POSTCOPY */
		{ "prepare", LM_MSG_POSTCOPY_KEYS, zeros, 2 * sizeof(struct lm_key) },
		{ "prepare", LM_MSG_RECOVER, zeros, LM_TOKEN_SIZE },
		{ "prepare", LM_MSG_WHOLE, NULL, 0 },
		{ "prepare", LM_MSG_MISSING, zeros, sizeof(struct lm_wire_missing) },
		{ "prepare", LM_MSG_POSTCOPY, zeros, 7 },
		{ "postcopy-prepare", LM_MSG_POSTCOPY, zeros, 8 },               /* the source's own is the second */
		{ "postcopy-prepare", LM_MSG_POSTCOPY_KEYS, zeros, 3 },
		{ "pausing", LM_MSG_POSTCOPY_KEYS, zeros, 2 * sizeof(struct lm_key) }, /* twice */
		{ "pausing", LM_MSG_POSTCOPY, zeros, 8 },
		{ "pausing", LM_MSG_RECOVER, zeros, LM_TOKEN_SIZE },
		{ "pausing", LM_MSG_LEFT, zeros, 3 },
		{ "paused", LM_MSG_SAVED, zeros, sizeof(struct lm_wire_saved) }, /* before all is named */
		{ "copied", LM_MSG_LEFT, &left_end, sizeof(left_end) },          /* all was named */
		{ "copied", LM_MSG_LEFT, zeros, sizeof(left_end) },
		{ "loaded", LM_MSG_LEFT, &left_end, sizeof(left_end) },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct pair *p = pair_new(&small);

		lie = &lies[i];
		p->on_src = tell_lie;
		pair_run(p);
		if (p->b->running || !p->a->running)
			fail_msg("lie %u was believed", i);
		assert_stayed(p, LM_OUTCOME_ABORTED);
		pair_free(p);
	}
}

/* In post-copy the connection is given up, and both sides find each other again. */
static void lie_from_source(struct pair *p, const struct lm_event *e)
{
	static const struct { enum lm_msg_type type; size_t len; } lies[] = {
		{ LM_MSG_LEFT, sizeof(struct lm_wire_left) }, { LM_MSG_POSTCOPY_KEYS, 64 }, { LM_MSG_COMMIT, 4 },
		{ LM_MSG_WHOLE, 0 }, { LM_MSG_RECOVER, 16 },
	};

	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages || p->count == sizeof(lies) / sizeof(lies[0]))
		return;
	lm_control_send(&p->src->control, lies[p->count].type, zeros, lies[p->count].len, lm_deadline_after(LM_NS_PER_S),
			NULL);
	p->count++;
}

static void a_source_that_lies_in_postcopy_is_sent_away_and_taken_back(void **state)
{
	struct pair *p = slow_pair();

	(void)state;
	p->on_src = lie_from_source;
	p->src_opt.max_bandwidth_bytes_per_s = 3u << 20;
	pair_run(p);
	assert_postcopied(p);
	assert_true(p->dst_sum.postcopy.recoveries >= 2);
	pair_free(p);
}

static void lie_from_destination(struct pair *p, const struct lm_event *e)
{
	static const struct { enum lm_msg_type type; size_t len; } lies[] = {
		{ LM_MSG_MISSING, 3 }, { LM_MSG_MISSING, sizeof(struct lm_wire_missing) + 1 }, { LM_MSG_PREPARED, 0 },
		{ LM_MSG_POSTCOPY_OPENED, 100 }, { LM_MSG_LOADED, 16 },
	};

	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages || p->count == sizeof(lies) / sizeof(lies[0]))
		return;
	lm_control_send(&p->dst->control, lies[p->count].type, zeros, lies[p->count].len, lm_deadline_after(LM_NS_PER_S),
			NULL);
	p->count++;
}

static void a_destination_that_lies_in_postcopy_is_looked_for_anew(void **state)
{
	struct pair *p = slow_pair();

	(void)state;
	p->on_dst = lie_from_destination;
	p->src_opt.max_bandwidth_bytes_per_s = 3u << 20;
	pair_run(p);
	assert_postcopied(p);
	assert_true(p->src_sum.postcopy.recoveries >= 2);
	pair_free(p);
}

/* ---- strangers ---- */

static bool hello_as(int fd, uint16_t version, uint16_t compat)
{
	uint8_t frame[sizeof(struct lm_wire_header) + 64];
	struct lm_wire_hello *hello = (void *)(frame + sizeof(struct lm_wire_header));
	size_t len = lm_wire_put_hello(hello);
	struct lm_wire_header h = { .magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16(LM_MSG_HELLO),
				    .len = lm_le32((uint32_t)len) };

	hello->version = lm_le16(version);
	hello->compat = lm_le16(compat);
	memcpy(frame, &h, sizeof(h));
	return send(fd, frame, sizeof(h) + len, MSG_NOSIGNAL) == (ssize_t)(sizeof(h) + len);
}

static void *strangers_main(void *arg)
{
	struct pair *p = arg;
	struct lm_wire_header h = { .magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16(LM_MSG_RECOVER),
				    .len = lm_le32(LM_TOKEN_SIZE), .seq = lm_le64(1) };
	uint8_t frame[sizeof(h) + LM_TOKEN_SIZE] = { 0 };
	int fd;

	unit_sleep_ms(300);
	/* One of another version, */
	fd = netrelay_connect(p->relay->target);
	hello_as(fd, 99, 98);
	unit_sleep_ms(200);
	close(fd);
	/* one who hangs up at once, */
	fd = netrelay_connect(p->relay->target);
	close(fd);
	/* and one who does not know the secret. */
	memcpy(frame, &h, sizeof(h));
	fd = netrelay_connect(p->relay->target);
	hello_as(fd, LM_WIRE_VERSION, LM_WIRE_COMPAT);
	send(fd, frame, sizeof(frame), MSG_NOSIGNAL);
	unit_sleep_ms(200);
	close(fd);
	atomic_store(&p->relay->refuses, false);
	return NULL;
}

static void let_strangers_in(struct pair *p, const struct lm_event *e)
{
	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages || p->count++)
		return;
	atomic_store(&p->relay->refuses, true);
	netrelay_cut(p->relay);
	pthread_create(&p->helper, NULL, strangers_main, p);
	p->has_helper = true;
}

static void strangers_do_not_end_the_wait_for_the_source(void **state)
{
	struct pair *p = slow_pair();

	(void)state;
	p->on_dst = let_strangers_in;
	pair_run(p);
	assert_postcopied(p);
	assert_int_equal(p->dst_sum.postcopy.recoveries, 1);
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
	struct fakevm_config c = small;
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
	assert_postcopied(p);
	assert_int_equal(p->dst_sum.postcopy.recoveries, 1);
	pair_free(p);
}

/* After a recovery, as before, there is nothing that a cancel could undo. */
static void cut_then_cancel(struct pair *p, const struct lm_event *e)
{
	if (e->type == LM_EVENT_POSTCOPY && e->u.postcopy.missing_pages && !p->count++)
		netrelay_cut(p->relay);
	if (is_stage(e, "recovered")) {
		lm_session_cancel(p->dst);
		lm_session_cancel(p->src);
	}
}

static void a_cancel_has_no_effect_after_commit(void **state)
{
	struct pair *p = slow_pair();

	(void)state;
	p->on_dst = cut_then_cancel;
	pair_run(p);
	assert_postcopied(p);
	pair_free(p);
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
	if (!is_stage(e, "pausing"))
		return;
	unit_sleep_ms(100); /* if anybody answers the touch now, let him */
	p->a->ram[0][TOUCHED * LM_PAGE_SIZE] = 0xd7;
	atomic_store(&p->a->written[0][TOUCHED], 1);
}

static uint8_t what_a_device_reads_early(void)
{
	struct fakevm_config c = small;
	struct lm_options *copy = malloc(sizeof(*copy));
	struct lm_error err = { 0 };
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
	*copy = p->dst_opt;
	assert_ok(lm_session_new(copy, LM_DEST, vm, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), &p->dst, &err), err);
	p->relay = netrelay_new(lm_session_address(p->dst));
	p->src_opt.address = p->relay->address;
	p->src = session(&p->src_opt, LM_SOURCE, p->a);
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

static int no_userfaultfd(void)
{
	printf("no userfaultfd for minor faults of shared memory here: the tests cannot run\n");
	return 77;
}

static const struct CMUnitTest moves[] = {
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

static const struct CMUnitTest network[] = {
	cmocka_unit_test(an_answer_to_commit_that_is_lost_is_made_up_for),
	cmocka_unit_test(a_network_that_is_cut_again_and_again_costs_no_page),
	cmocka_unit_test(a_network_that_falls_silent_is_given_up_and_found_again),
	cmocka_unit_test(a_peer_that_stays_away_interrupts_and_new_engines_go_on),
	cmocka_unit_test(pages_that_cannot_be_shown_interrupt_and_can_be_gone_on_with),
	cmocka_unit_test(a_cancel_has_no_effect_after_commit),
	cmocka_unit_test(registering_memory_may_take_longer_than_the_peer_timeout),
};

static const struct CMUnitTest liars[] = {
	cmocka_unit_test(messages_out_of_place_end_the_session_before_commit),
	cmocka_unit_test(a_source_that_lies_in_postcopy_is_sent_away_and_taken_back),
	cmocka_unit_test(a_destination_that_lies_in_postcopy_is_looked_for_anew),
	cmocka_unit_test(strangers_do_not_end_the_wait_for_the_source),
};

/* test_postcopy [moves|network|liars [NAME]] */
int main(int argc, char **argv)
{
	const char *group = argc > 1 ? argv[1] : "";
	char dir[] = "/tmp/migrate-rdma-unit-XXXXXX", sub[64];
	int r = 0;

	if (!fakevm_pager_works())
		return no_userfaultfd();
	assert_non_null(mkdtemp(dir));
	setenv("XDG_RUNTIME_DIR", dir, 1);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	if (!*group || !strcmp(group, "moves"))
		r |= cmocka_run_group_tests_name("postcopy", moves, NULL, NULL);
	if (!*group || !strcmp(group, "network"))
		r |= cmocka_run_group_tests_name("postcopy network", network, NULL, NULL);
	if (!*group || !strcmp(group, "liars"))
		r |= cmocka_run_group_tests_name("postcopy liars", liars, NULL, NULL);
	snprintf(sub, sizeof(sub), "%s/migrate-rdma", dir);
	rmdir(sub);
	rmdir(dir);
	return r;
}
