/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sanlock:LOCKSPACE:RESOURCE:PATH:OFFSET - a resource lease of sanlock.
 *
 * The host joined the lockspace before (sanlock's own tools do that); its number
 * there is how sanlock knows it.  The lease is acquired as a persistent one: when our
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
#include <unistd.h>
#include "backends.h"
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "sanlock_handover.h"
#include "sanlock_lease.h"
#include "sanlock_show.h"
#include "engine/base/testhook.h"

/* "#" and two numbers of hosts, of 2000 at most */
#define NAME_MAX_LEN (SANLK_NAME_LEN - 11)

/* --- acquiring --------------------------------------------------------------------- */

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
	int r = san_look(s, &d, err);

	if (!r)
		r = refuse(s, &d, err);
	if (!r && !free_too && !d.owner && !d.handover)
		r = lm_lock_is_free(err);
	if (!r)
		r = lm_fault_point("lock-owning", err);
	return r ? r : san_ask(s, d.name, NULL, SANLK_ACQUIRE_ORPHAN, err);
}

static int san_acquire(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	int r = s->have ? 0 : -EAGAIN;

	for (unsigned i = 0; r == -EAGAIN && i < SANLOCK_TRIES && lm_now_ns() < deadline_ns; i++) {
		if (i)
			usleep(SANLOCK_RETRY_US);
		r = acquire_once(s, free_too, err);
	}
	if (!r)
		r = san_proof(s, err);
	/* Whether a host that is gone still counts is sanlock's decision; with orphans it never lets them go silently. */
	if (!r && sanlock_set_config(s->lockspace, 0, SANLK_CONFIG_USED_BY_ORPHANS, NULL))
		lm_lock_remark(l, "sanlock cannot be told to reset this host when it loses its storage (USED_BY_ORPHANS)");
	return r ? r : lm_fault_point("lock-owned", err);
}

static int san_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	int r = san_look(s, &d, err);

	(void)deadline_ns;
	if (!r && d.owner && d.owner != s->self)
		r = lm_err(err, -EPERM, LM_SCOPE_OPERATION, "host %llu holds it, not this one (%llu)",
			   (unsigned long long)d.owner, (unsigned long long)s->self);
	if (!r && d.handover && !d.owner && d.from != s->self)
		r = lm_err(err, -EPERM, LM_SCOPE_OPERATION, "host %llu is handing it over", (unsigned long long)d.from);
	if (!r && (d.owner || d.handover)) {
		if (!s->have)
			r = san_ask(s, d.name, NULL, SANLK_ACQUIRE_ORPHAN, err);
		if (!r)
			r = san_let_go(s, s->resource, err);
	}
	return r ? r : lm_fault_point("lock-released", err);
}

static int san_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err)
{
	struct san *s = san_of(l);
	struct on_disk d;
	uint32_t state;
	int r = san_look(s, &d, err);

	(void)deadline_ns;
	if (r || (!d.owner && !d.handover))
		return r;
	state = d.owner && d.owner != s->self ? san_host_state(s, d.owner) : SANLK_HOST_DEAD;
	if (state != SANLK_HOST_DEAD && state != SANLK_HOST_FREE)
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "host %llu of the lockspace holds it and is %s",
			      (unsigned long long)d.owner, san_state_words(state));
	r = san_ask(s, d.name, NULL, SANLK_ACQUIRE_ORPHAN, err);
	return r ? r : san_let_go(s, s->resource, err);
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
		return san_failed(rv, "the daemon does not answer", err);
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
