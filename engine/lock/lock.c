/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include "engine/base/clock.h"
#include "lock.h"
#include "engine/base/testhook.h"

static const struct lm_lock_backend *backend_find(const char *uri, size_t len)
{
	for (const struct lm_lock_backend *b = lm_lock_backends; b->scheme; b++)
		if (strlen(b->scheme) == len && !strncmp(b->scheme, uri, len))
			return b;
	return NULL;
}

static int no_scheme(const char *uri, struct lm_error *err)
{
	char list[128] = "";

	for (const struct lm_lock_backend *b = lm_lock_backends; b->scheme; b++) {
		size_t at = strlen(list);

		snprintf(list + at, sizeof(list) - at, "%s%s:", at ? ", " : "", b->scheme);
	}
	return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "'%.200s' is not a lock: it must begin with %s", uri, list);
}

static int host_name(const struct lm_lock_params *p, char ret[static LM_LOCK_HOST_MAX], struct lm_error *err)
{
	if (!p->host) {
		lm_lock_host(ret);
		return 0;
	}
	if (!lm_lock_name_valid(p->host))
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "'%.64s' is not a host's name: letters, digits, "
			      "'.', '-' and '_', at most %d of them", p->host, LM_LOCK_HOST_MAX - 1);
	memcpy(ret, p->host, strlen(p->host) + 1);
	return 0;
}

int lm_lock_open(const char *uri, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err)
{
	size_t len = strcspn(uri, ":");
	const struct lm_lock_backend *b = uri[len] ? backend_find(uri, len) : NULL;
	struct lm_lock_params params = *p;
	char host[LM_LOCK_HOST_MAX] = ""; /* all of it goes into notes */
	struct lm_lock *l;
	int r;

	if (!b)
		return no_scheme(uri, err);
	if (strlen(uri) >= LM_LOCK_URI_MAX)
		return lm_err(err, -ENAMETOOLONG, LM_SCOPE_OPERATION, "the lock's name is too long: %.80s...", uri);
	if (!b->open)
		return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "%s: this program was built without it: %s",
			      b->scheme, b->missing);
	r = host_name(p, host, err);
	if (r)
		return r;
	params.host = host;
	r = b->open(uri + len + 1, &params, &l, err);
	if (r)
		return r;
	memcpy(l->uri, uri, strlen(uri) + 1);
	memcpy(l->host, host, sizeof(host));
	*ret = l;
	return 0;
}

static int wrong_state(const struct lm_lock *l, const char *what, struct lm_error *err)
{
	static const char *const names[] = {
		[LM_LOCK_NONE] = "not held", [LM_LOCK_PREPARED] = "prepared to be taken",
		[LM_LOCK_OWNED] = "held", [LM_LOCK_OFFERED] = "offered to the other host",
	};

	return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "%s: cannot %s a lock that is %s", l->uri, what,
		      names[l->state]);
}

/* Every call of a backend begins and ends here. */
static int done(struct lm_lock *l, int r, struct lm_error *err)
{
	if (r && err) {
		err->code = r;
		lm_err_prefix(err, "%s", l->uri);
	}
	return r;
}

static int own(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	l->remark[0] = 0;
	r = l->ops->acquire(l, free_too || lm_broken("lock-free"), deadline_ns, err);
	if (!r)
		l->state = LM_LOCK_OWNED;
	else if (r == -EBUSY)
		l->state = LM_LOCK_NONE;
	return done(l, r, err);
}

int lm_lock_acquire(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	return l->state == LM_LOCK_OFFERED ? wrong_state(l, "acquire", err) : own(l, true, deadline_ns, err);
}

int lm_lock_reclaim(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	return own(l, free_too, deadline_ns, err);
}

int lm_lock_is_free(struct lm_error *err)
{
	return lm_err(err, -ESTALE, LM_SCOPE_OPERATION, "nobody holds it: since this host offered it the guest may have run on "
		      "another host, and ended");
}

