/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lease:PATH[?local=yes] - a file on a shared file system.
 *
 * The record in it (lease_record.h) says which host owns the lock, or between which
 * two it changes hands.  It is written only under an OFD lock, so reading it, deciding and
 * writing it is one step for all hosts.  Whoever owns the lease also keeps that OFD
 * lock: it shows that the owner lives, and keeps a second process of the same host out.  When
 * its process dies the OFD lock falls, but the record stays: the lease then waits for
 * the same host, for ever.
 *
 *   FREE --acquire--> OWNED(a) --offer--> OFFERED(a to b) --take--> OWNED(b)
 *                        ^                      |
 *                        +------reclaim---------+        epoch + 1 at each arrow to OWNED
 *
 * An open file has the OFD lock in common with its duplicates.  So a process that lives
 * as long as the guest can hold it (keep_fd), and the next engine finds it there
 * (holder_pid) and goes on with it.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "backends.h"
#include "lease_state.h"
#include "engine/base/testhook.h"

#define ACQUIRE_WAIT_NS (200 * LM_NS_PER_MS) /* somebody may just be releasing or looking */
#define LOOK_EVERY_NS (5 * LM_NS_PER_MS)         /* while take waits: whether that still makes sense */

/* --- the OFD lock ---------------------------------------------------------------- */

/* Another process may have replaced or removed the file that we have open: then it no longer is the lock. */
static int same_file(const struct lease *s, struct lm_error *err)
{
	struct stat have, named;

	if (fstat(s->fd, &have) || stat(s->path, &named) || have.st_dev != named.st_dev ||
	    have.st_ino != named.st_ino)
		return lm_err(err, -ESTALE, LM_SCOPE_OPERATION, "the file was removed or replaced");
	return 0;
}

static void unlock(struct lease *s)
{
	if (s->locked)
		lease_ofd(s->fd, F_OFD_SETLK, F_UNLCK);
	s->locked = false;
}

static int lock_wait(struct lease *s, int64_t deadline_ns, struct lm_error *err)
{
	unsigned sleep_us = 50;
	int r;

	while ((r = lease_ofd(s->fd, F_OFD_SETLK, F_WRLCK)) == -EAGAIN || r == -EACCES || r == -EINTR) {
		if (lm_now_ns() >= deadline_ns)
			return -EBUSY;
		usleep(sleep_us);
		sleep_us = sleep_us < 1000 ? sleep_us * 2 : 1000;
	}
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_OPERATION, "cannot lock the file");
	s->locked = true;
	r = same_file(s, err);
	if (r)
		unlock(s);
	return r;
}

/* Who holds it, for an error's text. */
static int held(struct lease *s, struct lm_error *err)
{
	struct lease_record record;

	if (!lease_record_read(s->fd, &record, NULL) && record.state >= LEASE_OWNED)
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "%s%s holds it, and a process there has it open",
			      record.owner, strcmp(record.owner, s->lock.host) ? "" : " (this host)");
	return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "another process, here or on another host, has it locked");
}

/* Lock it and read the record; *ret_fresh: the lock was not ours before. */
static int enter(struct lease *s, int64_t deadline_ns, struct lease_record *ret, bool *ret_fresh,
		 struct lm_error *err)
{
	int r = 0;

	*ret_fresh = !s->locked;
	r = lease_attach(s, err);
	if (r)
		return r;
	if (s->fd < 0)
		return lm_err(err, -ENOENT, LM_SCOPE_OPERATION, "the file is not there: nobody has acquired it yet");
	if (!s->locked)
		r = lock_wait(s, deadline_ns, err);
	else
		r = same_file(s, err);
	if (r == -EBUSY)
		return held(s, err);
	if (!r)
		r = lease_record_read(s->fd, ret, err);
	if (r && r != -EUCLEAN)
		unlock(s);
	return r;
}

/* --- changing the record --------------------------------------------------------- */

static int put(struct lease *s, struct lease_record *record, enum lease_state state, const char *owner,
	       const char *next, struct lm_error *err)
{
	record->state = state;
	snprintf(record->owner, sizeof(record->owner), "%s", owner);
	snprintf(record->next, sizeof(record->next), "%s", next);
	return lease_record_write(s->fd, record, err);
}

static int own(struct lease *s, struct lease_record *record, struct lm_error *err)
{
	int r;

	record->epoch = record->epoch ? record->epoch + 1 : lm_lock_epoch_first();
	r = lm_fault_point("lock-owning", err);
	if (!r)
		r = put(s, record, LEASE_OWNED, s->lock.host, "", err);
	if (!r)
		r = lm_fault_point("lock-owned", err);
	if (r)
		return r;
	s->lock.epoch = record->epoch;
	s->lock.keep_fd = s->fd;
	return 0;
}

/* NULL: this host may have it. */
static const char *why_not(const struct lease *s, const struct lease_record *record)
{
	const char *host = s->lock.host;

	if (lm_broken("lock-sector"))
		return NULL;
	if (record->state == LEASE_OWNED && strcmp(record->owner, host))
		return "holds it (if that host is dead, see `migrate-rdma lock break`)";
	if (record->state == LEASE_OFFERED && strcmp(record->owner, host) && strcmp(record->next, host))
		return "is handing it over";
	return NULL;
}

