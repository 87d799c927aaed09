/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sanlock:LOCKSPACE:RESOURCE:PATH:OFFSET - a resource lease of sanlock.
 *
 * The host joined the lockspace before (sanlock's own tools do that); its number
 * there is what it is known by.  The lease is acquired as a persistent one: when our
 * process ends, the host keeps it (as an "orphan"), and our next process gets it
 * again.  The epoch is the version of the lease (lver), which sanlock raises
 * whenever another owner acquires it.
 *
 * A hand-over must keep third hosts out although the lease is released in between.
 * So releasing it for the peer also renames it on disk, in the same write: RESOURCE
 * becomes RESOURCE#3-7, "from host 3 to host 7", and a host that is not one of the two does not
 * ask for that name.  take asks for the version as well: after a reclaim it is
 * another one.  Release gives the lease its plain name again.
 */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>
/* These do not include what they need. */
#include <sanlock.h>
#include <sanlock_admin.h>
#include <sanlock_resource.h>
#include <sanlock_rv.h>
#include "backends.h"
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/base/testhook.h"

#define RETRY_US 2000
#define TRIES 20
/* "#" and two numbers of hosts, of 2000 at most */
#define NAME_MAX_LEN (SANLK_NAME_LEN - 11)

struct san {
	struct lm_lock lock;
	int sock;             /* registered with the daemon; the lease is of this connection */
	bool have;            /* this connection holds it */
	char lockspace[SANLK_NAME_LEN], resource[SANLK_NAME_LEN];
	char name[SANLK_NAME_LEN]; /* under which it is held */
	struct sanlk_disk disk;
	uint64_t self;        /* number of this host in the lockspace */
};

/* As the lease is on the disk. */
struct on_disk {
	char name[SANLK_NAME_LEN + 1];
	bool handover;        /* it has a name of the form RESOURCE#FROM-TO */
	uint64_t from, to;
	uint64_t epoch;
	uint64_t owner;       /* 0: none */
};

/* A resource with its one disk, as the library wants it. */
struct resource {
	union {
		struct sanlk_resource r;
		uint8_t room[sizeof(struct sanlk_resource) + sizeof(struct sanlk_disk)];
	};
};

static struct san *san_of(struct lm_lock *l)
{
	return (struct san *)l;
}

static void resource_fill(const struct san *s, const char *name, struct resource *ret)
{
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->r.lockspace_name, s->lockspace, sizeof(ret->r.lockspace_name));
	memcpy(ret->r.name, name, strnlen(name, SANLK_NAME_LEN));
	ret->r.num_disks = 1;
	memcpy(ret->room + sizeof(ret->r), &s->disk, sizeof(s->disk));
}

static int failed(int rv, const char *what, struct lm_error *err)
{
	if (rv > -200)
		return lm_err_errno(err, rv, LM_SCOPE_OPERATION, "sanlock: %s", what);
	return lm_err(err, -EIO, LM_SCOPE_OPERATION, "sanlock: %s: %s (%d)", what, sanlock_strerror(rv), rv);
}

static void name_parse(const struct san *s, struct on_disk *d)
{
	size_t len = strlen(s->resource);
	unsigned long long from, to;
	int end = 0;

	if (strncmp(d->name, s->resource, len) || sscanf(d->name + len, "#%llu-%llu%n", &from, &to, &end) != 2 ||
	    d->name[len + (size_t)end])
		return;
	d->handover = true;
	d->from = from;
	d->to = to;
}