static void note_init(const struct lm_lock *l, enum lm_lock_note_kind kind, struct lm_lock_note *note)
{
	*note = (struct lm_lock_note){ .kind = kind, .epoch = l->epoch };
	snprintf(note->scheme, sizeof(note->scheme), "%s", l->ops->name);
	memcpy(note->host, l->host, sizeof(note->host));
}

/* Of this kind, about this sort of lock, from another host. */
static int note_read(const struct lm_lock *l, enum lm_lock_note_kind kind, const uint8_t *bytes,
		     struct lm_lock_note *ret, struct lm_error *err)
{
	int r = lm_lock_note_get(bytes, ret, err);

	if (r)
		return r;
	if (ret->kind != kind)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "a note of kind %d came where %d was due", ret->kind,
			      kind);
	if (strcmp(ret->scheme, l->ops->name))
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "the other host has a %s: lock here; give both "
			      "the same locks in the same order", ret->scheme);
	if (!strcmp(ret->host, l->host))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "both hosts are named %s: give one another name",
			      l->host);
	return 0;
}

int lm_lock_announce(struct lm_lock *l, uint8_t ret_note[static LM_LOCK_NOTE_SIZE], int64_t deadline_ns,
		     struct lm_error *err)
{
	struct lm_lock_note note;
	int r;

	if (l->state != LM_LOCK_OWNED)
		return wrong_state(l, "announce", err);
	note_init(l, LM_NOTE_ANNOUNCE, &note);
	l->remark[0] = 0;
	r = l->ops->offer(l, NULL, &note, deadline_ns, err);
	if (!r)
		lm_lock_note_put(&note, ret_note);
	return done(l, r, err);
}

int lm_lock_prepare(struct lm_lock *l, const uint8_t bytes[static LM_LOCK_NOTE_SIZE],
		    uint8_t ret_answer[static LM_LOCK_NOTE_SIZE], int64_t deadline_ns, struct lm_error *err)
{
	struct lm_lock_note announce, answer;
	int r;

	if (l->state == LM_LOCK_OWNED)
		return wrong_state(l, "prepare to take", err);
	r = note_read(l, LM_NOTE_ANNOUNCE, bytes, &announce, err);
	if (r)
		return done(l, r, err);
	note_init(l, LM_NOTE_ANSWER, &answer);
	answer.epoch = announce.epoch;
	l->remark[0] = 0;
	r = l->ops->prepare(l, &announce, &answer, deadline_ns, err);
	if (!r) {
		lm_lock_note_put(&answer, ret_answer);
		l->state = LM_LOCK_PREPARED;
	}
	return done(l, r, err);
}

int lm_lock_offer(struct lm_lock *l, const uint8_t bytes[static LM_LOCK_NOTE_SIZE], bool disks_idle,
		  uint8_t ret_note[static LM_LOCK_NOTE_SIZE], int64_t deadline_ns, struct lm_error *err)
{
	struct lm_lock_note answer, note;
	int r;

	if (l->state != LM_LOCK_OWNED && l->state != LM_LOCK_OFFERED)
		return wrong_state(l, "offer", err);
	r = note_read(l, LM_NOTE_ANSWER, bytes, &answer, err);
	if (r)
		return done(l, r, err);
	note_init(l, LM_NOTE_OFFER, &note);
	note.disks_idle = disks_idle;
	l->remark[0] = 0;
	l->state = LM_LOCK_OFFERED; /* also when it fails: what the storage says now is not known */
	r = l->ops->offer(l, &answer, &note, deadline_ns, err);
	if (!r)
		lm_lock_note_put(&note, ret_note);
	return done(l, r, err);
}

