/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "fakelock.h"

static struct fakelock_storage *storage;

struct fake {
	struct lm_lock lock;
	unsigned number;
};

struct fakelock_storage *fakelock_reset(void)
{
	pthread_mutexattr_t a;

	if (!storage)
		storage = mmap(NULL, sizeof(*storage), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (storage == MAP_FAILED)
		abort();
	memset(storage, 0, sizeof(*storage));
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&storage->mutex, &a);
	return storage;
}

void fakelock_fail(unsigned number, enum fakelock_op op, const char *host, int code, unsigned times)
{
	storage->lock[number].fault[op].code = code;
	storage->lock[number].fault[op].times = times;
	snprintf(storage->lock[number].fault[op].host, LM_LOCK_HOST_MAX, "%s", host);
}

bool fakelock_owns(const char *host, unsigned n)
{
	bool owns = true;

	pthread_mutex_lock(&storage->mutex);
	for (unsigned i = 0; i < n; i++)
		owns &= storage->lock[i].state == FAKE_OWNED && !strcmp(storage->lock[i].owner, host);
	pthread_mutex_unlock(&storage->mutex);
	return owns;
}

static void note(const struct fake *f, const char *op, int r)
{
	size_t at = strlen(storage->log);

	snprintf(storage->log + at, sizeof(storage->log) - at, "%s %s %u %d;", f->lock.host, op, f->number, r);
}

static const char *const op_names[] = { "acquire", "announce", "prepare", "offer", "take", "release", "show" };

/* The mutex is held from here to leave(). */
static int enter(struct fake *f, enum fakelock_op op, struct fakelock_record **ret, struct lm_error *err)
{
	struct fakelock_record *rec = &storage->lock[f->number];

	pthread_mutex_lock(&storage->mutex);
	if (storage->before)
		storage->before(storage->opaque, f->lock.host, op, f->number);
	*ret = rec;
	if (!rec->fault[op].times || (*rec->fault[op].host && strcmp(rec->fault[op].host, f->lock.host)))
		return 0;
	rec->fault[op].times--;
	return lm_err(err, rec->fault[op].code, LM_SCOPE_OPERATION, "injected into %s", op_names[op]);
}

static int leave(struct fake *f, enum fakelock_op op, int r)
{
	note(f, op_names[op], r);
	pthread_mutex_unlock(&storage->mutex);
	return r;
}

static bool is(const char *a, const struct fake *f)
{
	return !strcmp(a, f->lock.host);
}

static void own(struct fake *f, struct fakelock_record *rec)
{
	rec->state = FAKE_OWNED;
	rec->epoch++;
	memcpy(rec->owner, f->lock.host, sizeof(rec->owner));
	rec->next[0] = 0;
	f->lock.epoch = rec->epoch;
}

static int fake_acquire(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct fake *f = (struct fake *)l;
	struct fakelock_record *rec;
	int r = enter(f, FAKE_ACQUIRE, &rec, err);

	(void)deadline_ns;
	if (!r && rec->state == FAKE_OWNED && !is(rec->owner, f))
		r = lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "%s holds it", rec->owner);
	if (!r && rec->state == FAKE_OFFERED && !is(rec->owner, f) && !is(rec->next, f))
		r = lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "%s is handing it over", rec->owner);
	if (!r)
		own(f, rec);
	return leave(f, FAKE_ACQUIRE, r);
}

static int fake_offer(struct lm_lock *l, const struct lm_lock_note *answer, struct lm_lock_note *n,
		      int64_t deadline_ns, struct lm_error *err)
{
	struct fake *f = (struct fake *)l;
	enum fakelock_op op = answer ? FAKE_OFFER : FAKE_ANNOUNCE;
	struct fakelock_record *rec;
	int r = enter(f, op, &rec, err);

	(void)deadline_ns;
	n->id[0] = (uint8_t)(f->number + 1);
	if (!r && (!is(rec->owner, f) || rec->epoch != l->epoch))
		r = lm_err(err, -ESTALE, LM_SCOPE_SESSION, "not held any more");
	if (!r && answer) {
		rec->state = FAKE_OFFERED;
		memcpy(rec->next, answer->host, sizeof(rec->next));
	}
	return leave(f, op, r);
}

