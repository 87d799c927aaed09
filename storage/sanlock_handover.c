/* SPDX-License-Identifier: Apache-2.0 */
/* sanlock: from one host to another.  sanlock.c has the rules. */
#include <stdio.h>
#include <unistd.h>
#include <xxhash.h>
#include "engine/base/clock.h"
#include "sanlock_handover.h"
#include "sanlock_lease.h"
#include "engine/base/testhook.h"

/* The lockspace and the place of the lease say which storage this is; the numbers of the hosts tell them apart. */
static void identify(const struct san *s, struct lm_lock_note *note)
{
	XXH128_canonical_t sum;
	char text[SANLK_PATH_LEN + 200];

	snprintf(text, sizeof(text), "%.48s:%.48s:%llu", s->lockspace, s->resource, (unsigned long long)s->disk.offset);
	XXH128_canonicalFromHash(&sum, XXH3_128bits(text, strlen(text)));
	memcpy(note->id, &sum, sizeof(sum));
	memcpy(note->id + sizeof(sum), &sum, sizeof(sum));
	note->detail = s->self;
}

static void handover_name(const struct san *s, uint64_t from, uint64_t to, char ret[SANLK_NAME_LEN + 32])
{
	snprintf(ret, SANLK_NAME_LEN + 32, "%s#%llu-%llu", s->resource, (unsigned long long)from, (unsigned long long)to);
}

static int still_ours(struct san *s, struct lm_error *err)
{
	if (!s->have)
		return lm_err(err, -ESTALE, LM_SCOPE_SESSION, "this process does not hold it any more");
	return 0;
}

static int same_place(const struct san *s, const struct lm_lock_note *note, struct lm_error *err)
{
	struct lm_lock_note mine;

	identify(s, &mine);
	if (memcmp(mine.id, note->id, sizeof(mine.id)))
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s has another lease", note->host);
	if (!note->detail || note->detail > 2000 || note->detail == s->self)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%s is host %llu of the lockspace, and this is host %llu",
			      note->host, (unsigned long long)note->detail, (unsigned long long)s->self);
	return 0;
}

int san_offer(struct lm_lock *l, const struct lm_lock_note *answer, struct lm_lock_note *note,
		     int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	char name[SANLK_NAME_LEN + 32];
	int r = 0;

	(void)deadline_ns;
	if (!answer)
		r = still_ours(s, err);
	else
		r = same_place(s, answer, err);
	if (!r && answer && s->have) {
		handover_name(s, s->self, answer->detail, name);
		r = lm_fault_point("lock-offering", err);
		if (!r)
			r = san_let_go(s, name, err);
		if (!r)
			r = lm_fault_point("lock-offered", err);
	}
	identify(s, note);
	note->epoch = l->epoch; /* let_go may have raised it */
	return r;
}

int san_prepare(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
		       int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	int r = same_place(s, announce, err);

	(void)deadline_ns;
	if (!r)
		r = san_enroll(s, err);
	if (!r)
		r = san_look(s, &d, err);
	/* Owner and version as the source says: it reads what the source writes. */
	if (!r && (d.owner != announce->detail || d.epoch != announce->epoch))
		r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "the lease that this host sees is held by host %llu with version "
			   "%llu, and %s says %llu with %llu: is it the same storage?", (unsigned long long)d.owner,
			   (unsigned long long)d.epoch, announce->host, (unsigned long long)announce->detail,
			   (unsigned long long)announce->epoch);
	identify(s, answer);
	return r;
}

static int stale(const struct on_disk *d, struct lm_error *err)
{
	return lm_err(err, -ESTALE, LM_SCOPE_SESSION, "the offer is not valid any more: the owner is host %llu (0: none), the "
		      "version %llu", (unsigned long long)d->owner, (unsigned long long)d->epoch);
}

static int take_once(struct san *s, const struct lm_lock_note *offer, const char *name, struct lm_error *err)
{
	struct on_disk d;
	int r = san_look(s, &d, err);

	if (r)
		return r;
	if (d.owner == s->self && d.epoch == offer->epoch + 1 && !strcmp(d.name, name))
		return s->have ? 0 : san_ask(s, name, NULL, SANLK_ACQUIRE_ORPHAN, err);
	if (lm_broken("lock-version"))
		return san_ask(s, d.name, NULL, 0, err);
	if (d.owner || d.epoch != offer->epoch || strcmp(d.name, name))
		return stale(&d, err);
	r = lm_fault_point("lock-owning", err);
	return r ? r : san_ask(s, name, &offer->epoch, 0, err);
}

int san_take(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	char name[SANLK_NAME_LEN + 32];
	int r = same_place(s, offer, err);

	handover_name(s, offer->detail, s->self, name);
	if (!r)
		r = -EAGAIN;
	/* Busy: the other host tries, too; one of both gets it. */
	for (unsigned i = 0; (r == -EAGAIN || r == -EBUSY) && i < SANLOCK_TRIES && lm_now_ns() < deadline_ns; i++) {
		if (i)
			usleep(SANLOCK_RETRY_US);
		r = take_once(s, offer, name, err);
	}
	if (!r)
		r = san_proof(s, err);
	if (!r && l->epoch != offer->epoch + 1 && !lm_broken("lock-version"))
		r = lm_err(err, -ESTALE, LM_SCOPE_SESSION, "another host held it in the meantime: version %llu after %llu",
			   (unsigned long long)l->epoch, (unsigned long long)offer->epoch);
	return r ? r : lm_fault_point("lock-owned", err);
}
