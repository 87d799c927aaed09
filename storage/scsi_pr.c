/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scsi-pr: the lock is a persistent reservation of the whole logical unit, of a
 * "registrants only" type, and its holder's key says who and since when (lm_pr_key()).
 * Whoever is registered can write, so in every lasting state one host is.
 *
 * The atomic step is always a PREEMPT that names the key of the holder *with its epoch*:
 *
 *   take     registers key(dest, e+1), then PREEMPT of key(source, e)
 *   reclaim  first changes the source's own key to key(source, e+1)
 *
 * If reclaim was first, the key that take names is no longer there: RESERVATION
 * CONFLICT.  If take was first, the source is no longer registered: the change of its key
 * is the one that conflicts.  Whatever was answered, or got lost, READ RESERVATION then
 * says who holds it; nothing else counts.  Nobody registers with "ignore" while another
 * host may hold the reservation, except to take it over, and then withdraws when it lost.
 *
 * After a change of the holder all other keys of this program are removed.  Keys of
 * others are never named in a command.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/base/clock.h"
#include "scsi_state.h"
#include "engine/base/testhook.h"

/* --- owning it --------------------------------------------------------------------- */

/* One try.  -EAGAIN: what was seen has changed meanwhile. */
static int acquire_once(struct scsi_pr *s, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	uint64_t epoch;
	int r = pr_view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (v.held && (!pr_key_of_host(v.holder, s->host) || !pr_type_ours(&v)))
		return pr_held_by(s, &v, -EBUSY, err);
	if (v.held && v.holder == s->key && s->lock.state == LM_LOCK_OWNED)
		return pr_reg_again(s, &v, deadline_ns, err);
	if (!v.held && !free_too)
		return lm_lock_is_free(err);
	epoch = pr_epoch_next(s, &v);
	r = pr_epoch_valid(epoch, err);
	if (!r)
		r = lm_fault_point("lock-owning", err);
	if (!r)
		r = pr_become(s, lm_pr_key(s->host, epoch), v.held ? v.holder : 0, true, deadline_ns, err);
	if (!r)
		s->lock.epoch = epoch;
	return r == -EBUSY || r == -ENOLINK ? -EAGAIN : r;
}

static int pr_acquire(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	/* After an offer the guest stands still, and a dead path could cost seconds. */
	int r = l->state == LM_LOCK_OFFERED ? pr_join(s, deadline_ns, err) : pr_revive(s, deadline_ns, err);

	if (!r || (r == -ENOLINK && l->state == LM_LOCK_OFFERED))
		r = -EAGAIN; /* pr_view() tries dead paths when there is no other */
	for (unsigned i = 0; r == -EAGAIN && i < PR_TRIES && lm_now_ns() < deadline_ns; i++)
		r = acquire_once(s, free_too, deadline_ns, err);
	r = pr_given_up(r, err);
	if (r == -EBUSY || r == -ESTALE)
		pr_withdraw(s, deadline_ns);
	return r ? r : lm_fault_point("lock-owned", err);
}

/* --- hand-over --------------------------------------------------------------------- */

static bool key_there(const struct lm_pr_view *v, uint64_t key)
{
	for (unsigned i = 0; i < v->nkeys; i++)
		if (v->keys[i] == key)
			return true;
	return false;
}

/*
 * Nobody holds it, because the target restarted and forgot, or because the path that
 * held it was removed there.  In the second case our key is still there, so nobody has
 * had it since: whoever gets it removes our keys.  Get it again, if nobody is faster.
 */
static int re_establish(struct scsi_pr *s, const struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err)
{
	uint32_t before = s->generation;
	int r;

	if (v->held || (v->generation >= s->generation && !key_there(v, s->key)))
		return pr_held_by(s, v, -ESTALE, err);
	for (unsigned i = 0; i < s->npaths; i++)
		s->paths[i]->registered = false;
	r = pr_become(s, s->key, 0, true, deadline_ns, err);
	if (r)
		return r == -EBUSY ? -ESTALE : r;
	lm_lock_remark(&s->lock, "the target %s (generation %u after %u): for a while other hosts were not kept out. It is "
	               "registered and reserved again", key_there(v, s->key) ? "had dropped the reservation with the path that held it" :
		       "has restarted and had forgotten the reservation", v->generation, before);
	return 0;
}

/* That this host holds it, on every path that is up. */
static int still_ours(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	int r = pr_view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (!v.held || v.holder != s->key)
		return re_establish(s, &v, deadline_ns, err);
	s->generation = v.generation;
	return pr_reg_again(s, &v, deadline_ns, err);
}

static void identify(const struct scsi_pr *s, struct lm_lock_note *note)
{
	memcpy(note->id, s->id, sizeof(note->id));
	note->detail = s->key;
}

static int pr_offer(struct lm_lock *l, const struct lm_lock_note *answer, struct lm_lock_note *note,
		    int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	int r = answer ? pr_join(s, deadline_ns, err) : pr_revive(s, deadline_ns, err);

	if (r == -ENOLINK && answer)
		r = 0; /* pr_view() tries dead paths when there is no other */
	if (!r && answer && memcmp(answer->id, s->id, sizeof(s->id)))
		r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s has another unit", answer->host);
	if (!r)
		r = still_ours(s, deadline_ns, err);
	if (!r && answer)
		r = lm_fault_point("lock-offering", err);
	if (!r && answer)
		r = lm_fault_point("lock-offered", err);
	identify(s, note);
	return r;
}

