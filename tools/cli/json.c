/* SPDX-License-Identifier: Apache-2.0 */
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "json.h"
#include "text.h"

static void add_text(struct json_object *to, const char *key, const char *text)
{
	char clean[2048];

	json_object_object_add(to, key, json_object_new_string(cli_text_clean(text ? text : "", clean,
									       sizeof(clean))));
}

static void add_int(struct json_object *to, const char *key, int64_t value)
{
	json_object_object_add(to, key, json_object_new_int64(value));
}

static void add_uint(struct json_object *to, const char *key, uint64_t value)
{
	json_object_object_add(to, key, json_object_new_uint64(value));
}

static struct json_object *begin(const char *event, int64_t time_ns)
{
	struct json_object *o = json_object_new_object();

	add_int(o, "v", CLI_JSON_VERSION);
	add_text(o, "event", event);
	add_int(o, "time_ns", time_ns);
	return o;
}

static struct json_object *begin_now(const char *event)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return begin(event, t.tv_sec * INT64_C(1000000000) + t.tv_nsec);
}

/* The line; the object is gone afterwards. */
static char *finish(struct json_object *o)
{
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
							  JSON_C_TO_STRING_NOSLASHESCAPE);
	size_t len = text ? strlen(text) : 0;
	char *line = text ? malloc(len + 2) : NULL;

	if (line) {
		memcpy(line, text, len);
		memcpy(line + len, "\n", 2);
	}
	json_object_put(o);
	return line;
}

static void print(struct json_object *o, FILE *to)
{
	char *line = finish(o);

	if (line)
		fputs(line, to);
	free(line);
}

static const char *level_name(enum lm_log_level level)
{
	static const char *const names[] = {
		[LM_LOG_ERROR] = "error", [LM_LOG_WARN] = "warning",
		[LM_LOG_INFO] = "info", [LM_LOG_DEBUG] = "debug",
	};

	return (unsigned)level < 4 ? names[level] : "debug";
}

static const char *scope_name(enum lm_scope scope)
{
	static const char *const names[] = {
		[LM_SCOPE_OPERATION] = "operation", [LM_SCOPE_LANE] = "lane",
		[LM_SCOPE_SESSION] = "session", [LM_SCOPE_VM] = "vm",
	};

	return (unsigned)scope < 4 ? names[scope] : "session";
}

static const char *decision_name(enum lm_decision_kind kind)
{
	static const char *const names[] = {
		[LM_DECIDE_CONTINUE] = "continue", [LM_DECIDE_SWITCHOVER] = "switchover",
		[LM_DECIDE_FORCE] = "force", [LM_DECIDE_ABORT] = "abort",
		[LM_DECIDE_POSTCOPY] = "postcopy",
	};

	return (unsigned)kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "continue";
}

static void add_error(struct json_object *to, const struct lm_error *err)
{
	const char *name = strerrorname_np(-err->code);
	struct json_object *o;

	if (!err->code) {
		json_object_object_add(to, "error", NULL);
		return;
	}
	o = json_object_new_object();
	add_text(o, "code", name ? name : "EIO");
	add_text(o, "scope", scope_name(err->scope));
	add_text(o, "message", err->msg);
	json_object_object_add(to, "error", o);
}

static void add_progress(struct json_object *o, const struct lm_progress *p)
{
	add_uint(o, "round", p->round);
	add_uint(o, "total_pages", p->total_pages);
	add_uint(o, "round_pages", p->round_pages);
	add_uint(o, "done_pages", p->done_pages);
	add_uint(o, "bytes", p->bytes);
	add_uint(o, "bytes_per_s", p->bytes_per_s);
}

