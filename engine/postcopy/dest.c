/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy as the destination's session sees it: arm before the pause, learn what
 * stays behind, answer faults from the moment at which that is known, and, once the
 * guest runs, fetch the rest.  puller.h has the threads that do the work.
 */
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include "engine/base/clock.h"
#include "engine/base/cleanup.h"
#include "engine/session/session.h"
#include "engine/base/testhook.h"

#define STATUS_NS (200 * LM_NS_PER_MS)

/* ---- opening the lanes ---- */

static int close_lanes(struct lm_session *s)
{
	lm_comeback_fini(&s->pull.comeback);
	lm_puller_down(&s->pull.puller);
	lm_transport_free(s->pull.transport);
	s->pull.transport = NULL;
	s->pull.bound = false;
	s->pull.failed_told = 0;
	return 0;
}

static int send_opened(struct lm_session *s, struct lm_transport_params *p, struct lm_error *err)
{
	struct lm_opened opened = { .nlanes = p->nlanes };
	uint8_t buf[sizeof(struct lm_wire_postcopy_opened)];
	int r;

	if (getrandom(p->token, LM_TOKEN_SIZE, 0) != LM_TOKEN_SIZE)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "no random numbers for the session's token");
	r = lm_transport_listen(s->pull.transport, p, opened.endpoint, err);
	if (r)
		return r;
	memcpy(opened.token, p->token, LM_TOKEN_SIZE);
	memcpy(opened.transport, s->summary.transport, sizeof(opened.transport));
	return lm_control_send(&s->control, LM_MSG_POSTCOPY_OPENED, buf,
			       lm_wire_put_postcopy_opened(buf, &opened, s->pull.secret),
			       lm_session_peer_deadline(s), err);
}

static int add_regions(struct lm_session *s, struct lm_error *err)
{
	struct lm_keepalive keepalive;
	struct lm_key unused;
	int r = lm_keepalive_start(&keepalive, &s->control, err);

	if (r)
		return r;
	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = lm_transport_region_add(s->pull.transport, &s->ram.regions[i], &unused, err);
	lm_keepalive_stop(&keepalive);
	return r;
}

static int open_lanes(struct lm_session *s, struct lm_error *err)
{
	struct lm_transport_params p = lm_session_transport_params(s, LM_PULL);
	int r = lm_session_new_transport(s->summary.transport, &s->pull.transport, err);

	if (!r)
		r = send_opened(s, &p, err);
	p.deadline_ns = lm_session_peer_deadline(s);
	if (!r)
		r = lm_transport_open(s->pull.transport, &p, err);
	if (!r)
		r = add_regions(s, err);
	return r ? r : lm_postcopy_lanes_init(s, &p, err);
}

static int bind_keys(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_key keys[LM_REGIONS_MAX];
	int r = lm_wire_get_ready(msg->payload, msg->len, s->ram.nregions, keys, err);

	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = lm_transport_region_bind(s->pull.transport, i, &keys[i], err);
	s->pull.bound = !r;
	return r;
}

/* ---- before the guest runs ---- */

static int state_create(struct lm_session *s, struct lm_error *err)
{
	struct lm_pcstate *st = &s->pull.state;
	int r = lm_pcstate_create(st, LM_DEST, s->vm->pid, &s->ram, err);

	if (r)
		return r;
	st->head->nlanes = s->pull.nlanes;
	st->head->max_bytes_per_s = s->pull.max_bytes_per_s;
	st->head->vm_fd = s->pull.pager->vm_fd;
	memcpy(st->head->transport, s->summary.transport, sizeof(st->head->transport));
	memcpy(st->head->secret, s->pull.secret, sizeof(st->head->secret));
	return 0;
}

static int puller_init(struct lm_session *s, struct lm_error *err)
{
	int r = lm_puller_init(&s->pull.puller, &s->ram, s->pull.pager, s->pull.state.whole, s->pull.nlanes, err);

	if (r)
		return r;
	s->pull.puller.stall_ns = s->opt.peer_timeout_ns;
	s->pull.puller.throttle.max_bytes_per_s = s->pull.max_bytes_per_s;
	return 0;
}

static uint64_t tighter(uint64_t a, uint64_t b)
{
	return !a ? b : !b ? a : a < b ? a : b;
}

