/* SPDX-License-Identifier: Apache-2.0 */
/* lease: what the record says, in words. */
#include <fcntl.h>
#include <string.h>
#include "lease_state.h"

static void say_owned(const struct lease *s, const struct lease_record *record, struct lm_lock_info *ret)
{
	bool here = !strcmp(record->owner, s->lock.host);

	ret->state = here ? LM_LOCK_HELD_HERE : LM_LOCK_HELD_ELSEWHERE;
	lm_lock_say(ret, "held by %s%s, epoch %llu", record->owner, here ? " (this host)" : "",
		    (unsigned long long)record->epoch);
	if (ret->in_use)
		lm_lock_say(ret, "a living process has it open: the holder is alive");
	else
		lm_lock_say(ret, "no process has it open; it stays with %s until released%s", record->owner,
			    here ? "" : ", or broken when that host is known to be dead");
}

static void say(const struct lease *s, const struct lease_record *record, struct lm_lock_info *ret)
{
	ret->epoch = record->epoch;
	if (record->state >= LEASE_OWNED)
		memcpy(ret->holder, record->owner, sizeof(ret->holder));
	switch (record->state) {
	case LEASE_NEW:
	case LEASE_FREE:
		lm_lock_say(ret, "free%s%s", *record->owner ? "; last held by " : "", record->owner);
		break;
	case LEASE_OWNED:
		say_owned(s, record, ret);
		break;
	case LEASE_OFFERED:
		ret->state = LM_LOCK_IN_HANDOVER;
		memcpy(ret->next, record->next, sizeof(ret->next));
		lm_lock_say(ret, "%s has offered it to %s, epoch %llu: only these two can get it, the first that asks",
			    record->owner, record->next, (unsigned long long)record->epoch);
		break;
	}
}

int lease_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	struct lease *s = lease_of(l);
	struct lease_record record = { .state = LEASE_NEW };
	struct lm_error why = { 0 };
	int r = lease_attach(s, &why);

	(void)deadline_ns;
	if (!r && s->fd >= 0)
		r = lease_record_read(s->fd, &record, &why);
	if (r && r != -EUCLEAN) {
		if (err)
			*err = why;
		return r;
	}
	ret->in_use = s->locked || (s->fd >= 0 && lease_ofd(s->fd, F_OFD_GETLK, F_WRLCK) == -EBUSY);
	if (r) {
		ret->state = LM_LOCK_DAMAGED;
		lm_lock_say(ret, "%s; when no host uses the guest any more, `lock break` writes it anew", why.msg);
		return 0;
	}
	say(s, &record, ret);
	return 0;
}
