/* SPDX-License-Identifier: Apache-2.0 */
/* The keys that migrate-rdma(1) promises, and no others without a word there. */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include "unit.h"
#include "json.h"

/* One line, one object; the caller puts it. */
static struct json_object *line_of(char *line)
{
	struct json_object *o;

	assert_non_null(line);
	assert_int_equal(strcspn(line, "\n"), strlen(line) - 1);
	o = json_tokener_parse(line);
	assert_non_null(o);
	free(line);
	return o;
}

static struct json_object *get(struct json_object *o, const char *key)
{
	struct json_object *v = NULL;

	if (!json_object_object_get_ex(o, key, &v))
		fail_msg("no key %s in %s", key, json_object_to_json_string(o));
	return v;
}

static int64_t num(struct json_object *o, const char *key)
{
	assert_true(json_object_is_type(get(o, key), json_type_int));
	return json_object_get_int64(get(o, key));
}

static const char *str(struct json_object *o, const char *key)
{
	assert_true(json_object_is_type(get(o, key), json_type_string));
	return json_object_get_string(get(o, key));
}

/* Exactly these keys, blanks between. */
static void assert_keys(struct json_object *o, const char *keys)
{
	char copy[512], *save = NULL;
	int n = 0;

	snprintf(copy, sizeof(copy), "%s", keys);
	for (char *k = strtok_r(copy, " ", &save); k; k = strtok_r(NULL, " ", &save), n++)
		get(o, k);
	if (json_object_object_length(o) != n)
		fail_msg("keys beyond %s in %s", keys, json_object_to_json_string(o));
}

static struct json_object *event(const struct lm_event *e, const char *name, const char *keys)
{
	struct json_object *o = line_of(cli_json_event(e));
	char all[512];

	snprintf(all, sizeof(all), "v event time_ns %s", keys);
	assert_keys(o, all);
	assert_int_equal(num(o, "v"), 1);
	assert_string_equal(str(o, "event"), name);
	assert_int_equal(num(o, "time_ns"), e->time_ns);
	return o;
}

static void log_and_where_it_listens(void **state)
{
	struct lm_event e = { .type = LM_EVENT_LOG, .time_ns = 1700000000123456789 };
	struct json_object *o;

	(void)state;
	e.u.log.level = LM_LOG_WARN;
	e.u.log.text = "a \"quoted\" \\ line\nwith \033[31m and \xff\xc3(";
	o = event(&e, "log", "level text");
	assert_string_equal(str(o, "level"), "warning");
	assert_string_equal(str(o, "text"), "a \"quoted\" \\ line with ?[31m and ?" "?(");
	json_object_put(o);
	e.type = LM_EVENT_LISTENING;
	e.u.listening.address = "[::1]:4444";
	o = event(&e, "listening", "address");
	assert_string_equal(str(o, "address"), "[::1]:4444");
	json_object_put(o);
}

static void opened_and_progress(void **state)
{
	struct lm_event e = { .type = LM_EVENT_OPENED };
	struct json_object *o;

	(void)state;
	e.u.opened.transport = "tcp";
	e.u.opened.lanes = 2;
	e.u.opened.ram_bytes = UINT64_C(1) << 40;
	e.u.opened.peer = NULL; /* tolerated */
	o = event(&e, "opened", "transport lanes ram_bytes peer");
	assert_int_equal(num(o, "ram_bytes"), INT64_C(1) << 40);
	assert_string_equal(str(o, "peer"), "");
	json_object_put(o);
	e = (struct lm_event){ .type = LM_EVENT_PROGRESS };
	e.u.progress = (struct lm_progress){ 3, 1000, 10, 20, 4096, UINT64_MAX };
	o = event(&e, "progress", "round total_pages round_pages done_pages bytes bytes_per_s");
	assert_int_equal(num(o, "round"), 3);
	assert_int_equal(num(o, "total_pages"), 1000);
	assert_int_equal(num(o, "done_pages"), 10);
	assert_int_equal(num(o, "round_pages"), 20);
	assert_int_equal(json_object_get_uint64(get(o, "bytes_per_s")), UINT64_MAX);
	json_object_put(o);
}

