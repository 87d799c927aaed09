/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "human.h"
#include "output_state.h"
#include "progress.h"
#include "text.h"
#include "units.h"

#define PLAIN_EVERY (2 * NS_PER_S) /* between two progress lines where there is no terminal */
#define PLAIN_WIDTH 72
#define PLAIN_LONG  120            /* for a line of numbers, without a bar */
#define FLUSH_MS    200            /* for the notes to go out before the result */
#define CLEAR_LINE  "\r\033[K"

static unsigned terminal_width(void)
{
	struct winsize size;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || size.ws_col < 2)
		return 79;
	return size.ws_col - 1u; /* the last column makes some terminals wrap */
}

/* One write each: the old progress line goes, text comes, the line is drawn anew. */
static void notes_put(struct cli_output *out, enum cli_weight weight, const char *text)
{
	char all[2048];
	int len = snprintf(all, sizeof(all), "%s%s%s", *out->drawn ? CLEAR_LINE : "", text, out->drawn);

	if (len > 0)
		cli_sink_put(out->notes, weight, all, (size_t)len < sizeof(all) ? (size_t)len : sizeof(all) - 1);
}

void cli_human_note(struct cli_output *out, const char *fmt, ...)
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
	/* Write over the old line; clear only what stood to the right of it. */
	snprintf(text, sizeof(text), "\r%s\033[K", line);
	snprintf(out->drawn, sizeof(out->drawn), "%s", line);
	cli_sink_put(out->notes, CLI_MAY_DROP, text, strlen(text));
}

void cli_human_bar_remove(struct cli_output *out)
{
	if (*out->drawn)
		cli_sink_put(out->notes, CLI_NORMAL, CLEAR_LINE, strlen(CLEAR_LINE));
	*out->drawn = 0;
}

static void human_progress(struct cli_output *out, const struct lm_progress *p)
{
	int64_t now = cli_output_now_ns(CLOCK_MONOTONIC);
	char line[400];

	if (!out->bar && now - out->plain_ns < PLAIN_EVERY)
		return;
	out->plain_ns = now;
	cli_progress_format(line, sizeof(line), out->bar ? terminal_width() : PLAIN_WIDTH, p, now - out->began_ns);
	if (out->bar)
		bar_draw(out, line);
	else
		cli_human_note(out, "%s", line);
}

/* The last line is never left out. */
static void human_postcopy(struct cli_output *out, const struct lm_postcopy_stats *p)
{
	int64_t now = cli_output_now_ns(CLOCK_MONOTONIC);
	char line[400];

	if (!out->bar && now - out->plain_ns < PLAIN_EVERY && p->missing_pages)
		return;
	out->plain_ns = now;
	cli_progress_postcopy(line, sizeof(line), out->bar ? terminal_width() : PLAIN_LONG, p,
			      now - out->began_ns);
	if (out->bar)
		bar_draw(out, line);
	else
		cli_human_note(out, "%s", line);
}

static void human_round(struct cli_output *out, const struct lm_round *r)
{
	char bytes[32], rate[32], copy[32], scan[32], drain[32];

	if (out->bar && !out->settings->verbose)
		return;
	cli_human_note(out, "round %u: %llu pages to send, %s in %s (%s); scan %s, drain %s; guest writes %llu pages/s",
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
	cli_human_note(out, "%s: %s", word, cli_text_clean(d->reason, reason, sizeof(reason)));
}

static void human_log(struct cli_output *out, enum lm_log_level level, const char *text)
{
	char clean[1024];

	cli_human_note(out, "%s%s", level == LM_LOG_ERROR ? "error: " : level == LM_LOG_WARN ? "warning: " : "",
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
		cli_human_note(out, "%s %s: %s of RAM, %u threads", words[out->side],
		     cli_text_clean(e->u.opened.peer ? e->u.opened.peer : "?", clean, sizeof(clean)),
		     cli_bytes_format(e->u.opened.ram_bytes, ram, sizeof(ram)), e->u.opened.lanes);
		return;
	}
	cli_human_note(out, "%s %s: %s of RAM over %u %s lane%s",
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

/* A failure goes to standard error, also with --json and --quiet. */
static void human_completed(struct cli_output *out, const struct lm_summary *s)
{
	cli_human_bar_remove(out);
	if (s->outcome != LM_OUTCOME_COMPLETED) {
		put_verdict(out, out->notes, s, false);
	} else if (!out->settings->quiet && !out->settings->json) {
		cli_sink_flush(out->notes, FLUSH_MS); /* both may be one terminal */
		put_verdict(out, out->result, s, true);
	}
}

void cli_human_event(struct cli_output *out, const struct lm_event *e)
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
		cli_human_note(out, "listening on %s", e->u.listening.address);
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
			cli_human_note(out, "stage: %s", e->u.stage.name);
		break;
	default:
		break;
	}
}
