/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A save, and a restore, that is killed or fails at each of its stages: there is always one
 * guest, running where it was or in an image that can be restored, and never two.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "rig.h"
#include "../guest/layout.h"

#define EXIT_REFUSED 2
#define ENGINE_MS (3 * RIG_WAIT_MS)
#define SETTLE_MS 20000
#define STAGES_MAX 32

static const struct rig_config guest = { .mb = 64, .append = "mb=16 rate=2000" };

struct world {
	struct rig *rig;
	struct rig_vm *a, *b;
	char image[RIG_PATH_MAX], lock[RIG_PATH_MAX + 32];
};

static struct rig_run *engine(struct world *w, const char *what, struct rig_vm *vm, const char *host, const char *paging,
			      const struct rig_run_options *o)
{
	const char *argv[] = { what, "--json", "--qmp", vm->qmp, "--image", w->image, "--lock", w->lock, "--host", host,
			       paging ? "--paging" : NULL, paging, NULL };

	return rig_engine(w->rig, what, argv, o);
}

static struct rig_run *save(struct world *w, const struct rig_run_options *o)
{
	return engine(w, "save", w->a, "host-a", NULL, o);
}

static struct rig_run *restore(struct world *w, struct rig_vm *vm, const char *host, const char *paging,
			       const struct rig_run_options *o)
{
	return engine(w, "restore", vm, host, paging ? paging : "eager", o);
}

static void assert_ends(struct rig_run *r, int code)
{
	int got = rig_run_wait(r, ENGINE_MS);

	if (got != code)
		fail_msg("%s ended with %d (%s), %d was due", r->proc->name, got, rig_run_outcome(r), code);
}

static int lock_do(struct world *w, const char *what, const char *host)
{
	const char *const argv[] = { "lock", "--host", host, "--yes", "--quiet", what, w->lock, NULL };

	return rig_run_wait(rig_engine(w->rig, "lock", argv, NULL), ENGINE_MS);
}

static struct world world_new(struct rig *rig)
{
	struct world w = { .rig = rig, .a = rig_vm_start(rig, "A", &guest, RIG_RUNS) };

	rig_path(rig, w.image, "image");
	strcpy(w.lock, "lease:");
	rig_path(rig, w.lock + strlen("lease:"), "lock?local=yes");
	rig_guest_wait_ready(w.a);
	return w;
}

static void settle(struct rig *rig)
{
	if (!rig_orphans_gone(rig, SETTLE_MS))
		fail_msg("a guardian does not end");
}

static void never_two(struct rig_vm *a, struct rig_vm *b)
{
	char how[128];

	if (rig_saw_two(a, b, how, sizeof(how)))
		fail_msg("%s", how);
}

/* ---- save ---- */

struct stage {
	const char *name;
	bool late; /* from here on what was to happen has happened */
};

static const struct stage save_stages[] = {
	{ "open", false }, { "pausing", false }, { "paused", false }, { "copied", false }, { "state", false },
	{ "synced", false }, { "commit", false }, { "renamed", true }, { "durable", true }, { "released", true },
	{ "done", true },
};

static const struct stage restore_stages[] = {
	{ "open", false }, { "locked", false }, { "filled", false }, { "prepare", false }, { "loading", false },
	{ "loaded", false }, { "commit", false }, { "marked", true }, { "fenced", true }, { "resumed", true },
	{ "done", true },
};

