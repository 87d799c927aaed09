/* SPDX-License-Identifier: Apache-2.0 */
/* scsi-pr: what is on the target, in words. */
#include <stdio.h>
#include "scsi_state.h"

static void say_holder(const struct scsi_pr *s, const struct lm_pr_view *v, struct lm_lock_info *ret)
{
	bool here = pr_key_of_host(v->holder, s->host);

	if (!v->held) {
		ret->epoch = pr_epoch_seen(v);
		lm_lock_say(ret, "free: the unit has no reservation");
		return;
	}
	if (!pr_key_is_lm(v->holder) || !pr_type_ours(v)) {
		ret->state = LM_LOCK_FOREIGN;
		lm_lock_say(ret, "reserved by something that is not this program: key %016llx, type %u",
			    (unsigned long long)v->holder, v->type);
		return;
	}
	ret->state = here ? LM_LOCK_HELD_HERE : LM_LOCK_HELD_ELSEWHERE;
	ret->epoch = pr_key_epoch(v->holder);
	if (here)
		snprintf(ret->holder, sizeof(ret->holder), "%s", s->host);
	else
		snprintf(ret->holder, sizeof(ret->holder), "host-number-%06x",
			 (unsigned)pr_key_host(v->holder));
	lm_lock_say(ret, "held by %s%s, epoch %llu: reservation of type %u (%s, registrants only), key %016llx",
		    ret->holder, here ? " (this host)" : "", (unsigned long long)ret->epoch, v->type,
		    v->type == 5 ? "write exclusive" : "exclusive access", (unsigned long long)v->holder);
}

/* Each key once, with how many nexuses have it. */
static void say_keys(const struct scsi_pr *s, const struct lm_pr_view *v, struct lm_lock_info *ret)
{
	for (unsigned i = 0; i < v->nkeys; i++) {
		unsigned n = 1;
		bool seen = false;

		for (unsigned j = 0; j < i; j++)
			seen |= v->keys[j] == v->keys[i];
		for (unsigned j = i + 1; j < v->nkeys; j++)
			n += v->keys[j] == v->keys[i];
		if (!seen)
			lm_lock_say(ret, "key %016llx on %u path%s: %s", (unsigned long long)v->keys[i], n, n == 1 ? "" : "s",
				    !pr_key_is_lm(v->keys[i]) ? "not of this program" :
				    pr_key_of_host(v->keys[i], s->host) ? "this host" : "another host");
	}
}

/* The kernel's nexuses are those of the guest's own I/O. */
static void say_missing(const struct scsi_pr *s, const struct lm_pr_view *v, struct lm_lock_info *ret)
{
	unsigned keys = 0, up = 0;

	if (ret->state != LM_LOCK_HELD_HERE || !s->options.find)
		return;
	for (unsigned i = 0; i < v->nkeys; i++)
		keys += v->keys[i] == v->holder;
	for (unsigned i = 0; i < s->npaths; i++)
		up += s->paths[i]->up;
	if (keys < up)
		lm_lock_say(ret, "only %u of %u paths of this host are registered: what is written through the others fails; `lock "
			    "acquire` registers them", keys, up);
}

int pr_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	struct lm_pr_view v;
	int r = pr_view(s, &v, deadline_ns, err);

	if (r)
		return r;
	say_holder(s, &v, ret);
	say_keys(s, &v, ret);
	say_missing(s, &v, ret);
	for (unsigned i = 0; i < s->npaths; i++)
		lm_lock_say(ret, "path %s: %s", s->paths[i]->name, s->paths[i]->up ? "works" : "does not work");
	lm_lock_say(ret, "generation %u", v.generation);
	return 0;
}
