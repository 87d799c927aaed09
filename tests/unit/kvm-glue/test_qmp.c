/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client against a server that follows a script, good or bad. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "kvm-glue/qmp.h"
#include "qmp_server.h"

#define SOON (200 * LM_NS_PER_MS)

/* ---- the test's side ---- */

static struct lm_qmp *q;
static struct lm_error err;

static int teardown(void **state)
{
	(void)state;
	lm_qmp_close(q);
	q = NULL;
	server_stop();
	return 0;
}

static int connect_within(int64_t ns)
{
	memset(&err, 0, sizeof(err));
	return lm_qmp_connect(srv.path, -1, lm_now_ns() + ns, &q, &err);
}

static void connected(void (*script)(void))
{
	server_start(script);
	if (connect_within(5 * LM_NS_PER_S))
		fail_msg("%s", err.msg);
}

static int execute(const char *command, int64_t ns, struct json_object **ret)
{
	return lm_qmp_execute(q, command, NULL, lm_now_ns() + ns, ret, &err);
}

static void assert_says(const char *words)
{
	if (!strstr(err.msg, words))
		fail_msg("\"%s\" does not say \"%s\"", err.msg, words);
}

/* ---- connecting ---- */

static void script_silence(void)
{
	hear();
}

static void no_greeting_is_explained(void **state)
{
	(void)state;
	server_start(script_silence);
	assert_int_equal(connect_within(SOON), -EBUSY);
	assert_says("another client is connected");
}

static void script_human(void)
{
	say("QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ");
	hear();
}

static void a_human_monitor_is_explained(void **state)
{
	(void)state;
	server_start(script_human);
	assert_int_equal(connect_within(5 * LM_NS_PER_S), -EPROTO);
	assert_says("a human monitor?");
}

static void script_hangup(void)
{
}

static void a_hangup_before_the_greeting_is_an_error_of_the_vm(void **state)
{
	(void)state;
	server_start(script_hangup);
	assert_true(connect_within(5 * LM_NS_PER_S) < 0);
	assert_int_equal(err.scope, LM_SCOPE_VM);
}

static void a_path_longer_than_an_address_is_no_obstacle(void **state)
{
	char longer[300];

	(void)state;
	server_start(negotiate);
	/* the folder many times over: the same place by a path of more than 107 characters */
	snprintf(longer, sizeof(longer), "%s/././././././././././././././././././././././././././././././././././././././"
		 "./././././././././././././././././././././././././././qmp", srv.dir);
	assert_true(strlen(longer) > 108);
	assert_int_equal(lm_qmp_connect(longer, -1, lm_now_ns() + 5 * LM_NS_PER_S, &q, &err), 0);
}

static void script_full_queue(void)
{
	hear();
}

static void a_full_queue_of_clients_is_explained(void **state)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int waiting[4];

	(void)state;
	server_start(script_full_queue);
	memcpy(a.sun_path, srv.path, strlen(srv.path) + 1);
	for (int i = 0; i < 4; i++) {
		waiting[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (connect(waiting[i], (struct sockaddr *)&a, sizeof(a)) && errno == EAGAIN)
			break;
	}
	assert_int_equal(connect_within(SOON), -EBUSY);
	for (int i = 0; i < 4; i++)
		close(waiting[i]);
}

/* ---- answers ---- */

static int nevents;
static char event_name[64], event_status[64];
static int64_t event_time;

static void note_event(void *opaque, const char *name, struct json_object *data, int64_t time_ns)
{
	(void)opaque;
	nevents++;
	snprintf(event_name, sizeof(event_name), "%s", name);
	snprintf(event_status, sizeof(event_status), "%s", lm_js_text(data, "status"));
	event_time = time_ns;
}

#define EVENT(n, s)                                                                             \
	"{\"timestamp\": {\"seconds\": 1795362100, \"microseconds\": 207580}, \"event\": \"" n "\", "   \
	"\"data\": {\"status\": \"" s "\"}}\r\n"

