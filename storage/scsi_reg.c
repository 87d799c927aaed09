/* SPDX-License-Identifier: Apache-2.0 */
/* scsi-pr: which paths work, and what is registered through them. */
#include <string.h>
#include "scsi_state.h"
#include "engine/base/testhook.h"

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

static void forget_path(struct scsi_pr *s, unsigned i)
{
	lm_scsi_close(s->paths[i]);
	s->paths[i] = s->paths[--s->npaths];
}

/* Where the path is in the list, or its length. */
static unsigned path_index(struct lm_scsi_path *const *paths, unsigned n, const char *name)
{
	unsigned i = 0;

	while (i < n && strcmp(paths[i]->name, name))
		i++;
	return i;
}

/* Takes over what is in `now` and not known yet, and frees what is known. */
static void merge(struct scsi_pr *s, struct lm_scsi_path *const *now, unsigned n)
{
	for (unsigned i = s->npaths; i-- > 0;)
		if (path_index(now, n, s->paths[i]->name) == n)
			forget_path(s, i);
	for (unsigned i = 0; i < n; i++) {
		if (path_index(s->paths, s->npaths, now[i]->name) < s->npaths)
			lm_scsi_close(now[i]);
		else
			s->paths[s->npaths++] = now[i]; /* as many as in `now` at the most */
	}
}

/* Find paths that were added or removed.  Sends no command. */
static void look(struct scsi_pr *s)
{
	struct lm_scsi_path *now[LM_SCSI_PATHS_MAX];
	struct lm_error why = { 0 };
	unsigned n = 0;

	if (lm_broken("lock-look"))
		return;
	if (s->options.find) {
		if (s->options.find(s->options.where, now, &n, &why))
			lm_lock_remark(&s->lock, "%.150s", why.msg); /* the paths that are known may still do */
		else
			merge(s, now, n);
	}
	for (unsigned i = 0; i < s->npaths; i++) {
		struct lm_scsi_path *p = s->paths[i];

		if (p->up && p->ops->alive && !p->ops->alive(p))
			p->up = p->registered = p->failed = false;
	}
}

/* Once: what the target says that it can do.  What it does not say, it shows when it refuses. */
static int ask_abilities(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_abilities a;

	if (s->asked || lm_pr_abilities(pr_best(s), &a, deadline_ns, NULL))
		return 0;
	s->asked = true;
	s->no_abort |= a.abort_known && !a.abort;
	s->no_aptpl = a.aptpl_known && !a.aptpl;
	if (a.types_known && !(a.types & 1U << s->options.type))
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "the target has no reservations of type %u (it has: mask %04x)",
			      s->options.type, a.types);
	return 0;
}

static int connect_paths(struct scsi_pr *s, bool all, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_error why = { 0 }, first = { 0 };

	look(s);
	for (unsigned i = 0; i < s->npaths; i++) {
		struct lm_scsi_path *p = s->paths[i];
		int r;

		if (p->up || (p->failed && !all))
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
			p->failed = true;
			lm_lock_remark(&s->lock, "%.150s", why.msg);
			if (!first.code)
				first = why;
		}
	}
	if (paths_up(s))
		return ask_abilities(s, deadline_ns, err);
	return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "no path to the unit works: %.300s",
		      *first.msg ? first.msg : "all have failed");
}

int pr_revive(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	return connect_paths(s, true, deadline_ns, err);
}

int pr_join(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	return connect_paths(s, false, deadline_ns, err);
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
		if (!r)
			s->seen = *v;
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

static bool strangers(const struct lm_pr_view *v)
{
	for (unsigned i = 0; i < v->nkeys; i++)
		if (!pr_key_is_lm(v->keys[i]))
			return true;
	return false;
}

int pr_reg_new(struct scsi_pr *s, struct lm_scsi_path *p, uint64_t key, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	if (!strangers(&s->seen))
		return pr_reg(s, p, LM_PR_REGISTER_IGNORE, 0, key, deadline_ns, err);
	/* The key that is there may be one of theirs: each way that cannot replace it. */
	r = pr_reg(s, p, LM_PR_REGISTER, 0, key, deadline_ns, err);
	for (unsigned i = 0; r == -EBUSY && i < s->seen.nkeys; i++)
		if (pr_key_is_lm(s->seen.keys[i]))
			r = pr_reg(s, p, LM_PR_REGISTER, s->seen.keys[i], key, deadline_ns, err);
	if (r == -EBUSY)
		return lm_err(err, -EPERM, LM_SCOPE_OPERATION, "path %s is registered with the key of another program", p->name);
	return r;
}

/* Put the key on all paths that are up.  A path that does not take it is no error as long as another one does. */
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
		else if (!pr_reg_new(s, p, key, deadline_ns, &why))
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

int pr_reg_again(struct scsi_pr *s, const struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err)
{
	unsigned there = 0, known = 0;

	for (unsigned i = 0; i < v->nkeys; i++)
		there += v->keys[i] == s->key;
	for (unsigned i = 0; i < s->npaths; i++)
		known += s->paths[i]->up && s->paths[i]->registered;
	for (unsigned i = 0; there < known && i < s->npaths; i++)
		s->paths[i]->registered = false;
	return pr_reg_all(s, s->key, deadline_ns, err);
}

/* Remove all registrations of this handle, except through path keep (NULL: no exception). */
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

int pr_preempt(struct scsi_pr *s, struct lm_scsi_path *p, uint64_t key, uint64_t other, bool disks_idle,
	       int64_t deadline_ns, struct lm_error *err)
{
	int r;

	s->in_flight |= !disks_idle;
	if (disks_idle || s->no_abort)
		return lm_pr_out(p, LM_PR_PREEMPT, s->options.type, key, other, false, deadline_ns, err);
	r = lm_pr_out(p, LM_PR_PREEMPT_ABORT, s->options.type, key, other, false, deadline_ns, err);
	if (!r)
		s->in_flight = false;
	if (r == -ENOLINK)
		lm_lock_remark(&s->lock, "no answer to PREEMPT AND ABORT; if this target hangs in it, write abort=no");
	s->no_abort = r == -EOPNOTSUPP || r == -ENOLINK;
	if (r != -EOPNOTSUPP)
		return r;
	return lm_pr_out(p, LM_PR_PREEMPT, s->options.type, key, other, false, deadline_ns, err);
}

int pr_settle(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	if (!s->in_flight || lm_broken("lock-abort"))
		return 0;
	r = lm_scsi_reset(pr_best(s), deadline_ns, err);
	if (r)
		lm_err_prefix(err, "the unit could not be reset, so writes of the other host may still be in flight");
	s->in_flight = r;
	return r;
}
