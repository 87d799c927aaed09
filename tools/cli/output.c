/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "human.h"
#include "json.h"
#include "output.h"
#include "output_state.h"
#include "text.h"

#define PATIENCE_MS 2000 /* for a reader that does not read, at the end */

static bool can_redraw(void)
{
	const char *term = getenv("TERM");

	return isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb");
}

static enum lm_log_level log_level(const struct cli_settings *s)
{
	if (s->quiet)
		return LM_LOG_ERROR;
	return s->verbose > 1 ? LM_LOG_DEBUG : s->verbose ? LM_LOG_INFO : LM_LOG_WARN;
}

int cli_output_open(struct cli_settings *settings, enum cli_side side, struct cli_output **ret)
{
	struct cli_output *out = calloc(1, sizeof(*out));
	int rc;

	if (!out)
		return -ENOMEM;
	out->settings = settings;
	out->side = side;
	out->bar = !settings->json && !settings->quiet && can_redraw();
	out->began_ns = cli_output_now_ns(CLOCK_MONOTONIC);
	snprintf(out->address, sizeof(out->address), "%s", settings->lm.address ? settings->lm.address : "");
	if (side == CLI_SIDE_SEND)
		snprintf(out->peer, sizeof(out->peer), "%s", out->address); /* until it has a number */
	cli_phase_init(&out->phase, settings->recovering);
	pthread_mutex_init(&out->lock, NULL);
	rc = cli_sink_open(STDOUT_FILENO, &out->result);
	if (!rc)
		rc = cli_sink_open(STDERR_FILENO, &out->notes);
	if (rc) {
		cli_output_close(out);
		return rc;
	}
	settings->lm.event = cli_output_event;
	settings->lm.event_opaque = out;
	settings->lm.log_level = log_level(settings);
	*ret = out;
	return 0;
}

static void json_put(struct cli_output *out, enum cli_weight weight, char *line)
{
	unsigned dropped = cli_sink_take_dropped(out->result);
	char *note_line = dropped && weight != CLI_MAY_DROP ? cli_json_dropped(dropped) : NULL;

	if (note_line)
		cli_sink_put(out->result, CLI_MUST_KEEP, note_line, strlen(note_line));
	if (line)
		cli_sink_put(out->result, weight, line, strlen(line));
	free(note_line);
	free(line);
}

static enum cli_weight weight_of(enum lm_event_type type)
{
	if (type == LM_EVENT_PROGRESS || type == LM_EVENT_POSTCOPY)
		return CLI_MAY_DROP;
	return type == LM_EVENT_COMPLETED ? CLI_MUST_KEEP : CLI_NORMAL;
}

void cli_output_event(void *opaque, const struct lm_event *e)
{
	struct cli_output *out = opaque;

	pthread_mutex_lock(&out->lock);
	cli_phase_event(&out->phase, out->side, e, cli_output_now_ns(CLOCK_MONOTONIC));
	if (e->type == LM_EVENT_LISTENING)
		snprintf(out->address, sizeof(out->address), "%s", e->u.listening.address);
	if (e->type == LM_EVENT_OPENED)
		snprintf(out->peer, sizeof(out->peer), "%s", e->u.opened.peer ? e->u.opened.peer : "");
	if (e->type == LM_EVENT_COMPLETED && out->ended)
		goto out;
	if (e->type == LM_EVENT_COMPLETED)
		out->ended = true;
	if (out->settings->json)
		json_put(out, weight_of(e->type), cli_json_event(e));
	if (!out->settings->json || e->type == LM_EVENT_COMPLETED)
		cli_human_event(out, e);
out:
	pthread_mutex_unlock(&out->lock);
}

void cli_output_log(struct cli_output *out, enum lm_log_level level, const char *fmt, ...)
{
	struct lm_event e = { .type = LM_EVENT_LOG, .time_ns = cli_output_now_ns(CLOCK_REALTIME) };
	char text[1024];
	va_list ap;

	if (level > out->settings->lm.log_level)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	e.u.log.level = level;
	e.u.log.text = text;
	cli_output_event(out, &e);
}

bool cli_output_in_postcopy(struct cli_output *out)
{
	bool postcopy;

	pthread_mutex_lock(&out->lock);
	postcopy = out->phase.postcopy;
	pthread_mutex_unlock(&out->lock);
	return postcopy;
}

void cli_output_asked(struct cli_output *out, enum cli_ask ask)
{
	char text[256];

	pthread_mutex_lock(&out->lock);
	cli_phase_answer(&out->phase, out->side, ask, &out->settings->lm, cli_output_now_ns(CLOCK_MONOTONIC), text, sizeof(text));
	pthread_mutex_unlock(&out->lock);
	cli_output_log(out, LM_LOG_WARN, "%s", text);
}

void cli_output_qemu(struct cli_output *out, int32_t pid, const char *qmp, const char *log)
{
	pthread_mutex_lock(&out->lock);
	if (out->settings->json)
		json_put(out, CLI_NORMAL, cli_json_qemu(pid, qmp, log));
	else if (!out->settings->quiet)
		cli_human_note(out, "QEMU is process %d\n  QMP socket  %s\n  its output  %s", pid, qmp, log);
	pthread_mutex_unlock(&out->lock);
}

void cli_output_qemu_says(struct cli_output *out, const char *line)
{
	char clean[1024];

	pthread_mutex_lock(&out->lock);
	cli_human_note(out, "qemu: %s", cli_text_clean(line, clean, sizeof(clean)));
	pthread_mutex_unlock(&out->lock);
}

void cli_output_end(struct cli_output *out, const struct lm_summary *summary)
{
	struct lm_event e = { .type = LM_EVENT_COMPLETED, .time_ns = cli_output_now_ns(CLOCK_REALTIME) };

	e.u.summary = *summary;
	cli_output_event(out, &e);
}

void cli_output_close(struct cli_output *out)
{
	if (!out)
		return;
	if (out->notes)
		cli_human_bar_remove(out);
	cli_sink_close(out->notes, PATIENCE_MS);
	cli_sink_close(out->result, PATIENCE_MS);
	pthread_mutex_destroy(&out->lock);
	free(out);
}
