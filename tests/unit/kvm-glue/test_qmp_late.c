/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP client and what comes late or by half: ids, deadlines, cancel, events, resynchronisation. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "qmp_client.h"

/* ---- ids, deadlines, cancel ---- */

static void script_late(void)
{
	char first[64];

	negotiate();
	hear();
	strcpy(first, srv.id);
	usleep(400000); /* meanwhile the client gives up the command */
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

/* As QEMU does it: half a command, followed by byte 0xFF, gives an error without id. */
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

/* The deadline comes when half of the command is written: the next command repairs that. */
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
#define T(name) cmocka_unit_test_teardown(name, client_teardown)
	const struct CMUnitTest tests[] = {
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