int lm_postcopy_arm_here(struct lm_session *s, struct lm_error *err)
{
	int r;

	s->pull.armed = true;
	s->pull.nlanes = s->summary.lanes < LM_LANES_MAX ? s->summary.lanes : LM_LANES_MAX - 1;
	r = lm_vm_pager(s->vm, &s->ram, &s->pull.pager, err);
	if (!r)
		r = lm_pager_arm(s->pull.pager, err);
	if (!r)
		r = state_create(s, err);
	return r ? r : puller_init(s, err);
}

int lm_postcopy_arm(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_wire_postcopy postcopy;
	int r = lm_wire_get_fixed(msg->payload, msg->len, "POSTCOPY: length", &postcopy, sizeof(postcopy), err);

	if (!r && (!s->pull.allowed || s->pull.armed))
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent POSTCOPY, which is not allowed here");
	if (!r)
		r = lm_session_stage(s, "postcopy-arm", err);
	if (r)
		return r;
	s->pull.max_bytes_per_s = tighter(lm_le64_get(postcopy.max_bytes_per_s), s->opt.max_bandwidth_bytes_per_s);
	if (getrandom(s->pull.secret, LM_TOKEN_SIZE, 0) != LM_TOKEN_SIZE)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "no random numbers");
	r = lm_postcopy_arm_here(s, err);
	return r ? r : open_lanes(s, err);
}

int lm_postcopy_keys(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	if (!s->pull.transport || s->pull.bound)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent POSTCOPY_KEYS out of place");
	return bind_keys(s, msg, err);
}

static void leave(void *opaque, unsigned region, uint64_t first, uint64_t n, bool zero)
{
	struct lm_session *s = opaque;

	lm_arrival_leave(&s->pull.puller.arrival, region, first, n, zero);
}

/* Not a fault is answered before all that is left was named: until then nobody knows which pages are old. */
int lm_postcopy_left(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	bool end;
	int r;

	if (!s->pull.bound || s->pull.known)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent LEFT out of place");
	r = lm_wire_get_left(msg->payload, msg->len, &s->ram, leave, s, &end, err);
	if (r || (!end && !lm_broken("left-end")))
		return r;
	s->pull.known = end;
	if (s->pull.puller.serving)
		return 0;
	r = lm_puller_serve(&s->pull.puller, err);
	if (!r)
		lm_puller_up(&s->pull.puller, s->pull.transport);
	return r;
}

/* ---- while the guest runs ---- */

static void collect_stats(struct lm_session *s)
{
	struct lm_postcopy_stats *stats = &s->summary.postcopy;

	stats->used = true;
	lm_arrival_stats(&s->pull.puller.arrival, stats);
	stats->bytes = atomic_load(&s->pull.puller.bytes);
	stats->duration_ns = lm_now_ns() - s->pull.began_ns;
}

static int send_status(struct lm_session *s, struct lm_error *err)
{
	const struct lm_postcopy_stats *t = &s->summary.postcopy;
	struct lm_wire_missing m;

	collect_stats(s);
	m = (struct lm_wire_missing){
		lm_le64(t->left_pages), lm_le64(t->missing_pages), lm_le64(t->bytes), lm_le64(t->faults),
		lm_le64((uint64_t)t->fault_p50_ns), lm_le64((uint64_t)t->fault_p99_ns),
		lm_le64((uint64_t)t->fault_max_ns), lm_le64((uint64_t)t->waited_ns), lm_le64((uint64_t)t->duration_ns),
	};
	lm_postcopy_event(s, t);
	if (!s->control.stream)
		return 0;
	return lm_control_send(&s->control, LM_MSG_MISSING, &m, sizeof(m), lm_session_peer_deadline(s), err);
}

/* What the link does, from what it did since the last look. */
static void learn_link(struct lm_session *s, int64_t since_ns)
{
	uint64_t bytes = atomic_load(&s->pull.puller.bytes), got = bytes - s->pull.last_bytes;

	s->pull.last_bytes = bytes;
	if (since_ns > 0 && got)
		lm_puller_set_link(&s->pull.puller, s->control.rtt_ns,
				   (uint64_t)((double)got * 1e9 / (double)since_ns));
}