static int look(const struct san *s, struct on_disk *ret, struct lm_error *err)
{
	struct sanlk_host *owners = NULL;
	struct resource q;
	int n = 0, rv;

	*ret = (struct on_disk){ 0 };
	resource_fill(s, "", &q);
	memset(q.r.lockspace_name, 0, sizeof(q.r.lockspace_name));
	rv = sanlock_read_resource(&q.r, 0);
	if (!rv)
		rv = sanlock_read_resource_owners(&q.r, 0, &owners, &n);
	if (rv < 0) {
		free(owners);
		return rv <= SANLK_LEADER_READ && rv >= SANLK_LEADER_CHECKSUM ?
		       lm_err(err, -EUCLEAN, LM_SCOPE_OPERATION, "there is no readable lease at %s:%llu: %s",
			      s->disk.path, (unsigned long long)s->disk.offset, sanlock_strerror(rv)) :
		       failed(rv, "reading the lease", err);
	}
	memcpy(ret->name, q.r.name, SANLK_NAME_LEN);
	ret->epoch = q.r.lver;
	ret->owner = n > 0 ? owners[0].host_id : 0;
	free(owners);
	name_parse(s, ret);
	if (strncmp(q.r.lockspace_name, s->lockspace, SANLK_NAME_LEN) ||
	    (!ret->handover && strncmp(q.r.name, s->resource, SANLK_NAME_LEN)))
		return lm_err(err, -EUCLEAN, LM_SCOPE_OPERATION, "the lease at %s:%llu is %.48s:%.48s", s->disk.path,
			      (unsigned long long)s->disk.offset, q.r.lockspace_name, q.r.name);
	return 0;
}

/* --- acquiring --------------------------------------------------------------------- */

static int enroll(struct san *s, struct lm_error *err)
{
	if (s->sock >= 0)
		return 0;
	s->sock = sanlock_register();
	if (s->sock >= 0)
		return 0;
	return failed(s->sock, "no connection to the daemon", err);
}

/* -EAGAIN: it is changing hands just now. */
static int ask(struct san *s, const char *name, const uint64_t *version, uint32_t more_flags, struct lm_error *err)
{
	struct sanlk_resource *one;
	struct resource q;
	int rv = enroll(s, err);

	if (rv)
		return rv;
	resource_fill(s, name, &q);
	q.r.flags = SANLK_RES_PERSISTENT;
	if (version) {
		q.r.flags |= SANLK_RES_LVER;
		q.r.lver = *version;
	}
	one = &q.r;
	rv = sanlock_acquire(s->sock, -1, SANLK_ACQUIRE_OWNER_NOWAIT | more_flags, 1, &one, NULL);
	switch (rv) {
	case 0:
		s->have = true;
		memset(s->name, 0, sizeof(s->name));
		memcpy(s->name, name, strnlen(name, sizeof(s->name) - 1));
		return 0;
	case -EEXIST:
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "another process of this host has it");
	case SANLK_ACQUIRE_IDLIVE:
	case SANLK_ACQUIRE_OWNED:
	case SANLK_ACQUIRE_OTHER:
	case SANLK_ACQUIRE_OWNED_RETRY:
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "another host has it");
	case SANLK_ACQUIRE_LVER:
		return lm_err(err, -ESTALE, LM_SCOPE_SESSION, "the lease has another version than it was offered with");
	case SANLK_LEADER_RESOURCE:
		return lm_err(err, -EAGAIN, LM_SCOPE_OPERATION, "the lease is changing hands");
	default:
		return failed(rv, "acquiring the lease", err);
	}
}

/* What the disk says after we got it is the proof. */
static int proof(struct san *s, struct lm_error *err)
{
	struct on_disk d;
	int r = look(s, &d, err);

	if (r || d.owner != s->self)
		s->have = false; /* the next one asks again, and begins with the disk */
	if (!r && !d.owner)
		r = lm_err(err, -EAGAIN, LM_SCOPE_OPERATION, "the lease shows no owner yet");
	else if (!r && d.owner != s->self)
		r = lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "the lease shows host %llu as its owner",
			   (unsigned long long)d.owner);
	if (!r)
		s->lock.epoch = d.epoch;
	return r;
}

static int refuse(const struct san *s, const struct on_disk *d, struct lm_error *err)
{
	if (d->owner && d->owner != s->self)
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "host %llu of the lockspace holds it",
			      (unsigned long long)d->owner);
	if (d->handover && d->from != s->self && d->to != s->self && !d->owner)
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "host %llu is handing it over to host %llu",
			      (unsigned long long)d->from, (unsigned long long)d->to);
	return 0;
}

