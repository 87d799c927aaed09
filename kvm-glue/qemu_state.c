/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's two state machines, of the guest (query-status) and of its migration
 * (query-migrate), and the way back to a running guest from every stage.
 *
 *   stage (query-migrate)   guest             migrate_cancel leads to
 *   none                    running           no change
 *   setup, active           running           cancelled, running
 *   pre-switchover          finish-migrate    cancelled, running (QEMU runs it itself)
 *   device                  finish-migrate    too late: completed (QEMU's main loop is busy meanwhile)
 *   completed               postmigrate       no change: `cont`
 *   failed                  running           no change (QEMU runs it itself)
 *
 * A guest that was paused before stays so; QEMU 7.2 then calls its state
 * "postmigrate" with a migration that was cancelled, and refuses to migrate it
 * again until it has run; QEMU 10 calls it "paused" as before.
 *
 * finish-migrate lasts a moment longer than "completed" or "cancelled", and QEMU
 * refuses `cont` in that moment ("not finalized yet"): qemu_settle() waits it out.
 */
#include <stdio.h>
#include <string.h>
#include "qemu_priv.h"

void qemu_seen_reset(struct qemu *q)
{
	memset(&q->seen, 0, sizeof(q->seen));
}

void qemu_on_event(void *opaque, const char *name, struct json_object *data, int64_t time_ns)
{
	struct qemu *q = opaque;
	struct qemu_seen *s = &q->seen;

	qemu_debug(q, "QEMU event %s %s", name, lm_js_text(data, "status"));
	if (!strcmp(name, "MIGRATION")) {
		snprintf(s->migration, sizeof(s->migration), "%s", lm_js_text(data, "status"));
		s->migration_ns = time_ns;
	} else if (!strcmp(name, "STOP")) {
		s->stopped = true;
		s->stopped_ns = time_ns;
	} else if (!strcmp(name, "RESUME")) {
		s->resumed = true;
		s->resumed_ns = time_ns;
	} else if (!strcmp(name, "SHUTDOWN")) {
		s->shutdown = true;
	}
}

bool qemu_migration_active(const char *status)
{
	static const char *const rest[] = { "none", "completed", "failed", "cancelled" };

	for (size_t i = 0; i < sizeof(rest) / sizeof(*rest); i++)
		if (!strcmp(status, rest[i]))
			return false;
	return true;
}

int qemu_status_read(struct lm_qmp *qmp, int64_t deadline_ns, struct qemu_status *ret, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *run = NULL;
	LM_AUTO_JS struct json_object *mig = NULL;
	const char *status;
	int r = lm_qmp_execute(qmp, "query-migrate", NULL, deadline_ns, &mig, err);

	/* in this order: a migration that is at rest does not change the guest's state afterwards */
	if (!r)
		r = lm_qmp_execute(qmp, "query-status", NULL, deadline_ns, &run, err);
	if (r)
		return r;
	status = lm_js_str(mig, "status");
	snprintf(ret->run, sizeof(ret->run), "%s", lm_js_text(run, "status"));
	ret->running = lm_js_true(run, "running");
	snprintf(ret->migration, sizeof(ret->migration), "%s", status ? status : "none");
	snprintf(ret->error, sizeof(ret->error), "%s", lm_js_text(mig, "error-desc"));
	return 0;
}

static bool never(void *opaque)
{
	(void)opaque;
	return false;
}

/* Let QEMU work for a millisecond, or until it sends something. */
static int settle_pause(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err)
{
	int64_t now = lm_now_ns();
	int r;

	if (now >= deadline_ns)
		return lm_err(err, -ETIMEDOUT, LM_SCOPE_VM, "QEMU did not end its migration in time");
	r = lm_qmp_wait(qmp, never, NULL, lm_deadline_min(deadline_ns, now + LM_NS_PER_MS), err);
	return r == -ETIMEDOUT ? 0 : r;
}

/*
 * A cancel that comes in the moment between the stop of the guest and
 * "pre-switchover" leaves QEMU 7.2's migration thread asleep on a semaphore that
 * only migrate-continue or a cancel in "pre-switchover" posts: the state stays
 * "cancelling" and the guest stopped, for ever.  migrate-continue posts it for
 * whatever state its caller names correctly, this one too; a post too many is
 * taken back by QEMU before the next wait.  It refuses when the state has moved on.
 */
static int unstick(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err)
{
	struct json_object *args = lm_js_strings("state", "cancelling", NULL);
	int r = lm_qmp_execute(qmp, "migrate-continue", args, deadline_ns, NULL, err);

	return r == -EREMOTEIO ? 0 : r;
}

int qemu_settle(struct lm_qmp *qmp, int64_t deadline_ns, struct qemu_status *ret, struct lm_error *err)
{
	for (;;) {
		int r = qemu_status_read(qmp, deadline_ns, ret, err);
		bool active = !r && qemu_migration_active(ret->migration);

		if (!r && !active && strcmp(ret->run, "finish-migrate"))
			return 0;
		if (active && strcmp(ret->migration, "cancelling"))
			r = lm_qmp_execute(qmp, "migrate_cancel", NULL, deadline_ns, NULL, err);
		else if (active)
			r = unstick(qmp, deadline_ns, err);
		if (!r)
			r = settle_pause(qmp, deadline_ns, err);
		if (r)
			return r;
	}
}

int qemu_cont(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err)
{
	struct qemu_status st;
	int r = lm_qmp_execute(qmp, "cont", NULL, deadline_ns, NULL, err);

	while (!r) {
		r = qemu_status_read(qmp, deadline_ns, &st, err);
		if (r || st.running)
			return r;
		r = settle_pause(qmp, deadline_ns, err);
	}
	return r;
}
