/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "session.h"
#include "engine/base/testhook.h"
#include "engine/base/urgent.h"

#define PEER_REASON_MS 200
#define TIME_MAX_NS (365 * 24 * 3600 * LM_NS_PER_S) /* sums of a few stay far below INT64_MAX */

#ifndef LM_VERSION
#define LM_VERSION "0.1.0"
#endif

const char *lm_version(void)
{
	return "migrate-rdma " LM_VERSION;
}

const char *lm_outcome_name(enum lm_outcome outcome)
{
	static const char *const names[] = {
		[LM_OUTCOME_NONE] = "none",         [LM_OUTCOME_COMPLETED] = "completed",
		[LM_OUTCOME_REFUSED] = "refused",   [LM_OUTCOME_ABORTED] = "aborted",
		[LM_OUTCOME_CANCELLED] = "cancelled", [LM_OUTCOME_STALLED] = "stalled",
		[LM_OUTCOME_IN_DOUBT] = "in-doubt", [LM_OUTCOME_VM_LOST] = "vm-lost",
		[LM_OUTCOME_INTERRUPTED] = "interrupted",
	};

	return (unsigned)outcome < sizeof(names) / sizeof(names[0]) ? names[outcome] : "unknown";
}

void lm_options_default(struct lm_options *o)
{
	*o = (struct lm_options){
		.transport = "auto",
		.max_downtime_ns = 10 * LM_NS_PER_MS,
		.on_stall = LM_STALL_WAIT,
		.postcopy = LM_POSTCOPY_AUTO,
		.recover_timeout_ns = 60 * LM_NS_PER_S,
		.max_pause_ns = 5 * LM_NS_PER_S,
		.peer_timeout_ns = 10 * LM_NS_PER_S,
		.qmp_timeout_ns = 10 * LM_NS_PER_S,
		.guardian = true,
		.log_level = LM_LOG_INFO,
	};
}

void lm_session_event(struct lm_session *s, struct lm_event *event)
{
	if (!s->opt.event)
		return;
	event->time_ns = lm_clock_ns(CLOCK_REALTIME);
	s->opt.event(s->opt.event_opaque, event);
}

void lm_session_log(struct lm_session *s, enum lm_log_level level, const char *fmt, ...)
{
	struct lm_event e = { .type = LM_EVENT_LOG };
	char text[LM_ERROR_MSG_MAX + 128];
	va_list ap;

	if (level > s->opt.log_level)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	e.u.log.level = level;
	e.u.log.text = text;
	lm_session_event(s, &e);
}

void lm_session_urgent(struct lm_session *s, bool urgent)
{
	if (urgent == s->urgent || (urgent && lm_broken("urgent")))
		return;
	if (urgent)
		s->nice = lm_urgent_begin(0);
	else
		lm_urgent_end(0, s->nice);
	if (s->pool)
		lm_pool_set_urgent(s->pool, urgent);
	s->urgent = urgent;
}

int lm_session_stage(struct lm_session *s, const char *name, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_STAGE };

	e.u.stage.name = name;
	lm_session_event(s, &e);
	return lm_fault_point(name, err);
}

int lm_session_check_cancel(struct lm_session *s, struct lm_error *err)
{
	uint64_t n;

	/* Level-triggered for everybody else who polls it: put it back. */
	if (read(s->cancel_fd, &n, sizeof(n)) != sizeof(n))
		return 0;
	lm_session_cancel(s);
	return lm_err(err, -ECANCELED, LM_SCOPE_SESSION, "cancelled");
}

void lm_session_forget_cancel(struct lm_session *s)
{
	uint64_t n;

	if (read(s->cancel_fd, &n, sizeof(n)) < 0)
		return; /* nobody asked */
}

int64_t lm_session_peer_deadline(const struct lm_session *s)
{
	int64_t deadline = lm_deadline_after(s->opt.peer_timeout_ns);

	/* A paused guest waits for no answer longer than --max-pause, and COMMIT is not sent after it. */
	if (s->side == LM_SOURCE && s->src.pause_begun && !s->src.commit_sent)
		deadline = lm_deadline_min(deadline, s->src.deadline_ns);
	return deadline;
}

int lm_session_expect(struct lm_session *s, enum lm_msg_type type, struct lm_msg *msg, int64_t silence_ns,
		      int64_t limit_ns, struct lm_error *err)
{
	int64_t begin = lm_now_ns(), silent;
	int r;

	do {
		silent = (s->control.last_heard_ns > begin ? s->control.last_heard_ns : begin) + silence_ns;
		r = lm_control_expect(&s->control, type, msg, lm_deadline_min(silent, limit_ns), err);
	} while (r == -ETIMEDOUT && lm_now_ns() < limit_ns && lm_now_ns() < s->control.last_heard_ns + silence_ns);
	return r;
}

