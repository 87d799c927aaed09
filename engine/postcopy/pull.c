/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy as the destination sees it, once the guest runs: fetch what is missing until nothing is.  puller.h
 * has the threads that do the work.
 */
#include <poll.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "both.h"

#define STATUS_NS (200 * LM_NS_PER_MS)

/* The speed of the link, from what it carried since the last call. */
static void learn_link(struct lm_postcopy_dest *p, int64_t since_ns)
{
	uint64_t bytes = atomic_load(&p->puller.bytes), got = bytes - p->last_bytes;

	p->last_bytes = bytes;
	if (since_ns > 0 && got)
		lm_puller_set_link(&p->puller, p->both.c->control.rtt_ns,
				   (uint64_t)((double)got * 1e9 / (double)since_ns));
}

/* Anything but a sign of life is out of place. */
static int listen_to_source(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_msg msg;
	int r;

	if (!c->control.stream) /* the pages come out of an image */
		return 0;
	r = lm_control_try_recv(&c->control, &msg, err);
	if (r > 0)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s in post-copy", lm_msg_name(msg.type));
	if (!r && lm_now_ns() - c->control.last_heard_ns > c->opt.peer_timeout_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the source is silent");
	return r;
}

static const char *lane_error(const struct lm_postcopy_both *both, unsigned lane)
{
	return ((const struct lm_postcopy_dest *)both)->puller.lanes[lane].error.msg; /* both is its first member */
}

/* Waits at most 100 ms for news, or not at all while there are pages to show. */
static int wait_for_news(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct pollfd fds[4] = { { .fd = p->puller.event_fd, .events = POLLIN },
				 { .fd = c->control.stream ? lm_control_fd(&c->control) : -1, .events = POLLIN },
				 { .fd = c->vm->pidfd, .events = POLLIN },
				 { .fd = lm_comeback_fd(&p->both.comeback), .events = POLLIN } };
	uint64_t count;

	poll(fds, 4, lm_postcopy_show_some(p) ? 0 : 100);
	if (read(p->puller.event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
	return 0;
}

static int check_all(struct lm_postcopy_dest *p, struct lm_error *err)
{
	int r = lm_postcopy_vm_error(p, err);

	lm_postcopy_tell_lanes(&p->both, atomic_load(&p->puller.failed), lane_error);
	if (!r && lm_puller_missing(&p->puller) && atomic_load(&p->puller.lost))
		r = lm_err(err, -ECONNRESET, LM_SCOPE_SESSION, "no lane is left");
	if (!r)
		r = listen_to_source(p, err);
	return r ? r : lm_postcopy_dest_lanes_tick(p, err);
}

static int fetch(struct lm_postcopy_dest *p, struct lm_error *err)
{
	int64_t last = lm_now_ns();
	int r = 0;

	lm_puller_background(&p->puller);
	while (!r && lm_puller_missing(&p->puller)) {
		r = wait_for_news(p, err);
		if (r)
			return r;
		r = check_all(p, err);
		if (!r && lm_now_ns() - last > STATUS_NS) {
			learn_link(p, lm_now_ns() - last);
			last = lm_now_ns();
			r = lm_postcopy_send_status(p, err);
		}
	}
	return r;
}

/* Until nothing is missing (0), the source is lost (an error) or the VM (scope VM). */
static int fetch_rest(struct lm_postcopy_dest *p, struct lm_error *err)
{
	int r = fetch(p, err);

	lm_postcopy_dest_lanes_settle(p);
	return r;
}

/* Every page is whole: the guest no longer needs the source. */
static int let_go(struct lm_postcopy_dest *p, struct lm_error *err)
{
	int r;

	p->both.state.head->whole = 1;
	r = lm_ctx_stage(p->both.c, "whole", err);
	if (!r && p->pager)
		r = lm_pager_finish(p->pager, err);
	return r;
}

static int end(struct lm_postcopy_dest *p, bool tell, struct lm_error *err)
{
	int r;

	lm_puller_stop(&p->puller); /* finish is called when no other call of the pager runs */
	if (p->puller.ram)
		lm_postcopy_collect_stats(p);
	r = let_go(p, err);
	if (r)
		return r;
	if (tell)
		lm_postcopy_tell_source(p);
	lm_puller_fini(&p->puller);
	lm_pcstate_remove(&p->both.state);
	return 0;
}

int lm_postcopy_pull(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	struct lm_error e = { 0 };
	int r = lm_ctx_stage(c, "postcopy", &e);

	if (!r && p->both.state.head->whole)
		return end(p, true, err);
	c->control.cancel_fd = -1; /* there is no way back */
	lm_postcopy_show_begin(p);
	if (c->recovering)
		r = lm_err(&e, -ENOTCONN, LM_SCOPE_SESSION, "its engine or ours ended");
	for (;;) {
		if (!r) {
			r = fetch_rest(p, &e);
			lm_ctx_forget_cancel(c);
		}
		if (!r || e.scope == LM_SCOPE_VM)
			break;
		r = lm_postcopy_dest_recover(p, &e);
		if (r)
			break;
		c->control.cancel_fd = -1;
	}
	if (r) {
		/* The guest stays here.  While its VM lives, another engine can go on with what is left. */
		if (c->summary.outcome == LM_OUTCOME_NONE && !lm_ctx_vm_gone(c))
			c->summary.outcome = LM_OUTCOME_INTERRUPTED;
		*err = e;
		return r;
	}
	return end(p, true, err);
}

/* Waiting cures no error of an image: a person repairs it and runs `restore --resume`. */
int lm_postcopy_pull_image(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	const struct lm_error *lane;
	int r;

	p->both.began_ns = lm_now_ns();
	r = lm_ctx_stage(c, "postcopy", err);
	if (!r && p->both.state.head->whole)
		return end(p, false, err);
	if (!r) {
		lm_postcopy_show_begin(p);
		r = fetch_rest(p, err);
	}
	if (!r)
		return end(p, false, err);
	lm_postcopy_dest_close_lanes(p);
	lane = lm_puller_error(&p->puller);
	if (lane && err->scope != LM_SCOPE_VM)
		lm_err(err, lane->code, LM_SCOPE_SESSION, "%s", lane->msg);
	if (!lm_ctx_vm_gone(c))
		c->summary.outcome = LM_OUTCOME_INTERRUPTED;
	return r;
}