static int fake_prepare(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
			int64_t deadline_ns, struct lm_error *err)
{
	struct fake *f = (struct fake *)l;
	struct fakelock_record *rec;
	int r = enter(f, FAKE_PREPARE, &rec, err);

	(void)deadline_ns;
	if (!r && announce->id[0] != f->number + 1)
		r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s has other storage", announce->host);
	answer->id[0] = (uint8_t)(f->number + 1);
	return leave(f, FAKE_PREPARE, r);
}

static int fake_take(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns, struct lm_error *err)
{
	struct fake *f = (struct fake *)l;
	struct fakelock_record *rec;
	int r = enter(f, FAKE_TAKE, &rec, err);
	bool taken;

	(void)deadline_ns;
	taken = rec->state == FAKE_OWNED && is(rec->owner, f) && rec->epoch == offer->epoch + 1;
	if (!r && !taken && (rec->state != FAKE_OFFERED || !is(rec->next, f) || rec->epoch != offer->epoch))
		r = lm_err(err, -ESTALE, LM_SCOPE_SESSION, "the offer is not valid any more");
	if (!r && !taken)
		own(f, rec);
	if (!r)
		l->epoch = rec->epoch;
	return leave(f, FAKE_TAKE, r);
}

static int fake_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct fake *f = (struct fake *)l;
	struct fakelock_record *rec;
	int r = enter(f, FAKE_RELEASE, &rec, err);

	(void)deadline_ns;
	if (!r && rec->state != FAKE_FREE && !is(rec->owner, f))
		r = lm_err(err, -EPERM, LM_SCOPE_OPERATION, "%s holds it", rec->owner);
	if (!r)
		rec->state = FAKE_FREE;
	return leave(f, FAKE_RELEASE, r);
}

static int fake_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	struct fake *f = (struct fake *)l;
	struct fakelock_record *rec;
	int r = enter(f, FAKE_SHOW, &rec, err);

	(void)deadline_ns;
	memcpy(ret->holder, rec->owner, sizeof(ret->holder));
	memcpy(ret->next, rec->next, sizeof(ret->next));
	ret->epoch = rec->epoch;
	ret->state = rec->state == FAKE_FREE ? LM_LOCK_FREE : rec->state == FAKE_OFFERED ? LM_LOCK_IN_HANDOVER :
		     is(rec->owner, f) ? LM_LOCK_HELD_HERE : LM_LOCK_HELD_ELSEWHERE;
	pthread_mutex_unlock(&storage->mutex);
	return r;
}

static int fake_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	(void)l;
	(void)deadline_ns;
	return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "nobody breaks it here");
}

static void fake_close(struct lm_lock *l)
{
	free(l);
}

static int fake_open(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err)
{
	static const struct lm_lock_ops ops = {
		.name = "fake", .acquire = fake_acquire, .offer = fake_offer, .prepare = fake_prepare, .take = fake_take,
		.release = fake_release, .show = fake_show, .break_ = fake_break, .close = fake_close,
	};
	struct fake *f = calloc(1, sizeof(*f));

	(void)p;
	if (!f || *rest < '0' || *rest >= '0' + FAKELOCK_MAX || rest[1]) {
		free(f);
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "fake: needs a number below %d", FAKELOCK_MAX);
	}
	f->number = (unsigned)(*rest - '0');
	f->lock = (struct lm_lock){ .ops = &ops, .keep_fd = -1 };
	*ret = &f->lock;
	return 0;
}

const struct lm_lock_backend lm_lock_backends[] = {
	{ "fake", "NUMBER: for tests", NULL, fake_open },
	{ NULL, NULL, NULL, NULL },
};
