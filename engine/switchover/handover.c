/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include "engine/base/clock.h"
#include "engine/base/testhook.h"
#include "engine/control/keepalive.h"
#include "handover.h"

/* For steps outside of the blackout: storage that does not answer for this long is refused. */
#define LOCK_TIMEOUT_NS (10 * LM_NS_PER_S)

static void say_remarks(struct lm_handover *h)
{
	const struct lm_locks *l = &h->locks;

	for (unsigned i = 0; i < l->n; i++)
		if (l->lock[i]->remark[0])
			lm_ctx_log(h->c, LM_LOG_WARN, "%s: %s", l->lock[i]->uri, l->lock[i]->remark);
}

/* The guest runs on this host, so its locks are this host's, and stay so if the migration fails. */
static int acquire(struct lm_handover *h, struct lm_error *err)
{
	struct lm_locks *l = &h->locks;
	struct lm_lock_info info;
	bool held = !lm_locks_query(l, &info, lm_deadline_after(LOCK_TIMEOUT_NS), NULL) &&
		    info.state == LM_LOCK_HELD_HERE;
	int r = lm_locks_acquire(l, lm_deadline_after(LOCK_TIMEOUT_NS), err);

	if (r == -EBUSY)
		lm_err_prefix(err, "another host may write to the guest's disks");
	if (r)
		return r;
	say_remarks(h);
	if (!held)
		lm_ctx_log(h->c, LM_LOG_INFO, "the guest's storage locks were acquired; this host keeps them as long as it has the guest");
	return 0;
}

/* A source with the guest's pages must not hold its locks: then the guest cannot run elsewhere. */
static int check_moved(struct lm_handover *h, struct lm_error *err)
{
	struct lm_lock_info info;
	int r = lm_locks_query(&h->locks, &info, lm_deadline_after(LOCK_TIMEOUT_NS), err);

	if (!r && (info.state == LM_LOCK_HELD_HERE || info.state == LM_LOCK_IN_HANDOVER))
		r = lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "the destination has not taken the guest's storage locks, so it "
			   "does not run there: `migrate-rdma resolve --auto`");
	return r;
}

int lm_handover_open(struct lm_handover *h, struct lm_ctx *c, struct lm_guardian *guardian, struct lm_error *err)
{
	const struct lm_lock_params p = { .host = c->opt.lock_host, .holder_pid = c->vm->pid,
					  .deadline_ns = lm_deadline_after(LOCK_TIMEOUT_NS) };
	int r;

	h->c = c;
	h->guardian = guardian;
	if (!c->opt.nlocks)
		return 0;
	r = lm_locks_open(c->opt.locks, c->opt.nlocks, &p, &h->locks, err);
	if (r)
		return r;
	if (c->recovering)
		return c->side == LM_SOURCE ? check_moved(h, err) : acquire(h, err);
	if (c->side == LM_DEST)
		return 0;
	r = acquire(h, err);
	if (!r)
		lm_handover_keep(h);
	return r;
}

void lm_handover_close(struct lm_handover *h)
{
	lm_locks_close(&h->locks);
}

void lm_handover_keep(struct lm_handover *h)
{
	const struct lm_locks *l = &h->locks;

	for (unsigned i = 0; i < l->n; i++) {
		struct lm_error e = { 0 };
		char name[40];

		if (l->lock[i]->keep_fd < 0)
			continue;
		snprintf(name, sizeof(name), "migrate-rdma-lock%u", i);
		if (h->c->vm->ops->keep_fd && lm_vm_keep_fd(h->c->vm, name, l->lock[i]->keep_fd, &e))
			lm_ctx_log(h->c, LM_LOG_WARN, "%s is held by this host, but nothing will show that the guest lives: %s",
				   l->lock[i]->uri, e.msg);
	}
}

static int send_notes(struct lm_handover *h, enum lm_msg_type type, const struct lm_lock_notes *notes, struct lm_error *err)
{
	return lm_control_send(&h->c->control, type, notes->note, (size_t)notes->n * LM_LOCK_NOTE_SIZE,
			       lm_ctx_peer_deadline(h->c), err);
}

/* The peer's storage may be slow, so this side waits as long as the peer gives signs of life. */
static int recv_answer(struct lm_handover *h, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_control_expect_patient(&h->c->control, LM_MSG_LOCK_ANSWER, &msg, h->c->opt.peer_timeout_ns,
					  lm_deadline_after(2 * LOCK_TIMEOUT_NS + h->c->opt.peer_timeout_ns), err);

	return r ? r : lm_wire_get_locks(msg.payload, msg.len, h->locks.n, &h->answer, err);
}

