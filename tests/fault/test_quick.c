/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quick migration, in one go and struck at each of its stages: the guest runs on one side,
 * or on none and the source says that it is in doubt.  Never on both.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "rig.h"
#include "../guest/layout.h"

#define EXIT_REFUSED 2
#define EXIT_IN_DOUBT 6
#define ENGINE_MS (3 * RIG_WAIT_MS)
#define SETTLE_MS 20000
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const struct rig_config guest = { .mb = 64, .append = "mb=16 rate=2000" };

enum { A = 1, B = 2, DOUBT = 4 };

struct world {
	struct rig *rig;
	struct rig_vm *a, *b;
	char image[RIG_PATH_MAX], lock[RIG_PATH_MAX + 32];
	struct rig_run *quick, *restore;
};

static struct world world_new(struct rig *rig)
{
	struct world w = { .rig = rig, .a = rig_vm_start(rig, "A", &guest, RIG_RUNS),
			   .b = rig_vm_start(rig, "B", &guest, RIG_WAITS) };

	rig_path(rig, w.image, "image");
	strcpy(w.lock, "lease:");
	rig_path(rig, w.lock + strlen("lease:"), "lock?local=yes");
	rig_guest_wait_ready(w.a);
	rig_watch(w.a, w.b);
	return w;
}

static void listen_at(struct world *w, const char *image, const struct rig_run_options *o)
{
	const char *const argv[] = { "restore", "--json", "--listen", "127.0.0.1:0", "--qmp", w->b->qmp, "--image", image,
				     "--lock", w->lock, "--host", "host-b", "--peer-timeout", "2s", NULL };
	struct json_object *e, *address;

	w->restore = rig_engine(w->rig, "restore", argv, o);
	e = rig_run_event(w->restore, "listening", RIG_WAIT_MS);
	if (e && json_object_object_get_ex(e, "address", &address))
		snprintf(w->restore->address, sizeof(w->restore->address), "%s", json_object_get_string(address));
}

static void quick(struct world *w, const struct rig_run_options *o)
{
	const char *const argv[] = { "quick", "--json", "--qmp", w->a->qmp, "--image", w->image, "--to",
				     w->restore->address[0] ? w->restore->address : "127.0.0.1:1",
				     "--lock", w->lock, "--host", "host-a", "--peer-timeout", "2s", NULL };

	w->quick = rig_engine(w->rig, "quick", argv, o);
}

static void assert_ends(struct rig_run *r, int code)
{
	int got = rig_run_wait(r, ENGINE_MS);

	if (got != code)
		fail_msg("%s ended with %d (%s), %d was due", r->proc->name, got, rig_run_outcome(r), code);
}

static void assert_never_two(struct world *w)
{
	char how[128];

	if (rig_saw_two(w->a, w->b, how, sizeof(how)))
		fail_msg("%s", how);
}

static void in_one_go(struct rig *rig, const char *paging)
{
	struct rig_run_options o = { .args = { "--paging", paging } };
	struct world w = world_new(rig);
	char status[32];

	listen_at(&w, w.image, &o);
	quick(&w, NULL);
	assert_ends(w.quick, 0);
	assert_ends(w.restore, 0);
	rig_guest_assert_well(w.b);
	rig_vm_status(w.a, status);
	assert_string_equal(status, "postmigrate");
	assert_true(rig_summary_int(w.quick, "blackout.total_ns") > 0);
	assert_never_two(&w);
}

static void a_guest_moves_through_an_image(struct rig *rig)
{
	in_one_go(rig, "eager");
}

static void a_guest_moves_through_an_image_lazily(struct rig *rig)
{
	in_one_go(rig, "lazy");
}

static void another_file_on_the_other_side_is_found(struct rig *rig)
{
	struct world w = world_new(rig);
	char other[RIG_PATH_MAX];

	rig_path(rig, other, "other");
	listen_at(&w, other, NULL);
	quick(&w, NULL);
	assert_true(rig_run_wait(w.quick, ENGINE_MS) != 0);
	rig_run_wait(w.restore, ENGINE_MS);
	rig_guest_assert_well(w.a);
	assert_false(rig_vm_running(w.b));
}

static void a_guest_of_another_layout_is_refused(struct rig *rig)
{
	struct world w = world_new(rig);
	struct rig_config other = guest;

	other.mb = 128;
	rig_vm_end(w.b);
	w.b = rig_vm_start(rig, "B2", &other, RIG_WAITS);
	listen_at(&w, w.image, NULL);
	quick(&w, NULL);
	assert_ends(w.quick, EXIT_REFUSED);
	rig_guest_assert_well(w.a);
}

