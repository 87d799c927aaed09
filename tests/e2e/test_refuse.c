/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What cannot be migrated safely is refused before anything is touched, with
 * the words that name what to change, and the guest runs on.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "rig.h"

#define EXIT_REFUSED 2 /* migrate-rdma(1) */

static const struct rig_config good = { .mb = 64, .append = "mb=16 rate=1000" };

static bool says(struct rig_run *r, const char *words)
{
	return rig_log_has(r->proc, words) || strstr(json_object_to_json_string(r->events), words);
}

static void assert_says(struct rig_run *r, const char *words)
{
	if (!says(r, words))
		fail_msg("%s does not say \"%s\"; it says: %s", r->proc->name, words,
			 json_object_to_json_string(r->events));
}

/* --- one side's own fault ------------------------------------------------ */

struct bad_guest {
	struct rig_config config;
	const char *words[3]; /* all of them must be said */
};

static void a_source_is_refused(struct rig *rig)
{
	const struct bad_guest *bad = rig_arg(rig);
	struct rig_vm *a = rig_vm_start(rig, "A", &bad->config, RIG_RUNS);
	char *before = rig_vm_migration_settings(a), *after;
	struct rig_run *send = rig_send(a, "127.0.0.1:9", NULL);

	assert_int_equal(rig_run_wait(send, RIG_WAIT_MS), EXIT_REFUSED);
	for (int i = 0; i < 3 && bad->words[i]; i++)
		assert_says(send, bad->words[i]);
	assert_true(rig_vm_running(a));
	assert_int_equal(rig_longest_pause_us(a), 0);
	after = rig_vm_migration_settings(a);
	assert_string_equal(after, before);
	free(before);
	free(after);
}

/* `check` must come to the same verdict as `send`. */
static void check_says_what_to_change(struct rig *rig)
{
	const struct bad_guest *bad = rig_arg(rig);
	struct rig_vm *a = rig_vm_start(rig, "A", &bad->config, RIG_RUNS);
	const char *const argv[] = { "check", "--json", "--qmp", a->qmp, NULL };
	struct rig_run *check = rig_engine(rig, "check", argv, NULL);

	assert_int_not_equal(rig_run_wait(check, RIG_WAIT_MS), 0);
	for (int i = 0; i < 3 && bad->words[i]; i++)
		assert_says(check, bad->words[i]);
	assert_true(rig_vm_running(a));
}

static const struct bad_guest not_shared = {
	{ .mb = 64, .backing = RIG_PRIVATE_FILE, .append = "mb=16" }, { "share=on", "ram0" },
};
static const struct bad_guest no_backend = {
	{ .mb = 64, .backing = RIG_NO_BACKEND, .append = "mb=16" }, { "memory-backend-file", "share=on" },
};
static const struct bad_guest memfd = {
	{ .mb = 64, .backing = RIG_MEMFD, .append = "mb=16" }, { "memory-backend-file" },
};

static void a_good_guest_passes_check(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &good, RIG_RUNS);
	const char *const argv[] = { "check", "--json", "--qmp", a->qmp, NULL };
	struct rig_run *check = rig_engine(rig, "check", argv, NULL);
	struct json_object *possible, *e;

	rig_run_wait(check, RIG_WAIT_MS);
	e = rig_run_event(check, "checked", 0);
	assert_true(e && json_object_object_get_ex(e, "possible", &possible));
	if (!json_object_get_boolean(possible))
		fail_msg("check says: %s", json_object_to_json_string(check->events));
	assert_true(rig_vm_running(a));
}

/* --- the two sides do not fit together ------------------------------------ */

struct misfit {
	struct rig_config other; /* the destination; the source is `good` */
	const char *words[3];
};

static void a_destination_that_differs_is_refused(struct rig *rig)
{
	const struct misfit *m = rig_arg(rig);
	struct rig_vm *a = rig_vm_start(rig, "A", &good, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &m->other, RIG_WAITS);
	struct rig_run *receive, *send;
	int code;

	rig_guest_wait_ready(a);
	receive = rig_receive(b, NULL);
	send = rig_send(a, receive->address, NULL);
	code = rig_run_wait(send, 2 * RIG_WAIT_MS);
	if (code != EXIT_REFUSED)
		fail_msg("send ended with %d (%s), not refused", code, rig_run_outcome(send));
	assert_int_not_equal(rig_run_wait(receive, RIG_WAIT_MS), 0);
	for (int i = 0; i < 3 && m->words[i]; i++)
		assert_says(send, m->words[i]);
	assert_true(rig_vm_running(a));
	assert_int_equal(rig_longest_pause_us(a), 0);
	rig_guest_assert_well(a);
}

static const struct misfit wrong_size = { { .mb = 128, .append = "mb=16" }, { "ram0", "size" } };
static const struct misfit wrong_layout = { { .mb = 64, .nodes = 2, .append = "mb=16" }, { "memory backend" } };
static const struct misfit wrong_machine = { { .mb = 64, .machine = "pc", .append = "mb=16" }, { "machine", "q35" } };

