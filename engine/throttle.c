/* SPDX-License-Identifier: Apache-2.0 */
#include "clock.h"
#include "throttle.h"

/* How much unused bandwidth may be saved up. */
#define BURST_NS (2 * LM_NS_PER_MS)
#define NAP_NS (10 * LM_NS_PER_MS)

void lm_throttle(struct lm_throttle *t, uint64_t bytes, const _Atomic bool *stop)
{
	int64_t cost, at, now = lm_now_ns();

	if (!t->max_bytes_per_s || !bytes)
		return;
	cost = (int64_t)((double)bytes * 1e9 / (double)t->max_bytes_per_s);
	at = atomic_load(&t->booked_ns);
	while (at < now - BURST_NS && !atomic_compare_exchange_weak(&t->booked_ns, &at, now - BURST_NS))
		;
	at = atomic_fetch_add(&t->booked_ns, cost);
	while ((now = lm_now_ns()) < at && !atomic_load(stop)) {
		struct timespec nap = { 0, at - now < NAP_NS ? at - now : NAP_NS };

		nanosleep(&nap, NULL);
	}
}
