/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/base/clock.h"
#include "engine/session/session.h"

#define EVENT_NS (200 * LM_NS_PER_MS)

void lm_postcopy_event(struct lm_session *s, const struct lm_postcopy_stats *stats)
{
	struct lm_event e = { .type = LM_EVENT_POSTCOPY };
	int64_t now = lm_now_ns();

	if (now - s->pull.last_event_ns < EVENT_NS && stats->missing_pages)
		return;
	s->pull.last_event_ns = now;
	e.u.postcopy = *stats;
	lm_session_event(s, &e);
}

/* In a time that does not depend on where they differ. */
bool lm_secret_equal(const uint8_t a[static LM_TOKEN_SIZE], const uint8_t b[static LM_TOKEN_SIZE])
{
	uint8_t differ = 0;

	for (unsigned i = 0; i < LM_TOKEN_SIZE; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

void lm_postcopy_tell_lanes(struct lm_session *s, uint64_t failed,
			    const char *(*why)(const struct lm_session *s, unsigned lane))
{
	unsigned n = s->pull.nlanes + 1;

	for (unsigned i = 0; i < n; i++) {
		struct lm_event e = { .type = LM_EVENT_LANE };

		if (!((failed & ~s->pull.failed_told) >> i & 1))
			continue;
		s->pull.failed_told |= UINT64_C(1) << i;
		e.u.lane.lane = i;
		e.u.lane.live = n - (unsigned)__builtin_popcountll(s->pull.failed_told);
		e.u.lane.why = why(s, i);
		lm_session_log(s, LM_LOG_WARN, "post-copy: lane %u of %u%s is lost (%s)", i, n,
			       i + 1 == n ? ", that for faults," : "", e.u.lane.why);
		lm_session_event(s, &e);
	}
}

void lm_postcopy_tell_back(struct lm_session *s, unsigned lane)
{
	struct lm_event e = { .type = LM_EVENT_LANE };
	unsigned n = s->pull.nlanes + 1;

	s->pull.failed_told &= ~(UINT64_C(1) << lane);
	e.u.lane.lane = lane;
	e.u.lane.live = n - (unsigned)__builtin_popcountll(s->pull.failed_told);
	e.u.lane.back = true;
	lm_session_log(s, LM_LOG_INFO, "post-copy: lane %u of %u%s is back", lane, n,
		       lane + 1 == n ? ", that for faults," : "");
	lm_session_event(s, &e);
}
