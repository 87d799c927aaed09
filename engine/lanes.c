/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include "cleanup.h"
#include "session.h"
#include "testhook.h"

static bool is_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

static void event_set(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return; /* the counter is at its limit: it is readable, which is all we want */
}

static void event_clear(int fd)
{
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0)
		return; /* it was not set */
}

static void lane_event(struct lm_session *s, unsigned lane, bool back, const char *why)
{
	struct lm_event e = { .type = LM_EVENT_LANE };

	e.u.lane.lane = lane;
	e.u.lane.live = lm_copier_live_lanes(&s->src.copier);
	e.u.lane.back = back;
	e.u.lane.why = why;
	lm_session_event(s, &e);
}

/* ---- when ---- */

/* All were lost, and since then no lane has lived for long enough to call it over. */
static void look_at_live(struct lm_session *s)
{
	struct lm_lanes *l = &s->src.lanes;
	int64_t now = lm_now_ns();

	if (!lm_copier_live_lanes(&s->src.copier)) {
		if (!l->none_since_ns)
			l->none_since_ns = now;
		return;
	}
	for (unsigned i = 0; i < s->src.copier.nlanes; i++)
		if (!atomic_load(&s->src.copier.lanes[i].dead) && now - l->lane[i].back_ns > LM_LANE_STEADY_NS)
			l->none_since_ns = 0;
}

int64_t lm_lanes_wait_until(const struct lm_session *s)
{
	const struct lm_lanes *l = &s->src.lanes;

	if (!l->can || s->opt.recover_timeout_ns <= 0)
		return 0;
	return (l->none_since_ns ? l->none_since_ns : lm_now_ns()) + s->opt.recover_timeout_ns;
}

static void back_off(struct lm_session *s, unsigned lane)
{
	struct lm_lanes *l = &s->src.lanes;
	struct lm_lane_try *t = &l->lane[lane];
	int64_t now = lm_now_ns(), max = l->none_since_ns ? LM_LANE_RETRY_NS : LM_LANE_RETRY_MAX_NS;

	if (!t->delay_ns || (t->back_ns && now - t->back_ns > LM_LANE_STEADY_NS))
		t->delay_ns = LM_LANE_RETRY_NS;
	else
		t->delay_ns = lm_deadline_min(2 * t->delay_ns, max);
	t->back_ns = 0;
	t->next_ns = now + t->delay_ns;
}

/* The next one in turn whose time has come, or -1. */
static int next_due(const struct lm_session *s)
{
	const struct lm_lanes *l = &s->src.lanes;
	unsigned n = s->src.copier.nlanes;
	int64_t now = lm_now_ns();

	for (unsigned i = 1; i <= n; i++) {
		unsigned lane = (l->last + i) % n;

		if (l->dropped >> lane & 1 && now >= l->lane[lane].next_ns)
			return (int)lane;
	}
	return -1;
}

/* ---- dropping ---- */

/* What took the lane may have taken the control channel as well: while the guest runs, that is waited for, too. */
static int64_t answer_deadline(const struct lm_session *s)
{
	int64_t more_ns = s->src.pause_begun ? 0 : s->patience_ns;

	return lm_deadline_min(lm_session_peer_deadline(s) + more_ns, s->src.deadline_ns);
}

static int tell_drop(struct lm_session *s, unsigned lane, struct lm_error *err)
{
	struct le32 number = lm_le32(lane);
	struct lm_msg msg;
	uint32_t answer;
	int r = lm_control_send(&s->control, LM_MSG_LANE_DROP, &number, sizeof(number), lm_session_peer_deadline(s), err);

	if (!r)
		r = lm_control_expect(&s->control, LM_MSG_LANE_DROPPED, &msg, answer_deadline(s), err);
	if (r == -ETIMEDOUT && !lm_copier_live_lanes(&s->src.copier))
		return lm_err_prefix(err, "no lane is left");
	if (!r)
		r = lm_wire_get_u32(msg.payload, msg.len, "LANE_DROPPED", &answer, err);
	if (!r && answer != lane)
		r = lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the destination dropped another lane");
	return r;
}

int lm_lanes_drop(struct lm_session *s, uint64_t lanes, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;

	look_at_live(s);
	lanes &= ~l->dropped;
	for (unsigned i = 0; i < s->src.copier.nlanes; i++) {
		const char *why = s->src.copier.lanes[i].error.msg;
		int r;

		if (!(lanes >> i & 1))
			continue;
		lm_session_log(s, LM_LOG_WARN, "lane %u is lost: %s", i, why);
		lane_event(s, i, false, why);
		lm_transport_shut(s->transport, i);
		lm_pool_wait_worker(s->pool, i);
		r = tell_drop(s, i, err);
		if (r)
			return r;
		l->dropped |= UINT64_C(1) << i;
		back_off(s, i);
	}
	return 0;
}

static uint64_t dead_lanes(const struct lm_session *s)
{
	uint64_t dead = 0;

	for (unsigned i = 0; i < s->src.copier.nlanes; i++)
		if (atomic_load(&s->src.copier.lanes[i].dead))
			dead |= UINT64_C(1) << i;
	return dead;
}

