/* SPDX-License-Identifier: Apache-2.0 */
/* scsi-pr: to become the holder of the reservation. */
#include "engine/base/testhook.h"
#include "scsi_state.h"

static bool key_here(const struct scsi_pr *s, uint64_t key)
{
	return pr_key_of_host(key, s->host);
}

/* On a path that is not known to have a key of ours.  The kernel's paths may: processes die, nexuses stay. */
static int register_first(struct scsi_pr *s, struct lm_scsi_path *p, uint64_t old, uint64_t key,
			  int64_t deadline_ns, struct lm_error *err)
{
	int r = -EBUSY;

	if (p->registered && s->key == key && !s->doubt)
		return 0;
	if (key_here(s, old) && !lm_broken("lock-rekey"))
		r = pr_reg(s, p, LM_PR_REGISTER, old, key, deadline_ns, err);
	return r != -EBUSY ? r : pr_reg_new(s, p, key, deadline_ns, err);
}

/*
 * Every path on which this host is registered with `old` changes its key before `old` is
 * preempted.  Else those but p would not be registered for a moment, and what a
 * running guest writes through them would fail.
 */
static void rekey(struct scsi_pr *s, const struct lm_scsi_path *p, uint64_t old, uint64_t key, int64_t deadline_ns)
{
	if (!key_here(s, old) || lm_broken("lock-rekey"))
		return;
	for (unsigned i = 0; i < s->npaths; i++)
		if (s->paths[i] != p && s->paths[i]->up && !s->paths[i]->registered)
			pr_reg(s, s->paths[i], LM_PR_REGISTER, old, key, deadline_ns, NULL);
}

/*
 * Own it with `key`, from a reservation held by `old` (a key of this host, or one that
 * may be taken), or from none (0).  The path that is registered already changes
 * its key strictly.  0 when READ RESERVATION says so; -EBUSY: somebody else was first.
 */
int pr_become(struct scsi_pr *s, uint64_t key, uint64_t old, bool disks_idle, int64_t deadline_ns,
	      struct lm_error *err)
{
	struct lm_scsi_path *p = pr_best(s);
	struct lm_pr_view v;
	int r;

	if (!p)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "no path is up");
	if (p->registered && s->key && s->key == old)
		r = pr_reg(s, p, LM_PR_REGISTER, old, key, deadline_ns, err);
	else
		r = register_first(s, p, old, key, deadline_ns, err);
	if (r)
		return r;
	for (unsigned i = 0; s->key != key && i < s->npaths; i++)
		s->paths[i]->registered = s->paths[i] == p;
	s->key = key;
	rekey(s, p, old, key, deadline_ns);
	r = lm_fault_point("lock-registered", err);
	if (!r)
		r = old ? pr_preempt(s, p, key, old, disks_idle, deadline_ns, err) :
		    lm_pr_out(p, LM_PR_RESERVE, s->options.type, key, 0, false, deadline_ns, err);
	s->doubt = r == -EBUSY; /* gone already, somebody was first, or it is we who are not registered */
	if (r && !s->doubt)
		return r;
	r = lm_fault_point("lock-preempted", err);
	if (lm_broken("lock-proof"))
		return pr_reg_all(s, key, deadline_ns, err);
	if (!r)
		r = pr_view(s, &v, deadline_ns, err);
	if (r)
		return r;
	if (!v.held || v.holder != key || !pr_type_ours(&v)) {
		s->in_flight = false;
		return pr_held_by(s, &v, -EBUSY, err);
	}
	s->doubt = false;
	r = pr_settle(s, deadline_ns, err);
	if (!r)
		r = pr_reg_all(s, key, deadline_ns, err);
	if (!r)
		r = pr_purge(s, pr_best(s), &v, key, deadline_ns, err);
	s->generation = v.generation;
	return r;
}

/* How an operation ended that was tried several times. */
int pr_given_up(int r, struct lm_error *err)
{
	if (r != -EAGAIN)
		return r;
	lm_err_prefix(err, "given up after several tries, and it is not known how the lock is now");
	return -ETIMEDOUT;
}
