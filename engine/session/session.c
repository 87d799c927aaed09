/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/resource.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/context/connect.h"
#include "session.h"

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

/* ---- making ---- */

static void give_back(struct lm_options *options, struct lm_vm *vm, int cancel_fd)
{
	lm_vm_detach(vm);
	lm_close_fd(&cancel_fd);
	free(options);
}

/* What becomes the session's is given back on error. */
static int session_alloc(struct lm_options *options, enum lm_side side, enum lm_mode mode, struct lm_vm *vm,
			 int cancel_fd, struct lm_session **ret, struct lm_error *err)
{
	struct lm_session *s = calloc(1, sizeof(*s));

	if (!s) {
		give_back(options, vm, cancel_fd);
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "out of memory");
	}
	s->mode = mode;
	s->ctx.opt = *options;
	s->ctx.owned = options;
	s->ctx.side = side;
	s->ctx.vm = vm;
	s->ctx.cancel_fd = cancel_fd;
	s->ctx.listen_fd = -1;
	s->guardian.fd = -1;
	if (side == LM_SOURCE)
		lm_source_init(&s->src, &s->ctx, &s->guardian, &s->handover);
	else
		lm_dest_init(&s->dst, &s->ctx, &s->guardian, &s->handover);
	*ret = s;
	return 0;
}

static int open_image(struct lm_session *s, struct lm_error *err)
{
	switch (s->mode) {
	case LM_MODE_SAVE:
		return lm_save_init(&s->save, &s->ctx, &s->src.out, err);
	case LM_MODE_RESTORE:
		return lm_restore_init(&s->restore, &s->ctx, &s->dst.in, &s->dst.pull, err);
	case LM_MODE_LIVE:
		break;
	}
	return 0;
}

/* Everything that can be refused before the session runs: the VM's memory, its locks, the address, the image. */
static int session_open(struct lm_session *s, struct lm_error *err)
{
	struct lm_ctx *c = &s->ctx;
	int r = lm_options_check(&c->opt, s->mode, err);

	if (!r)
		r = lm_vm_regions(c->vm, &c->ram, err);
	c->summary.ram_bytes = r ? 0 : lm_ram_size(&c->ram);
	if (!r)
		r = lm_handover_open(&s->handover, c, &s->guardian, err);
	if (!r && c->side == LM_DEST && c->opt.address)
		r = lm_ctx_listen(c, err);
	return r ? r : open_image(s, err);
}

/* Passes a session on that was opened without an error, else frees it. */
static int finish(struct lm_session *s, int r, struct lm_session **ret)
{
	if (r)
		lm_session_free(s);
	else
		*ret = s;
	return r;
}

static int session_new(struct lm_options *options, enum lm_side side, enum lm_mode mode, struct lm_vm *vm,
		       int cancel_fd, struct lm_session **ret, struct lm_error *err)
{
	struct lm_session *s;
	int r = session_alloc(options, side, mode, vm, cancel_fd, &s, err);

	if (r)
		return r;
	s->ctx.summary.guest_runs_here = side == LM_SOURCE && vm->info.running;
	return finish(s, session_open(s, err), ret);
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

/* The description of a post-copy that an engine left behind becomes the session's. */
static void adopt(struct lm_session *s, struct lm_ram *ram, struct lm_pager *pager, struct lm_pcstate *state)
{
	struct lm_ctx *c = &s->ctx;

	c->recovering = true;
	c->ram = *ram;
	c->summary.ram_bytes = lm_ram_size(&c->ram);
	if (c->side == LM_SOURCE) {
		c->commit_sent = true;
		s->src.postcopy.both.state = *state;
		return;
	}
	c->summary.guest_runs_here = true;
	s->dst.in.committed = true;
	s->dst.pull.both.state = *state;
	s->dst.pull.pager = pager;
	if (pager)
		pager->ram = &c->ram;
}

static int check_recover(const struct lm_session *s, const struct lm_pcstate *state, struct lm_error *err)
{
	if (s->mode == LM_MODE_LIVE && !strcmp(state->head->transport, "image"))
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "this guest's memory comes from an image, not from another "
			      "host: `migrate-rdma restore --resume`");
	return lm_options_check(&s->ctx.opt, s->mode, err);
}

static int recover_open(struct lm_session *s, struct lm_error *err)
{
	struct lm_ctx *c = &s->ctx;
	int r = lm_handover_open(&s->handover, c, &s->guardian, err);

	if (!r)
		r = lm_ram_map(&c->ram, c->side == LM_DEST, err);
	if (!r && c->side == LM_DEST && s->mode == LM_MODE_LIVE)
		r = lm_ctx_listen(c, err);
	if (!r)
		r = open_image(s, err);
	if (r)
		return r;
	if (c->side == LM_DEST)
		return lm_postcopy_dest_take_over(&s->dst.pull, err);
	lm_postcopy_source_take_over(&s->src.postcopy);
	return 0;
}