static void round_decision_and_stage(void **state)
{
	struct lm_event e = { .type = LM_EVENT_ROUND };
	struct json_object *o;

	(void)state;
	e.u.round = (struct lm_round){ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 };
	o = event(&e, "round", "round dirty_pages sent_pages zero_pages skipped_pages bytes scan_ns drain_ns "
		  "copy_ns dirty_pages_per_s bytes_per_s");
	assert_int_equal(num(o, "skipped_pages"), 5);
	assert_int_equal(num(o, "drain_ns"), 8);
	assert_int_equal(num(o, "dirty_pages_per_s"), 10);
	json_object_put(o);
	e = (struct lm_event){ .type = LM_EVENT_DECISION };
	e.u.decision = (struct lm_decision){ LM_DECIDE_FORCE, 4, 5, 6, "because" };
	o = event(&e, "decision", "decision round predicted_ns max_downtime_ns reason");
	assert_string_equal(str(o, "decision"), "force");
	assert_string_equal(str(o, "reason"), "because");
	json_object_put(o);
	e.u.decision.kind = LM_DECIDE_POSTCOPY;
	o = event(&e, "decision", "decision round predicted_ns max_downtime_ns reason");
	assert_string_equal(str(o, "decision"), "postcopy");
	json_object_put(o);
	e = (struct lm_event){ .type = LM_EVENT_STAGE };
	e.u.stage.name = "commit";
	o = event(&e, "stage", "name");
	json_object_put(o);
}

#define SUMMARY_KEYS "outcome error guest_runs_here transport lanes rounds ram_bytes existing_pages sent_pages " \
	"zero_pages skipped_pages bytes bytes_per_s total_ns copying_ns cpu_ns blackout postcopy"

static void completed_has_the_blackout_in_parts(void **state)
{
	struct lm_event e = { .type = LM_EVENT_COMPLETED };
	struct json_object *o, *b;

	(void)state;
	e.u.summary = (struct lm_summary){
		.outcome = LM_OUTCOME_COMPLETED, .transport = "tcp", .rounds = 3, .guest_runs_here = true,
		.blackout = { 11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 },
	};
	o = event(&e, "completed", SUMMARY_KEYS);
	assert_string_equal(str(o, "outcome"), "completed");
	assert_null(get(o, "error"));
	assert_true(json_object_get_boolean(get(o, "guest_runs_here")));
	b = get(o, "blackout");
	assert_keys(b, "total_ns stop_ns last_scan_ns last_copy_ns lock_ns device_state_ns resume_ns last_pages "
		    "device_state_bytes lock_offer_ns lock_take_ns");
	assert_int_equal(num(b, "lock_take_ns"), 10);
	assert_int_equal(num(b, "total_ns"), 11);
	assert_int_equal(num(b, "device_state_ns"), 5);
	assert_int_equal(num(b, "device_state_bytes"), 8);
	assert_null(get(o, "postcopy"));
	json_object_put(o);
}

#define POSTCOPY_KEYS "left_pages missing_pages bytes faults fault_p50_ns fault_p99_ns fault_max_ns waited_ns " \
	"duration_ns recoveries"

static void assert_postcopy(struct json_object *o)
{
	assert_int_equal(num(o, "left_pages"), 1);
	assert_int_equal(num(o, "missing_pages"), 2);
	assert_int_equal(num(o, "bytes"), 3);
	assert_int_equal(num(o, "faults"), 4);
	assert_int_equal(num(o, "fault_p50_ns"), 5);
	assert_int_equal(num(o, "fault_p99_ns"), 6);
	assert_int_equal(num(o, "fault_max_ns"), 7);
	assert_int_equal(num(o, "waited_ns"), 8);
	assert_int_equal(num(o, "duration_ns"), 9);
	assert_int_equal(num(o, "recoveries"), 10);
}