static void add_round(struct json_object *o, const struct lm_round *r)
{
	add_uint(o, "round", r->round);
	add_uint(o, "dirty_pages", r->dirty_pages);
	add_uint(o, "sent_pages", r->sent_pages);
	add_uint(o, "zero_pages", r->zero_pages);
	add_uint(o, "skipped_pages", r->skipped_pages);
	add_uint(o, "bytes", r->bytes);
	add_int(o, "scan_ns", r->scan_ns);
	add_int(o, "drain_ns", r->drain_ns);
	add_int(o, "copy_ns", r->copy_ns);
	add_uint(o, "dirty_pages_per_s", r->dirty_pages_per_s);
	add_uint(o, "bytes_per_s", r->bytes_per_s);
}

static void add_decision(struct json_object *o, const struct lm_decision *d)
{
	add_text(o, "decision", decision_name(d->kind));
	add_uint(o, "round", d->round);
	add_int(o, "predicted_ns", d->predicted_ns);
	add_int(o, "max_downtime_ns", d->max_downtime_ns);
	add_text(o, "reason", d->reason);
}

static void add_postcopy(struct json_object *o, const struct lm_postcopy_stats *p)
{
	add_uint(o, "left_pages", p->left_pages);
	add_uint(o, "missing_pages", p->missing_pages);
	add_uint(o, "bytes", p->bytes);
	add_uint(o, "faults", p->faults);
	add_int(o, "fault_p50_ns", p->fault_p50_ns);
	add_int(o, "fault_p99_ns", p->fault_p99_ns);
	add_int(o, "fault_max_ns", p->fault_max_ns);
	add_int(o, "waited_ns", p->waited_ns);
	add_int(o, "duration_ns", p->duration_ns);
	add_uint(o, "recoveries", p->recoveries);
}

static void add_blackout(struct json_object *to, const struct lm_blackout *b)
{
	struct json_object *o = json_object_new_object();

	add_int(o, "total_ns", b->total_ns);
	add_int(o, "stop_ns", b->stop_ns);
	add_int(o, "last_scan_ns", b->last_scan_ns);
	add_int(o, "last_copy_ns", b->last_copy_ns);
	add_int(o, "lock_ns", b->lock_ns);
	add_int(o, "device_state_ns", b->device_state_ns);
	add_int(o, "resume_ns", b->resume_ns);
	add_uint(o, "last_pages", b->last_pages);
	add_uint(o, "device_state_bytes", b->device_state_bytes);
	add_int(o, "lock_offer_ns", b->lock_offer_ns);
	add_int(o, "lock_take_ns", b->lock_take_ns);
	json_object_object_add(to, "blackout", o);
}

static void add_summary(struct json_object *o, const struct lm_summary *s)
{
	struct json_object *postcopy;

	add_text(o, "outcome", lm_outcome_name(s->outcome));
	add_error(o, &s->error);
	json_object_object_add(o, "guest_runs_here", json_object_new_boolean(s->guest_runs_here));
	add_text(o, "transport", s->transport);
	add_uint(o, "lanes", s->lanes);
	add_uint(o, "rounds", s->rounds);
	add_uint(o, "ram_bytes", s->ram_bytes);
	add_uint(o, "existing_pages", s->existing_pages);
	add_uint(o, "sent_pages", s->sent_pages);
	add_uint(o, "zero_pages", s->zero_pages);
	add_uint(o, "skipped_pages", s->skipped_pages);
	add_uint(o, "bytes", s->bytes);
	add_uint(o, "bytes_per_s", s->bytes_per_s);
	add_int(o, "total_ns", s->total_ns);
	add_int(o, "copying_ns", s->copying_ns);
	add_int(o, "cpu_ns", s->cpu_ns);
	add_blackout(o, &s->blackout);
	postcopy = s->postcopy.used ? json_object_new_object() : NULL;
	if (postcopy)
		add_postcopy(postcopy, &s->postcopy);
	json_object_object_add(o, "postcopy", postcopy); /* null: none */
}

