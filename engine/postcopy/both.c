/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "engine/base/clock.h"
#include "both.h"

#define EVENT_NS (200 * LM_NS_PER_MS)

void lm_postcopy_event(struct lm_postcopy_both *p, const struct lm_postcopy_stats *stats)
{
	struct lm_event e = { .type = LM_EVENT_POSTCOPY };
	int64_t now = lm_now_ns();

	if (now - p->last_event_ns < EVENT_NS && stats->missing_pages)
		return;
	p->last_event_ns = now;
	e.u.postcopy = *stats;
	lm_ctx_event(p->c, &e);
}

/* The time it takes does not depend on where they differ. */
bool lm_secret_equal(const uint8_t a[static LM_TOKEN_SIZE], const uint8_t b[static LM_TOKEN_SIZE])
{
	uint8_t differ = 0;

	for (unsigned i = 0; i < LM_TOKEN_SIZE; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

void lm_postcopy_tell_lanes(struct lm_postcopy_both *p, uint64_t failed,
			    const char *(*why)(const struct lm_postcopy_both *p, unsigned lane))
{
	unsigned n = p->nlanes + 1;

	for (unsigned i = 0; i < n; i++) {
		struct lm_event e = { .type = LM_EVENT_LANE };

		if (!((failed & ~p->failed_told) >> i & 1))
			continue;
		p->failed_told |= UINT64_C(1) << i;
		e.u.lane.lane = i;
		e.u.lane.live = n - (unsigned)__builtin_popcountll(p->failed_told);
		e.u.lane.why = why(p, i);
		lm_ctx_log(p->c, LM_LOG_WARN, "post-copy: lane %u of %u%s is lost (%s)", i, n,
			   i + 1 == n ? ", that for faults," : "", e.u.lane.why);
		lm_ctx_event(p->c, &e);
	}
}

void lm_postcopy_tell_back(struct lm_postcopy_both *p, unsigned lane)
{
	struct lm_event e = { .type = LM_EVENT_LANE };
	unsigned n = p->nlanes + 1;

	p->failed_told &= ~(UINT64_C(1) << lane);
	e.u.lane.lane = lane;
	e.u.lane.live = n - (unsigned)__builtin_popcountll(p->failed_told);
	e.u.lane.back = true;
	lm_ctx_log(p->c, LM_LOG_INFO, "post-copy: lane %u of %u%s is back", lane, n,
		   lane + 1 == n ? ", that for faults," : "");
	lm_ctx_event(p->c, &e);
}

void lm_postcopy_read_state(struct lm_postcopy_both *p)
{
	const struct lm_pcstate_head *h = p->state.head;
	struct lm_summary *sum = &p->c->summary;

	p->armed = true;
	p->nlanes = h->nlanes;
	p->max_bytes_per_s = h->max_bytes_per_s;
	sum->lanes = h->nlanes;
	memcpy(sum->transport, h->transport, sizeof(h->transport));
	sum->transport[sizeof(h->transport) - 1] = 0;
	memcpy(p->secret, h->secret, sizeof(h->secret));
	p->began_ns = lm_now_ns();
}
