/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storage locks in a migration: engine/PROTOCOL.md, "Storage locks".
 *
 * The guest may run where all locks are held, and nowhere else.  The source holds them until it
 * offers them, which it does when its QEMU has let go of the disks; the destination
 * takes them after COMMIT and before it runs the guest.  After an offer the source
 * takes them back before it runs the guest, whatever it has heard.
 */
#include <stdio.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/session/session.h"
#include "engine/base/testhook.h"

/* For steps outside of the blackout: storage that does not answer for so long is refused. */
#define LOCK_TIMEOUT_NS (10 * LM_NS_PER_S)

static void say_remarks(struct lm_session *s)
{
	const struct lm_locks *l = &s->handover.locks;

	for (unsigned i = 0; i < l->n; i++)
		if (l->lock[i]->remark[0])
			lm_session_log(s, LM_LOG_WARN, "%s: %s", l->lock[i]->uri, l->lock[i]->remark);
}

/* The guest runs on this host, so its locks are this host's, and stay so if the migration fails. */
static int acquire(struct lm_session *s, struct lm_error *err)
{
	struct lm_locks *l = &s->handover.locks;
	struct lm_lock_info info;
	bool held = !lm_locks_query(l, &info, lm_deadline_after(LOCK_TIMEOUT_NS), NULL) &&
		    info.state == LM_LOCK_HELD_HERE;
	int r = lm_locks_acquire(l, lm_deadline_after(LOCK_TIMEOUT_NS), err);

	if (r == -EBUSY)
		lm_err_prefix(err, "another host may write to the guest's disks");
	if (r)
		return r;
	say_remarks(s);
	if (!held)
		lm_session_log(s, LM_LOG_INFO, "the guest's storage locks were acquired; they stay with this host as long "
			       "as the guest does");
	return 0;
}

/* A source with the guest's pages must not hold its locks: then the guest cannot run elsewhere. */
static int check_moved(struct lm_session *s, struct lm_error *err)
{
	struct lm_lock_info info;
	int r = lm_locks_query(&s->handover.locks, &info, lm_deadline_after(LOCK_TIMEOUT_NS), err);

	if (!r && (info.state == LM_LOCK_HELD_HERE || info.state == LM_LOCK_IN_HANDOVER))
		r = lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "the destination has not taken the guest's storage locks, so it "
			   "does not run there: `migrate-rdma resolve --auto`");
	return r;
}

int lm_handover_open(struct lm_session *s, struct lm_error *err)
{
	const struct lm_lock_params p = { .host = s->opt.lock_host, .holder_pid = s->vm->pid,
					  .deadline_ns = lm_deadline_after(LOCK_TIMEOUT_NS) };
	int r;

	if (!s->opt.nlocks)
		return 0;
	r = lm_locks_open(s->opt.locks, s->opt.nlocks, &p, &s->handover.locks, err);
	if (r)
		return r;
	if (s->recovering)
		return s->side == LM_SOURCE ? check_moved(s, err) : acquire(s, err);
	if (s->side == LM_DEST)
		return 0;
	r = acquire(s, err);
	if (!r)
		lm_handover_keep(s);
	return r;
}

void lm_handover_keep(struct lm_session *s)
{
	const struct lm_locks *l = &s->handover.locks;

	for (unsigned i = 0; i < l->n; i++) {
		struct lm_error e = { 0 };
		char name[40];

		if (l->lock[i]->keep_fd < 0)
			continue;
		snprintf(name, sizeof(name), "migrate-rdma-lock%u", i);
		if (s->vm->ops->keep_fd && lm_vm_keep_fd(s->vm, name, l->lock[i]->keep_fd, &e))
			lm_session_log(s, LM_LOG_WARN, "%s is held by this host, but nothing will show that the guest lives: %s",
				       l->lock[i]->uri, e.msg);
	}
}

static int send_notes(struct lm_session *s, enum lm_msg_type type, const struct lm_lock_notes *notes, struct lm_error *err)
{
	return lm_control_send(&s->control, type, notes->note, (size_t)notes->n * LM_LOCK_NOTE_SIZE,
			       lm_session_peer_deadline(s), err);
}

