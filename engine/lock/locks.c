/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <time.h>
#include "engine/base/clock.h"
#include "locks.h"

#define TRY_AGAIN_NS (20 * LM_NS_PER_MS)

int lm_locks_open(const char *const *uris, unsigned n, const struct lm_lock_params *p, struct lm_locks *ret,
		  struct lm_error *err)
{
	int r = 0;

	memset(ret, 0, sizeof(*ret));
	if (n > LM_LOCKS_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "%u locks: at most %d", n, LM_LOCKS_MAX);
	for (unsigned i = 0; !r && i < n; i++) {
		for (unsigned k = 0; k < i; k++)
			if (!strcmp(uris[i], uris[k]))
				r = lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "the lock %.300s is given twice", uris[i]);
		if (!r)
			r = lm_lock_open(uris[i], p, &ret->lock[i], err);
		ret->n = r ? i : i + 1;
	}
	if (r)
		lm_locks_close(ret);
	return r;
}

void lm_locks_close(struct lm_locks *l)
{
	for (unsigned i = 0; i < l->n; i++)
		lm_lock_close(l->lock[i]);
	memset(l, 0, sizeof(*l));
}

/* What a call for one lock needs; each uses its own part. */
struct call {
	const struct lm_lock_notes *in;
	struct lm_lock_notes *out;
	bool disks_idle;
	bool patient; /* try again until the deadline */
	bool free_too;
	bool owning;  /* it may make this host the owner */
	int (*one)(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns, struct lm_error *err);
};

bool lm_locks_final(int r)
{
	static const int codes[] = { -EBUSY, -ESTALE, -EPERM, -EUCLEAN, -ENOTSUP, -EMEDIUMTYPE, -EPROTO, -EINVAL };

	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		if (r == codes[i])
			return true;
	return false;
}

static int until_final(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns,
		       struct lm_error *err)
{
	const struct timespec pause = { .tv_nsec = TRY_AGAIN_NS };
	int r;

	for (;;) {
		r = c->one(l, c, i, deadline_ns, err);
		if (!r || lm_locks_final(r) || !c->patient || lm_now_ns() + TRY_AGAIN_NS >= deadline_ns)
			return r;
		nanosleep(&pause, NULL);
	}
}

static int each(struct lm_locks *l, const struct call *c, int64_t deadline_ns, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	int r = 0;

	for (unsigned i = 0; !r && i < l->n; i++) {
		if (c->owning && l->touched <= i)
			l->touched = i + 1;
		l->failed = i;
		r = until_final(l->lock[i], c, i, deadline_ns, err);
	}
	l->spent_ns = lm_now_ns() - begin;
	return r;
}

static int acquire_one(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns, struct lm_error *err)
{
	(void)c;
	(void)i;
	return lm_lock_acquire(l, deadline_ns, err);
}

int lm_locks_acquire(struct lm_locks *l, int64_t deadline_ns, struct lm_error *err)
{
	const struct call c = { .one = acquire_one, .owning = true };

	return each(l, &c, deadline_ns, err);
}

static int announce_one(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns, struct lm_error *err)
{
	return lm_lock_announce(l, c->out->note[i], deadline_ns, err);
}

int lm_locks_announce(struct lm_locks *l, struct lm_lock_notes *ret, int64_t deadline_ns, struct lm_error *err)
{
	const struct call c = { .one = announce_one, .out = ret };

	ret->n = l->n;
	return each(l, &c, deadline_ns, err);
}

static int check_count(const struct lm_locks *l, const struct lm_lock_notes *notes, struct lm_error *err)
{
	if (notes->n == l->n)
		return 0;
	return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "the other host has %u storage locks, this one %u: give both "
		      "the same --lock options in the same order", notes->n, l->n);
}

static int prepare_one(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns, struct lm_error *err)
{
	return lm_lock_prepare(l, c->in->note[i], c->out->note[i], deadline_ns, err);
}

int lm_locks_prepare(struct lm_locks *l, const struct lm_lock_notes *announce, struct lm_lock_notes *ret_answer,
		     int64_t deadline_ns, struct lm_error *err)
{
	const struct call c = { .one = prepare_one, .in = announce, .out = ret_answer };
	int r = check_count(l, announce, err);

	ret_answer->n = l->n;
	return r ? r : each(l, &c, deadline_ns, err);
}

static int offer_one(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns, struct lm_error *err)
{
	return lm_lock_offer(l, c->in->note[i], c->disks_idle, c->out->note[i], deadline_ns, err);
}

int lm_locks_offer(struct lm_locks *l, const struct lm_lock_notes *answer, bool disks_idle, struct lm_lock_notes *ret,
		   int64_t deadline_ns, struct lm_error *err)
{
	const struct call c = { .one = offer_one, .in = answer, .out = ret, .disks_idle = disks_idle };
	int r = check_count(l, answer, err);

	ret->n = l->n;
	return r ? r : each(l, &c, deadline_ns, err);
}

static int take_one(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns, struct lm_error *err)
{
	return lm_lock_take(l, c->in->note[i], NULL, deadline_ns, err);
}

int lm_locks_take(struct lm_locks *l, const struct lm_lock_notes *offer, int64_t deadline_ns, struct lm_error *err)
{
	const struct call c = { .one = take_one, .in = offer, .patient = true, .owning = true };
	int r = check_count(l, offer, err);

	return r ? r : each(l, &c, deadline_ns, err);
}

static int reclaim_one(struct lm_lock *l, const struct call *c, unsigned i, int64_t deadline_ns, struct lm_error *err)
{
	(void)i;
	return lm_lock_reclaim(l, c->free_too, deadline_ns, err);
}

int lm_locks_reclaim(struct lm_locks *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	const struct call c = { .one = reclaim_one, .patient = true, .free_too = free_too, .owning = true };

	return each(l, &c, deadline_ns, err);
}

/* The first comes last: whoever gets it finds the others free. */
static int release_first(struct lm_locks *l, unsigned n, int64_t deadline_ns, struct lm_error *err)
{
	int64_t begin = lm_now_ns();
	int r = 0;

	while (!r && n--) {
		l->failed = n;
		r = lm_lock_release(l->lock[n], deadline_ns, err);
		if (r == -EPERM)
			r = 0; /* another host's */
	}
	l->spent_ns = lm_now_ns() - begin;
	return r;
}

int lm_locks_release(struct lm_locks *l, int64_t deadline_ns, struct lm_error *err)
{
	return release_first(l, l->n, deadline_ns, err);
}

int lm_locks_give_back(struct lm_locks *l, int64_t deadline_ns, struct lm_error *err)
{
	int r = release_first(l, l->touched, deadline_ns, err);

	if (!r)
		l->touched = 0;
	return r;
}

int lm_locks_query(struct lm_locks *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	int r = 0;

	for (unsigned i = 0; !r && i < l->n; i++) {
		l->failed = i;
		r = lm_lock_query(l->lock[i], ret, deadline_ns, err);
		if (!r && ret->state != LM_LOCK_HELD_HERE)
			break;
	}
	return r;
}
