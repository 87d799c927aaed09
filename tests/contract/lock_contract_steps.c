/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "lock_contract_steps.h"

void only(struct hosts *t, const struct host *owner)
{
	for (unsigned i = 0; i < NHOSTS; i++) {
		struct reply a = TELL(&t->h[i], WRITE);

		if (&t->h[i] == owner)
			assert_ok(a);
		else
			assert_int_not_equal(a.r, 0);
	}
}

void stranger_refused(struct hosts *t)
{
	assert_error(TELL(&t->h[2], ACQUIRE), -EBUSY);
}

void shown(struct host *h, enum lm_lock_holder state, const char *holder)
{
	struct reply a = TELL(h, SHOW);

	assert_ok(a);
	if (a.info.state != state || !strstr(a.info.holder, holder))
		fail_msg("shown as %s by '%s', not %s by '%s':\n%s", lm_lock_state_name(a.info.state), a.info.holder,
			 lm_lock_state_name(state), holder, a.info.text);
	assert_true(*a.info.text);
}

void prepared(struct host *from, struct host *to)
{
	assert_ok(TELL(from, ANNOUNCE));
	assert_ok(TELL_NOTE(to, PREPARE, from));
}

void offered(struct host *from, struct host *to)
{
	prepared(from, to);
	assert_ok(TELL_NOTE(from, OFFER, to));
}

void handed_over(struct host *from, struct host *to)
{
	offered(from, to);
	assert_ok(TELL_NOTE(to, TAKE, from));
}
