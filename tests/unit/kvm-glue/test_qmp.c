/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client against a server that follows a script, good or bad: connecting, and what the answers hold. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "qmp_client.h"

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
	/* the same socket by a path of more than 107 characters, with "." many times */
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
		client_teardown(NULL);
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

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, client_teardown)
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
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