int lm_session_new_recover(struct lm_options *options, enum lm_side side, struct lm_vm *vm, int cancel_fd,
			   struct lm_ram *ram, struct lm_pager *pager, struct lm_pcstate *state,
			   struct lm_session **ret, struct lm_error *err)
{
	struct lm_session *s;
	int r = session_alloc(options, side, options->image ? LM_MODE_RESTORE : LM_MODE_LIVE, vm, cancel_fd, &s, err);

	if (r) {
		lm_pager_close(pager);
		lm_ram_fini(ram);
		lm_pcstate_close(state);
		return r;
	}
	adopt(s, ram, pager, state);
	r = check_recover(s, state, err);
	return finish(s, r ? r : recover_open(s, err), ret);
}

/* ---- running ---- */

static int64_t cpu_ns(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * LM_NS_PER_S +
	       (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * INT64_C(1000);
}

/* What an error before COMMIT means; after it the sides have set the outcome themselves. */
static enum lm_outcome outcome_of(const struct lm_ctx *c, const struct lm_error *e)
{
	if (e->scope == LM_SCOPE_VM && lm_ctx_vm_gone(c))
		return LM_OUTCOME_VM_LOST;
	if (e->code == -ECANCELED)
		return LM_OUTCOME_CANCELLED;
	return c->opened ? LM_OUTCOME_ABORTED : LM_OUTCOME_REFUSED;
}

static void summarize(struct lm_ctx *c, const struct lm_error *e)
{
	struct lm_event event = { .type = LM_EVENT_COMPLETED };
	struct lm_summary *sum = &c->summary;

	sum->total_ns = lm_now_ns() - c->started_ns;
	sum->cpu_ns = cpu_ns() - sum->cpu_ns;
	sum->error = *e;
	if (sum->outcome == LM_OUTCOME_NONE)
		sum->outcome = e->code ? outcome_of(c, e) : LM_OUTCOME_COMPLETED;
	if (sum->copying_ns > 0)
		sum->bytes_per_s = (uint64_t)((double)sum->bytes * 1e9 / (double)sum->copying_ns);
	event.u.summary = *sum;
	lm_ctx_event(c, &event);
}

static int run_mode(struct lm_session *s, struct lm_error *err)
{
	bool quick = s->ctx.opt.address && !s->ctx.recovering;

	switch (s->mode) {
	case LM_MODE_SAVE:
		return quick ? lm_quick_send(&s->save, err) : lm_save_run(&s->save, err);
	case LM_MODE_RESTORE:
		return quick ? lm_quick_receive(&s->restore, err) : lm_restore_run(&s->restore, err);
	case LM_MODE_LIVE:
		break;
	}
	return s->ctx.side == LM_SOURCE ? lm_source_run(&s->src, err) : lm_dest_run(&s->dst, err);
}

static int start_guardian(struct lm_session *s, struct lm_error *err)
{
	const struct lm_options *o = &s->ctx.opt;
	const struct lm_guardian_locks locks = { o->locks, o->nlocks, o->lock_host };
	struct lm_guardian_witness witness = { 0 };

	if (s->mode == LM_MODE_SAVE)
		witness = lm_save_witness(&s->save);
	if (s->mode == LM_MODE_RESTORE)
		witness = lm_restore_witness(&s->restore);
	return lm_guardian_start_with(&s->guardian, s->ctx.vm, s->ctx.side, &locks, &witness, err);
}

int lm_session_run(struct lm_session *s, struct lm_error *err)
{
	struct lm_ctx *c = &s->ctx;
	struct lm_error e = { 0 };
	int r = 0;

	if (c->summary.outcome != LM_OUTCOME_NONE || c->started_ns)
		return lm_err(err, -EALREADY, LM_SCOPE_OPERATION, "a session runs once");
	c->started_ns = lm_now_ns();
	c->summary.cpu_ns = cpu_ns();
	if (c->opt.guardian && !c->recovering)
		r = start_guardian(s, &e);
	if (!r)
		r = run_mode(s, &e);
	lm_guardian_stop(&s->guardian);
	if (!r)
		lm_err_clear(&e); /* something on the way failed and was dealt with */
	summarize(c, &e);
	if (r && err)
		*err = e;
	return r;
}

void lm_session_postcopy(struct lm_session *s)
{
	atomic_store(&s->src.precopy.postcopy_asked, true);
}

void lm_session_cancel(struct lm_session *s)
{
	lm_ctx_cancel(&s->ctx);
}

const char *lm_session_address(const struct lm_session *s)
{
	return s->ctx.address;
}

int32_t lm_session_pid(const struct lm_session *s)
{
	return s->ctx.vm->pid;
}

const struct lm_summary *lm_session_summary(const struct lm_session *s)
{
	return &s->ctx.summary;
}

void lm_session_free(struct lm_session *s)
{
	if (!s)
		return;
	/* First those who use the lanes and the VM, the context last. */
	lm_source_fini(&s->src);
	lm_dest_fini(&s->dst);
	lm_save_close(&s->save);
	lm_restore_close(&s->restore);
	lm_guardian_stop(&s->guardian);
	lm_handover_close(&s->handover);
	lm_ctx_fini(&s->ctx);
	free(s);
}