static int acquire_once(struct san *s, bool free_too, struct lm_error *err)
{
	struct on_disk d;
	int r = look(s, &d, err);

	if (!r)
		r = refuse(s, &d, err);
	if (!r && !free_too && !d.owner && !d.handover)
		r = lm_lock_is_free(err);
	if (!r)
		r = lm_fault_point("lock-owning", err);
	return r ? r : ask(s, d.name, NULL, SANLK_ACQUIRE_ORPHAN, err);
}

static int san_acquire(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	int r = s->have ? 0 : -EAGAIN;

	for (unsigned i = 0; r == -EAGAIN && i < TRIES && lm_now_ns() < deadline_ns; i++) {
		if (i)
			usleep(RETRY_US);
		r = acquire_once(s, free_too, err);
	}
	if (!r)
		r = proof(s, err);
	/* Whether a host that is gone still counts is sanlock's decision; with orphans it never lets them go silently. */
	if (!r && sanlock_set_config(s->lockspace, 0, SANLK_CONFIG_USED_BY_ORPHANS, NULL))
		lm_lock_remark(l, "sanlock cannot be told to reset this host when it loses its storage (USED_BY_ORPHANS)");
	return r ? r : lm_fault_point("lock-owned", err);
}

/* --- giving ------------------------------------------------------------------------ */

/* Release and rename in one write. */
static int release_as(struct san *s, const char *new_name, struct lm_error *err)
{
	struct sanlk_resource *two[2];
	struct resource old, renamed;
	int rv;

	resource_fill(s, s->name, &old);
	resource_fill(s, new_name, &renamed);
	two[0] = &old.r;
	two[1] = &renamed.r;
	rv = sanlock_release(s->sock, -1, SANLK_REL_RENAME, 2, two);
	s->have = false; /* also when the disk did not answer in time: the daemon goes on releasing by itself */
	return rv < 0 ? failed(rv, "releasing the lease", err) : 0;
}

/*
 * When two hosts wanted the lease at once, the loser may have written the record of
 * the winner, as Paxos has it; sanlock then leaves that record alone at the release, and with
 * it the name, and says nothing (3.8.5).  So look, and if so, own it once more: with a
 * record that is ours.  Meanwhile the record names this host, and others keep away.
 */
static int let_go(struct san *s, const char *new_name, struct lm_error *err)
{
	for (unsigned i = 0; i < TRIES; i++) {
		struct on_disk d;
		int r = release_as(s, new_name, err);

		if (!r)
			r = look(s, &d, err);
		if (r || (d.owner != s->self && !strcmp(d.name, new_name)))
			return r;
		r = ask(s, d.name, NULL, 0, err);
		if (!r)
			r = proof(s, err);
		if (r)
			return r;
	}
	return lm_err(err, -EIO, LM_SCOPE_OPERATION, "sanlock: the lease cannot be renamed");
}

/* The lockspace and where the lease is say which storage this is; the numbers of the hosts tell them apart. */
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

static int san_offer(struct lm_lock *l, const struct lm_lock_note *answer, struct lm_lock_note *note,
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
			r = let_go(s, name, err);
		if (!r)
			r = lm_fault_point("lock-offered", err);
	}
	identify(s, note);
	note->epoch = l->epoch; /* let_go may have raised it */
	return r;
}

static int san_prepare(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
		       int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	int r = same_place(s, announce, err);

	(void)deadline_ns;
	if (!r)
		r = enroll(s, err);
	if (!r)
		r = look(s, &d, err);
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
	int r = look(s, &d, err);

	if (r)
		return r;
	if (d.owner == s->self && d.epoch == offer->epoch + 1 && !strcmp(d.name, name))
		return s->have ? 0 : ask(s, name, NULL, SANLK_ACQUIRE_ORPHAN, err);
	if (lm_broken("lock-version"))
		return ask(s, d.name, NULL, 0, err);
	if (d.owner || d.epoch != offer->epoch || strcmp(d.name, name))
		return stale(&d, err);
	r = lm_fault_point("lock-owning", err);
	return r ? r : ask(s, name, &offer->epoch, 0, err);
}