int lm_lock_take(struct lm_lock *l, const uint8_t bytes[static LM_LOCK_NOTE_SIZE], uint64_t *ret_epoch,
		 int64_t deadline_ns, struct lm_error *err)
{
	struct lm_lock_note offer;
	int r;

	r = note_read(l, LM_NOTE_OFFER, bytes, &offer, err);
	if (r)
		return done(l, r, err);
	l->remark[0] = 0;
	r = l->ops->take(l, &offer, deadline_ns, err);
	if (!r && l->epoch <= offer.epoch)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "taken, but the epoch did not grow");
	l->state = r ? LM_LOCK_NONE : LM_LOCK_OWNED;
	if (!r && ret_epoch)
		*ret_epoch = l->epoch;
	return done(l, r, err);
}

int lm_lock_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	l->remark[0] = 0;
	r = l->ops->release(l, deadline_ns, err);
	if (!r || r == -EPERM)
		l->state = LM_LOCK_NONE;
	return done(l, r, err);
}

int lm_lock_query(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	*ret = (struct lm_lock_info){ 0 };
	return done(l, l->ops->show(l, ret, deadline_ns, err), err);
}

int lm_lock_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	if (l->state == LM_LOCK_OWNED || l->state == LM_LOCK_OFFERED)
		return wrong_state(l, "break", err);
	l->remark[0] = 0;
	return done(l, l->ops->break_(l, deadline_ns, err), err);
}

void lm_lock_close(struct lm_lock *l)
{
	if (l)
		l->ops->close(l);
}

static int run_one(struct lm_lock *l, enum lm_lock_what what, int64_t deadline_ns, struct lm_error *err)
{
	switch (what) {
	case LM_LOCK_SHOW:
		return 0;
	case LM_LOCK_ACQUIRE:
		return lm_lock_acquire(l, deadline_ns, err);
	case LM_LOCK_RELEASE:
		return lm_lock_release(l, deadline_ns, err);
	case LM_LOCK_BREAK:
		return lm_lock_break(l, deadline_ns, err);
	}
	return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "no such thing to do with a lock");
}

/* Through a handle of its own: what another process would see. */
static int look(const char *uri, const struct lm_lock_params *p, struct lm_lock_info *ret, struct lm_error *err)
{
	struct lm_lock *l;
	int r = lm_lock_open(uri, p, &l, err);

	if (r)
		return r;
	r = lm_lock_query(l, ret, p->deadline_ns, err);
	lm_lock_close(l);
	return r;
}

int lm_lock_run(const char *uri, const char *host, enum lm_lock_what what, int64_t timeout_ns,
		struct lm_lock_info *ret, struct lm_error *err)
{
	int64_t deadline = lm_deadline_after(timeout_ns > 0 ? timeout_ns : 10 * LM_NS_PER_S);
	struct lm_lock_params p = { .host = host, .deadline_ns = deadline };
	char remark[sizeof(((struct lm_lock *)NULL)->remark)];
	struct lm_lock *l;
	int r = lm_lock_open(uri, &p, &l, err);

	if (r)
		return r;
	r = run_one(l, what, deadline, err);
	memcpy(remark, l->remark, sizeof(remark));
	lm_lock_close(l);
	if (!r)
		r = look(uri, &p, ret, err);
	if (!r && *remark)
		lm_lock_say(ret, "%s", remark);
	return r;
}

const char *lm_lock_state_name(enum lm_lock_holder state)
{
	static const char *const names[] = {
		[LM_LOCK_FREE] = "free", [LM_LOCK_HELD_HERE] = "held-here",
		[LM_LOCK_HELD_ELSEWHERE] = "held-elsewhere", [LM_LOCK_IN_HANDOVER] = "in-handover",
		[LM_LOCK_FOREIGN] = "foreign", [LM_LOCK_DAMAGED] = "damaged",
	};

	return (unsigned)state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

const char *const *lm_lock_schemes(void)
{
	static const char *names[8];

	for (size_t i = 0; lm_lock_backends[i].scheme && i < 7; i++)
		names[i] = lm_lock_backends[i].scheme; /* always the same: harmless when done twice */
	return names;
}
