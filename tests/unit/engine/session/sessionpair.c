/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include "sessionpair.h"
#include "newsession.h"

static void on_event(void *opaque, const struct lm_event *e)
{
	struct pair *p = opaque;

	if (e->type == LM_EVENT_DECISION)
		p->decisions++;
	if (e->type != LM_EVENT_ROUND)
		return;
	p->rounds_seen++;
	if (p->on_round)
		p->on_round(p, &e->u.round);
}

struct pair *pair_new(const struct fakevm_config *config)
{
	struct pair *p = calloc(1, sizeof(*p));
	struct fakevm_config b = *config;

	p->a = fakevm_state_new(config);
	b.source = false;
	p->b = fakevm_state_new(&b);
	lm_options_default(&p->src_opt);
	lm_options_default(&p->dst_opt);
	p->src_opt.guardian = p->dst_opt.guardian = false;
	p->dst_opt.address = "127.0.0.1:0";
	p->src_opt.event = on_event;
	p->src_opt.event_opaque = p;
	p->src_opt.lanes = 2;
	p->src_opt.max_downtime_ns = 100 * LM_NS_PER_MS; /* slow machines, too, are to come to an end */
	return p;
}

struct lm_session *pair_session(const struct lm_options *o, enum lm_side side, struct fakevm_state *st)
{
	return unit_session(o, side, fakevm_new(st));
}

void *pair_dest_main(void *arg)
{
	struct pair *p = arg;

	p->dst_ret = lm_session_run(p->dst, &p->dst_err);
	return NULL;
}

void pair_open(struct pair *p)
{
	p->dst = pair_session(&p->dst_opt, LM_DEST, p->b);
	p->src_opt.address = lm_session_address(p->dst);
	p->src = pair_session(&p->src_opt, LM_SOURCE, p->a);
}

void pair_run(struct pair *p)
{
	pthread_t dest;

	pair_open(p);
	pthread_create(&dest, NULL, pair_dest_main, p);
	p->src_ret = lm_session_run(p->src, &p->src_err);
	pthread_join(dest, NULL);
}

void pair_free(struct pair *p)
{
	lm_session_free(p->src);
	lm_session_free(p->dst);
	assert_int_equal(p->a->detaches, 1);
	assert_int_equal(p->b->detaches, 1);
	fakevm_state_free(p->a);
	fakevm_state_free(p->b);
	free(p);
}

const struct fakevm_config small = {
	.nregions = 2, .region_bytes = { 6u << 20, 2u << 20 }, .source = true, .writes_per_ms = 5,
};

void assert_moved(const struct pair *p)
{
	if (p->src_ret || p->dst_ret)
		fail_msg("source: %s; destination: %s", p->src_err.msg, p->dst_err.msg);
	assert_int_equal(lm_session_summary(p->src)->outcome, LM_OUTCOME_COMPLETED);
	assert_int_equal(lm_session_summary(p->dst)->outcome, LM_OUTCOME_COMPLETED);
	assert_false(p->a->running);
	assert_true(p->b->running);
	assert_true(fakevm_ram_equal(p->a, p->b));
}

void assert_stayed(const struct pair *p, enum lm_outcome outcome)
{
	assert_int_not_equal(p->src_ret, 0);
	assert_int_equal(lm_session_summary(p->src)->outcome, outcome);
	assert_true(p->a->running);
	assert_false(p->b->running);
}
