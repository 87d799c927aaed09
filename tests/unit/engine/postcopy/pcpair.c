/* SPDX-License-Identifier: Apache-2.0 */
#include <unistd.h>
#include "pcpair.h"
#include "newsession.h"

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

bool pair_is_stage(const struct lm_event *e, const char *name)
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

	if (pair_is_stage(e, "resumed"))
		vcpus_start(p);
	if (p->on_dst)
		p->on_dst(p, e);
}

const struct fakevm_config pair_small = {
	.nregions = 2, .region_bytes = { 8u << 20, 2u << 20 }, .source = true, .writes_per_ms = 20,
};

struct pair *pair_new(const struct fakevm_config *config)
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

struct lm_session *pair_session(const struct lm_options *o, enum lm_side side, struct fakevm_state *st)
{
	return unit_session(o, side, fakevm_new(st));
}

static void *dest_main(void *arg)
{
	struct pair *p = arg;

	p->dst_ret = lm_session_run(p->dst, &p->dst_err);
	return NULL;
}

void pair_go(struct pair *p)
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

void pair_run(struct pair *p)
{
	p->dst = pair_session(&p->dst_opt, LM_DEST, p->b);
	p->relay = netrelay_new(lm_session_address(p->dst));
	p->src_opt.address = p->relay->address;
	p->src = pair_session(&p->src_opt, LM_SOURCE, p->a);
	pair_go(p);
}

void pair_free(struct pair *p)
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

void pair_assert_moved(struct pair *p)
{
	if (p->src_ret || p->dst_ret)
		fail_msg("source: %s; destination: %s", p->src_err.msg, p->dst_err.msg);
	assert_int_equal(p->src_sum.outcome, LM_OUTCOME_COMPLETED);
	assert_int_equal(p->dst_sum.outcome, LM_OUTCOME_COMPLETED);
	assert_false(p->a->running);
	assert_true(p->b->running);
	assert_true(all_pages_right(p));
}

void pair_assert_left_nothing(const struct pair *p)
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

void pair_assert_postcopied(struct pair *p)
{
	pair_assert_moved(p);
	pair_assert_left_nothing(p);
	assert_int_equal(p->b->pagers, 1);
	assert_true(p->src_sum.postcopy.used && p->dst_sum.postcopy.used);
	assert_true(p->dst_sum.postcopy.left_pages > 0);
	assert_int_equal(p->dst_sum.postcopy.missing_pages, 0);
	assert_int_equal(p->src_sum.postcopy.missing_pages, 0);
}

void pair_assert_stayed(const struct pair *p, enum lm_outcome outcome)
{
	assert_int_not_equal(p->src_ret, 0);
	assert_int_not_equal(p->dst_ret, 0);
	assert_int_equal(p->src_sum.outcome, outcome);
	assert_true(p->a->running);
	assert_false(p->b->running);
}

struct pair *pair_slow(void)
{
	struct fakevm_config c = pair_small;
	struct pair *p;

	c.region_bytes[0] = 12u << 20;
	p = pair_new(&c);
	p->src_opt.max_bandwidth_bytes_per_s = 4u << 20;
	p->nap_every = 1;
	p->nap_ms = 50; /* what the guest touches is fetched whatever the limit says */
	return p;
}

int pair_main_of(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
	char dir[] = "/tmp/migrate-rdma-unit-XXXXXX", sub[64];
	int r;

	if (!fakevm_pager_works()) {
		printf("no userfaultfd for minor faults of shared memory here: the tests cannot run\n");
		return 77;
	}
	assert_non_null(mkdtemp(dir));
	setenv("XDG_RUNTIME_DIR", dir, 1);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	r = _cmocka_run_group_tests("postcopy", tests, n, NULL, NULL);
	snprintf(sub, sizeof(sub), "%s/migrate-rdma", dir);
	rmdir(sub);
	rmdir(dir);
	return r;
}
