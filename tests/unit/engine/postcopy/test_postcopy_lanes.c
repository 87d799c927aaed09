/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copies that lose lanes, whose others go on meanwhile. */
#include "pcpair.h"

#define FAULTS 2 /* the lane for faults */

static struct {
	unsigned lost[2], back[2]; /* a bit per lane, by side */
	bool cannot;               /* the source is of those that do not know LANE_OPEN */
} lanes;

static void note_lane(enum lm_side side, const struct lm_event *e)
{
	if (e->type == LM_EVENT_LANE)
		*(e->u.lane.back ? &lanes.back[side] : &lanes.lost[side]) |= 1u << e->u.lane.lane;
}

static void note_src(struct pair *p, const struct lm_event *e)
{
	(void)p;
	note_lane(LM_SOURCE, e);
}

/* First all but lane 1; when they are back, that one. */
static void lose_lanes(struct pair *p, const struct lm_event *e)
{
	note_lane(LM_DEST, e);
	if (pair_is_stage(e, "opened") && lanes.cannot)
		p->dst->ctx.control.features = 0;
	if (e->type != LM_EVENT_POSTCOPY || !e->u.postcopy.missing_pages)
		return;
	if (!p->count++) {
		lm_transport_shut(p->dst->dst.pull.both.transport, 0);
		lm_transport_shut(p->dst->dst.pull.both.transport, FAULTS);
	}
	if (lanes.back[LM_DEST] == (1u | 1u << FAULTS) && !(lanes.lost[LM_DEST] & 2))
		lm_transport_shut(p->dst->dst.pull.both.transport, 1);
}

/* Asks for a lane that nobody waits for: the source is at it still when the destination, which has lost it, asks. */
static void ask_in_vain(struct pair *p, const struct lm_event *e)
{
	const struct lm_wire_lane_open open = { .lane = lm_le32(0) };

	note_lane(LM_DEST, e);
	if (e->type == LM_EVENT_POSTCOPY && e->u.postcopy.missing_pages && !p->count++)
		lm_control_send(&p->dst->ctx.control, LM_MSG_LANE_OPEN, &open, sizeof(open), lm_deadline_after(LM_NS_PER_S), NULL);
}

/* Under a cap a lane carries one run at a time, and the runs of this guest are small: it takes seconds. */
static struct pair *run(void (*on_dst)(struct pair *p, const struct lm_event *e), bool cannot, unsigned mib)
{
	struct fakevm_config c = pair_small;
	struct pair *p;

	c.region_bytes[0] = (uint64_t)mib << 20;
	p = pair_new(&c);
	memset(&lanes, 0, sizeof(lanes));
	lanes.cannot = cannot;
	p->src_opt.max_bandwidth_bytes_per_s = 1u << 20;
	p->nap_every = 1;
	p->nap_ms = 100;
	p->on_src = note_src;
	p->on_dst = on_dst;
	pair_run(p);
	pair_assert_postcopied(p);
	assert_int_equal(p->dst_sum.postcopy.recoveries, 0);
	return p;
}

static struct pair *pair_that_loses_lanes(bool cannot, unsigned mib)
{
	return run(lose_lanes, cannot, mib);
}

static void an_attempt_makes_room_for_the_next(void **state)
{
	(void)state;
	pair_free(run(ask_in_vain, false, 5));
	assert_int_equal(lanes.lost[LM_DEST], 1);
	assert_int_equal(lanes.back[LM_DEST], 1);
	assert_int_equal(lanes.back[LM_SOURCE], 1);
}

static void lanes_that_are_lost_come_back_while_the_others_go_on(void **state)
{
	(void)state;
	pair_free(pair_that_loses_lanes(false, 5));
	assert_int_equal(lanes.lost[LM_DEST], 7);
	assert_int_equal(lanes.back[LM_DEST] & 5, 5);
	assert_int_equal(lanes.lost[LM_SOURCE] & 5, 5);
	assert_int_equal(lanes.back[LM_SOURCE] & 5, 5);
}

static void a_source_that_cannot_is_not_asked_for_lanes(void **state)
{
	(void)state;
	pair_free(pair_that_loses_lanes(true, 2));
	assert_int_equal(lanes.lost[LM_DEST], 5);
	assert_int_equal(lanes.back[LM_DEST] | lanes.back[LM_SOURCE], 0);
}

/* Teeth: the decorator, which does nothing else here, lets nobody in whose place is not fenced. */
static void without_the_fence_a_lane_stays_out(void **state)
{
	(void)state;
	setenv("LM_BREAK", "fence", 1);
	setenv("LM_TRANSPORT_FAULT", "action=register=0", 1);
	pair_free(pair_that_loses_lanes(false, 2));
	unsetenv("LM_TRANSPORT_FAULT");
	unsetenv("LM_BREAK");
	assert_int_equal(lanes.lost[LM_DEST], 5);
	assert_int_equal(lanes.back[LM_DEST], 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lanes_that_are_lost_come_back_while_the_others_go_on),
		cmocka_unit_test(an_attempt_makes_room_for_the_next),
		cmocka_unit_test(a_source_that_cannot_is_not_asked_for_lanes),
		cmocka_unit_test(without_the_fence_a_lane_stays_out),
	};

	return pair_main(argc, argv, tests);
}
