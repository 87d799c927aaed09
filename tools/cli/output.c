/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "json.h"
#include "output.h"
#include "progress.h"
#include "sink.h"
#include "text.h"
#include "units.h"

#define NS_PER_S     INT64_C(1000000000)
#define PLAIN_EVERY  (2 * NS_PER_S) /* between two progress lines where there is no terminal */
#define PLAIN_WIDTH  72
#define PLAIN_LONG   120            /* where numbers say more than a bar */
#define PATIENCE_MS  2000           /* for a reader that does not read, at the end */
#define CLEAR_LINE   "\r\033[K"

struct cli_output {
	const struct cli_settings *settings;
	enum cli_side side;
	bool bar;                /* standard error is a terminal that can redraw a line */
	struct cli_sink *result; /* standard output */
	struct cli_sink *notes;  /* standard error */
	int64_t began_ns;
	char peer[128];

	pthread_mutex_t lock;    /* for all that follows */
	char drawn[512];         /* the progress line that stands on the terminal, "" if none */
	int64_t plain_ns;        /* time of the last progress line */
	struct cli_phase phase;
	char address[128];       /* where the destination listens */
	bool ended;
};

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static bool can_redraw(void)
{
	const char *term = getenv("TERM");

	return isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb");
}

static unsigned terminal_width(void)
{
	struct winsize size;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || size.ws_col < 2)
		return 79;
	return size.ws_col - 1u; /* the last column makes some terminals wrap */
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
	out->began_ns = now_ns(CLOCK_MONOTONIC);
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

/* One write each: the old progress line goes, text comes, the line is drawn anew. */
static void notes_put(struct cli_output *out, enum cli_weight weight, const char *text)
{
	char all[2048];
	int len = snprintf(all, sizeof(all), "%s%s%s", *out->drawn ? CLEAR_LINE : "", text, out->drawn);

	if (len > 0)
		cli_sink_put(out->notes, weight, all, (size_t)len < sizeof(all) ? (size_t)len : sizeof(all) - 1);
}

__attribute__((format(printf, 2, 3)))
static void note(struct cli_output *out, const char *fmt, ...)
{
	char text[1200];
	va_list ap;
	size_t len;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text) - 1, fmt, ap);
	va_end(ap);
	len = strlen(text);
	memcpy(text + len, "\n", 2);
	notes_put(out, CLI_NORMAL, text);
}

static void bar_draw(struct cli_output *out, const char *line)
{
	char text[420];

	if (!strcmp(line, out->drawn))
		return;
	/* Written over the old line; only what stood to the right of it is cleared. */
	snprintf(text, sizeof(text), "\r%s\033[K", line);
	snprintf(out->drawn, sizeof(out->drawn), "%s", line);
	cli_sink_put(out->notes, CLI_MAY_DROP, text, strlen(text));
}

static void bar_remove(struct cli_output *out)
{
	if (*out->drawn)
		cli_sink_put(out->notes, CLI_NORMAL, CLEAR_LINE, strlen(CLEAR_LINE));
	*out->drawn = 0;
}

static void human_progress(struct cli_output *out, const struct lm_progress *p)
{
	int64_t now = now_ns(CLOCK_MONOTONIC);
	char line[400];

	if (!out->bar && now - out->plain_ns < PLAIN_EVERY)
		return;
	out->plain_ns = now;
	cli_progress_format(line, sizeof(line), out->bar ? terminal_width() : PLAIN_WIDTH, p, now - out->began_ns);
	if (out->bar)
		bar_draw(out, line);
	else
		note(out, "%s", line);
}

/* Its last line comes whenever it comes. */
static void human_postcopy(struct cli_output *out, const struct lm_postcopy_stats *p)
{
	int64_t now = now_ns(CLOCK_MONOTONIC);
	char line[400];

	if (!out->bar && now - out->plain_ns < PLAIN_EVERY && p->missing_pages)
		return;
	out->plain_ns = now;
	cli_progress_postcopy(line, sizeof(line), out->bar ? terminal_width() : PLAIN_LONG, p,
			      now - out->began_ns);
	if (out->bar)
		bar_draw(out, line);
	else
		note(out, "%s", line);
}