int lm_session_be_patient(struct lm_session *s, bool patient, struct lm_error *err)
{
	int64_t max_ns = INT32_MAX * LM_NS_PER_MS - s->opt.peer_timeout_ns; /* what TCP takes */
	int64_t more_ns = patient ? lm_deadline_min(s->patience_ns, max_ns) : 0;

	return lm_stream_set_peer_timeout(s->control.stream, s->opt.peer_timeout_ns + (more_ns > 0 ? more_ns : 0), err);
}

int64_t lm_session_vm_deadline(const struct lm_session *s)
{
	return lm_deadline_after(s->opt.qmp_timeout_ns);
}

int lm_session_new_transport(const char *name, struct lm_transport **ret, struct lm_error *err)
{
	const struct lm_transport_info *info = lm_transport_find(name);

	if (!info)
		return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION,
			      "no transport \"%s\" here: `migrate-rdma transports` lists what there is", name);
	*ret = lm_transport_make(info);
	return *ret ? 0 : lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
}

int lm_session_make_transport(struct lm_session *s, const char *name, struct lm_error *err)
{
	int r = lm_session_new_transport(name, &s->transport, err);

	if (!r)
		snprintf(s->summary.transport, sizeof(s->summary.transport), "%s", name);
	return r;
}

struct lm_transport_params lm_session_transport_params(const struct lm_session *s, enum lm_direction direction)
{
	return (struct lm_transport_params){
		.side = s->side, .direction = direction,
		.nlanes = direction == LM_PULL ? s->pull.nlanes + 1 : s->summary.lanes,
		.ram = &s->ram, .may_pull = s->opt.postcopy != LM_POSTCOPY_NEVER,
		.rails = s->opt.rails, .nrails = s->opt.nrails, .pin = s->opt.pin,
		.listen_fd = s->side == LM_DEST ? s->dst.listen_fd : -1,
		.peer = s->side == LM_SOURCE ? s->opt.address : s->peer,
		.insecure = s->opt.insecure, .deadline_ns = lm_session_peer_deadline(s), .cancel_fd = s->cancel_fd,
	};
}

struct listener {
	struct lm_session *s;
	struct lm_transport_params *p;
};

/* lm_transport_params.peer_said */
static int peer_said(void *opaque, struct lm_error *err)
{
	struct listener *l = opaque;
	struct lm_msg msg;
	int r = lm_control_try_recv(&l->s->control, &msg, err);

	if (r <= 0)
		return r;
	if (l->s->side == LM_DEST)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the source sent %s while its lanes were waited for",
			      lm_msg_name(msg.type));
	/* The destination has all lanes, and goes on before we have heard of the last. */
	lm_control_put_back(&l->s->control, &msg);
	l->p->peer_said = NULL;
	return 0;
}

/* Both notice when a lane breaks; who has given up says why at the same time. */
static int reason_of_peer(struct listener *l, int r, struct lm_error *err)
{
	struct pollfd p = { .fd = lm_transport_peer_fd(l->p), .events = POLLIN };
	struct lm_error said = { 0 };

	if (l->s->control.peer_aborted || r == -ECANCELED || poll(&p, 1, PEER_REASON_MS) != 1 ||
	    !peer_said(l, &said) || !l->s->control.peer_aborted)
		return r;
	*err = said;
	return said.code;
}

int lm_session_open_lanes(struct lm_session *s, struct lm_transport_params *p, struct lm_error *err)
{
	struct listener l = { s, p };
	int r;

	p->peer_fd = lm_control_fd(&s->control);
	p->peer_said = peer_said;
	p->peer_opaque = &l;
	r = lm_transport_open(s->transport, p, err);
	if (r)
		r = reason_of_peer(&l, r, err);
	p->peer_said = NULL; /* what is opened later is opened by another thread */
	return r;
}

static int options_check(const struct lm_options *o, enum lm_mode mode, struct lm_error *err)
{
	if (mode != LM_MODE_LIVE && !o->image)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "no image given");
	if (!o->address && mode == LM_MODE_LIVE)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "no address given");
	if (!o->transport || (strcmp(o->transport, "auto") && !lm_transport_find(o->transport)))
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION,
			      "no transport \"%s\": `migrate-rdma transports` lists what there is",
			      o->transport ? o->transport : "");
	if (o->lanes > LM_LANES_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "%u lanes: at most %d", o->lanes, LM_LANES_MAX);
	if (o->nlocks > LM_LOCKS_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "%u storage locks: at most %d", o->nlocks, LM_LOCKS_MAX);
	if (o->max_downtime_ns > TIME_MAX_NS || o->max_pause_ns > TIME_MAX_NS || o->timeout_ns > TIME_MAX_NS ||
	    o->recover_timeout_ns > TIME_MAX_NS || o->postcopy_after_ns > TIME_MAX_NS || o->peer_timeout_ns > TIME_MAX_NS || o->qmp_timeout_ns > TIME_MAX_NS)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "a time limit above a year");
	if (o->recover_timeout_ns < 0 || o->postcopy_after_ns < 0 || o->max_downtime_ns <= 0 || o->max_pause_ns <= 0 || o->timeout_ns < 0 ||
	    o->peer_timeout_ns <= 0 || o->qmp_timeout_ns <= 0)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "a time limit must be above zero");
	return 0;
}