/* --- the QMP socket -------------------------------------------------------- */

static void a_destination_that_does_not_wait_is_refused(struct rig *rig)
{
	struct rig_vm *b = rig_vm_start(rig, "B", &good, RIG_RUNS);
	struct rig_run *receive = rig_receive(b, NULL);

	assert_int_equal(rig_run_wait(receive, RIG_WAIT_MS), EXIT_REFUSED);
	assert_says(receive, "-incoming");
	assert_true(rig_vm_running(b));
}

static void a_source_that_waits_for_a_guest_is_refused(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &good, RIG_WAITS);
	struct rig_run *send = rig_send(a, "127.0.0.1:9", NULL);

	assert_int_equal(rig_run_wait(send, RIG_WAIT_MS), EXIT_REFUSED);
	assert_says(send, "it can only be a destination");
}

static struct rig_run *send_to_socket(struct rig *rig, const char *path)
{
	const char *const argv[] = { "send", "--json", "--qmp", path, "--to", "127.0.0.1:9", NULL };

	return rig_engine(rig, "send", argv, NULL);
}

static void a_missing_socket_is_named(struct rig *rig)
{
	struct rig_run *send = send_to_socket(rig, "/nonexistent/qmp");

	assert_int_equal(rig_run_wait(send, RIG_WAIT_MS), EXIT_REFUSED);
	assert_says(send, "/nonexistent/qmp");
}

static void a_plain_file_is_no_socket(struct rig *rig)
{
	struct rig_run *send = send_to_socket(rig, "/etc/passwd");

	assert_int_equal(rig_run_wait(send, RIG_WAIT_MS), EXIT_REFUSED);
	assert_says(send, "/etc/passwd");
}

/* A server that says something else, or nothing at all. */
static void serve(struct rig *rig, const char *text, char path[RIG_PATH_MAX])
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int l = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), c;

	rig_path(rig, path, "server");
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	assert_int_equal(bind(l, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(l, 1), 0);
	if (!fork()) {
		alarm(60);
		c = accept(l, NULL, NULL);
		if (*text && write(c, text, strlen(text)) < 0)
			_exit(1);
		pause();
		_exit(0);
	}
	close(l);
}

static void a_socket_of_something_else_is_refused(struct rig *rig)
{
	char path[RIG_PATH_MAX];
	struct rig_run *send;

	serve(rig, "SSH-2.0-OpenSSH_9.2\r\n", path);
	send = send_to_socket(rig, path);
	assert_int_equal(rig_run_wait(send, RIG_WAIT_MS), EXIT_REFUSED);
	assert_says(send, "QMP");
}

static void a_socket_that_says_nothing_is_given_up(struct rig *rig)
{
	char path[RIG_PATH_MAX];
	struct rig_run *send;

	serve(rig, "", path);
	send = send_to_socket(rig, path);
	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), EXIT_REFUSED);
	assert_says(send, "QMP");
}

/* Our own connection sits on the only place. */
static void a_socket_that_is_taken_is_given_up(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &good, RIG_RUNS);
	struct rig_run *send = send_to_socket(rig, a->own_qmp);

	assert_int_equal(rig_run_wait(send, 2 * RIG_WAIT_MS), EXIT_REFUSED);
	assert_says(send, "QMP");
	assert_true(rig_vm_running(a));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(a_good_guest_passes_check),
		RIG_TEST_ARG("private_memory_is_refused", a_source_is_refused, &not_shared),
		RIG_TEST_ARG("no_memory_backend_is_refused", a_source_is_refused, &no_backend),
		RIG_TEST_ARG("a_memfd_is_refused", a_source_is_refused, &memfd),
		RIG_TEST_ARG("check_names_share_on", check_says_what_to_change, &not_shared),
		RIG_TEST_ARG("check_names_memory_backend_file", check_says_what_to_change, &no_backend),
		RIG_TEST_ARG("another_ram_size_is_refused", a_destination_that_differs_is_refused, &wrong_size),
		RIG_TEST_ARG("another_ram_layout_is_refused", a_destination_that_differs_is_refused, &wrong_layout),
		RIG_TEST_ARG("another_machine_type_is_refused", a_destination_that_differs_is_refused,
			     &wrong_machine),
		RIG_TEST(a_destination_that_does_not_wait_is_refused),
		RIG_TEST(a_source_that_waits_for_a_guest_is_refused),
		RIG_TEST(a_missing_socket_is_named),
		RIG_TEST(a_plain_file_is_no_socket),
		RIG_TEST(a_socket_of_something_else_is_refused),
		RIG_TEST(a_socket_that_says_nothing_is_given_up),
		RIG_TEST(a_socket_that_is_taken_is_given_up),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
