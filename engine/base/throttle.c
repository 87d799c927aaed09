/* SPDX-License-Identifier: Apache-2.0 */
#include "clock.h"
#include "throttle.h"

/* How much unused bandwidth may be saved up. */
#define BURST_NS (2 * LM_NS_PER_MS)
#define NAP_NS (10 * LM_NS_PER_MS)

static int64_t cost_ns(const struct lm_throttle *t, uint64_t bytes)
{
	return (int64_t)((double)bytes * 1e9 / (double)t->max_bytes_per_s);
}

void lm_throttle_charge(struct lm_throttle *t, uint64_t bytes)
{
	int64_t at = atomic_load(&t->booked_ns), from, now = lm_now_ns();

	if (!t->max_bytes_per_s)
		return;
	do {
		if (at > now + LM_THROTTLE_DEBT_NS)
			return;
		from = at < now - BURST_NS ? now - BURST_NS : at;
	} while (!atomic_compare_exchange_weak(&t->booked_ns, &at, from + cost_ns(t, bytes)));
}

bool lm_throttle_allows(const struct lm_throttle *t)
{
	return !t->max_bytes_per_s || atomic_load(&t->booked_ns) < lm_now_ns() + LM_THROTTLE_DEBT_NS / 2;
}

void lm_throttle(struct lm_throttle *t, uint64_t bytes, const _Atomic bool *stop)
{
	int64_t cost, at, now = lm_now_ns();

	if (!t->max_bytes_per_s || !bytes)
		return;
	cost = cost_ns(t, bytes);
	at = atomic_load(&t->booked_ns);
	while (at < now - BURST_NS && !atomic_compare_exchange_weak(&t->booked_ns, &at, now - BURST_NS))
		;
	at = atomic_fetch_add(&t->booked_ns, cost);
	while ((now = lm_now_ns()) < at && !atomic_load(stop)) {
		struct timespec nap = { 0, at - now < NAP_NS ? at - now : NAP_NS };

		nanosleep(&nap, NULL);
	}
}
