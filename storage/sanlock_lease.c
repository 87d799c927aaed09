/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include "sanlock_lease.h"

/* A resource with its one disk, as the library wants it. */
struct resource {
	union {
		struct sanlk_resource r;
		uint8_t room[sizeof(struct sanlk_resource) + sizeof(struct sanlk_disk)];
	};
};

static void resource_fill(const struct san *s, const char *name, struct resource *ret)
{
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->r.lockspace_name, s->lockspace, sizeof(ret->r.lockspace_name));
	memcpy(ret->r.name, name, strnlen(name, SANLK_NAME_LEN));
	ret->r.num_disks = 1;
	memcpy(ret->room + sizeof(ret->r), &s->disk, sizeof(s->disk));
}

int san_failed(int rv, const char *what, struct lm_error *err)
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

int san_look(const struct san *s, struct on_disk *ret, struct lm_error *err)
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
		       san_failed(rv, "reading the lease", err);
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

int san_enroll(struct san *s, struct lm_error *err)
{
	if (s->sock >= 0)
		return 0;
	s->sock = sanlock_register();
	if (s->sock >= 0)
		return 0;
	return san_failed(s->sock, "no connection to the daemon", err);
}

int san_ask(struct san *s, const char *name, const uint64_t *version, uint32_t more_flags, struct lm_error *err)
{
	struct sanlk_resource *one;
	struct resource q;
	int rv = san_enroll(s, err);

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
		return san_failed(rv, "acquiring the lease", err);
	}
}

int san_proof(struct san *s, struct lm_error *err)
{
	struct on_disk d;
	int r = san_look(s, &d, err);

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
	return rv < 0 ? san_failed(rv, "releasing the lease", err) : 0;
}

/*
 * When two hosts wanted the lease at once, the loser may have written the record of
 * the winner: Paxos allows that.  At the release sanlock then leaves that record alone, and
 * with it the name, and says nothing (3.8.5).  So look, and if the name is still the old one,
 * own the lease once more, with a record that is ours.  Meanwhile the record names this host, and
 * others keep away.
 */
int san_let_go(struct san *s, const char *new_name, struct lm_error *err)
{
	for (unsigned i = 0; i < SANLOCK_TRIES; i++) {
		struct on_disk d;
		int r = release_as(s, new_name, err);

		if (!r)
			r = san_look(s, &d, err);
		if (r || (d.owner != s->self && !strcmp(d.name, new_name)))
			return r;
		r = san_ask(s, d.name, NULL, 0, err);
		if (!r)
			r = san_proof(s, err);
		if (r)
			return r;
	}
	return lm_err(err, -EIO, LM_SCOPE_OPERATION, "sanlock: the lease cannot be renamed");
}
