/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `migrate-rdma resolve`: a person, or the storage locks, decide about a guest whose engines left it in doubt.
 * Nothing is known here of what the engines had done; QEMU is asked, and the locks.
 */
#include <stdio.h>
#include <string.h>
#include "engine/lock/locks.h"
#include "engine/postcopy/state.h"
#include "qemu_priv.h"

/* What the state means to a person who has to decide. */
static const char *meaning(const struct qemu_status *st)
{
	bool completed = !strcmp(st->migration, "completed");

	if (st->running)
		return "The guest runs here.";
	if (!strcmp(st->run, "inmigrate"))
		return "A destination that has not received the whole guest: it cannot run here. Run it at the "
				"source, then end this QEMU.";
	if (completed && (!strcmp(st->run, "postmigrate") || !strcmp(st->run, "finish-migrate")))
		return "An in-doubt source: the whole state has left, the guest is stopped here. Run it here "
				"only when it is certain that it does not run at the destination.";
	if (completed)
		return "A loaded destination: the whole guest is here and stopped. Run it here only when it is "
				"certain that it does not run at the source.";
	if (qemu_migration_active(st->migration))
		return "A source in the middle of a migration: nothing is lost, running it here cancels the "
				"migration.";
	return "The guest is paused here; no migration is under way.";
}

static int show(struct lm_qmp *qmp, int64_t deadline_ns, char *ret, size_t size, struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_status_read(qmp, deadline_ns, &st, err);

	if (!r)
		snprintf(ret, size, "guest: %s, migration: %s%s%s. %s", st.run, st.migration, st.error[0] ? ": " : "",
			 st.error, meaning(&st));
	return r;
}

static int check_whole(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_status_read(qmp, deadline_ns, &st, err);

	if (!r && !strcmp(st.run, "inmigrate"))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			      "this QEMU has not received the whole guest (incoming migration: %s): it cannot "
			      "run here",
			      st.migration);
	return r;
}

static int run_here(struct lm_qmp *qmp, int64_t deadline_ns, char *ret, size_t size, struct lm_error *err)
{
	struct qemu_status st;
	int r = check_whole(qmp, deadline_ns, err);

	if (!r)
		r = qemu_settle(qmp, deadline_ns, &st, err);
	if (!r && !st.running)
		r = qemu_cont(qmp, deadline_ns, err);
	if (!r)
		snprintf(ret, size, "The guest runs here.");
	return r;
}

/* A guest that left pages here needs them until it has the last one. */
static int check_postcopy(struct lm_qmp *qmp, enum lm_resolve what, struct lm_error *err)
{
	enum lm_pccommit said = what == LM_RESOLVE_SHOW ? LM_PC_NONE : lm_pcstate_look(lm_qmp_peer_pid(qmp));

	if (said == LM_PC_NONE || (said == LM_PC_SENT && what == LM_RESOLVE_RUN_HERE))
		return 0;
	if (what == LM_RESOLVE_RUN_HERE)
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
			      "the guest has run at the destination since and left pages here: it can never run here "
			      "again. Go on with `migrate-rdma recover` on both hosts");
	return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
		      "a post-copy of this guest is not finished: its missing pages are in this QEMU, and the guest would "
		      "be lost. Go on with `migrate-rdma recover` on both hosts; if the destination is lost for good, so "
		      "is the guest: then end process %d", (int)lm_qmp_peer_pid(qmp));
}

static int lock_line(struct lm_locks *l, int64_t deadline_ns, char *ret, size_t size, struct lm_error *err)
{
	struct lm_lock_info info;
	int r = lm_locks_query(l, &info, deadline_ns, err);
	size_t at = strlen(ret);

	if (!r)
		snprintf(ret + at, size - at, "\nstorage lock %s: %s%s%s%s%s", l->lock[l->failed]->uri,
			 lm_lock_state_name(info.state), *info.holder ? ", holder " : "", info.holder,
			 *info.next ? ", offered to " : "", info.next);
	return r;
}

/* Whether there is a guest that an engine has left behind: one that somebody else paused is not touched. */
static bool left_behind(const struct qemu_status *st)
{
	return !st->running && strcmp(st->run, "inmigrate") &&
	       (!strcmp(st->migration, "completed") || qemu_migration_active(st->migration));
}

/* 0: this host holds all of them, and the VM shows that it lives.  free_too: a person has decided. */
static int locks_own(struct lm_qmp *qmp, struct lm_locks *l, bool free_too, int64_t deadline_ns, struct lm_error *err)
{
	int r = lm_locks_reclaim(l, free_too, deadline_ns, err);

	if (r && lm_locks_final(r))
		lm_err_prefix(err, "this host does not hold the guest's storage locks");
	for (unsigned i = 0; !r && i < l->n; i++) {
		char name[40];

		if (l->lock[i]->keep_fd < 0)
			continue;
		snprintf(name, sizeof(name), "migrate-rdma-lock%u", i);
		r = lm_qmp_getfd(qmp, name, l->lock[i]->keep_fd, deadline_ns, err);
	}
	return r;
}