static void human_round(struct cli_output *out, const struct lm_round *r)
{
	char bytes[32], rate[32], copy[32], scan[32], drain[32];

	if (out->bar && !out->settings->verbose)
		return;
	note(out, "round %u: %llu pages to send, %s in %s (%s); scan %s, drain %s; guest writes %llu pages/s",
	     r->round, (unsigned long long)r->dirty_pages, cli_bytes_format(r->bytes, bytes, sizeof(bytes)),
	     cli_time_format(r->copy_ns, copy, sizeof(copy)),
	     cli_rate_format(r->bytes_per_s, rate, sizeof(rate)),
	     cli_time_format(r->scan_ns, scan, sizeof(scan)),
	     cli_time_format(r->drain_ns, drain, sizeof(drain)), (unsigned long long)r->dirty_pages_per_s);
}

static void human_decision(struct cli_output *out, const struct lm_decision *d)
{
	static const char *const words[] = {
		[LM_DECIDE_CONTINUE] = "one more round", [LM_DECIDE_SWITCHOVER] = "switching over",
		[LM_DECIDE_FORCE] = "forcing the switchover", [LM_DECIDE_ABORT] = "giving up",
		[LM_DECIDE_POSTCOPY] = "switching over, post-copy",
	};
	const char *word = (unsigned)d->kind < sizeof(words) / sizeof(words[0]) ? words[d->kind] : "?";
	char reason[sizeof(d->reason)];

	if (d->kind == LM_DECIDE_CONTINUE && !out->settings->verbose)
		return;
	note(out, "%s: %s", word, cli_text_clean(d->reason, reason, sizeof(reason)));
}

static void human_log(struct cli_output *out, enum lm_log_level level, const char *text)
{
	char clean[1024];

	note(out, "%s%s", level == LM_LOG_ERROR ? "error: " : level == LM_LOG_WARN ? "warning: " : "",
	     cli_text_clean(text, clean, sizeof(clean)));
}

static void human_opened(struct cli_output *out, const struct lm_event *e)
{
	static const char *const words[] = {
		[CLI_SIDE_SEND] = "sending to", [CLI_SIDE_RECEIVE] = "receiving from",
		[CLI_SIDE_SAVE] = "saving to", [CLI_SIDE_RESTORE] = "restoring from",
	};
	char ram[32], clean[sizeof(out->peer)];

	if (out->settings->lm.image) {
		note(out, "%s %s: %s of RAM, %u threads", words[out->side],
		     cli_text_clean(e->u.opened.peer ? e->u.opened.peer : "?", clean, sizeof(clean)),
		     cli_bytes_format(e->u.opened.ram_bytes, ram, sizeof(ram)), e->u.opened.lanes);
		return;
	}
	note(out, "%s %s: %s of RAM over %u %s lane%s",
	     words[out->side],
	     cli_text_clean(e->u.opened.peer ? e->u.opened.peer : "?", clean, sizeof(clean)),
	     cli_bytes_format(e->u.opened.ram_bytes, ram, sizeof(ram)), e->u.opened.lanes,
	     e->u.opened.transport, e->u.opened.lanes == 1 ? "" : "s");
}

/* What a writer to a FILE wrote, into a sink. */
static void put_verdict(struct cli_output *out, struct cli_sink *sink, const struct lm_summary *s, bool table)
{
	const struct cli_place place = {
		.peer = out->peer, .address = out->address, .insecure = out->settings->lm.insecure,
		.qmp = out->settings->lm.qmp, .pid = out->settings->lm.pid,
		.postcopy = out->phase.postcopy, .image = out->settings->lm.image,
	};
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return;
	cli_summary_verdict(out->side, s, &place, f);
	if (table)
		cli_summary_table(out->side, s, f);
	fclose(f);
	cli_sink_put(sink, CLI_MUST_KEEP, text, len);
	free(text);
}

