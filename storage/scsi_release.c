/* SPDX-License-Identifier: Apache-2.0 */
/* scsi-pr: to give the reservation up, or another host's. */
#include "engine/base/clock.h"
#include "scsi_state.h"
#include "engine/base/testhook.h"

/*
 * The reservation is ours, through a nexus of this handle.  One registration is left
 * behind: without a reservation it keeps nobody out and lets nobody in, but its key
 * remembers the epoch for whoever comes next.
 */
static int let_go(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v = { .held = true };
	int r = 0;

	for (unsigned i = 0; !r && v.held && i < s->npaths; i++) {
		struct lm_scsi_path *p = s->paths[i];

		if (!p->up || !p->registered)
			continue;
		r = lm_pr_out(p, LM_PR_RELEASE, s->options.type, s->key, 0, false, deadline_ns, err);
		if (!r || r == -ENOLINK)
			r = pr_view(s, &v, deadline_ns, err);
	}
	if (!r && v.held && v.holder == s->key) /* e.g. of a path that died: take it over again */
		r = lm_err(err, -EAGAIN, LM_SCOPE_OPERATION, "the target does not release the reservation");
	if (!r)
		pr_withdraw_but(s, pr_best(s), deadline_ns);
	return r;
}

/*
 * Through this handle's own nexus, with a key that no other process or host has: take
 * the reservation over, whose ever it is, then let it go.
 */
static int free_it(struct scsi_pr *s, const struct lm_pr_view *v, bool disks_idle, int64_t deadline_ns,
		   struct lm_error *err)
{
	uint64_t epoch = pr_epoch_next(s, v);
	int r = pr_epoch_valid(epoch, err);

	s->options.type = v->type;
	if (!r)
		r = pr_become(s, lm_pr_key(s->host, epoch), v->holder, disks_idle, deadline_ns, err);
	if (!r)
		r = let_go(s, deadline_ns, err);
	return r == -EBUSY || r == -ENOLINK ? -EAGAIN : r;
}

static int release_once(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	int r = pr_view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (v.held && (!pr_key_of_host(v.holder, s->host) || !pr_type_ours(&v)))
		return pr_held_by(s, &v, -EPERM, err);
	if (v.held)
		return free_it(s, &v, true, deadline_ns, err);
	pr_withdraw(s, deadline_ns);
	return 0;
}

static int break_once(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	int r = pr_view(s, &v, deadline_ns, err);

	if (r || !v.held)
		return r;
	if (!s->breaking)
		s->breaking = v.holder;
	if (v.holder != s->breaking && v.holder != s->key)
		return pr_held_by(s, &v, -EBUSY, err); /* by somebody who came meanwhile, and lives */
	if (pr_key_is_lm(v.holder) && pr_type_ours(&v))
		return free_it(s, &v, false, deadline_ns, err);
	r = pr_held_by(s, &v, -EPERM, err);
	lm_err_prefix(err, "not touched (sg_persist can, when you know what it is)");
	return r;
}

static int several_times(struct scsi_pr *s, int (*once)(struct scsi_pr *, int64_t, struct lm_error *),
			 int64_t deadline_ns, struct lm_error *err)
{
	int r = pr_revive(s, deadline_ns, err);

	if (!r)
		r = -EAGAIN;
	for (unsigned i = 0; r == -EAGAIN && i < PR_TRIES && lm_now_ns() < deadline_ns; i++)
		r = once(s, deadline_ns, err);
	return pr_given_up(r, err);
}

int pr_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	int r = several_times(pr_of(l), release_once, deadline_ns, err);

	return r ? r : lm_fault_point("lock-released", err);
}

int pr_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	pr_of(l)->breaking = 0;
	return several_times(pr_of(l), break_once, deadline_ns, err);
}