static int auto_here(struct lm_qmp *qmp, struct lm_locks *l, int64_t deadline_ns, char *ret, size_t size,
		     struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_status_read(qmp, deadline_ns, &st, err);

	if (!r && !left_behind(&st)) {
		snprintf(ret, size, "%s", meaning(&st));
		return 0;
	}
	if (!r)
		r = locks_own(qmp, l, false, deadline_ns, err);
	return r ? r : run_here(qmp, deadline_ns, ret, size, err);
}

static bool is_source(const struct qemu_status *st)
{
	return !strcmp(st->run, "postmigrate") || !strcmp(st->run, "finish-migrate");
}

/* Where the lock is this host's, or can be again, the guest may be nowhere else. */
static int check_end(struct lm_qmp *qmp, struct lm_locks *l, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_lock_info info = { 0 };
	struct qemu_status st = { 0 };
	int r = lm_lock_query(l->lock[0], &info, deadline_ns, err);

	if (!r)
		r = qemu_status_read(qmp, deadline_ns, &st, err);
	/* Offered: a source can have it again, and then has the only guest there is. */
	if (!r && (info.state == LM_LOCK_HELD_HERE || (info.state == LM_LOCK_IN_HANDOVER && is_source(&st))))
		r = lm_err(err, -EPERM, LM_SCOPE_OPERATION,
			   "this host holds the storage lock %.200s: the guest can run nowhere else, and would be lost. Run it "
			   "here (--auto); to give it up all the same, end process %d, then release the lock",
			   l->lock[0]->uri, (int)lm_qmp_peer_pid(qmp));
	return r;
}

static int resolve_locked(struct lm_qmp *qmp, enum lm_resolve what, struct lm_locks *l, char *ret, size_t size,
			  struct lm_error *err)
{
	int64_t deadline_ns = lm_deadline_after(QEMU_TIMEOUT_NS);

	if (what == LM_RESOLVE_AUTO)
		return auto_here(qmp, l, deadline_ns, ret, size, err);
	if (what == LM_RESOLVE_RUN_HERE) {
		int r = check_whole(qmp, deadline_ns, err); /* else the host that can run it would be kept out */

		return r ? r : locks_own(qmp, l, true, deadline_ns, err);
	}
	if (what == LM_RESOLVE_END_HERE)
		return check_end(qmp, l, deadline_ns, err);
	return 0;
}

static int resolve(struct lm_qmp *qmp, enum lm_resolve what, char *ret, size_t size, struct lm_error *err)
{
	int64_t deadline_ns = lm_deadline_after(QEMU_TIMEOUT_NS);
	int r;

	if (what == LM_RESOLVE_RUN_HERE)
		return run_here(qmp, deadline_ns, ret, size, err);
	if (what != LM_RESOLVE_END_HERE)
		return show(qmp, deadline_ns, ret, size, err);
	r = qemu_quit(qmp, deadline_ns, err);
	if (!r)
		snprintf(ret, size, "This QEMU has ended.");
	return r;
}

LM_API int lm_resolve_locked(const char *path, enum lm_resolve what, const char *const *locks, unsigned nlocks,
			     const char *lock_host, char *ret_text, size_t text_size, struct lm_error *err)
{
	struct lm_lock_params p = { .host = lock_host, .deadline_ns = lm_deadline_after(QEMU_TIMEOUT_NS) };
	struct lm_locks l = { 0 };
	struct lm_qmp *qmp = NULL;
	int r;

	if (what == LM_RESOLVE_AUTO && !nlocks)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "without storage locks only a person can decide");
	r = lm_qmp_connect(path, -1, p.deadline_ns, &qmp, err);
	if (!r)
		p.holder_pid = lm_qmp_peer_pid(qmp);
	if (!r && nlocks)
		r = lm_locks_open(locks, nlocks, &p, &l, err);
	if (!r)
		r = check_postcopy(qmp, what == LM_RESOLVE_AUTO ? LM_RESOLVE_RUN_HERE : what, err);
	if (!r && nlocks)
		r = resolve_locked(qmp, what, &l, ret_text, text_size, err);
	if (!r && what != LM_RESOLVE_AUTO)
		r = resolve(qmp, what, ret_text, text_size, err);
	if (!r && nlocks && what == LM_RESOLVE_SHOW)
		r = lock_line(&l, lm_deadline_after(QEMU_TIMEOUT_NS), ret_text, text_size, err);
	lm_locks_close(&l);
	lm_qmp_close(qmp);
	return r;
}

LM_API int lm_resolve(const char *path, enum lm_resolve what, char *ret_text, size_t text_size,
		      struct lm_error *err)
{
	return lm_resolve_locked(path, what, NULL, 0, NULL, ret_text, text_size, err);
}