static void postcopy_is_an_event_and_a_part_of_the_end(void **state)
{
	const struct lm_postcopy_stats stats = { true, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 };
	struct lm_event e = { .type = LM_EVENT_POSTCOPY };
	struct json_object *o, *p;

	(void)state;
	e.u.postcopy = stats;
	o = event(&e, "postcopy", POSTCOPY_KEYS);
	assert_postcopy(o);
	json_object_put(o);
	e = (struct lm_event){ .type = LM_EVENT_COMPLETED };
	e.u.summary.outcome = LM_OUTCOME_COMPLETED;
	e.u.summary.postcopy = stats;
	o = event(&e, "completed", SUMMARY_KEYS);
	p = get(o, "postcopy");
	assert_keys(p, POSTCOPY_KEYS);
	assert_postcopy(p);
	json_object_put(o);
}

static void an_error_has_code_scope_and_message(void **state)
{
	static const char *const names[] = { "none", "completed", "refused", "aborted", "cancelled", "stalled",
					     "in-doubt", "vm-lost", "interrupted" };
	struct lm_event e = { .type = LM_EVENT_COMPLETED };

	(void)state;
	e.u.summary.error = (struct lm_error){ -ECONNRESET, LM_SCOPE_SESSION, "the peer is gone" };
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct json_object *o, *err;

		e.u.summary.outcome = (enum lm_outcome)i;
		o = event(&e, "completed", SUMMARY_KEYS);
		err = get(o, "error");
		assert_keys(err, "code scope message");
		assert_string_equal(str(o, "outcome"), names[i]);
		assert_string_equal(str(err, "code"), "ECONNRESET");
		assert_string_equal(str(err, "scope"), "session");
		assert_string_equal(str(err, "message"), "the peer is gone");
		json_object_put(o);
	}
}

static void the_tools_own_events(void **state)
{
	struct json_object *o = line_of(cli_json_qemu(42, "/run/q", "/run/l"));

	(void)state;
	assert_keys(o, "v event time_ns pid qmp log");
	assert_int_equal(num(o, "pid"), 42);
	json_object_put(o);
	o = line_of(cli_json_dropped(7));
	assert_keys(o, "v event time_ns count");
	assert_int_equal(num(o, "count"), 7);
	json_object_put(o);
}

/* What a printer prints to a file, as one line. */
static struct json_object *printed(void (*print)(FILE *))
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	print(f);
	fclose(f);
	return line_of(text);
}

static void print_check(FILE *f)
{
	const struct lm_check c = { LM_CHECK_ABSENT, "rdma", "none", "use tcp" };

	cli_json_check(&c, "host", f);
}

static void print_checked(FILE *f)
{
	const struct lm_error err = { 0 };

	cli_json_checked(2, &err, f);
}

static void answers_of_check(void **state)
{
	struct json_object *o = printed(print_check);

	(void)state;
	assert_keys(o, "v event time_ns about name status found advice");
	assert_string_equal(str(o, "status"), "absent");
	json_object_put(o);
	o = printed(print_checked);
	assert_keys(o, "v event time_ns possible failed error");
	assert_false(json_object_get_boolean(get(o, "possible")));
	assert_int_equal(num(o, "failed"), 2);
	json_object_put(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(log_and_where_it_listens),
		cmocka_unit_test(opened_and_progress),
		cmocka_unit_test(round_decision_and_stage),
		cmocka_unit_test(completed_has_the_blackout_in_parts),
		cmocka_unit_test(postcopy_is_an_event_and_a_part_of_the_end),
		cmocka_unit_test(an_error_has_code_scope_and_message),
		cmocka_unit_test(the_tools_own_events),
		cmocka_unit_test(answers_of_check),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
