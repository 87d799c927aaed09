/* SPDX-License-Identifier: Apache-2.0 */
/* Options: their defaults, and what is refused. */
#include <string.h>
#include "engine/base/clock.h"
#include "engine/transport/registry.h"
#include "session.h"

#define TIME_MAX_NS (365 * 24 * 3600 * LM_NS_PER_S) /* sums of a few stay far below INT64_MAX */

void lm_options_default(struct lm_options *o)
{
	*o = (struct lm_options){
		.transport = "auto",
		.max_downtime_ns = 10 * LM_NS_PER_MS,
		.on_stall = LM_STALL_WAIT,
		.postcopy = LM_POSTCOPY_AUTO,
		.recover_timeout_ns = 60 * LM_NS_PER_S,
		.max_pause_ns = 5 * LM_NS_PER_S,
		.peer_timeout_ns = 10 * LM_NS_PER_S,
		.qmp_timeout_ns = 10 * LM_NS_PER_S,
		.guardian = true,
		.log_level = LM_LOG_INFO,
	};
}

static int check_times(const struct lm_options *o, struct lm_error *err)
{
	const struct {
		int64_t ns;
		bool may_be_zero;
	} times[] = {
		{ o->max_downtime_ns, false }, { o->max_pause_ns, false }, { o->peer_timeout_ns, false },
		{ o->qmp_timeout_ns, false }, { o->timeout_ns, true }, { o->recover_timeout_ns, true },
		{ o->postcopy_after_ns, true },
	};

	for (unsigned i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		if (times[i].ns > TIME_MAX_NS)
			return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "a time limit above a year");
		if (times[i].ns < 0 || (!times[i].ns && !times[i].may_be_zero))
			return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "a time limit must be above zero");
	}
	return 0;
}

int lm_options_check(const struct lm_options *o, enum lm_mode mode, struct lm_error *err)
{
	if (mode != LM_MODE_LIVE && !o->image)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "no image given");
	if (!o->address && mode == LM_MODE_LIVE)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "no address given");
	if (!o->transport || (strcmp(o->transport, "auto") && !lm_transport_find(o->transport)))
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION,
			      "no transport \"%s\": `migrate-rdma transports` lists what there is",
			      o->transport ? o->transport : "");
	if (o->lanes > LM_LANES_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "%u lanes: at most %d", o->lanes, LM_LANES_MAX);
	if (o->nlocks > LM_LOCKS_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "%u storage locks: at most %d", o->nlocks, LM_LOCKS_MAX);
	return check_times(o, err);
}
