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
#include <string.h>
#include <xxhash.h>
#include "backends.h"
#include "cleanup.h"
#include "clock.h"
#include "scsi_pr.h"
#include "testhook.h"

#define KEY_MAGIC UINT64_C(0x4c4d)
#define EPOCH_BITS 24
#define EPOCH_MAX ((UINT64_C(1) << EPOCH_BITS) - 1)
#define TRIES 8 /* of a whole operation, when others change the reservation meanwhile */

struct scsi_pr {
	struct lm_lock lock;
	struct lm_scsi_pr_options options;
	struct lm_scsi_path *paths[LM_SCSI_PATHS_MAX];
	unsigned npaths;
	char host[LM_LOCK_HOST_MAX];
	uint64_t key;        /* what path->registered is about; 0: none */
	uint32_t generation; /* the last one seen: going back means that the target forgot */
	uint8_t id[LM_LOCK_ID_SIZE];
	bool doubt;          /* a registration may be gone although nobody told us: make it again */
	uint64_t breaking;   /* the holder that a break is about, and nobody else */
	bool no_abort, no_aptpl; /* what this target refused */
};

static struct scsi_pr *pr_of(struct lm_lock *l)
{
	return (struct scsi_pr *)l;
}

/* --- keys ------------------------------------------------------------------------- */

static uint64_t host_part(const char *host)
{
	return XXH3_64bits(host, strlen(host)) & 0xffffff;
}

uint64_t lm_pr_key(const char *host, uint64_t epoch)
{
	return KEY_MAGIC << 48 | host_part(host) << EPOCH_BITS | (epoch & EPOCH_MAX);
}

static bool key_is_lm(uint64_t key)
{
	return key >> 48 == KEY_MAGIC;
}

static uint64_t key_epoch(uint64_t key)
{
	return key & EPOCH_MAX;
}

static bool key_of_host(uint64_t key, const char *host)
{
	return key_is_lm(key) && ((key >> EPOCH_BITS) & 0xffffff) == host_part(host);
}

static uint64_t epoch_seen(const struct lm_pr_view *v)
{
	uint64_t max = 0;

	for (unsigned i = 0; i < v->nkeys; i++)
		if (key_is_lm(v->keys[i]) && key_epoch(v->keys[i]) > max)
			max = key_epoch(v->keys[i]);
	return max;
}

