/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One guest, fifty migrations, both sessions of each in this one process: no
 * bad page, and neither QEMU nor the engine has grown at the end.  The same, with
 * less of them, by post-copy.
 */
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine/migrate_rdma.h"
#include "rig.h"

#define MOVES	50
#define PULLS	20 /* by post-copy */
#define SETTLED	10 /* moves after which caches and arenas have their size */

static const struct rig_config guest = { .mb = 32, .append = "mb=12 rate=2000" };

struct side {
	struct lm_session *session;
	struct lm_error err;
	int rc;
};

static void *run(void *arg)
{
	struct side *s = arg;

	s->rc = lm_session_run(s->session, &s->err);
	return NULL;
}

static void open_sides(struct rig_vm *a, struct rig_vm *b, enum lm_postcopy postcopy, struct side *source,
		       struct side *dest)
{
	struct lm_options o;

	lm_options_default(&o);
	o.postcopy = postcopy;
	o.qmp = b->qmp;
	o.address = "127.0.0.1:0";
	if (lm_dest_open(&o, &dest->session, &dest->err))
		fail_msg("destination: %s", dest->err.msg);
	o.qmp = a->qmp;
	o.address = lm_session_address(dest->session);
	if (lm_source_open(&o, &source->session, &source->err))
		fail_msg("source: %s", source->err.msg);
}

static void move(struct rig_vm *a, struct rig_vm *b, enum lm_postcopy postcopy)
{
	struct side source = { 0 }, dest = { 0 };
	bool pulled = postcopy == LM_POSTCOPY_NOW;
	pthread_t thread;

	open_sides(a, b, postcopy, &source, &dest);
	assert_int_equal(pthread_create(&thread, NULL, run, &dest), 0);
	run(&source);
	pthread_join(thread, NULL);
	pulled = !pulled || lm_session_summary(dest.session)->postcopy.left_pages;
	lm_session_free(source.session);
	lm_session_free(dest.session);
	assert_true(pulled);
	if (source.rc || dest.rc)
		fail_msg("source: %d %s; destination: %d %s", source.rc, source.err.msg, dest.rc, dest.err.msg);
}

struct sizes {
	unsigned own_fds, qemu_fds;
	uint64_t own_bytes, qemu_bytes;
};

static struct sizes measure(const struct rig_vm *vm)
{
	return (struct sizes){
		.own_fds = rig_count_fds(getpid()), .own_bytes = rig_anon_bytes(getpid()),
		.qemu_fds = rig_count_fds(vm->pid), .qemu_bytes = rig_anon_bytes(vm->pid),
	};
}

/*
 * A QEMU of its own differs by a translation buffer, a stack or an arena from the
 * next one; only what happens to the same process again and again is a leak.
 */
#define SAME_QEMU	(UINT64_C(2) << 20)
#define OTHER_QEMU	(UINT64_C(64) << 20)

static void assert_no_growth(const struct sizes *then, const struct sizes *now, uint64_t qemu_slack)
{
	print_message("engine: %u fds, %lu KiB, then %u, %lu KiB; QEMU: %u, %lu KiB, then %u, %lu KiB\n",
		      then->own_fds, (unsigned long)(then->own_bytes >> 10), now->own_fds,
		      (unsigned long)(now->own_bytes >> 10), then->qemu_fds,
		      (unsigned long)(then->qemu_bytes >> 10), now->qemu_fds,
		      (unsigned long)(now->qemu_bytes >> 10));
	assert_int_equal(now->own_fds, then->own_fds);
	assert_int_equal(now->qemu_fds, then->qemu_fds);
	assert_true(now->own_bytes < then->own_bytes + (4 << 20));
	assert_true(now->qemu_bytes < then->qemu_bytes + qemu_slack);
}

static void move_on_and_on(struct rig *rig, int moves, enum lm_postcopy postcopy)
{
	struct rig_vm *at = rig_vm_start(rig, "0", &guest, RIG_RUNS), *next;
	struct sizes then = { 0 }, now;
	char name[8];

	rig_guest_wait_ready(at);
	for (int i = 1; i <= moves; i++) {
		snprintf(name, sizeof(name), "%d", i);
		next = rig_vm_start(rig, name, &guest, RIG_WAITS);
		move(at, next, postcopy);
		rig_vm_end(at);
		at = next;
		rig_guest_assert_well(at);
		if (i == SETTLED)
			then = measure(at);
	}
	now = measure(at);
	assert_no_growth(&then, &now, OTHER_QEMU);
}

static void fifty_moves_of_one_guest_leave_no_trace(struct rig *rig)
{
	move_on_and_on(rig, MOVES, LM_POSTCOPY_AUTO);
}

static unsigned count_files(const char *path)
{
	unsigned n = 0;
	DIR *d = opendir(path);

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

/* Nor a state file of what there was to recover. */
static void twenty_post_copies_of_one_guest_leave_no_trace(struct rig *rig)
{
	char dir[RIG_PATH_MAX];

	setenv("XDG_RUNTIME_DIR", rig_dir(rig), 1);
	move_on_and_on(rig, PULLS, LM_POSTCOPY_NOW);
	rig_path(rig, dir, "migrate-rdma");
	assert_int_equal(count_files(dir), 0);
}

static void give_up(struct rig_vm *a, struct rig_vm *b)
{
	struct side source = { 0 }, dest = { 0 };
	pthread_t thread;

	open_sides(a, b, LM_POSTCOPY_AUTO, &source, &dest);
	assert_int_equal(pthread_create(&thread, NULL, run, &dest), 0);
	lm_session_cancel(source.session);
	run(&source);
	lm_session_cancel(dest.session); /* its peer may never have come */
	pthread_join(thread, NULL);
	lm_session_free(source.session);
	lm_session_free(dest.session);
	assert_int_not_equal(source.rc, 0);
	assert_int_not_equal(dest.rc, 0);
}

/* The source's QEMU lives through all of them. */
static void migrations_that_are_given_up_leave_no_trace(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS), *b;
	struct sizes then = { 0 }, now;

	rig_guest_wait_ready(a);
	for (int i = 1; i <= MOVES / 2; i++) {
		b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
		give_up(a, b);
		rig_vm_end(b);
		if (i == SETTLED)
			then = measure(a);
	}
	now = measure(a);
	assert_no_growth(&then, &now, SAME_QEMU);
	rig_guest_assert_well(a);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(fifty_moves_of_one_guest_leave_no_trace),
		RIG_TEST(twenty_post_copies_of_one_guest_leave_no_trace),
		RIG_TEST(migrations_that_are_given_up_leave_no_trace),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