static struct json_object *from_event(const struct lm_event *e)
{
	static const char *const names[] = {
		[LM_EVENT_LOG] = "log", [LM_EVENT_LISTENING] = "listening",
		[LM_EVENT_OPENED] = "opened", [LM_EVENT_PROGRESS] = "progress",
		[LM_EVENT_ROUND] = "round", [LM_EVENT_DECISION] = "decision",
		[LM_EVENT_POSTCOPY] = "postcopy", [LM_EVENT_STAGE] = "stage", [LM_EVENT_COMPLETED] = "completed",
	};

	return begin((unsigned)e->type < sizeof(names) / sizeof(names[0]) ? names[e->type] : "unknown", e->time_ns);
}

char *cli_json_event(const struct lm_event *e)
{
	struct json_object *o = from_event(e);

	switch (e->type) {
	case LM_EVENT_LOG:
		add_text(o, "level", level_name(e->u.log.level));
		add_text(o, "text", e->u.log.text);
		break;
	case LM_EVENT_LISTENING:
		add_text(o, "address", e->u.listening.address);
		break;
	case LM_EVENT_OPENED:
		add_text(o, "transport", e->u.opened.transport);
		add_uint(o, "lanes", e->u.opened.lanes);
		add_uint(o, "ram_bytes", e->u.opened.ram_bytes);
		add_text(o, "peer", e->u.opened.peer);
		break;
	case LM_EVENT_PROGRESS:
		add_progress(o, &e->u.progress);
		break;
	case LM_EVENT_ROUND:
		add_round(o, &e->u.round);
		break;
	case LM_EVENT_DECISION:
		add_decision(o, &e->u.decision);
		break;
	case LM_EVENT_POSTCOPY:
		add_postcopy(o, &e->u.postcopy);
		break;
	case LM_EVENT_STAGE:
		add_text(o, "name", e->u.stage.name);
		break;
	case LM_EVENT_COMPLETED:
		add_summary(o, &e->u.summary);
		break;
	}
	return finish(o);
}

char *cli_json_qemu(int32_t pid, const char *qmp, const char *log)
{
	struct json_object *o = begin_now("qemu");

	add_int(o, "pid", pid);
	add_text(o, "qmp", qmp);
	add_text(o, "log", log);
	return finish(o);
}

char *cli_json_dropped(unsigned count)
{
	struct json_object *o = begin_now("dropped");

	add_uint(o, "count", count);
	return finish(o);
}

void cli_json_check(const struct lm_check *check, const char *about, FILE *to)
{
	static const char *const names[] = {
		[LM_CHECK_OK] = "ok", [LM_CHECK_WARN] = "warning",
		[LM_CHECK_FAIL] = "fail", [LM_CHECK_ABSENT] = "absent",
	};
	struct json_object *o = begin_now("check");

	add_text(o, "about", about);
	add_text(o, "name", check->name);
	add_text(o, "status", names[check->status & 3]);
	add_text(o, "found", check->found);
	add_text(o, "advice", check->advice);
	print(o, to);
}

void cli_json_checked(int failed, const struct lm_error *err, FILE *to)
{
	struct json_object *o = begin_now("checked");

	json_object_object_add(o, "possible", json_object_new_boolean(!failed && !err->code));
	add_int(o, "failed", failed);
	add_error(o, err);
	print(o, to);
}

void cli_json_transport(const char *name, FILE *to)
{
	struct json_object *o = begin_now("transport");

	add_text(o, "name", name);
	print(o, to);
}

/* info is what was found out, if anything was. */
void cli_json_lock(const char *uri, const struct lm_lock_info *info, const struct lm_error *err, FILE *to)
{
	struct json_object *o = begin_now("lock");

	add_text(o, "uri", uri);
	add_error(o, err);
	if (!err->code) {
		add_text(o, "state", lm_lock_state_name(info->state));
		add_text(o, "holder", info->holder);
		add_text(o, "next", info->next);
		add_uint(o, "epoch", info->epoch);
		json_object_object_add(o, "in_use", json_object_new_boolean(info->in_use));
		add_text(o, "text", info->text);
	}
	print(o, to);
}