static void script_mixed(void)
{
	negotiate();
	hear();
	say(EVENT("MIGRATION", "setup"));
	say("{\"timestamp\": {\"sec");
	usleep(20000);
	say("onds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}\r\n" EVENT("MIGRATION", "active"));
	answer("{\"return\": {\"status\": \"run\\u006eing\"}, \"id\": \"@\"}");
	hear();
}

static void events_between_and_split_lines_are_no_obstacle(void **state)
{
	LM_AUTO_JS struct json_object *ret = NULL;

	(void)state;
	connected(script_mixed);
	nevents = 0;
	lm_qmp_set_event(q, note_event, NULL);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, &ret), 0);
	assert_string_equal(lm_js_text(ret, "status"), "running");
	assert_int_equal(nevents, 3);
	assert_string_equal(event_status, "active");
	assert_true(event_time == INT64_C(1795362100207580000));
}

static void script_error(void)
{
	negotiate();
	hear();
	answer("{\"id\": \"@\", \"error\": {\"class\": \"GenericError\", \"desc\": \"The sky is down\"}}");
	hear();
	answer("{\"id\": \"@\", \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"none such\"}}");
	hear();
	answer_ok();
	hear();
}

static void a_refusal_keeps_qemus_words(void **state)
{
	(void)state;
	connected(script_error);
	assert_int_equal(execute("migrate", 5 * LM_NS_PER_S, NULL), -EREMOTEIO);
	assert_string_equal(lm_qmp_refusal(q), "The sky is down");
	assert_says("QEMU refused migrate: The sky is down");
	assert_int_equal(err.scope, LM_SCOPE_OPERATION);
	assert_int_equal(execute("x-none", 5 * LM_NS_PER_S, NULL), -ENOSYS);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, NULL), 0);
}

static void script_death(void)
{
	negotiate();
	hear();
	say("{\"return\": {\"status\": \"runn");
}

static void death_in_the_middle_of_an_answer_is_an_error_of_the_vm(void **state)
{
	(void)state;
	connected(script_death);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, NULL), -ECONNRESET);
	assert_int_equal(err.scope, LM_SCOPE_VM);
	assert_true(execute("query-status", 5 * LM_NS_PER_S, NULL) < 0);
	assert_int_equal(err.scope, LM_SCOPE_VM);
}

static void script_hangup_later(void)
{
	negotiate();
	hear();
}

static void death_before_an_answer_is_an_error_of_the_vm(void **state)
{
	(void)state;
	connected(script_hangup_later);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, NULL), -ECONNRESET);
	assert_int_equal(err.scope, LM_SCOPE_VM);
	assert_says("QEMU has ended");
}

static void script_garbage(void)
{
	negotiate();
	hear();
	say("\x01\x02 garbage }{\n");
	hear();
}

static void garbage_is_an_error(void **state)
{
	(void)state;
	connected(script_garbage);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, NULL), -EPROTO);
}

static void script_strange(void)
{
	static const char *const texts[] = {
		"[1, 2]\n", "17\n", "null\n", "{\"neither\": 1}\n", "{\"return\": {}}\n", "{\"event\": 3}\n",
		"{\"error\": \"no object\"}\n", "{\"return\": {}, \"id\": 17}\n",
	};
	static unsigned next;

	negotiate();
	hear();
	say(texts[next++ % 8]);
	hear();
}

static void messages_of_unknown_kinds_are_errors(void **state)
{
	(void)state;
	for (int i = 0; i < 8; i++) {
		connected(script_strange);
		assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, NULL), -EPROTO);
		teardown(NULL);
	}
}

static void script_oversize(void)
{
	static char block[1 << 20];

	negotiate();
	hear();
	memset(block, 'x', sizeof(block) - 1);
	say("{\"return\": \"");
	for (int i = 0; i < 80; i++)
		say(block);
}