static int san_take(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	char name[SANLK_NAME_LEN + 32];
	int r = same_place(s, offer, err);

	handover_name(s, offer->detail, s->self, name);
	if (!r)
		r = -EAGAIN;
	/* Busy: the other host tries at the same time; one of the two gets it. */
	for (unsigned i = 0; (r == -EAGAIN || r == -EBUSY) && i < TRIES && lm_now_ns() < deadline_ns; i++) {
		if (i)
			usleep(RETRY_US);
		r = take_once(s, offer, name, err);
	}
	if (!r)
		r = proof(s, err);
	if (!r && l->epoch != offer->epoch + 1 && !lm_broken("lock-version"))
		r = lm_err(err, -ESTALE, LM_SCOPE_SESSION, "another host held it in the meantime: version %llu after %llu",
			   (unsigned long long)l->epoch, (unsigned long long)offer->epoch);
	return r ? r : lm_fault_point("lock-owned", err);
}

static int san_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	int r = look(s, &d, err);

	(void)deadline_ns;
	if (!r && d.owner && d.owner != s->self)
		r = lm_err(err, -EPERM, LM_SCOPE_OPERATION, "host %llu holds it, not this one (%llu)",
			   (unsigned long long)d.owner, (unsigned long long)s->self);
	if (!r && d.handover && !d.owner && d.from != s->self)
		r = lm_err(err, -EPERM, LM_SCOPE_OPERATION, "host %llu is handing it over", (unsigned long long)d.from);
	if (!r && (d.owner || d.handover)) {
		if (!s->have)
			r = ask(s, d.name, NULL, SANLK_ACQUIRE_ORPHAN, err);
		if (!r)
			r = let_go(s, s->resource, err);
	}
	return r ? r : lm_fault_point("lock-released", err);
}

static uint32_t host_state(const struct san *s, uint64_t id)
{
	struct sanlk_host *hosts = NULL;
	uint32_t state = SANLK_HOST_UNKNOWN;
	int n = 0;

	if (sanlock_get_hosts(s->lockspace, id, &hosts, &n, 0) >= 0 && n > 0)
		state = hosts[0].flags & SANLK_HOST_MASK;
	free(hosts);
	return state;
}

static const char *state_words(uint32_t state)
{
	static const char *const words[] = {
		[SANLK_HOST_UNKNOWN] = "not yet known: sanlock watches it", [SANLK_HOST_FREE] = "not in the lockspace",
		[SANLK_HOST_LIVE] = "alive", [SANLK_HOST_FAIL] = "silent, and not yet long enough", [SANLK_HOST_DEAD] = "dead",
	};

	return state < sizeof(words) / sizeof(words[0]) && words[state] ? words[state] : "not known";
}

static int san_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	uint32_t state;
	int r = look(s, &d, err);

	(void)deadline_ns;
	if (r || (!d.owner && !d.handover))
		return r;
	state = d.owner && d.owner != s->self ? host_state(s, d.owner) : SANLK_HOST_DEAD;
	if (state != SANLK_HOST_DEAD && state != SANLK_HOST_FREE)
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "host %llu of the lockspace holds it and is %s",
			      (unsigned long long)d.owner, state_words(state));
	r = ask(s, d.name, NULL, SANLK_ACQUIRE_ORPHAN, err);
	return r ? r : let_go(s, s->resource, err);
}

