/* SPDX-License-Identifier: Apache-2.0 */
/* The destination: load the device state into a QEMU that waits, and run the guest. */
#include <string.h>
#include "engine/base/cleanup.h"
#include "qemu_priv.h"

static struct json_object *incoming_args(const struct qemu *q)
{
	struct json_object *args = lm_js_strings("uri", "fd:" QEMU_FD_NAME, NULL);

	/* since 9.1 QEMU can tell what went wrong instead of exiting */
	if (q->major > 9 || (q->major == 9 && q->minor >= 1))
		json_object_object_add(args, "exit-on-error", json_object_new_boolean(0));
	return args;
}

/*
 * `stop` while QEMU waits for a migration means: do not run the guest when it is
 * loaded.  The same as -S, for a QEMU that was started without.
 */
int qemu_state_load(struct lm_vm *vm, int state_fd, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	int r = qemu_ask(q, "stop", NULL, NULL, err);

	if (!r)
		r = qemu_caps_set(q, err);
	if (r)
		return r;
	qemu_seen_reset(q);
	r = qemu_give_state_fd(q, state_fd, err);
	if (!r)
		r = qemu_ask(q, "migrate-incoming", incoming_args(q), NULL, err);
	/* only QEMU holds it from here on, so the other end sees when QEMU dies */
	lm_close_fd(&q->state_fd);
	return r;
}

static bool load_ended(void *opaque)
{
	const struct qemu_seen *s = &((struct qemu *)opaque)->seen;

	return !strcmp(s->migration, "completed") || !strcmp(s->migration, "failed");
}

/* Before 9.1 QEMU exits when it cannot load. */
static int load_died(int code, struct lm_error *err)
{
	return lm_err(err, code, LM_SCOPE_VM,
		      "the destination's QEMU ended while it loaded the device state: its log says why "
		      "(machine type, CPU or devices differ from the source's?)");
}

static int load_error(struct qemu *q, struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);

	if (r)
		return load_died(r, err);
	return lm_err(err, -EREMOTEIO, LM_SCOPE_SESSION,
		      "QEMU could not load the device state: %s; end this QEMU, it has only a part of the guest",
		      st.error[0] ? st.error : "see its log");
}

/* Loaded, but QEMU does not yet show it in the guest's state: wait a moment. */
static int loaded_wait(struct qemu *q, int64_t deadline_ns, struct lm_error *err)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS / 2 };
	struct qemu_status st;

	for (;;) {
		int r = qemu_status_read(q->qmp, lm_deadline_min(deadline_ns, qemu_deadline(q)), &st, err);

		if (r)
			return r;
		if (st.running)
			return lm_err(err, -EPROTO, LM_SCOPE_SESSION,
				      "the guest runs at the destination although COMMIT has not come: somebody sent `cont`");
		if (strcmp(st.run, "inmigrate"))
			return 0;
		if (lm_now_ns() >= deadline_ns)
			return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION, "QEMU did not load the device state "
					"in time");
		nanosleep(&pause, NULL);
	}
}

int qemu_state_wait(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	int r = lm_qmp_wait(q->qmp, load_ended, q, deadline_ns, err);

	if (r == -ETIMEDOUT)
		return lm_err(err, r, LM_SCOPE_SESSION, "QEMU did not load the device state in time");
	if (r && r != -ECANCELED)
		return load_died(r, err);
	if (r)
		return r;
	return !strcmp(q->seen.migration, "failed") ? load_error(q, err) : loaded_wait(q, deadline_ns, err);
}

int qemu_run_loaded(struct qemu *q, int64_t deadline_ns, struct lm_error *err)
{
	return qemu_cont(q->qmp, deadline_ns, err);
}