static void a_line_without_end_is_an_error(void **state)
{
	(void)state;
	connected(script_oversize);
	assert_int_equal(execute("query-status", 60 * LM_NS_PER_S, NULL), -EMSGSIZE);
	lm_qmp_close(q);
	q = NULL;
}

static void script_long(void)
{
	static char block[(1 << 20) + 1];

	negotiate();
	hear();
	memset(block, 'y', sizeof(block) - 1);
	say("{\"return\": \"");
	for (int i = 0; i < 20; i++)
		say(block);
	answer("\", \"id\": \"@\"}");
	hear();
}

static void a_long_line_is_fine(void **state)
{
	LM_AUTO_JS struct json_object *ret = NULL;

	(void)state;
	connected(script_long);
	assert_int_equal(execute("query-status", 60 * LM_NS_PER_S, &ret), 0);
	assert_int_equal(json_object_get_string_len(ret), 20 << 20);
}

/* ---- ids, deadlines, cancel ---- */

static void script_late(void)
{
	char first[64];

	negotiate();
	hear();
	strcpy(first, srv.id);
	usleep(400000); /* the command is given up meanwhile */
	hear();
	{
		char second[64];

		strcpy(second, srv.id);
		strcpy(srv.id, first);
		answer("{\"return\": {\"to\": \"the first\"}, \"id\": \"@\"}");
		strcpy(srv.id, second);
	}
	answer("{\"return\": {\"to\": \"the second\"}, \"id\": \"@\"}");
	hear();
}

static void a_late_answer_is_not_taken_for_the_next(void **state)
{
	LM_AUTO_JS struct json_object *ret = NULL;

	(void)state;
	connected(script_late);
	assert_int_equal(execute("query-status", SOON, NULL), -ETIMEDOUT);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, &ret), 0);
	assert_string_equal(lm_js_text(ret, "to"), "the second");
}

static void script_wrong_id(void)
{
	negotiate();
	hear();
	say("{\"return\": {}, \"id\": \"lm-1-1\"}\n");
	hear();
}

static void an_answer_to_nobody_is_not_ours(void **state)
{
	(void)state;
	connected(script_wrong_id);
	assert_int_equal(execute("query-status", SOON, NULL), -ETIMEDOUT);
}

static bool two_events(void *opaque)
{
	(void)opaque;
	return nevents >= 2;
}

static void script_events(void)
{
	negotiate();
	say(EVENT("MIGRATION", "active"));
	usleep(30000);
	say(EVENT("MIGRATION", "completed"));
	hear();
}

static void a_wait_ends_with_its_event(void **state)
{
	(void)state;
	connected(script_events);
	nevents = 0;
	lm_qmp_set_event(q, note_event, NULL);
	assert_int_equal(lm_qmp_wait(q, two_events, NULL, lm_now_ns() + 5 * LM_NS_PER_S, &err), 0);
	assert_string_equal(event_status, "completed");
	nevents = 0;
	assert_int_equal(lm_qmp_wait(q, two_events, NULL, lm_now_ns() + SOON, &err), -ETIMEDOUT);
	assert_int_equal(lm_qmp_pump(q, &err), 0);
}

static void a_cancel_ends_a_wait_and_a_command(void **state)
{
	int cancel = eventfd(1, EFD_CLOEXEC);

	(void)state;
	connected(script_events);
	nevents = 0;
	lm_qmp_set_cancel(q, cancel);
	assert_int_equal(lm_qmp_wait(q, two_events, NULL, lm_now_ns() + 5 * LM_NS_PER_S, &err), -ECANCELED);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, NULL), -ECANCELED);
	close(cancel);
}

/* ---- descriptors and resynchronisation ---- */

static void script_fd(void)
{
	negotiate();
	hear();
	answer_ok();
	hear();
}