static int refuse(const struct lease *s, const struct lease_record *record, struct lm_error *err)
{
	const char *why = why_not(s, record);

	if (!why)
		return 0;
	return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "%s %s%s%s", record->owner, why,
		      record->state == LEASE_OFFERED ? " to " : "", record->state == LEASE_OFFERED ? record->next : "");
}

/* To say no, no lock is needed, nor patience. */
static int refuse_early(const struct lease *s, struct lm_error *err)
{
	struct lease_record record;

	if (s->locked || s->fd < 0 || lease_record_read(s->fd, &record, NULL))
		return 0;
	return refuse(s, &record, err);
}

static int lease_acquire(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	struct lease *s = lease_of(l);
	struct lease_record record;
	bool fresh;
	int r = lease_attach(s, err);

	if (!r && s->fd < 0)
		r = free_too ? lease_create(s, err) : lm_lock_is_free(err);
	if (!r)
		r = refuse_early(s, err);
	if (!r)
		r = enter(s, lm_deadline_min(deadline_ns, lm_now_ns() + ACQUIRE_WAIT_NS), &record, &fresh, err);
	if (r == -EUCLEAN)
		unlock(s);
	if (r)
		return r;
	r = refuse(s, &record, err);
	if (!r && !free_too && (record.state == LEASE_NEW || record.state == LEASE_FREE))
		r = lm_lock_is_free(err);
	if (!r && (fresh || record.state != LEASE_OWNED || record.epoch != l->epoch))
		r = own(s, &record, err);
	if (r)
		unlock(s);
	return r;
}

static void identify(const struct lease_record *record, struct lm_lock_note *note)
{
	memcpy(note->id, record->id, sizeof(record->id));
	note->detail = record->nonce;
}

/* The new nonce is what the destination must read: then it is not a copy of the file. */
static int lease_announce(struct lease *s, struct lease_record *record, struct lm_lock_note *note,
			  struct lm_error *err)
{
	int r = put(s, record, LEASE_OWNED, s->lock.host, "", err);

	if (!r)
		identify(record, note);
	return r;
}

static int lease_offer(struct lm_lock *l, const struct lm_lock_note *answer, struct lm_lock_note *note,
		       int64_t deadline_ns, struct lm_error *err)
{
	struct lease *s = lease_of(l);
	struct lease_record record;
	bool fresh, again;
	int r = enter(s, deadline_ns, &record, &fresh, err);

	if (r)
		return r;
	again = answer && record.state == LEASE_OFFERED && !strcmp(record.next, answer->host);
	if (strcmp(record.owner, l->host) || record.epoch != l->epoch || (record.state != LEASE_OWNED && !again))
		r = lm_err(err, -ESTALE, LM_SCOPE_SESSION, "this host does not hold it any more");
	else if (!answer)
		return lease_announce(s, &record, note, err);
	else if (memcmp(answer->id, record.id, sizeof(record.id)))
		r = lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "%s has another file", answer->host);
	if (!r)
		r = lm_fault_point("lock-offering", err);
	if (!r && !again)
		r = put(s, &record, LEASE_OFFERED, l->host, answer->host, err);
	if (!r)
		r = lm_fault_point("lock-offered", err);
	identify(&record, note);
	unlock(s); /* also after an error: this host must not write any more */
	l->keep_fd = -1;
	return r;
}

static int lease_prepare(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
			 int64_t deadline_ns, struct lm_error *err)
{
	struct lease *s = lease_of(l);
	struct lease_record record;
	int r = lease_attach(s, err);

	(void)deadline_ns;
	if (r)
		return r;
	if (s->fd < 0)
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "the file is not there on this host: is the same "
			      "file system mounted at the same place?");
	r = lease_record_read(s->fd, &record, err);
	if (r)
		return r;
	if (memcmp(record.id, announce->id, sizeof(record.id)) || record.nonce != announce->detail)
		return lm_err(err, -EMEDIUMTYPE, LM_SCOPE_SESSION, "the file of this host is not the one that %s has: is "
			      "the same file system mounted on both?", announce->host);
	identify(&record, answer);
	return 0;
}

static bool is_offer(const struct lease *s, const struct lease_record *record, const struct lm_lock_note *offer)
{
	return record->state == LEASE_OFFERED && record->epoch == offer->epoch && record->nonce == offer->detail &&
	       !strcmp(record->owner, offer->host) && !strcmp(record->next, s->lock.host) &&
	       !memcmp(record->id, offer->id, sizeof(record->id));
}

/* An earlier take, by a process that died or was told that it failed. */
static bool is_taken(const struct lease *s, const struct lease_record *record, const struct lm_lock_note *offer)
{
	return record->state == LEASE_OWNED && record->epoch == offer->epoch + 1 &&
	       !strcmp(record->owner, s->lock.host) && !memcmp(record->id, offer->id, sizeof(record->id));
}