static int check_note(const struct scsi_pr *s, const struct lm_lock_note *note, struct lm_error *err)
{
	if (memcmp(note->id, s->id, sizeof(s->id)))
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s has another unit: the path or LUN here does not "
			      "lead to the same storage", note->host);
	if (note->detail != lm_pr_key(note->host, note->epoch))
		return lm_err(err, -ESTALE, LM_SCOPE_SESSION, "the note of %s does not name its own key", note->host);
	if (pr_host_part(note->host) == pr_host_part(s->host))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%s and %s would have the same key: give one of them another "
			      "name with --host", note->host, s->host);
	return pr_epoch_valid(note->epoch + 1, err);
}

static int pr_prepare(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
		      int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	struct lm_pr_view v;
	int r = pr_revive(s, deadline_ns, err);

	if (!r)
		r = check_note(s, announce, err);
	if (!r)
		r = pr_view(s, &v, deadline_ns, err); /* this also clears the unit attentions of a new nexus */
	if (!r && (!v.held || v.holder != announce->detail))
		r = pr_held_by(s, &v, -ESTALE, err);
	if (!r && s->options.early)
		r = pr_reg_all(s, lm_pr_key(s->host, announce->epoch + 1), deadline_ns, err);
	identify(s, answer);
	return r;
}

static int take_once(struct scsi_pr *s, const struct lm_lock_note *offer, int64_t deadline_ns,
		     struct lm_error *err)
{
	uint64_t mine = lm_pr_key(s->host, offer->epoch + 1);
	struct lm_pr_view v;
	int r = pr_view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (v.held && v.holder == mine) {
		/* Taken before, perhaps through a nexus that is gone, perhaps without all that follows. */
		r = pr_reg_all(s, mine, deadline_ns, err);
		s->in_flight |= !offer->disks_idle;
		if (!r)
			r = pr_settle(s, deadline_ns, err);
		return r ? r : pr_purge(s, pr_best(s), &v, mine, deadline_ns, err);
	}
	if ((!v.held || v.holder != offer->detail) && !lm_broken("lock-proof"))
		return pr_held_by(s, &v, -ESTALE, err);
	r = lm_fault_point("lock-owning", err);
	if (!r)
		r = pr_become(s, mine, offer->detail, offer->disks_idle, deadline_ns, err);
	return r == -EBUSY || r == -ENOLINK ? -EAGAIN : r;
}

static int pr_take(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	int r = check_note(s, offer, err);

	if (!r)
		r = pr_join(s, deadline_ns, err);
	if (!r || r == -ENOLINK)
		r = -EAGAIN; /* pr_view() tries dead paths when there is no other */
	for (unsigned i = 0; r == -EAGAIN && i < PR_TRIES && lm_now_ns() < deadline_ns; i++)
		r = take_once(s, offer, deadline_ns, err);
	r = pr_given_up(r, err);
	if (r == -ESTALE)
		pr_withdraw(s, deadline_ns);
	if (r)
		return r;
	l->epoch = offer->epoch + 1;
	return lm_fault_point("lock-owned", err);
}

/* --- open and close ---------------------------------------------------------------- */

static void pr_close(struct lm_lock *l)
{
	struct scsi_pr *s = pr_of(l);

	if (l->state != LM_LOCK_OWNED && l->state != LM_LOCK_OFFERED)
		pr_withdraw(s, lm_deadline_after(LM_NS_PER_S));
	for (unsigned i = 0; i < s->npaths; i++)
		lm_scsi_close(s->paths[i]);
	free(s);
}

static const struct lm_lock_ops pr_ops = {
	.name = "scsi-pr",
	.acquire = pr_acquire,
	.offer = pr_offer,
	.prepare = pr_prepare,
	.take = pr_take,
	.release = pr_release,
	.show = pr_show,
	.break_ = pr_break,
	.close = pr_close,
};

int lm_scsi_pr_new(struct lm_scsi_path *const *paths, unsigned npaths, const struct lm_scsi_pr_options *options,
		   const char *host, int64_t deadline_ns, struct lm_lock **ret, struct lm_error *err)
{
	struct scsi_pr *s = calloc(1, sizeof(*s));
	int r;

	if (!s) {
		for (unsigned i = 0; i < npaths; i++)
			lm_scsi_close(paths[i]);
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	}
	s->lock = (struct lm_lock){ .ops = &pr_ops, .keep_fd = -1 };
	s->options = *options;
	s->no_abort = options->no_abort;
	s->npaths = npaths;
	memcpy(s->paths, paths, npaths * sizeof(*paths));
	snprintf(s->host, sizeof(s->host), "%s", host);
	r = pr_revive(s, deadline_ns, err);
	if (r) {
		pr_close(&s->lock);
		return r;
	}
	*ret = &s->lock;
	return 0;
}

struct lm_scsi_path *const *lm_scsi_pr_paths(const struct lm_lock *l, unsigned *ret_n)
{
	const struct scsi_pr *s = (const struct scsi_pr *)l;

	*ret_n = s->npaths;
	return s->paths;
}