static void a_descriptor_is_passed(void **state)
{
	int p[2];
	char c = 0;

	(void)state;
	connected(script_fd);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(lm_qmp_getfd(q, "state", p[1], lm_now_ns() + 5 * LM_NS_PER_S, &err), 0);
	assert_non_null(strstr(srv.line, "\"fdname\":\"state\""));
	assert_true(srv.passed_fd >= 0);
	assert_int_equal(write(srv.passed_fd, "k", 1), 1);
	assert_int_equal(read(p[0], &c, 1), 1);
	assert_int_equal(c, 'k');
	close(p[0]);
	close(p[1]);
}

/* As QEMU does it: what was half a command and byte 0xFF together are an error without id. */
static void script_resync(void)
{
	negotiate();
	hear();
	say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n");
	say("ther half of a line that the late owner had begun to read\"}}\r\n");
	say("{\"return\": {}, \"id\": \"lm-of-the-late-owner-7\"}\r\n" EVENT("STOP", ""));
	hear();
	answer("{\"id\": \"@\", \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"negotiation is complete\"}}");
	hear();
	answer_ok();
	hear();
}

static void a_half_command_is_undone(void **state)
{
	struct lm_qmp *heir = NULL;

	(void)state;
	connected(script_resync);
	assert_int_equal(write(lm_qmp_fd(q), "{\"execute\": \"qu", 15), 15);
	assert_int_equal(lm_qmp_adopt(dup(lm_qmp_fd(q)), &heir, &err), 0);
	lm_qmp_close(q);
	q = heir;
	if (lm_qmp_resync(q, lm_now_ns() + 5 * LM_NS_PER_S, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(execute("query-status", 5 * LM_NS_PER_S, NULL), 0);
}

static void script_slow_reader(void)
{
	int small = 4096;

	setsockopt(srv.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	negotiate();
	usleep(400000);
	while (hear()) {
		if (strchr(srv.line, '\xff'))
			say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n");
		else
			answer_ok();
	}
}

/* The command was written by half when its deadline came: the next one repairs that. */
static void a_command_that_was_cut_off_does_not_spoil_the_next(void **state)
{
	struct json_object *args = json_object_new_object();
	LM_AUTO_FREE char *big = malloc(4 << 20);
	int small = 4096;

	(void)state;
	connected(script_slow_reader);
	setsockopt(lm_qmp_fd(q), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	memset(big, 'z', (4 << 20) - 1);
	big[(4 << 20) - 1] = 0;
	json_object_object_add(args, "big", json_object_new_string(big));
	assert_int_equal(lm_qmp_execute(q, "nop", args, lm_now_ns() + SOON / 4, NULL, &err), -ETIMEDOUT);
	if (execute("query-status", 10 * LM_NS_PER_S, NULL))
		fail_msg("%s", err.msg);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, teardown)
	const struct CMUnitTest tests[] = {
		T(no_greeting_is_explained),
		T(a_human_monitor_is_explained),
		T(a_hangup_before_the_greeting_is_an_error_of_the_vm),
		T(a_path_longer_than_an_address_is_no_obstacle),
		T(a_full_queue_of_clients_is_explained),
		T(events_between_and_split_lines_are_no_obstacle),
		T(a_refusal_keeps_qemus_words),
		T(death_in_the_middle_of_an_answer_is_an_error_of_the_vm),
		T(death_before_an_answer_is_an_error_of_the_vm),
		T(garbage_is_an_error),
		T(messages_of_unknown_kinds_are_errors),
		T(a_line_without_end_is_an_error),
		T(a_long_line_is_fine),
		T(a_late_answer_is_not_taken_for_the_next),
		T(an_answer_to_nobody_is_not_ours),
		T(a_wait_ends_with_its_event),
		T(a_cancel_ends_a_wait_and_a_command),
		T(a_descriptor_is_passed),
		T(a_half_command_is_undone),
		T(a_command_that_was_cut_off_does_not_spoil_the_next),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