/* Failures are for standard error, and are said there in JSON mode and by --quiet as well. */
static void human_completed(struct cli_output *out, const struct lm_summary *s)
{
	bar_remove(out);
	if (s->outcome != LM_OUTCOME_COMPLETED) {
		put_verdict(out, out->notes, s, false);
	} else if (!out->settings->quiet && !out->settings->json) {
		cli_sink_flush(out->notes, PATIENCE_MS / 10); /* both may be one terminal */
		put_verdict(out, out->result, s, true);
	}
}

static void human_event(struct cli_output *out, const struct lm_event *e)
{
	switch (e->type) {
	case LM_EVENT_LOG:
		human_log(out, e->u.log.level, e->u.log.text);
		return;
	case LM_EVENT_COMPLETED:
		human_completed(out, &e->u.summary);
		return;
	default:
		if (out->settings->quiet)
			return;
	}
	switch (e->type) {
	case LM_EVENT_LISTENING:
		note(out, "listening on %s", e->u.listening.address);
		break;
	case LM_EVENT_OPENED:
		human_opened(out, e);
		break;
	case LM_EVENT_PROGRESS:
		human_progress(out, &e->u.progress);
		break;
	case LM_EVENT_ROUND:
		human_round(out, &e->u.round);
		break;
	case LM_EVENT_DECISION:
		human_decision(out, &e->u.decision);
		break;
	case LM_EVENT_POSTCOPY:
		human_postcopy(out, &e->u.postcopy);
		break;
	case LM_EVENT_STAGE:
		if (out->settings->verbose)
			note(out, "stage: %s", e->u.stage.name);
		break;
	default:
		break;
	}
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
	cli_phase_event(&out->phase, out->side, e, now_ns(CLOCK_MONOTONIC));
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
		human_event(out, e);
out:
	pthread_mutex_unlock(&out->lock);
}

void cli_output_log(struct cli_output *out, enum lm_log_level level, const char *fmt, ...)
{
	struct lm_event e = { .type = LM_EVENT_LOG, .time_ns = now_ns(CLOCK_REALTIME) };
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
	cli_phase_answer(&out->phase, out->side, ask, &out->settings->lm, now_ns(CLOCK_MONOTONIC), text, sizeof(text));
	pthread_mutex_unlock(&out->lock);
	cli_output_log(out, LM_LOG_WARN, "%s", text);
}

void cli_output_qemu(struct cli_output *out, int32_t pid, const char *qmp, const char *log)
{
	pthread_mutex_lock(&out->lock);
	if (out->settings->json)
		json_put(out, CLI_NORMAL, cli_json_qemu(pid, qmp, log));
	else if (!out->settings->quiet)
		note(out, "QEMU is process %d\n  QMP socket  %s\n  its output  %s", pid, qmp, log);
	pthread_mutex_unlock(&out->lock);
}

void cli_output_qemu_says(struct cli_output *out, const char *line)
{
	char clean[1024];

	pthread_mutex_lock(&out->lock);
	note(out, "qemu: %s", cli_text_clean(line, clean, sizeof(clean)));
	pthread_mutex_unlock(&out->lock);
}

void cli_output_end(struct cli_output *out, const struct lm_summary *summary)
{
	struct lm_event e = { .type = LM_EVENT_COMPLETED, .time_ns = now_ns(CLOCK_REALTIME) };

	e.u.summary = *summary;
	cli_output_event(out, &e);
}

void cli_output_close(struct cli_output *out)
{
	if (!out)
		return;
	if (out->notes)
		bar_remove(out);
	cli_sink_close(out->notes, PATIENCE_MS);
	cli_sink_close(out->result, PATIENCE_MS);
	pthread_mutex_destroy(&out->lock);
	free(out);
}