static int open_files(struct lm_session *s, struct lm_error *err)
{
	int r = 0;

	if (s->side == LM_DEST && s->opt.address)
		r = lm_dest_listen(s, err);
	if (!r && s->mode == LM_MODE_SAVE)
		r = lm_save_open_image(s, err);
	if (!r && s->mode == LM_MODE_RESTORE)
		r = lm_restore_open_image(s, err);
	return r;
}

static int session_new(struct lm_options *options, enum lm_side side, enum lm_mode mode, struct lm_vm *vm,
		       int cancel_fd, struct lm_session **ret, struct lm_error *err)
{
	struct lm_session *s = calloc(1, sizeof(*s));
	int r;

	if (!s) {
		lm_vm_detach(vm);
		lm_close_fd(&cancel_fd);
		free(options);
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	}
	s->opt = *options;
	s->owned = options;
	s->side = side;
	s->mode = mode;
	s->vm = vm;
	s->cancel_fd = cancel_fd;
	s->guardian.fd = -1;
	s->summary.guest_runs_here = side == LM_SOURCE && vm->info.running;
	if (side == LM_DEST)
		s->dst = (struct lm_dest){ .listen_fd = -1, .state_fd = -1 };
	r = options_check(options, mode, err);
	if (!r)
		r = lm_vm_regions(vm, &s->ram, err);
	s->summary.ram_bytes = r ? 0 : lm_ram_size(&s->ram);
	if (!r)
		r = lm_handover_open(s, err);
	if (!r)
		r = open_files(s, err);
	if (r) {
		lm_session_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int lm_session_new(struct lm_options *options, enum lm_side side, struct lm_vm *vm, int cancel_fd,
		   struct lm_session **ret, struct lm_error *err)
{
	return session_new(options, side, LM_MODE_LIVE, vm, cancel_fd, ret, err);
}

int lm_session_new_save(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
			struct lm_error *err)
{
	return session_new(options, LM_SOURCE, LM_MODE_SAVE, vm, cancel_fd, ret, err);
}

int lm_session_new_restore(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
			   struct lm_error *err)
{
	return session_new(options, LM_DEST, LM_MODE_RESTORE, vm, cancel_fd, ret, err);
}

int lm_session_new_recover(struct lm_options *options, enum lm_side side, struct lm_vm *vm, int cancel_fd,
			   struct lm_ram *ram, struct lm_pager *pager, struct lm_pcstate *state,
			   struct lm_session **ret, struct lm_error *err)
{
	struct lm_session *s = calloc(1, sizeof(*s));
	enum lm_mode mode = options->image ? LM_MODE_RESTORE : LM_MODE_LIVE;
	int r = options_check(options, mode, err);

	if (!s) {
		lm_pager_close(pager);
		lm_ram_fini(ram);
		lm_pcstate_close(state);
		lm_vm_detach(vm);
		lm_close_fd(&cancel_fd);
		free(options);
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	}
	s->opt = *options;
	s->owned = options;
	s->side = side;
	s->vm = vm;
	s->cancel_fd = cancel_fd;
	s->guardian.fd = -1;
	s->ram = *ram;
	s->pull.pager = pager;
	s->pull.state = *state;
	if (!r && mode == LM_MODE_LIVE && !strcmp(state->head->transport, "image"))
		r = lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "this guest's memory comes from an image, not from another host: "
			   "`migrate-rdma restore --resume`");
	s->recovering = true;
	s->mode = mode;
	if (pager)
		pager->ram = &s->ram;
	if (side == LM_DEST)
		s->dst = (struct lm_dest){ .listen_fd = -1, .state_fd = -1, .committed = true };
	else
		s->src.commit_sent = true;
	s->summary.guest_runs_here = side == LM_DEST;
	s->summary.ram_bytes = lm_ram_size(&s->ram);
	if (!r)
		r = lm_handover_open(s, err);
	if (!r)
		r = lm_ram_map(&s->ram, side == LM_DEST, err);
	if (!r && side == LM_DEST && mode == LM_MODE_LIVE)
		r = lm_dest_listen(s, err);
	if (!r && mode == LM_MODE_RESTORE)
		r = lm_restore_open_image(s, err);
	if (!r)
		r = lm_postcopy_take_over(s, err);
	if (r) {
		lm_session_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

static int64_t cpu_ns(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * LM_NS_PER_S +
	       (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * INT64_C(1000);
}

bool lm_session_vm_gone(const struct lm_session *s)
{
	struct pollfd p = { .fd = s->vm->pidfd, .events = POLLIN };

	return poll(&p, 1, 1000) > 0;
}

/* What an error before COMMIT means; after it the sides have set the outcome themselves. */
static enum lm_outcome outcome_of(const struct lm_session *s, const struct lm_error *e)
{
	if (e->scope == LM_SCOPE_VM && lm_session_vm_gone(s))
		return LM_OUTCOME_VM_LOST;
	if (e->code == -ECANCELED)
		return LM_OUTCOME_CANCELLED;
	return s->opened ? LM_OUTCOME_ABORTED : LM_OUTCOME_REFUSED;
}

static void summarize(struct lm_session *s, const struct lm_error *e)
{
	struct lm_event event = { .type = LM_EVENT_COMPLETED };
	struct lm_summary *sum = &s->summary;

	sum->total_ns = lm_now_ns() - s->started_ns;
	sum->cpu_ns = cpu_ns() - sum->cpu_ns;
	sum->error = *e;
	if (sum->outcome == LM_OUTCOME_NONE)
		sum->outcome = e->code ? outcome_of(s, e) : LM_OUTCOME_COMPLETED;
	if (sum->copying_ns > 0)
		sum->bytes_per_s = (uint64_t)((double)sum->bytes * 1e9 / (double)sum->copying_ns);
	event.u.summary = *sum;
	lm_session_event(s, &event);
}

static int run_mode(struct lm_session *s, struct lm_error *err)
{
	switch (s->mode) {
	case LM_MODE_SAVE:
		return lm_save_run(s, err);
	case LM_MODE_RESTORE:
		return lm_restore_run(s, err);
	case LM_MODE_LIVE:
		break;
	}
	return s->side == LM_SOURCE ? lm_source_run(s, err) : lm_dest_run(s, err);
}

static int start_guardian(struct lm_session *s, struct lm_error *err)
{
	const struct lm_guardian_locks locks = { s->opt.locks, s->opt.nlocks, s->opt.lock_host };
	const struct lm_guardian_witness witness = lm_image_session_witness(s);

	return lm_guardian_start_with(&s->guardian, s->vm, s->side, &locks, &witness, err);
}

int lm_session_run(struct lm_session *s, struct lm_error *err)
{
	struct lm_error e = { 0 };
	int r = 0;

	if (s->summary.outcome != LM_OUTCOME_NONE || s->started_ns)
		return lm_err(err, -EALREADY, LM_SCOPE_OPERATION, "a session runs once");
	s->started_ns = lm_now_ns();
	s->summary.cpu_ns = cpu_ns();
	if (s->opt.guardian && !s->recovering)
		r = start_guardian(s, &e);
	if (!r)
		r = run_mode(s, &e);
	lm_guardian_stop(&s->guardian);
	if (!r)
		lm_err_clear(&e); /* something on the way failed and was dealt with */
	summarize(s, &e);
	if (r && err)
		*err = e;
	return r;
}

void lm_session_postcopy(struct lm_session *s)
{
	atomic_store(&s->postcopy_asked, true);
}

void lm_session_cancel(struct lm_session *s)
{
	uint64_t one = 1;

	if (write(s->cancel_fd, &one, sizeof(one)) < 0)
		return; /* the counter is at its limit: it is readable, which is all we want */
}

const char *lm_session_address(const struct lm_session *s)
{
	return s->address;
}

int32_t lm_session_pid(const struct lm_session *s)
{
	return s->vm->pid;
}

const struct lm_summary *lm_session_summary(const struct lm_session *s)
{
	return &s->summary;
}

void lm_session_free(struct lm_session *s)
{
	if (!s)
		return;
	if (s->side == LM_SOURCE)
		lm_source_cleanup(s);
	else
		lm_dest_cleanup(s);
	lm_postcopy_source_end(s);
	lm_postcopy_dest_end(s);
	lm_image_session_end(s);
	lm_control_close(&s->control);
	lm_pool_free(s->pool);
	lm_transport_free(s->transport);
	lm_guardian_stop(&s->guardian);
	lm_locks_close(&s->handover.locks);
	lm_vm_detach(s->vm);
	lm_ram_fini(&s->ram);
	lm_close_fd(&s->cancel_fd);
	free(s->owned);
	free(s);
}