static int san_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	int r = look(s, &d, err);

	(void)deadline_ns;
	if (r == -EUCLEAN) {
		ret->state = LM_LOCK_DAMAGED;
		lm_lock_say(ret, "%s", err ? err->msg : "not a lease");
		return 0;
	}
	if (r)
		return r;
	ret->epoch = d.epoch;
	if (d.owner == s->self) {
		ret->state = LM_LOCK_HELD_HERE;
		snprintf(ret->holder, sizeof(ret->holder), "%s", s->lock.host);
		lm_lock_say(ret, "held by this host (%llu in the lockspace), version %llu", (unsigned long long)s->self,
			    (unsigned long long)d.epoch);
	} else if (d.owner) {
		ret->state = LM_LOCK_HELD_ELSEWHERE;
		ret->in_use = host_state(s, d.owner) == SANLK_HOST_LIVE;
		snprintf(ret->holder, sizeof(ret->holder), "host-number-%llu", (unsigned long long)d.owner);
		lm_lock_say(ret, "held by host %llu of the lockspace, version %llu; that host is %s",
			    (unsigned long long)d.owner, (unsigned long long)d.epoch, state_words(host_state(s, d.owner)));
	} else if (d.handover) {
		ret->state = LM_LOCK_IN_HANDOVER;
		snprintf(ret->holder, sizeof(ret->holder), "host-number-%llu", (unsigned long long)d.from);
		snprintf(ret->next, sizeof(ret->next), "host-number-%llu", (unsigned long long)d.to);
		lm_lock_say(ret, "host %llu has offered it to host %llu, version %llu: only these two can get it",
			    (unsigned long long)d.from, (unsigned long long)d.to, (unsigned long long)d.epoch);
	} else {
		lm_lock_say(ret, "free, version %llu", (unsigned long long)d.epoch);
	}
	return 0;
}

static void san_close(struct lm_lock *l)
{
	struct san *s = san_of(l);

	lm_close_fd(&s->sock); /* the host keeps the lease */
	free(s);
}

static const struct lm_lock_ops san_ops = {
	.name = "sanlock",
	.acquire = san_acquire,
	.offer = san_offer,
	.prepare = san_prepare,
	.take = san_take,
	.release = san_release,
	.show = san_show,
	.break_ = san_break,
	.close = san_close,
};

/* The number under which this host is in the lockspace. */
static int find_self(struct san *s, struct lm_error *err)
{
	struct sanlk_lockspace *all = NULL;
	int n = 0, rv = sanlock_get_lockspaces(&all, &n, 0);

	for (int i = 0; rv >= 0 && i < n; i++)
		if (!strncmp(all[i].name, s->lockspace, SANLK_NAME_LEN))
			s->self = all[i].host_id;
	free(all);
	if (rv < 0)
		return failed(rv, "the daemon does not answer", err);
	if (!s->self)
		return lm_err(err, -ENOENT, LM_SCOPE_OPERATION, "sanlock: this host has not joined the lockspace %s "
			      "(sanlock client add_lockspace)", s->lockspace);
	return 0;
}

static int parse(struct san *s, const char *rest, struct lm_error *err)
{
	char text[LM_LOCK_URI_MAX], *save = NULL, *words[4], *end;
	unsigned n = 0;

	snprintf(text, sizeof(text), "%s", rest);
	for (char *w = strtok_r(text, ":", &save); w && n < 4; w = strtok_r(NULL, ":", &save))
		words[n++] = w;
	if (n != 4 || strtok_r(NULL, ":", &save) || *words[2] != '/')
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "write sanlock:LOCKSPACE:RESOURCE:/PATH:OFFSET");
	if (strlen(words[0]) >= SANLK_NAME_LEN || strlen(words[1]) > NAME_MAX_LEN || strchr(words[1], '#'))
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "names of at most %d and %d characters, without '#'",
			      SANLK_NAME_LEN - 1, NAME_MAX_LEN);
	s->disk.offset = strtoull(words[3], &end, 0);
	if (*end)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "'%s' is not an offset in bytes", words[3]);
	snprintf(s->lockspace, sizeof(s->lockspace), "%s", words[0]);
	snprintf(s->resource, sizeof(s->resource), "%s", words[1]);
	snprintf(s->disk.path, sizeof(s->disk.path), "%s", words[2]);
	return 0;
}

int lm_sanlock_open(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err)
{
	struct san *s = calloc(1, sizeof(*s));
	int r;

	(void)p;
	if (!s)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	s->lock = (struct lm_lock){ .ops = &san_ops, .keep_fd = -1 };
	s->sock = -1;
	r = parse(s, rest, err);
	if (!r)
		r = find_self(s, err);
	if (r) {
		san_close(&s->lock);
		return r;
	}
	*ret = &s->lock;
	return 0;
}