/* The peer's storage may be slow: it is waited for as long as it gives signs of life. */
static int recv_answer(struct lm_session *s, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_session_expect(s, LM_MSG_LOCK_ANSWER, &msg, s->opt.peer_timeout_ns,
				  lm_deadline_after(2 * LOCK_TIMEOUT_NS + s->opt.peer_timeout_ns), err);

	return r ? r : lm_wire_get_locks(msg.payload, msg.len, s->handover.locks.n, &s->handover.answer, err);
}

int lm_handover_announce(struct lm_session *s, struct lm_error *err)
{
	struct lm_handover *h = &s->handover;
	struct lm_lock_notes notes;
	int r;

	if (!h->locks.n)
		return 0;
	r = lm_locks_announce(&h->locks, &notes, lm_deadline_after(LOCK_TIMEOUT_NS), err);
	if (r)
		return r;
	say_remarks(s);
	r = send_notes(s, LM_MSG_LOCK_ANNOUNCE, &notes, err);
	if (!r)
		r = recv_answer(s, err);
	return r ? r : lm_session_stage(s, "announced", err);
}

int lm_handover_prepare(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_handover *h = &s->handover;
	struct lm_lock_notes announce, answer;
	struct lm_keepalive keepalive;
	int r = lm_wire_get_locks(msg->payload, msg->len, h->locks.n, &announce, err);

	if (!r)
		r = lm_keepalive_start(&keepalive, &s->control, err);
	if (r)
		return r;
	r = lm_locks_prepare(&h->locks, &announce, &answer, lm_deadline_after(LOCK_TIMEOUT_NS), err);
	lm_keepalive_stop(&keepalive);
	if (r)
		return r;
	say_remarks(s);
	return send_notes(s, LM_MSG_LOCK_ANSWER, &answer, err);
}

int lm_handover_offer(struct lm_session *s, struct lm_error *err)
{
	struct lm_handover *h = &s->handover;
	struct lm_lock_notes notes;
	int r;

	if (!h->locks.n)
		return 0;
	r = lm_session_stage(s, "offering", err);
	if (r)
		return r;
	if (!lm_guardian_offer(&s->guardian) && !lm_broken("lock-early"))
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the pause has lasted longer than --max-pause");
	h->offered = true; /* also when it fails: what the storage says then is not known */
	r = lm_locks_offer(&h->locks, &h->answer, h->quiet, &notes, s->src.deadline_ns, err);
	lm_guardian_offer_done(&s->guardian);
	h->offer_ns = h->locks.spent_ns;
	lm_session_log(s, LM_LOG_DEBUG, "storage locks: offering took %.2f ms", (double)h->offer_ns / 1e6);
	if (!r)
		r = send_notes(s, LM_MSG_LOCK_OFFER, &notes, err);
	return r ? r : lm_session_stage(s, "offered", err);
}

int lm_handover_offered(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	return lm_wire_get_locks(msg->payload, msg->len, s->handover.locks.n, &s->handover.offer, err);
}

int lm_handover_reclaim(struct lm_session *s, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_handover *h = &s->handover;
	int r;

	if (!h->offered || lm_broken("lock-reclaim"))
		return 0;
	r = lm_session_stage(s, "reclaiming", err);
	if (!r)
		r = lm_locks_reclaim(&h->locks, s->control.peer_aborted, deadline_ns, err); /* it gave back what it had */
	if (!r)
		r = lm_session_stage(s, "reclaimed", err);
	if (r)
		return r;
	h->offered = false;
	lm_guardian_reclaimed(&s->guardian);
	return 0;
}

int lm_handover_take(struct lm_session *s, struct lm_error *err)
{
	struct lm_handover *h = &s->handover;
	int r;

	if (!h->locks.n)
		return 0;
	r = lm_session_stage(s, "taking", err);
	if (r)
		return r;
	r = lm_locks_take(&h->locks, &h->offer, lm_session_peer_deadline(s), err);
	h->take_ns = h->locks.spent_ns;
	lm_session_log(s, LM_LOG_DEBUG, "storage locks: taking took %.2f ms", (double)h->take_ns / 1e6);
	return r ? r : lm_session_stage(s, "taken", err);
}

void lm_handover_give_back(struct lm_session *s)
{
	struct lm_error e = { 0 };

	if (lm_locks_give_back(&s->handover.locks, lm_deadline_after(LOCK_TIMEOUT_NS), &e))
		lm_session_log(s, LM_LOG_ERROR, "a storage lock that was taken for the guest could not be given back (%s): the "
			       "source cannot run it before that; `migrate-rdma lock release` when the storage answers",
			       e.msg);
}