static int stale(const struct lease_record *record, struct lm_error *err)
{
	return lm_err(err, -ESTALE, LM_SCOPE_SESSION, "the offer is not valid any more: %s has it, epoch %llu",
		      *record->owner ? record->owner : "nobody", (unsigned long long)record->epoch);
}

/* The source may be about to let go of the OFD lock; if it has taken the offer back, do not wait for it. */
static int take_worth_while(struct lease *s, const struct lm_lock_note *offer, struct lm_error *err)
{
	struct lease_record record;
	int r = lease_attach(s, err);

	if (!r && s->fd >= 0)
		r = lease_record_read(s->fd, &record, err);
	if (r || s->fd < 0 || is_offer(s, &record, offer) || is_taken(s, &record, offer) || lm_broken("lock-sector"))
		return r;
	return stale(&record, err);
}

static int lease_take(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns,
		      struct lm_error *err)
{
	struct lease *s = lease_of(l);
	struct lease_record record;
	bool fresh;
	int r;

	do {
		r = take_worth_while(s, offer, err);
		if (!r)
			r = enter(s, lm_deadline_min(deadline_ns, lm_now_ns() + LOOK_EVERY_NS), &record, &fresh, err);
	} while (r == -EBUSY && lm_now_ns() < deadline_ns);
	if (r == -EUCLEAN)
		unlock(s);
	if (r)
		return r;
	if (is_taken(s, &record, offer)) {
		l->epoch = record.epoch;
		l->keep_fd = s->fd;
		return 0;
	}
	if (is_offer(s, &record, offer) || lm_broken("lock-sector"))
		r = own(s, &record, err);
	else
		r = stale(&record, err);
	if (r)
		unlock(s);
	return r;
}

static int not_ours(const struct lease *s, const struct lease_record *record, struct lm_error *err)
{
	if (record->state < LEASE_OWNED || !strcmp(record->owner, s->lock.host))
		return 0;
	return lm_err(err, -EPERM, LM_SCOPE_OPERATION, "%s holds it, not this host (%s)", record->owner, s->lock.host);
}

static int lease_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct lease *s = lease_of(l);
	struct lease_record record;
	bool fresh;
	int r = lease_attach(s, err);

	if (r || s->fd < 0)
		return r;
	if (!s->locked && !lease_record_read(s->fd, &record, NULL) && not_ours(s, &record, err))
		return -EPERM;
	r = enter(s, lm_deadline_min(deadline_ns, lm_now_ns() + ACQUIRE_WAIT_NS), &record, &fresh, err);
	if (r && r != -EUCLEAN)
		return r;
	if (!r)
		r = not_ours(s, &record, err);
	if (!r && record.state >= LEASE_OWNED)
		r = put(s, &record, LEASE_FREE, l->host, "", err);
	if (!r)
		r = lm_fault_point("lock-released", err);
	unlock(s);
	l->keep_fd = -1;
	return r;
}

static int lease_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct lease *s = lease_of(l);
	struct lease_record record;
	bool fresh;
	int r = lease_attach(s, err);

	if (r || s->fd < 0)
		return r;
	r = enter(s, lm_deadline_min(deadline_ns, lm_now_ns() + ACQUIRE_WAIT_NS), &record, &fresh, err);
	if (r && r != -EUCLEAN)
		return r;
	if (r || record.state >= LEASE_OWNED) {
		uint64_t first = lm_lock_epoch_first();

		if (r)
			lm_lock_remark(l, "the record was damaged and is written anew");
		record.epoch = r && record.epoch < first ? first : record.epoch;
		record.epoch++;
		r = put(s, &record, LEASE_FREE, "", "", err);
	}
	unlock(s);
	return r;
}

static const struct lm_lock_ops lease_ops = {
	.name = "lease",
	.acquire = lease_acquire,
	.offer = lease_offer,
	.prepare = lease_prepare,
	.take = lease_take,
	.release = lease_release,
	.show = lease_show,
	.break_ = lease_break,
	.close = lease_close,
};

/* --- making one --------------------------------------------------------------------- */

static int path_set(struct lease *s, const char *rest, struct lm_error *err)
{
	static const char *const keys[] = { "local", NULL };
	size_t len = strcspn(rest, "?");
	const char *options = rest[len] ? rest + len + 1 : "";
	char value[8];
	int r = lm_lock_options_known(options, keys, err);

	if (r)
		return r;
	s->local = lm_lock_option(options, "local", value, sizeof(value)) && !strcmp(value, "yes");
	if (*rest != '/' || len >= sizeof(s->path) || rest[len - 1] == '/')
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "lease: needs the absolute path of a file");
	memcpy(s->path, rest, len);
	return 0;
}

int lm_lease_open(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err)
{
	struct lease *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	s->lock = (struct lm_lock){ .ops = &lease_ops, .keep_fd = -1 };
	s->fd = -1;
	s->holder_pid = p->holder_pid;
	r = path_set(s, rest, err);
	if (!r)
		r = lease_attach(s, err);
	if (r) {
		lease_close(&s->lock);
		return r;
	}
	*ret = &s->lock;
	return 0;
}
