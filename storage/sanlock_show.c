/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include "sanlock_lease.h"
#include "sanlock_show.h"

uint32_t san_host_state(const struct san *s, uint64_t id)
{
	struct sanlk_host *hosts = NULL;
	uint32_t state = SANLK_HOST_UNKNOWN;
	int n = 0;

	if (sanlock_get_hosts(s->lockspace, id, &hosts, &n, 0) >= 0 && n > 0)
		state = hosts[0].flags & SANLK_HOST_MASK;
	free(hosts);
	return state;
}

const char *san_state_words(uint32_t state)
{
	static const char *const words[] = {
		[SANLK_HOST_UNKNOWN] = "not yet known: sanlock watches it", [SANLK_HOST_FREE] = "not in the lockspace",
		[SANLK_HOST_LIVE] = "alive", [SANLK_HOST_FAIL] = "silent, and not yet long enough", [SANLK_HOST_DEAD] = "dead",
	};

	return state < sizeof(words) / sizeof(words[0]) && words[state] ? words[state] : "not known";
}

int san_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	int r = san_look(s, &d, err);

	(void)deadline_ns;
	if (r == -EUCLEAN) {
		ret->state = LM_LOCK_DAMAGED;
		lm_lock_say(ret, "%s", err ? err->msg : "not a lease");
		return 0;
	}
	if (r)
		return r;
	ret->epoch = d.epoch;
	if (d.owner == s->self) {
		ret->state = LM_LOCK_HELD_HERE;
		snprintf(ret->holder, sizeof(ret->holder), "%s", s->lock.host);
		lm_lock_say(ret, "held by this host (%llu in the lockspace), version %llu", (unsigned long long)s->self,
			    (unsigned long long)d.epoch);
	} else if (d.owner) {
		ret->state = LM_LOCK_HELD_ELSEWHERE;
		ret->in_use = san_host_state(s, d.owner) == SANLK_HOST_LIVE;
		snprintf(ret->holder, sizeof(ret->holder), "host-number-%llu", (unsigned long long)d.owner);
		lm_lock_say(ret, "held by host %llu of the lockspace, version %llu; that host is %s",
			    (unsigned long long)d.owner, (unsigned long long)d.epoch, san_state_words(san_host_state(s, d.owner)));
	} else if (d.handover) {
		ret->state = LM_LOCK_IN_HANDOVER;
		snprintf(ret->holder, sizeof(ret->holder), "host-number-%llu", (unsigned long long)d.from);
		snprintf(ret->next, sizeof(ret->next), "host-number-%llu", (unsigned long long)d.to);
		lm_lock_say(ret, "host %llu has offered it to host %llu, version %llu: only these two can get it",
			    (unsigned long long)d.from, (unsigned long long)d.to, (unsigned long long)d.epoch);
	} else {
		lm_lock_say(ret, "free, version %llu", (unsigned long long)d.epoch);
	}
	return 0;
}