static int vm_error(struct lm_session *s, struct lm_error *err)
{
	struct pollfd p = { .fd = s->vm->pidfd, .events = POLLIN };

	if (poll(&p, 1, 0) > 0)
		return lm_err(err, -ESRCH, LM_SCOPE_VM, "the guest's QEMU has exited while pages were missing");
	if (!atomic_load(&s->pull.puller.vm_lost))
		return 0;
	*err = s->pull.puller.vm_error;
	return err->code;
}

/* Anything but a sign of life is out of place. */
static int listen_to_source(struct lm_session *s, struct lm_error *err)
{
	struct lm_msg msg;
	int r;

	if (!s->control.stream) /* the pages come out of an image */
		return 0;
	r = lm_control_try_recv(&s->control, &msg, err);
	if (r > 0)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s in post-copy", lm_msg_name(msg.type));
	if (!r && lm_now_ns() - s->control.last_heard_ns > s->opt.peer_timeout_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "the source is silent");
	return r;
}

static const char *lane_error(const struct lm_session *s, unsigned lane)
{
	return s->pull.puller.lanes[lane].error.msg;
}

static int fetch(struct lm_session *s, struct lm_error *err)
{
	struct lm_puller *p = &s->pull.puller;
	int64_t last = lm_now_ns();
	uint64_t count;
	int r = 0;

	lm_puller_background(p);
	while (!r && lm_puller_missing(p)) {
		struct pollfd fds[4] = { { .fd = p->event_fd, .events = POLLIN },
					 { .fd = s->control.stream ? lm_control_fd(&s->control) : -1, .events = POLLIN },
					 { .fd = s->vm->pidfd, .events = POLLIN },
					 { .fd = lm_comeback_fd(&s->pull.comeback), .events = POLLIN } };

		poll(fds, 4, lm_postcopy_show_some(s) ? 0 : 100);
		if (read(p->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
			return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
		r = vm_error(s, err);
		lm_postcopy_tell_lanes(s, atomic_load(&p->failed), lane_error);
		if (!r && lm_puller_missing(p) && atomic_load(&p->lost))
			r = lm_err(err, -ECONNRESET, LM_SCOPE_SESSION, "no lane is left");
		if (!r)
			r = listen_to_source(s, err);
		if (!r)
			r = lm_postcopy_lanes_tick(s, err);
		if (!r && lm_now_ns() - last > STATUS_NS) {
			learn_link(s, lm_now_ns() - last);
			last = lm_now_ns();
			r = send_status(s, err);
		}
	}
	return r;
}

/* Until nothing is missing (0), the source is lost (an error) or the VM (scope VM). */
static int fetch_rest(struct lm_session *s, struct lm_error *err)
{
	int r = fetch(s, err);

	lm_postcopy_lanes_settle(s);
	return r;
}

static int64_t recover_deadline(const struct lm_session *s)
{
	return s->opt.recover_timeout_ns > 0 ? lm_deadline_after(s->opt.recover_timeout_ns) : lm_now_ns();
}

static int hear_recover(struct lm_session *s, struct lm_error *err)
{
	struct lm_wire_recover recover;
	struct lm_msg msg;
	int64_t deadline = lm_deadline_min(lm_session_peer_deadline(s), lm_deadline_after(LM_HELLO_TIMEOUT_NS));
	int r = lm_control_expect(&s->control, LM_MSG_RECOVER, &msg, deadline, err);

	if (!r)
		r = lm_wire_get_fixed(msg.payload, msg.len, "RECOVER: length", &recover, sizeof(recover), err);
	if (!r && !lm_secret_equal(recover.secret, s->pull.secret))
		r = lm_err(err, -EACCES, LM_SCOPE_SESSION, "a stranger wants to recover another post-copy than ours");
	return r;
}

static int take_recover(struct lm_session *s, struct lm_error *err)
{
	struct lm_msg msg;
	int r = hear_recover(s, err);

	if (!r)
		r = open_lanes(s, err);
	if (!r)
		r = lm_session_expect(s, LM_MSG_POSTCOPY_KEYS, &msg, s->opt.peer_timeout_ns, LM_NO_DEADLINE, err);
	if (!r)
		r = bind_keys(s, &msg, err);
	if (!r)
		lm_puller_up(&s->pull.puller, s->pull.transport);
	return r;
}

static int interrupted(struct lm_session *s, const struct lm_error *why, struct lm_error *err)
{
	s->summary.outcome = LM_OUTCOME_INTERRUPTED;
	return lm_err(err, -ENOTCONN, LM_SCOPE_SESSION,
		      "post-copy is interrupted: the source is not to be found (%.200s). The guest is here and waits "
		      "where it touches a page that is missing: do not end the source's QEMU; go on with `migrate-rdma "
		      "recover` on both hosts", why->msg);
}

/* The threads go on showing what is whole; wait for the source to come back. */
static int recover(struct lm_session *s, struct lm_error *err)
{
	int64_t deadline = recover_deadline(s);
	struct timespec nap = { 0, 10 * LM_NS_PER_MS };
	const struct lm_error *lane;
	struct lm_error e = *err;

	lm_puller_down(&s->pull.puller);
	lane = lm_puller_error(&s->pull.puller);
	lm_session_log(s, LM_LOG_WARN, "post-copy: the source is lost (%s%s%s); waiting for it", e.msg,
		       lane ? ": " : "", lane ? lane->msg : "");
	for (;;) {
		int r;

		close_lanes(s);
		lm_control_close(&s->control);
		r = vm_error(s, err);
		if (r)
			return r;
		r = lm_dest_accept(s, deadline, &e);
		if (r && e.scope == LM_SCOPE_VM)
			return *err = e, r;
		if (r == -ETIMEDOUT || r == -ECANCELED || (r && lm_now_ns() > deadline))
			return interrupted(s, &e, err);
		if (!r)
			r = take_recover(s, &e);
		if (r) { /* a stranger, or the source was lost again */
			lm_session_log(s, LM_LOG_WARN, "post-copy: %s: %s", s->peer, e.msg);
			nanosleep(&nap, NULL);
			continue;
		}
		s->summary.postcopy.recoveries++;
		lm_session_log(s, LM_LOG_INFO, "post-copy: the source is back");
		return lm_session_stage(s, "recovered", err);
	}
}

static int say_whole(struct lm_session *s, struct lm_error *err)
{
	struct lm_msg msg;
	int r = lm_control_send(&s->control, LM_MSG_WHOLE, NULL, 0, lm_session_peer_deadline(s), err);

	return r ? r : lm_control_expect(&s->control, LM_MSG_WHOLE, &msg, lm_session_peer_deadline(s), err);
}

/* It looks for us: wait for that, and say it then. */
static int say_whole_again(struct lm_session *s, int64_t deadline, struct lm_error *err)
{
	int r;

	lm_control_close(&s->control);
	r = lm_dest_accept(s, deadline, err);
	if (!r)
		r = hear_recover(s, err);
	return r ? r : say_whole(s, err);
}

/* The source keeps its memory until it has heard that every page is here. */
static void tell_source(struct lm_session *s)
{
	int64_t deadline = recover_deadline(s);
	struct lm_error e = { 0 };
	int r = -ENOTCONN;

	if (s->control.stream) {
		r = send_status(s, &e);
		if (!r)
			r = say_whole(s, &e);
	}
	while (r && lm_now_ns() < deadline && r != -ECANCELED)
		r = say_whole_again(s, deadline, &e);
	if (r)
		lm_session_log(s, LM_LOG_WARN, "every page is here, but the source could not be told (%s): its QEMU can "
			       "be ended", e.msg);
}

/* Every page is whole: the guest needs nobody any more. */
static int let_go(struct lm_session *s, struct lm_error *err)
{
	int r;

	s->pull.state.head->whole = 1;
	r = lm_session_stage(s, "whole", err);
	if (!r && s->pull.pager)
		r = lm_pager_finish(s->pull.pager, err);
	return r;
}

static int end(struct lm_session *s, struct lm_error *err)
{
	int r;

	lm_puller_stop(&s->pull.puller); /* finish is called when no other call of the pager runs */
	if (s->pull.puller.ram)
		collect_stats(s);
	r = let_go(s, err);
	if (r)
		return r;
	if (s->mode == LM_MODE_LIVE)
		tell_source(s);
	lm_puller_fini(&s->pull.puller);
	lm_pcstate_remove(&s->pull.state);
	return 0;
}

int lm_postcopy_pull(struct lm_session *s, struct lm_error *err)
{
	struct lm_error e = { 0 };
	int r = lm_session_stage(s, "postcopy", &e);

	if (!r && s->pull.state.head->whole)
		return end(s, err);
	s->control.cancel_fd = -1; /* there is no way back */
	lm_postcopy_show_begin(s);
	if (s->recovering)
		r = lm_err(&e, -ENOTCONN, LM_SCOPE_SESSION, "its engine or ours ended");
	for (;;) {
		if (!r) {
			r = fetch_rest(s, &e);
			lm_session_forget_cancel(s);
		}
		if (!r || e.scope == LM_SCOPE_VM)
			break;
		r = recover(s, &e);
		if (r)
			break;
		s->control.cancel_fd = -1;
	}
	if (r) {
		/* The guest is here for good.  While its VM lives, somebody can go on with what is left. */
		if (s->summary.outcome == LM_OUTCOME_NONE && !lm_session_vm_gone(s))
			s->summary.outcome = LM_OUTCOME_INTERRUPTED;
		*err = e;
		return r;
	}
	return end(s, err);
}

/* No error of an image goes away by waiting: whoever has mended it says `restore --resume`. */
int lm_postcopy_pull_image(struct lm_session *s, struct lm_error *err)
{
	const struct lm_error *lane;
	int r;

	s->pull.began_ns = lm_now_ns();
	r = lm_session_stage(s, "postcopy", err);
	if (!r && s->pull.state.head->whole)
		return end(s, err);
	if (!r) {
		lm_postcopy_show_begin(s);
		r = fetch_rest(s, err);
	}
	if (!r)
		return end(s, err);
	close_lanes(s);
	lane = lm_puller_error(&s->pull.puller);
	if (lane && err->scope != LM_SCOPE_VM)
		lm_err(err, lane->code, LM_SCOPE_SESSION, "%s", lane->msg);
	if (!lm_session_vm_gone(s))
		s->summary.outcome = LM_OUTCOME_INTERRUPTED;
	return r;
}

/* ---- after an engine's death ---- */

int lm_postcopy_take_over(struct lm_session *s, struct lm_error *err)
{
	const struct lm_pcstate_head *h = s->pull.state.head;
	int r;

	s->pull.armed = s->pull.known = true;
	s->pull.nlanes = h->nlanes;
	s->pull.max_bytes_per_s = h->max_bytes_per_s;
	s->summary.lanes = h->nlanes;
	memcpy(s->summary.transport, h->transport, sizeof(h->transport));
	s->summary.transport[sizeof(h->transport) - 1] = 0;
	memcpy(s->pull.secret, h->secret, sizeof(h->secret));
	s->pull.began_ns = lm_now_ns();
	if (s->side == LM_SOURCE || h->whole)
		return 0;
	r = puller_init(s, err);
	if (r)
		return r;
	lm_arrival_resume(&s->pull.puller.arrival);
	r = lm_puller_serve(&s->pull.puller, err);
	/* Faults that the engine before us had taken come anew. */
	return r ? r : lm_pager_wake(s->pull.pager, err);
}

/*
 * Before COMMIT a session that ends takes the pager out of a VM that it leaves alive.
 * Afterwards the pager stays in the VM until every page is there, whatever happens.
 */
void lm_postcopy_dest_end(struct lm_session *s)
{
	struct lm_error e = { 0 };

	if (s->side != LM_DEST)
		return;
	close_lanes(s);
	lm_postcopy_show_end(&s->pull);
	lm_puller_fini(&s->pull.puller);
	if (s->pull.pager && !s->dst.committed && !s->recovering) {
		if (!s->dst.load_begun && lm_pager_finish(s->pull.pager, &e))
			lm_session_log(s, LM_LOG_WARN, "the pager stays in the VM: %s", e.msg);
		lm_pcstate_remove(&s->pull.state);
	}
	lm_pager_close(s->pull.pager);
	s->pull.pager = NULL;
	lm_pcstate_close(&s->pull.state);
}