static const struct stage lazy_stages[] = {
	{ "filled", false }, { "loaded", false }, { "marked", true }, { "resumed", true }, { "postcopy", true }, { "whole", true },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

struct scenario {
	const struct stage *stage;
	const char *action, *paging;
};

static struct rig_run *strike_save(struct world *w, const struct scenario *s)
{
	char fault[64];
	struct rig_run *r;

	snprintf(fault, sizeof(fault), "%s:%s", s->stage->name, s->action);
	r = save(w, &(struct rig_run_options){ .fault = fault });
	rig_run_wait(r, ENGINE_MS);
	settle(w->rig);
	return r;
}

/* It goes on from the image, on another host. */
static void assert_in_image(struct world *w)
{
	char status[32];

	rig_vm_status(w->a, status);
	assert_string_equal(status, "postmigrate");
	w->b = rig_vm_start(w->rig, "B", &guest, RIG_WAITS);
	rig_watch(w->a, w->b);
	if (lock_do(w, "release", "host-a")) { /* killed before it did: the paused QEMU keeps it open */
		rig_vm_kill(w->a);
		assert_int_equal(lock_do(w, "release", "host-a"), 0);
	}
	assert_ends(restore(w, w->b, "host-b", NULL, NULL), 0);
	rig_guest_assert_well(w->b);
	never_two(w->a, w->b);
}

static void assert_here(struct world *w)
{
	assert_true(rig_vm_running(w->a));
	rig_guest_assert_well(w->a);
	assert_int_equal(access(w->image, F_OK), -1);
	assert_ends(save(w, NULL), 0); /* as if nothing had been */
	assert_in_image(w);
}

static void a_save_is_killed(struct rig *rig)
{
	const struct scenario *s = rig_arg(rig);
	struct world w = world_new(rig);

	strike_save(&w, s);
	if (s->stage->late)
		assert_in_image(&w);
	else
		assert_here(&w);
}

/* An error undoes it as long as that is possible; behind the rename the image is void. */
static void a_save_fails(struct rig *rig)
{
	const struct scenario *s = rig_arg(rig);
	struct world w = world_new(rig);
	struct rig_run *r = strike_save(&w, s);

	if (!strcmp(s->stage->name, "released") || !strcmp(s->stage->name, "done")) {
		assert_in_image(&w);
		return;
	}
	assert_true(r->proc->status != 0);
	if (!s->stage->late) {
		assert_here(&w);
		return;
	}
	rig_guest_assert_well(w.a);
	w.b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	r = restore(&w, w.b, "host-a", NULL, NULL);
	assert_ends(r, EXIT_REFUSED);
	assert_true(rig_log_has(r->proc, "went on"));
}

/* ---- restore ---- */

static struct rig_run *strike_restore(struct world *w, const struct scenario *s)
{
	char fault[64];
	struct rig_run *r;

	assert_ends(save(w, NULL), 0);
	w->b = rig_vm_start(w->rig, "B", &guest, RIG_WAITS);
	snprintf(fault, sizeof(fault), "%s:%s", s->stage->name, s->action);
	r = restore(w, w->b, "host-b", s->paging, &(struct rig_run_options){ .fault = fault });
	rig_run_wait(r, ENGINE_MS);
	settle(w->rig);
	return r;
}

/* Nothing was lost: another QEMU, on a third host when the lock is free, runs it. */
static void assert_not_used(struct world *w, const char *host)
{
	struct rig_vm *c;

	if (rig_vm_alive(w->b))
		assert_false(rig_vm_running(w->b));
	c = rig_vm_start(w->rig, "C", &guest, RIG_WAITS);
	rig_watch(w->b, c);
	assert_ends(restore(w, c, host, NULL, NULL), 0);
	rig_guest_assert_well(c);
	never_two(w->b, c);
}

static void assert_runs(struct world *w, const char *paging)
{
	if (paging)
		rig_run_wait(restore(w, w->b, "host-b", NULL, &(struct rig_run_options){ .args = { "--resume" } }), ENGINE_MS);
	assert_true(rig_vm_running(w->b));
	rig_guest_assert_well(w->b);
	assert_ends(restore(w, rig_vm_start(w->rig, "C", &guest, RIG_WAITS), "host-b", NULL, NULL), EXIT_REFUSED);
}

static void a_restore_is_killed(struct rig *rig)
{
	const struct scenario *s = rig_arg(rig);
	struct world w = world_new(rig);

	strike_restore(&w, s);
	if (s->stage->late)
		assert_runs(&w, s->paging);
	else
		assert_not_used(&w, "host-b"); /* which has the lock since */
}

static void a_restore_fails(struct rig *rig)
{
	const struct scenario *s = rig_arg(rig);
	struct world w = world_new(rig);
	struct rig_run *r = strike_restore(&w, s);

	/* Failing before `cont` is known not to have run; then the mark is taken back and the lock is free. */
	if (!s->stage->late || !strcmp(s->stage->name, "marked") || !strcmp(s->stage->name, "fenced")) {
		assert_true(r->proc->status != 0);
		assert_not_used(&w, "host-c");
	} else {
		assert_runs(&w, NULL);
	}
}

/* ---- the locks ---- */

static void another_host_restores_only_after_the_lock_is_free(struct rig *rig)
{
	struct world w = world_new(rig);
	struct rig_run *r;

	assert_ends(save(&w, NULL), 0);
	w.b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	assert_int_equal(lock_do(&w, "acquire", "host-x"), 0);
	r = restore(&w, w.b, "host-b", NULL, NULL);
	assert_ends(r, EXIT_REFUSED);
	assert_true(rig_log_has(r->proc, "host-x"));
	/* It had the lock: its guest may have written. */
	assert_int_equal(lock_do(&w, "release", "host-x"), 0);
	r = restore(&w, w.b, "host-b", NULL, NULL);
	assert_ends(r, EXIT_REFUSED);
	assert_true(rig_log_has(r->proc, "--force-locks"));
	r = restore(&w, w.b, "host-b", NULL, NULL); /* a refusal leaves no way around it */
	assert_ends(r, EXIT_REFUSED);
	assert_ends(restore(&w, w.b, "host-b", NULL, &(struct rig_run_options){ .args = { "--force-locks" } }), 0);
	rig_guest_assert_well(w.b);
	assert_true(lock_do(&w, "acquire", "host-x") != 0); /* it is host-b's now */
}

static void a_restore_without_its_lock_is_refused(struct rig *rig)
{
	struct world w = world_new(rig);
	struct rig_run *r;

	assert_ends(save(&w, NULL), 0);
	w.b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	{
		const char *const argv[] = { "restore", "--json", "--qmp", w.b->qmp, "--image", w.image, NULL };

		r = rig_engine(rig, "restore", argv, NULL);
	}
	assert_ends(r, EXIT_REFUSED);
	assert_true(rig_log_has(r->proc, w.lock));
	assert_ends(restore(&w, w.b, "host-b", NULL, NULL), 0);
}

static void a_save_needs_the_lock(struct rig *rig)
{
	struct world w = world_new(rig);

	assert_int_equal(lock_do(&w, "acquire", "host-x"), 0);
	assert_ends(save(&w, NULL), EXIT_REFUSED);
	assert_true(rig_vm_running(w.a));
}

/* While it writes, nobody else gets the lock; without the rule somebody does. */
static void lock_while_saving(struct rig *rig, const char *breaks, bool free)
{
	struct world w = world_new(rig);
	struct rig_run *r = save(&w, &(struct rig_run_options){ .fault = "synced:sleep=1500", .breaks = breaks });

	assert_non_null(rig_run_event_is(r, "stage", "name", "synced", RIG_WAIT_MS));
	if (free)
		assert_int_equal(lock_do(&w, "acquire", "host-x"), 0);
	else
		assert_true(lock_do(&w, "acquire", "host-x") != 0);
	rig_run_wait(r, ENGINE_MS);
}

static void the_lock_is_kept_until_the_image_is_on_the_disk(struct rig *rig)
{
	lock_while_saving(rig, NULL, false);
}

static void without_release_late_the_lock_is_free_too_early(struct rig *rig)
{
	lock_while_saving(rig, "release-late", true);
}

static void without_restore_lock_a_guest_runs_whose_lock_is_another_hosts(struct rig *rig)
{
	struct world w = world_new(rig);

	assert_ends(save(&w, NULL), 0);
	assert_int_equal(lock_do(&w, "acquire", "host-x"), 0);
	w.b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	assert_ends(restore(&w, w.b, "host-b", NULL, &(struct rig_run_options){ .breaks = "restore-lock" }), 0);
	assert_true(rig_vm_running(w.b));
}

static void without_a_guardian_a_killed_save_leaves_the_guest_paused(struct rig *rig)
{
	struct world w = world_new(rig);
	struct rig_run *r = save(&w, &(struct rig_run_options){ .fault = "copied:kill", .breaks = "guardian" });

	rig_run_wait(r, ENGINE_MS);
	rig_sleep_ms(1000);
	assert_false(rig_vm_running(w.a));
}

/* ---- */

struct list {
	struct CMUnitTest tests[8 * STAGES_MAX];
	struct rig_test rig_tests[8 * STAGES_MAX];
	struct scenario scenarios[8 * STAGES_MAX];
	char names[8 * STAGES_MAX][64];
	size_t n;
};

static void add(struct list *l, const char *name, rig_fn *fn, const struct stage *stages, size_t n, const char *action,
		const char *paging)
{
	for (size_t i = 0; i < n; i++, l->n++) {
		l->scenarios[l->n] = (struct scenario){ &stages[i], action, paging };
		l->rig_tests[l->n] = (struct rig_test){ fn, &l->scenarios[l->n] };
		snprintf(l->names[l->n], sizeof(l->names[l->n]), "%s_at_%s", name, stages[i].name);
		l->tests[l->n] = (struct CMUnitTest){ l->names[l->n], rig_body, rig_setup, rig_teardown, &l->rig_tests[l->n] };
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest fixed[] = {
		RIG_TEST(another_host_restores_only_after_the_lock_is_free),
		RIG_TEST(a_restore_without_its_lock_is_refused),
		RIG_TEST(a_save_needs_the_lock),
		RIG_TEST(the_lock_is_kept_until_the_image_is_on_the_disk),
		RIG_TEST(without_release_late_the_lock_is_free_too_early),
		RIG_TEST(without_restore_lock_a_guest_runs_whose_lock_is_another_hosts),
		RIG_TEST(without_a_guardian_a_killed_save_leaves_the_guest_paused),
	};
	static struct list l;

	memcpy(l.tests, fixed, sizeof(fixed));
	l.n = COUNT(fixed);
	add(&l, "save_killed", a_save_is_killed, save_stages, COUNT(save_stages), "kill", NULL);
	add(&l, "save_fails", a_save_fails, save_stages, COUNT(save_stages), "error", NULL);
	add(&l, "restore_killed", a_restore_is_killed, restore_stages, COUNT(restore_stages), "kill", NULL);
	add(&l, "restore_fails", a_restore_fails, restore_stages, COUNT(restore_stages), "error", NULL);
	add(&l, "lazy_killed", a_restore_is_killed, lazy_stages, COUNT(lazy_stages), "kill", "lazy");
	return rig_main_matrix(argc, argv, l.tests, l.n, COUNT(fixed), NULL);
}
