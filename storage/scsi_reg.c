/* SPDX-License-Identifier: Apache-2.0 */
/* scsi-pr: which paths work, and what is registered through them. */
#include <string.h>
#include "scsi_state.h"
#include "testhook.h"

/* --- paths ------------------------------------------------------------------------ */

static unsigned paths_up(const struct scsi_pr *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < s->npaths; i++)
		n += s->paths[i]->up;
	return n;
}

/* Through another path one might reach another unit: then it is not used. */
static int path_check(struct scsi_pr *s, struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	static const uint8_t none[LM_LOCK_ID_SIZE];
	uint8_t id[LM_LOCK_ID_SIZE];
	int r = lm_scsi_identity(p, id, deadline_ns, err);

	if (r)
		return r;
	if (!memcmp(s->id, none, sizeof(none)))
		memcpy(s->id, id, sizeof(id));
	if (memcmp(s->id, id, sizeof(id)))
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_OPERATION, "path %s leads to another unit than the others",
			      p->name);
	return 0;
}

/* Try the paths that are down once more; at least one must be up. */
int pr_revive(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_error why = { 0 }, first = { 0 };

	for (unsigned i = 0; i < s->npaths; i++) {
		struct lm_scsi_path *p = s->paths[i];
		int r;

		if (p->up)
			continue;
		r = lm_scsi_connect(p, deadline_ns, &why);
		if (!r)
			r = path_check(s, p, deadline_ns, &why);
		if (r == -EMEDIUMTYPE) {
			if (err)
				*err = why;
			return r;
		}
		if (r) {
			p->up = false;
			lm_lock_remark(&s->lock, "%.150s", why.msg);
			if (!first.code)
				first = why;
		}
	}
	if (paths_up(s))
		return 0;
	return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "no path to the unit works: %.300s", first.msg);
}

/* The first path that is up, one with a registration if there is any. */
struct lm_scsi_path *pr_best(const struct scsi_pr *s)
{
	struct lm_scsi_path *any = NULL;

	for (unsigned i = 0; i < s->npaths; i++) {
		if (s->paths[i]->up && s->paths[i]->registered)
			return s->paths[i];
		if (s->paths[i]->up && !any)
			any = s->paths[i];
	}
	return any;
}

int pr_view(struct scsi_pr *s, struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err)
{
	bool again = true;
	int r;

	for (;;) {
		struct lm_scsi_path *p = pr_best(s);

		if (!p && again) {
			again = false;
			r = pr_revive(s, deadline_ns, err);
			if (r)
				return r;
			continue;
		}
		r = p ? lm_pr_view(p, v, deadline_ns, err) : -ENOLINK;
		if (!p || r != -ENOLINK)
			return r;
	}
}

/* --- registrations ---------------------------------------------------------------- */

int pr_reg(struct scsi_pr *s, struct lm_scsi_path *p, enum lm_pr_out how, uint64_t old, uint64_t key,
	   int64_t deadline_ns, struct lm_error *err)
{
	int r = lm_pr_out(p, how, 0, old, key, !s->no_aptpl, deadline_ns, err);

	if (r == -EOPNOTSUPP && !s->no_aptpl) {
		s->no_aptpl = true; /* it forgets everything when it restarts */
		r = lm_pr_out(p, how, 0, old, key, false, deadline_ns, err);
	}
	p->registered = !r && key;
	return r;
}

/* Key on all paths that are up.  A path that does not take it is not an error as long as one does. */
int pr_reg_all(struct scsi_pr *s, uint64_t key, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_error why = { 0 };
	unsigned n = 0;

	for (unsigned i = 0; i < s->npaths; i++) {
		struct lm_scsi_path *p = s->paths[i];

		if (!p->up)
			continue;
		if (p->registered && s->key == key)
			n++;
		else if (!pr_reg(s, p, LM_PR_REGISTER_IGNORE, 0, key, deadline_ns, &why))
			n++;
		else
			lm_lock_remark(&s->lock, "%.150s", why.msg);
	}
	s->key = key;
	if (n)
		return 0;
	return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "the key could not be registered on any path: %.300s",
		      *why.msg ? why.msg : "none is up");
}

/* Nothing of this handle stays registered, but through path keep (NULL: none). */
void pr_withdraw_but(struct scsi_pr *s, const struct lm_scsi_path *keep, int64_t deadline_ns)
{
	for (unsigned i = 0; i < s->npaths; i++)
		if (s->paths[i]->up && s->paths[i]->registered && s->paths[i] != keep)
			pr_reg(s, s->paths[i], LM_PR_REGISTER, s->key, 0, deadline_ns, NULL);
	for (unsigned i = 0; i < s->npaths; i++)
		s->paths[i]->registered = false;
	s->key = 0;
}

void pr_withdraw(struct scsi_pr *s, int64_t deadline_ns)
{
	pr_withdraw_but(s, NULL, deadline_ns);
}

/* Remove keys of this program but for `keep`; p is registered with that one and holds the reservation. */
int pr_purge(struct scsi_pr *s, struct lm_scsi_path *p, const struct lm_pr_view *v, uint64_t keep,
	     int64_t deadline_ns, struct lm_error *err)
{
	for (unsigned i = 0; i < v->nkeys; i++) {
		int r;

		if (!pr_key_is_lm(v->keys[i]) || v->keys[i] == keep)
			continue;
		r = lm_pr_out(p, LM_PR_PREEMPT, s->options.type, keep, v->keys[i], false, deadline_ns, err);
		if (r && r != -EBUSY) /* busy: it is gone, e.g. by this loop */
			return r;
	}
	return 0;
}

/*
 * PREEMPT of key `other` by `key`, with what makes commands of the other host's nexuses
 * that are still in flight end before this returns, unless they are known not to be.
 */
int pr_preempt(struct scsi_pr *s, struct lm_scsi_path *p, uint64_t key, uint64_t other, bool quiet,
	       int64_t deadline_ns, struct lm_error *err)
{
	int r = -EOPNOTSUPP;

	if (!quiet && !s->no_abort) {
		r = lm_pr_out(p, LM_PR_PREEMPT_ABORT, s->options.type, key, other, false, deadline_ns, err);
		s->no_abort = r == -EOPNOTSUPP;
	}
	if (r != -EOPNOTSUPP)
		return r;
	r = lm_pr_out(p, LM_PR_PREEMPT, s->options.type, key, other, false, deadline_ns, err);
	if (r || quiet || lm_broken("lock-abort"))
		return r;
	r = lm_scsi_reset(p, deadline_ns, err);
	if (r)
		lm_err_prefix(err, "the unit could not be reset, so writes of the other host may still be in flight");
	return r;
}