static uint64_t epoch_next(const struct scsi_pr *s, const struct lm_pr_view *v)
{
	uint64_t max = epoch_seen(v);

	if (s->lock.epoch > max)
		max = s->lock.epoch;
	return max ? max + 1 : lm_lock_epoch_first();
}

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
static int revive(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
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
static struct lm_scsi_path *best(const struct scsi_pr *s)
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

static int view(struct scsi_pr *s, struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err)
{
	bool again = true;
	int r;

	for (;;) {
		struct lm_scsi_path *p = best(s);

		if (!p && again) {
			again = false;
			r = revive(s, deadline_ns, err);
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

static int reg(struct scsi_pr *s, struct lm_scsi_path *p, enum lm_pr_out how, uint64_t old, uint64_t key,
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
static int reg_all(struct scsi_pr *s, uint64_t key, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_error why = { 0 };
	unsigned n = 0;

	for (unsigned i = 0; i < s->npaths; i++) {
		struct lm_scsi_path *p = s->paths[i];

		if (!p->up)
			continue;
		if (p->registered && s->key == key)
			n++;
		else if (!reg(s, p, LM_PR_REGISTER_IGNORE, 0, key, deadline_ns, &why))
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
static void withdraw_but(struct scsi_pr *s, const struct lm_scsi_path *keep, int64_t deadline_ns)
{
	for (unsigned i = 0; i < s->npaths; i++)
		if (s->paths[i]->up && s->paths[i]->registered && s->paths[i] != keep)
			reg(s, s->paths[i], LM_PR_REGISTER, s->key, 0, deadline_ns, NULL);
	for (unsigned i = 0; i < s->npaths; i++)
		s->paths[i]->registered = false;
	s->key = 0;
}

static void withdraw(struct scsi_pr *s, int64_t deadline_ns)
{
	withdraw_but(s, NULL, deadline_ns);
}

/* Remove keys of this program but for `keep`; p is registered with that one and holds the reservation. */
static int purge(struct scsi_pr *s, struct lm_scsi_path *p, const struct lm_pr_view *v, uint64_t keep,
		 int64_t deadline_ns, struct lm_error *err)
{
	for (unsigned i = 0; i < v->nkeys; i++) {
		int r;

		if (!key_is_lm(v->keys[i]) || v->keys[i] == keep)
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
static int preempt(struct scsi_pr *s, struct lm_scsi_path *p, uint64_t key, uint64_t other, bool quiet,
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

/* --- who holds it ------------------------------------------------------------------ */

static bool type_ours(const struct lm_pr_view *v)
{
	return v->type == 5 || v->type == 6;
}

static int held_by(const struct scsi_pr *s, const struct lm_pr_view *v, int code, struct lm_error *err)
{
	if (!v->held)
		return lm_err(err, code, LM_SCOPE_OPERATION, "nobody holds the reservation any more");
	if (!key_is_lm(v->holder) || !type_ours(v))
		return lm_err(err, code, LM_SCOPE_OPERATION, "a reservation that is not of this program is there: key "
			      "%016llx, type %u", (unsigned long long)v->holder, v->type);
	return lm_err(err, code, LM_SCOPE_OPERATION, "%s host holds it: key %016llx, epoch %llu",
		      key_of_host(v->holder, s->host) ? "this" : "another", (unsigned long long)v->holder,
		      (unsigned long long)key_epoch(v->holder));
}

/*
 * Own it with `key`, from a reservation held by `old` (a key of this host, or one that
 * may be taken), or from none (0).  The path that is registered already changes
 * its key strictly.  0 when READ RESERVATION says so; -EBUSY: somebody else was first.
 */
static int become(struct scsi_pr *s, uint64_t key, uint64_t old, bool quiet, int64_t deadline_ns,
		  struct lm_error *err)
{
	struct lm_scsi_path *p = best(s);
	struct lm_pr_view v;
	int r;

	if (!p)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "no path is up");
	if (p->registered && s->key && s->key == old)
		r = reg(s, p, LM_PR_REGISTER, old, key, deadline_ns, err);
	else
		r = p->registered && s->key == key && !s->doubt ? 0 :
		    reg(s, p, LM_PR_REGISTER_IGNORE, 0, key, deadline_ns, err);
	if (r)
		return r;
	for (unsigned i = 0; s->key != key && i < s->npaths; i++)
		s->paths[i]->registered = s->paths[i] == p;
	s->key = key;
	r = lm_fault_point("lock-registered", err);
	if (!r)
		r = old ? preempt(s, p, key, old, quiet, deadline_ns, err) :
		    lm_pr_out(p, LM_PR_RESERVE, s->options.type, key, 0, false, deadline_ns, err);
	s->doubt = r == -EBUSY; /* gone already, somebody was first, or it is we who are not registered */
	if (r && !s->doubt)
		return r;
	r = lm_fault_point("lock-preempted", err);
	if (lm_broken("lock-proof"))
		return reg_all(s, key, deadline_ns, err);
	if (!r)
		r = view(s, &v, deadline_ns, err);
	if (r)
		return r;
	if (!v.held || v.holder != key || !type_ours(&v))
		return held_by(s, &v, -EBUSY, err);
	r = reg_all(s, key, deadline_ns, err);
	if (!r)
		r = purge(s, best(s), &v, key, deadline_ns, err);
	s->generation = v.generation;
	return r;
}

static int epoch_valid(uint64_t epoch, struct lm_error *err)
{
	return epoch <= EPOCH_MAX ? 0 : lm_err(err, -ERANGE, LM_SCOPE_OPERATION, "the epoch does not fit into a key");
}

/* One try.  -EAGAIN: what was seen has changed meanwhile. */
static int acquire_once(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	uint64_t epoch;
	int r = view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (v.held && (!key_of_host(v.holder, s->host) || !type_ours(&v)))
		return held_by(s, &v, -EBUSY, err);
	if (v.held && v.holder == s->key && s->lock.state == LM_LOCK_OWNED)
		return reg_all(s, s->key, deadline_ns, err);
	epoch = epoch_next(s, &v);
	r = epoch_valid(epoch, err);
	if (!r)
		r = lm_fault_point("lock-owning", err);
	if (!r)
		r = become(s, lm_pr_key(s->host, epoch), v.held ? v.holder : 0, true, deadline_ns, err);
	if (!r)
		s->lock.epoch = epoch;
	return r == -EBUSY || r == -ENOLINK ? -EAGAIN : r;
}

/* How an operation ended that was tried several times. */
static int given_up(int r, struct lm_error *err)
{
	if (r != -EAGAIN)
		return r;
	lm_err_prefix(err, "given up after several tries, and it is not known how the lock is now");
	return -ETIMEDOUT;
}

static int pr_acquire(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	int r = l->state == LM_LOCK_OFFERED ? 0 : revive(s, deadline_ns, err); /* a dead path may cost seconds */

	if (!r)
		r = -EAGAIN;
	for (unsigned i = 0; r == -EAGAIN && i < TRIES && lm_now_ns() < deadline_ns; i++)
		r = acquire_once(s, deadline_ns, err);
	r = given_up(r, err);
	if (r == -EBUSY)
		withdraw(s, deadline_ns);
	return r ? r : lm_fault_point("lock-owned", err);
}

/* --- hand-over --------------------------------------------------------------------- */

/* A target that restarted without having kept the reservation: get it again, if nobody was faster. */
static int re_establish(struct scsi_pr *s, const struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	if (v->held || v->generation >= s->generation)
		return held_by(s, v, -ESTALE, err);
	for (unsigned i = 0; i < s->npaths; i++)
		s->paths[i]->registered = false;
	r = become(s, s->key, 0, true, deadline_ns, err);
	if (r)
		return r == -EBUSY ? -ESTALE : r;
	lm_lock_remark(&s->lock, "the target has restarted and had forgotten the reservation (generation %u after %u): "
		       "for a while nobody was kept out. It is registered and reserved again", v->generation,
		       s->generation);
	return 0;
}

/* That this host holds it, on every path that is up. */
static int still_ours(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	int r = view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (!v.held || v.holder != s->key)
		return re_establish(s, &v, deadline_ns, err);
	s->generation = v.generation;
	return reg_all(s, s->key, deadline_ns, err);
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
	int r = answer ? 0 : revive(s, deadline_ns, err);

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
	if (host_part(note->host) == host_part(s->host))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%s and %s would have the same key: give one of them another "
			      "name with --host", note->host, s->host);
	return epoch_valid(note->epoch + 1, err);
}

static int pr_prepare(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
		      int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	struct lm_pr_view v;
	int r = revive(s, deadline_ns, err);

	if (!r)
		r = check_note(s, announce, err);
	if (!r)
		r = view(s, &v, deadline_ns, err); /* takes the unit attentions of a new nexus away, too */
	if (!r && (!v.held || v.holder != announce->detail))
		r = held_by(s, &v, -ESTALE, err);
	if (!r && s->options.early)
		r = reg_all(s, lm_pr_key(s->host, announce->epoch + 1), deadline_ns, err);
	identify(s, answer);
	return r;
}

static int take_once(struct scsi_pr *s, const struct lm_lock_note *offer, int64_t deadline_ns,
		     struct lm_error *err)
{
	uint64_t mine = lm_pr_key(s->host, offer->epoch + 1);
	struct lm_pr_view v;
	int r = view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (v.held && v.holder == mine) {
		/* Taken before, perhaps through a nexus that is gone, perhaps without all that follows. */
		r = reg_all(s, mine, deadline_ns, err);
		if (!r && !offer->quiet)
			r = lm_scsi_reset(best(s), deadline_ns, err);
		return r ? r : purge(s, best(s), &v, mine, deadline_ns, err);
	}
	if ((!v.held || v.holder != offer->detail) && !lm_broken("lock-proof"))
		return held_by(s, &v, -ESTALE, err);
	r = lm_fault_point("lock-owning", err);
	if (!r)
		r = become(s, mine, offer->detail, offer->quiet, deadline_ns, err);
	return r == -EBUSY || r == -ENOLINK ? -EAGAIN : r;
}

static int pr_take(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	int r = check_note(s, offer, err);

	if (!r)
		r = -EAGAIN;
	for (unsigned i = 0; r == -EAGAIN && i < TRIES && lm_now_ns() < deadline_ns; i++)
		r = take_once(s, offer, deadline_ns, err);
	r = given_up(r, err);
	if (r == -ESTALE)
		withdraw(s, deadline_ns);
	if (r)
		return r;
	l->epoch = offer->epoch + 1;
	return lm_fault_point("lock-owned", err);
}

/* --- release, break, show ---------------------------------------------------------- */

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
			r = view(s, &v, deadline_ns, err);
	}
	if (!r && v.held && v.holder == s->key) /* e.g. of a path that died: take it over again */
		r = lm_err(err, -EAGAIN, LM_SCOPE_OPERATION, "the target does not release the reservation");
	if (!r)
		withdraw_but(s, best(s), deadline_ns);
	return r;
}

/*
 * Through this handle's own nexus, with a key that no other process or host has: take
 * the reservation over, whose ever it is, then let it go.
 */
static int free_it(struct scsi_pr *s, const struct lm_pr_view *v, bool quiet, int64_t deadline_ns,
		   struct lm_error *err)
{
	uint64_t epoch = epoch_next(s, v);
	int r = epoch_valid(epoch, err);

	s->options.type = v->type;
	if (!r)
		r = become(s, lm_pr_key(s->host, epoch), v->holder, quiet, deadline_ns, err);
	if (!r)
		r = let_go(s, deadline_ns, err);
	return r == -EBUSY || r == -ENOLINK ? -EAGAIN : r;
}

static int release_once(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	int r = view(s, &v, deadline_ns, err);

	if (r)
		return r;
	if (v.held && (!key_of_host(v.holder, s->host) || !type_ours(&v)))
		return held_by(s, &v, -EPERM, err);
	if (v.held)
		return free_it(s, &v, true, deadline_ns, err);
	withdraw(s, deadline_ns);
	return 0;
}

static int break_once(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_pr_view v;
	int r = view(s, &v, deadline_ns, err);

	if (r || !v.held)
		return r;
	if (!s->breaking)
		s->breaking = v.holder;
	if (v.holder != s->breaking && v.holder != s->key)
		return held_by(s, &v, -EBUSY, err); /* by somebody who came meanwhile, and lives */
	if (key_is_lm(v.holder) && type_ours(&v))
		return free_it(s, &v, false, deadline_ns, err);
	r = held_by(s, &v, -EPERM, err);
	lm_err_prefix(err, "not touched (sg_persist can, when you know what it is)");
	return r;
}

static int several_times(struct scsi_pr *s, int (*once)(struct scsi_pr *, int64_t, struct lm_error *),
			 int64_t deadline_ns, struct lm_error *err)
{
	int r = revive(s, deadline_ns, err);

	if (!r)
		r = -EAGAIN;
	for (unsigned i = 0; r == -EAGAIN && i < TRIES && lm_now_ns() < deadline_ns; i++)
		r = once(s, deadline_ns, err);
	return given_up(r, err);
}

static int pr_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	int r = several_times(pr_of(l), release_once, deadline_ns, err);

	return r ? r : lm_fault_point("lock-released", err);
}

static int pr_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	pr_of(l)->breaking = 0;
	return several_times(pr_of(l), break_once, deadline_ns, err);
}

static void say_holder(const struct scsi_pr *s, const struct lm_pr_view *v, struct lm_lock_info *ret)
{
	bool here = key_of_host(v->holder, s->host);

	if (!v->held) {
		ret->epoch = epoch_seen(v);
		lm_lock_say(ret, "free: the unit has no reservation");
		return;
	}
	if (!key_is_lm(v->holder) || !type_ours(v)) {
		ret->state = LM_LOCK_FOREIGN;
		lm_lock_say(ret, "reserved by something that is not this program: key %016llx, type %u",
			    (unsigned long long)v->holder, v->type);
		return;
	}
	ret->state = here ? LM_LOCK_HELD_HERE : LM_LOCK_HELD_ELSEWHERE;
	ret->epoch = key_epoch(v->holder);
	if (here)
		snprintf(ret->holder, sizeof(ret->holder), "%s", s->host);
	else
		snprintf(ret->holder, sizeof(ret->holder), "host-number-%06llx",
			 (unsigned long long)(v->holder >> EPOCH_BITS) & 0xffffff);
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
				    !key_is_lm(v->keys[i]) ? "not of this program" :
				    key_of_host(v->keys[i], s->host) ? "this host" : "another host");
	}
}

static int pr_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	struct scsi_pr *s = pr_of(l);
	struct lm_pr_view v;
	int r = view(s, &v, deadline_ns, err);

	if (r)
		return r;
	say_holder(s, &v, ret);
	say_keys(s, &v, ret);
	for (unsigned i = 0; i < s->npaths; i++)
		lm_lock_say(ret, "path %s: %s", s->paths[i]->name, s->paths[i]->up ? "works" : "does not work");
	lm_lock_say(ret, "generation %u", v.generation);
	return 0;
}

static void pr_close(struct lm_lock *l)
{
	struct scsi_pr *s = pr_of(l);

	if (l->state != LM_LOCK_OWNED && l->state != LM_LOCK_OFFERED)
		withdraw(s, lm_deadline_after(LM_NS_PER_S));
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
	s->npaths = npaths;
	memcpy(s->paths, paths, npaths * sizeof(*paths));
	snprintf(s->host, sizeof(s->host), "%s", host);
	r = revive(s, deadline_ns, err);
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
