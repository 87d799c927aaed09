/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy, destination: the source is lost and comes back; and the last word to it. */
#include <time.h>
#include "engine/base/clock.h"
#include "engine/context/connect.h"
#include "both.h"

static int64_t recover_deadline(const struct lm_postcopy_dest *p)
{
	struct lm_ctx *c = p->both.c;

	return c->opt.recover_timeout_ns > 0 ? lm_deadline_after(c->opt.recover_timeout_ns) : lm_now_ns();
}

static int hear_recover(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_wire_recover recover;
	struct lm_msg msg;
	int64_t deadline = lm_deadline_min(lm_ctx_peer_deadline(c), lm_deadline_after(LM_HELLO_TIMEOUT_NS));
	int r = lm_control_expect(&c->control, LM_MSG_RECOVER, &msg, deadline, err);

	if (!r)
		r = lm_wire_get_fixed(msg.payload, msg.len, "RECOVER: length", &recover, sizeof(recover), err);
	if (!r && !lm_secret_equal(recover.secret, p->both.secret))
		r = lm_err(err, -EACCES, LM_SCOPE_SESSION, "a stranger wants to recover another post-copy than ours");
	return r;
}

static int take_recover(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_msg msg;
	int r = hear_recover(p, err);

	if (!r)
		r = lm_postcopy_dest_open_lanes(p, err);
	if (!r)
		r = lm_control_expect_patient(&c->control, LM_MSG_POSTCOPY_KEYS, &msg, c->opt.peer_timeout_ns, LM_NO_DEADLINE, err);
	if (!r)
		r = lm_postcopy_bind_keys(p, &msg, err);
	if (!r)
		lm_puller_up(&p->puller, p->both.transport);
	return r;
}

static int interrupted(struct lm_postcopy_dest *p, const struct lm_error *why, struct lm_error *err)
{
	p->both.c->summary.outcome = LM_OUTCOME_INTERRUPTED;
	return lm_err(err, -ENOTCONN, LM_SCOPE_SESSION,
		      "post-copy is interrupted: the source cannot be reached (%.200s). The guest is here, and waits when it "
		      "touches a page that is missing. Do not end the source's QEMU; go on with `migrate-rdma recover` on both "
		      "hosts", why->msg);
}

/* The threads go on showing what is whole; wait for the source to come back. */
int lm_postcopy_dest_recover(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int64_t deadline = recover_deadline(p);
	struct timespec nap = { 0, 10 * LM_NS_PER_MS };
	const struct lm_error *lane;
	struct lm_error e = *err;

	lm_puller_down(&p->puller);
	lane = lm_puller_error(&p->puller);
	lm_ctx_log(c, LM_LOG_WARN, "post-copy: the source is lost (%s%s%s); waiting for it", e.msg,
		   lane ? ": " : "", lane ? lane->msg : "");
	for (;;) {
		int r;

		lm_postcopy_dest_close_lanes(p);
		lm_control_close(&c->control);
		r = lm_postcopy_vm_error(p, err);
		if (r)
			return r;
		r = lm_ctx_accept(c, deadline, &e);
		if (r && e.scope == LM_SCOPE_VM)
			return *err = e, r;
		if (r == -ETIMEDOUT || r == -ECANCELED || (r && lm_now_ns() > deadline))
			return interrupted(p, &e, err);
		if (!r)
			r = take_recover(p, &e);
		if (r) { /* a stranger, or the source was lost again */
			lm_ctx_log(c, LM_LOG_WARN, "post-copy: %s: %s", c->peer, e.msg);
			nanosleep(&nap, NULL);
			continue;
		}
		c->summary.postcopy.recoveries++;
		lm_ctx_log(c, LM_LOG_INFO, "post-copy: the source is back");
		return lm_ctx_stage(c, "recovered", err);
	}
}

static int say_whole(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_msg msg;
	int r = lm_control_send(&c->control, LM_MSG_WHOLE, NULL, 0, lm_ctx_peer_deadline(c), err);

	return r ? r : lm_control_expect(&c->control, LM_MSG_WHOLE, &msg, lm_ctx_peer_deadline(c), err);
}

/* It looks for us: wait for that, and say it then. */
static int say_whole_again(struct lm_postcopy_dest *p, int64_t deadline, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	int r;

	lm_control_close(&c->control);
	r = lm_ctx_accept(c, deadline, err);
	if (!r)
		r = hear_recover(p, err);
	return r ? r : say_whole(p, err);
}

/* The source keeps its memory until it has heard that every page is here. */
void lm_postcopy_tell_source(struct lm_postcopy_dest *p)
{
	struct lm_ctx *c = p->both.c;
	int64_t deadline = recover_deadline(p);
	struct lm_error e = { 0 };
	int r = -ENOTCONN;

	if (c->control.stream) {
		r = lm_postcopy_send_status(p, &e);
		if (!r)
			r = say_whole(p, &e);
	}
	while (r && lm_now_ns() < deadline && r != -ECANCELED)
		r = say_whole_again(p, deadline, &e);
	if (r)
		lm_ctx_log(c, LM_LOG_WARN, "every page is here, but the source could not be told (%s): its QEMU can "
			   "be ended", e.msg);
}