/* What `quick` has not finished is nobody's to restore. */
static void a_pending_image_is_refused(struct rig *rig)
{
	struct world w = world_new(rig);
	struct rig_run *r;

	listen_at(&w, w.image, NULL);
	quick(&w, &(struct rig_run_options){ .fault = "durable:kill" });
	rig_run_wait(w.quick, ENGINE_MS);
	rig_run_wait(w.restore, ENGINE_MS);
	assert_true(rig_orphans_gone(rig, SETTLE_MS));
	rig_guest_assert_well(w.a);
	{
		const char *const argv[] = { "restore", "--json", "--qmp", w.b->qmp, "--image", w.image, "--lock", w.lock,
					     "--host", "host-b", NULL };

		r = rig_engine(rig, "restore", argv, NULL);
	}
	assert_ends(r, EXIT_REFUSED);
	assert_true(rig_log_has(r->proc, "was not completed"));
}

/* ---- struck ---- */

struct blow {
	char side; /* 's', 'd' */
	const char *stage, *action;
	int allowed;
};

static const struct blow blows[] = {
	{ 's', "hello", "kill", A }, { 's', "pausing", "kill", A }, { 's', "paused", "kill", A }, { 's', "copied", "kill", A },
	{ 's', "synced", "kill", A }, { 's', "renamed", "kill", A }, { 's', "durable", "kill", A }, { 's', "offered", "kill", A },
	{ 's', "loaded", "kill", A }, { 's', "commit", "kill", A }, { 's', "committed", "kill", A | B },
	{ 'd', "opened", "kill", A }, { 'd', "filled", "kill", A }, { 'd', "prepare", "kill", A }, { 'd', "loaded", "kill", A },
	{ 'd', "commit", "kill", A }, { 'd', "taken", "kill", DOUBT }, { 'd', "marked", "kill", B }, { 'd', "resumed", "kill", B },
	{ 's', "paused", "error", A }, { 's', "durable", "error", A }, { 's', "loaded", "error", A }, { 's', "commit", "error", A },
	{ 'd', "opened", "error", A }, { 'd', "filled", "error", A }, { 'd', "loaded", "error", A }, { 'd', "commit", "error", A },
	{ 'd', "taken", "error", A }, { 'd', "marked", "error", A },
};

static void survives(struct rig *rig)
{
	const struct blow *blow = rig_arg(rig);
	struct world w = world_new(rig);
	char fault[64];
	struct rig_run_options o = { .fault = fault };
	int where;

	snprintf(fault, sizeof(fault), "%s:%s", blow->stage, blow->action);
	listen_at(&w, w.image, blow->side == 'd' ? &o : NULL);
	quick(&w, blow->side == 's' ? &o : NULL);
	rig_run_wait(w.quick, ENGINE_MS);
	rig_run_wait(w.restore, ENGINE_MS);
	if (!rig_orphans_gone(rig, SETTLE_MS))
		fail_msg("a guardian does not end");
	where = (rig_vm_running(w.a) ? A : 0) | (rig_vm_running(w.b) ? B : 0);
	where = where ? where : DOUBT;
	assert_never_two(&w);
	if (!(where & blow->allowed) || where == (A | B))
		fail_msg("the guest runs at %d; quick ended with %d (%s), restore with %d (%s)", where, w.quick->proc->status,
			 rig_run_outcome(w.quick), w.restore->proc->status, rig_run_outcome(w.restore));
	if (where == DOUBT)
		assert_int_equal(w.quick->proc->status, EXIT_IN_DOUBT);
	else
		rig_guest_assert_well(where == A ? w.a : w.b);
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[COUNT(blows) + 5] = {
		RIG_TEST(a_guest_moves_through_an_image),
		RIG_TEST(a_guest_moves_through_an_image_lazily),
		RIG_TEST(another_file_on_the_other_side_is_found),
		RIG_TEST(a_guest_of_another_layout_is_refused),
		RIG_TEST(a_pending_image_is_refused),
	};
	static struct rig_test rig_tests[COUNT(blows)];
	static char names[COUNT(blows)][64];

	for (size_t i = 0; i < COUNT(blows); i++) {
		rig_tests[i] = (struct rig_test){ survives, &blows[i] };
		snprintf(names[i], sizeof(names[i]), "%s_%s_at_%s", blows[i].side == 's' ? "source" : "dest",
			 blows[i].action, blows[i].stage);
		tests[5 + i] = (struct CMUnitTest){ names[i], rig_body, rig_setup, rig_teardown, &rig_tests[i] };
	}
	return rig_main(argc, argv, tests, COUNT(tests));
}