/* ---- an attempt ---- */

static void *attempt_main(void *arg)
{
	struct lm_lanes *l = arg;

	l->result = lm_transport_reopen(l->transport, (unsigned)l->trying, &l->params, &l->error);
	event_set(l->done_fd);
	return NULL;
}

/* Signals belong to the program's own threads. */
static int thread_start(struct lm_lanes *l)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	r = pthread_create(&l->thread, NULL, attempt_main, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

static int attempt_begin(struct lm_session *s, unsigned lane, struct lm_error *err)
{
	struct lm_wire_lane_open open = { .lane = lm_le32(lane) };
	struct lm_lanes *l = &s->src.lanes;
	int r;

	if (getrandom(open.token, sizeof(open.token), 0) != sizeof(open.token))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "no random numbers for a lane's token");
	r = lm_control_send(&s->control, LM_MSG_LANE_OPEN, &open, sizeof(open), lm_session_peer_deadline(s), err);
	if (r)
		return r;
	memcpy(l->params.token, open.token, sizeof(open.token));
	l->params.deadline_ns = lm_deadline_min(lm_deadline_after(LM_LANE_ATTEMPT_NS), s->src.deadline_ns);
	event_clear(l->done_fd);
	event_clear(l->cancel_fd);
	lm_err_clear(&l->error);
	l->transport = s->transport;
	l->last = lane;
	l->trying = (int)lane;
	r = thread_start(l);
	if (!r)
		return 0;
	l->trying = -1;
	return lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot start a thread");
}

static void is_back(struct lm_session *s, unsigned lane)
{
	struct lm_lanes *l = &s->src.lanes;
	int64_t now = lm_now_ns();

	l->dropped &= ~(UINT64_C(1) << lane);
	l->lane[lane].back_ns = now;
	lm_copier_revive(&s->src.copier, lane);
	/* Where it came from there may be more. */
	for (unsigned i = 0; i < s->src.copier.nlanes; i++)
		l->lane[i].next_ns = lm_deadline_min(l->lane[i].next_ns, now);
	lm_session_log(s, LM_LOG_INFO, "lane %u is back", lane);
	lane_event(s, lane, true, NULL);
	lm_pool_restart_worker(s->pool, lane); /* no job: it takes part in the next */
}

static int attempt_end(struct lm_session *s, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;
	unsigned lane = (unsigned)l->trying;

	pthread_join(l->thread, NULL);
	l->trying = -1;
	if (!l->result) {
		is_back(s, lane);
		return 0;
	}
	lm_session_log(s, LM_LOG_DEBUG, "lane %u is not back yet: %s", lane, l->error.msg);
	back_off(s, lane);
	return tell_drop(s, lane, err);
}

/* ---- for rounds.c ---- */

int lm_lanes_tick(struct lm_session *s, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;
	int r = 0, lane;

	if (!l->can)
		return 0;
	look_at_live(s);
	if (l->trying >= 0 && is_readable(l->done_fd))
		r = attempt_end(s, err);
	if (!r)
		r = lm_lanes_drop(s, dead_lanes(s), err);
	/* While the guest stands still the lanes that are left are enough. */
	if (r || l->trying >= 0 || lm_broken("lane-drop") || (s->src.pause_begun && lm_copier_live_lanes(&s->src.copier)))
		return r;
	lane = next_due(s);
	return lane < 0 ? 0 : attempt_begin(s, (unsigned)lane, err);
}

int lm_lanes_settle(struct lm_session *s, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;

	if (!l->can || l->trying < 0)
		return 0;
	event_set(l->cancel_fd);
	return attempt_end(s, err);
}

void lm_lanes_stop(struct lm_session *s)
{
	struct lm_lanes *l = &s->src.lanes;

	if (!l->can || l->trying < 0)
		return;
	event_set(l->cancel_fd);
	pthread_join(l->thread, NULL);
	lm_transport_shut(s->transport, (unsigned)l->trying);
	l->trying = -1;
}

int lm_lanes_fd(const struct lm_session *s)
{
	return s->src.lanes.can && s->src.lanes.trying >= 0 ? s->src.lanes.done_fd : -1;
}

int lm_lanes_init(struct lm_session *s, const struct lm_transport_params *p, bool can, struct lm_error *err)
{
	struct lm_lanes *l = &s->src.lanes;

	*l = (struct lm_lanes){ .params = *p, .trying = -1, .done_fd = -1, .cancel_fd = -1 };
	if (!can || !s->transport->ops->reopen)
		return 0;
	memcpy(l->endpoint, p->endpoint, sizeof(l->endpoint));
	l->params.endpoint = l->endpoint;
	l->can = true;
	s->patience_ns = s->opt.recover_timeout_ns;
	l->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->params.cancel_fd = l->cancel_fd;
	if (l->done_fd < 0 || l->cancel_fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
	return lm_session_be_patient(s, true, err);
}

void lm_lanes_fini(struct lm_session *s)
{
	struct lm_lanes *l = &s->src.lanes;

	lm_lanes_stop(s);
	if (!l->can)
		return;
	lm_close_fd(&l->done_fd);
	lm_close_fd(&l->cancel_fd);
	l->can = false;
}