int lm_handover_announce(struct lm_handover *h, struct lm_error *err)
{
	struct lm_lock_notes notes;
	int r;

	if (!h->locks.n)
		return 0;
	r = lm_locks_announce(&h->locks, &notes, lm_deadline_after(LOCK_TIMEOUT_NS), err);
	if (r)
		return r;
	say_remarks(h);
	r = send_notes(h, LM_MSG_LOCK_ANNOUNCE, &notes, err);
	if (!r)
		r = recv_answer(h, err);
	return r ? r : lm_ctx_stage(h->c, "announced", err);
}

int lm_handover_prepare(struct lm_handover *h, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_lock_notes announce, answer;
	struct lm_keepalive keepalive;
	int r = lm_wire_get_locks(msg->payload, msg->len, h->locks.n, &announce, err);

	if (!r)
		r = lm_keepalive_start(&keepalive, &h->c->control, err);
	if (r)
		return r;
	r = lm_locks_prepare(&h->locks, &announce, &answer, lm_deadline_after(LOCK_TIMEOUT_NS), err);
	lm_keepalive_stop(&keepalive);
	if (r)
		return r;
	say_remarks(h);
	return send_notes(h, LM_MSG_LOCK_ANSWER, &answer, err);
}

int lm_handover_offer(struct lm_handover *h, struct lm_error *err)
{
	struct lm_lock_notes notes;
	int r;

	if (!h->locks.n)
		return 0;
	r = lm_ctx_stage(h->c, "offering", err);
	if (r)
		return r;
	if (!lm_guardian_offer(h->guardian) && !lm_broken("lock-early"))
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the pause has lasted longer than --max-pause");
	h->offered = true; /* also when it fails: what the storage says then is not known */
	r = lm_locks_offer(&h->locks, &h->answer, h->disks_idle, &notes, h->c->deadline_ns, err);
	lm_guardian_offer_done(h->guardian);
	h->offer_ns = h->locks.spent_ns;
	lm_ctx_log(h->c, LM_LOG_DEBUG, "storage locks: offering took %.2f ms", (double)h->offer_ns / 1e6);
	if (!r)
		r = send_notes(h, LM_MSG_LOCK_OFFER, &notes, err);
	return r ? r : lm_ctx_stage(h->c, "offered", err);
}

int lm_handover_offered(struct lm_handover *h, const struct lm_msg *msg, struct lm_error *err)
{
	return lm_wire_get_locks(msg->payload, msg->len, h->locks.n, &h->offer, err);
}

int lm_handover_reclaim(struct lm_handover *h, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	if (!h->offered || lm_broken("lock-reclaim"))
		return 0;
	r = lm_ctx_stage(h->c, "reclaiming", err);
	if (!r)
		r = lm_locks_reclaim(&h->locks, h->c->control.peer_aborted, deadline_ns, err); /* it gave back what it had */
	if (!r)
		r = lm_ctx_stage(h->c, "reclaimed", err);
	if (r)
		return r;
	h->offered = false;
	lm_guardian_reclaimed(h->guardian);
	return 0;
}

int lm_handover_take(struct lm_handover *h, struct lm_error *err)
{
	int r;

	if (!h->locks.n)
		return 0;
	r = lm_ctx_stage(h->c, "taking", err);
	if (r)
		return r;
	r = lm_locks_take(&h->locks, &h->offer, lm_ctx_peer_deadline(h->c), err);
	h->take_ns = h->locks.spent_ns;
	lm_ctx_log(h->c, LM_LOG_DEBUG, "storage locks: taking took %.2f ms", (double)h->take_ns / 1e6);
	return r ? r : lm_ctx_stage(h->c, "taken", err);
}

void lm_handover_give_back(struct lm_handover *h)
{
	struct lm_error e = { 0 };

	if (lm_locks_give_back(&h->locks, lm_deadline_after(LOCK_TIMEOUT_NS), &e))
		lm_ctx_log(h->c, LM_LOG_ERROR, "a storage lock that was taken for the guest could not be given back (%s), and the "
		           "source cannot run the guest before that: run `migrate-rdma lock release` when the storage answers again",
			   e.msg);
}
