/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination: a const table of what may come in which state.  A message that
 * is not listed fails the session.  It runs the guest only when it has every page,
 * has loaded the device state, has made the source's access to its memory
 * impossible, and has received COMMIT.
 */
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/base/testhook.h"
#include "engine/context/connect.h"
#include "dest.h"

/* ---- the table ---- */

struct dest_rule {
	enum lm_dest_state state;
	enum lm_msg_type type;
	int (*handle)(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err);
	enum lm_dest_state next;
};

/* Messages that another wing handles */

static int arm(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	return lm_postcopy_arm(&d->pull, msg, err);
}

static int keys(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	return lm_postcopy_keys(&d->pull, msg, err);
}

static int left(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	return lm_postcopy_left(&d->pull, msg, err);
}

static int prepare_locks(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	return lm_handover_prepare(d->in.handover, msg, err);
}

static int locks_offered(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	return lm_handover_offered(d->in.handover, msg, err);
}

static const struct dest_rule rules[] = {
	{ LM_DEST_OPENING, LM_MSG_OPEN, lm_dest_handle_open, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LANE_DROP, lm_dest_lane_drop, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LANE_OPEN, lm_dest_lane_open, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_POSTCOPY, arm, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_POSTCOPY_KEYS, keys, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LEFT, left, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_LOCK_ANNOUNCE, prepare_locks, LM_DEST_COPYING },
	{ LM_DEST_COPYING, LM_MSG_PREPARE, lm_dest_handle_prepare, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_LEFT, left, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_LANE_DROP, lm_dest_lane_drop, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_LANE_OPEN, lm_dest_lane_open, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_STATE, lm_dest_handle_state, LM_DEST_PREPARED },
	{ LM_DEST_PREPARED, LM_MSG_SAVED, lm_dest_handle_saved, LM_DEST_LOADED },
	{ LM_DEST_LOADED, LM_MSG_LOCK_OFFER, locks_offered, LM_DEST_LOADED },
	{ LM_DEST_LOADED, LM_MSG_COMMIT, lm_dest_handle_commit, LM_DEST_DONE },
};

static int dispatch(struct lm_dest *d, const struct lm_msg *msg, struct lm_error *err)
{
	for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		int r;

		if (rules[i].state != d->state || rules[i].type != msg->type)
			continue;
		/*
		 * The next message may need what an attempt uses, such as the listener; LANE_DROP ends
		 * the attempt.
		 */
		if (msg->type != LM_MSG_LANE_DROP)
			lm_dest_reopen_wait(d);
		r = rules[i].handle(d, msg, err);
		if (!r)
			d->state = rules[i].next;
		return r;
	}
	return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s, which is not legal at this stage",
		      lm_msg_name(msg->type));
}

/*
 * The source pings every second while it copies, may be busy with its VM for
 * qmp_timeout, and until PREPARE the network may be away for recover_timeout.  A PING is a
 * sign of life, though not a message: a copy takes as long as it takes.
 */
static int next_message(struct lm_ctx *c, struct lm_msg *msg, struct lm_error *err)
{
	return lm_control_recv_patient(&c->control, msg, c->opt.peer_timeout_ns + c->opt.qmp_timeout_ns + c->outage_ns,
				       LM_NO_DEADLINE, err);
}

static int serve(struct lm_dest *d, struct lm_error *err)
{
	while (d->state != LM_DEST_DONE) {
		struct lm_msg msg;
		int r = next_message(d->c, &msg, err);

		if (!r)
			r = dispatch(d, &msg, err);
		if (r)
			return r;
		/* Teeth: without the rule "run only after COMMIT". */
		if (d->state == LM_DEST_LOADED && lm_broken("commit"))
			lm_vm_resume(d->c->vm, lm_ctx_vm_deadline(d->c), NULL, NULL);
	}
	return 0;
}

int lm_dest_run(struct lm_dest *d, struct lm_error *err)
{
	int r = lm_ctx_stage(d->c, "open", err);

	if (d->c->recovering)
		return r ? r : lm_postcopy_pull(&d->pull, err);
	if (!r)
		r = lm_ctx_accept(d->c, lm_deadline_after(d->c->opt.timeout_ns), err);
	if (!r)
		r = lm_ctx_stage(d->c, "opened", err);
	if (!r)
		r = serve(d, err);
	if (r) {
		lm_dest_fence(d);
		lm_incoming_undo(&d->in, err);
	}
	lm_ctx_urgent(d->c, false);
	if (r)
		return r;
	if (d->pull.both.armed) {
		r = lm_postcopy_pull(&d->pull, err);
		if (!r)
			lm_handover_keep(d->in.handover); /* while pages are missing the VM may not answer */
	}
	return r ? r : lm_ctx_stage(d->c, "done", err);
}

/* ---- its life ---- */

void lm_dest_init(struct lm_dest *d, struct lm_ctx *c, struct lm_guardian *guardian, struct lm_handover *handover)
{
	d->c = c;
	d->in = (struct lm_incoming){ .c = c, .guardian = guardian, .handover = handover, .state_fd = -1 };
	d->pull.both.c = c;
}

void lm_dest_fini(struct lm_dest *d)
{
	if (!d->c)
		return;
	lm_dest_fence(d);
	lm_incoming_fini(&d->in);
	if (d->reopen.params.nlanes)
		lm_close_fd(&d->reopen.stop_fd);
	free(d->held);
	free(d->placed);
	free(d->lane_errors);
	/* After COMMIT the pager stays in the VM until every page is there, whatever happens. */
	lm_postcopy_dest_end(&d->pull, d->in.committed || d->c->recovering, d->in.load_begun);
}
