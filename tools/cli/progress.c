/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "progress.h"
#include "units.h"

#define MIN_BAR 10u
#define MAX_BAR 40u

#define MAX_WORDS 7

/* What a line says behind its bar; the first words are worth most. */
struct words {
	unsigned percent, n;
	char text[MAX_WORDS][48];
};

static unsigned percent(uint64_t done, uint64_t all)
{
	if (!all || done >= all)
		return 100;
	return (unsigned)((double)done * 100 / (double)all);
}

/* "[###---] " of so many columns between the brackets. */
static void bar(char *buf, unsigned columns, unsigned full_percent)
{
	unsigned full = columns * full_percent / 100;

	buf[0] = '[';
	memset(buf + 1, '#', full);
	memset(buf + 1 + full, '-', columns - full);
	memcpy(buf + 1 + columns, "] ", 3);
}

__attribute__((format(printf, 2, 3)))
static void add(struct words *w, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(w->text[w->n++], sizeof(w->text[0]), fmt, ap);
	va_end(ap);
}

static void add_elapsed(struct words *w, int64_t elapsed_ns)
{
	int64_t s = elapsed_ns / 1000000000;

	add(w, "%lld:%02lld", (long long)(s / 60), (long long)(s % 60));
}

/* The words behind the bar, fewer of them when there is no room. */
static void tail(char *buf, size_t size, unsigned room, const struct words *w)
{
	size_t len;

	snprintf(buf, size, "%3u%%", w->percent);
	for (unsigned i = 0; i < w->n; i++) {
		len = strlen(buf);
		if (len + 2 + strlen(w->text[i]) > room)
			break;
		snprintf(buf + len, size - len, "  %s", w->text[i]);
	}
}

static size_t format(char *buf, size_t size, unsigned width, const char *head, const struct words *w)
{
	char middle[MAX_BAR + 4] = "", end[400];
	unsigned used = (unsigned)strlen(head);

	if (width >= size)
		width = (unsigned)size - 1;
	tail(end, sizeof(end), width > used ? width - used : 0, w);
	used += (unsigned)strlen(end);
	if (width >= used + MIN_BAR + 3) {
		unsigned columns = width - used - 3;

		bar(middle, columns < MAX_BAR ? columns : MAX_BAR, w->percent);
	}
	snprintf(buf, size, "%s%s%s", head, middle, end);
	if (strlen(buf) > width)
		buf[width] = 0;
	return strlen(buf);
}

size_t cli_progress_format(char *buf, size_t size, unsigned width, const struct lm_progress *p,
			   int64_t elapsed_ns)
{
	struct words w = { .percent = percent(p->done_pages, p->round_pages) };
	char head[24], text[32];

	snprintf(head, sizeof(head), "round %u ", p->round);
	add(&w, "%s", cli_bytes_format(p->bytes, text, sizeof(text)));
	add(&w, "%s", cli_rate_format(p->bytes_per_s, text, sizeof(text)));
	add_elapsed(&w, elapsed_ns);
	return format(buf, size, width, head, &w);
}

size_t cli_progress_postcopy(char *buf, size_t size, unsigned width, const struct lm_postcopy_stats *p,
			     int64_t elapsed_ns)
{
	uint64_t missing = p->missing_pages < p->left_pages ? p->missing_pages : p->left_pages;
	struct words w = { .percent = percent(p->left_pages - missing, p->left_pages) };
	char text[32];

	add(&w, "%s missing", cli_bytes_format(missing * 4096, text, sizeof(text)));
	add(&w, "%llu fault%s", (unsigned long long)p->faults, p->faults == 1 ? "" : "s");
	if (p->faults) {
		add(&w, "p50 %s", cli_time_format(p->fault_p50_ns, text, sizeof(text)));
		add(&w, "p99 %s", cli_time_format(p->fault_p99_ns, text, sizeof(text)));
		add(&w, "max %s", cli_time_format(p->fault_max_ns, text, sizeof(text)));
		add(&w, "waited %s", cli_time_format(p->waited_ns, text, sizeof(text)));
	}
	add_elapsed(&w, elapsed_ns);
	return format(buf, size, width, "post-copy ", &w);
}
