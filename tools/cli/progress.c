/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include "progress.h"
#include "units.h"

#define MIN_BAR 10u
#define MAX_BAR 40u

static unsigned percent(const struct lm_progress *p)
{
	if (!p->round_pages || p->done_pages >= p->round_pages)
		return 100;
	return (unsigned)((double)p->done_pages * 100 / (double)p->round_pages);
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

/* The words behind the bar, fewer of them when there is no room. */
static void tail(char *buf, size_t size, unsigned room, const struct lm_progress *p, int64_t elapsed_ns)
{
	char bytes[32], rate[32], words[3][40];
	int64_t s = elapsed_ns / 1000000000;
	size_t len;

	snprintf(words[0], sizeof(words[0]), "  %s", cli_bytes_format(p->bytes, bytes, sizeof(bytes)));
	snprintf(words[1], sizeof(words[1]), "  %s", cli_rate_format(p->bytes_per_s, rate, sizeof(rate)));
	snprintf(words[2], sizeof(words[2]), "  %lld:%02lld", (long long)(s / 60), (long long)(s % 60));
	snprintf(buf, size, "%3u%%", percent(p));
	for (unsigned i = 0; i < 3; i++) {
		len = strlen(buf);
		if (len + strlen(words[i]) > room)
			break;
		snprintf(buf + len, size - len, "%s", words[i]);
	}
}

size_t cli_progress_format(char *buf, size_t size, unsigned width, const struct lm_progress *p,
			   int64_t elapsed_ns)
{
	char head[24], middle[MAX_BAR + 4] = "", end[128];
	unsigned used;

	if (width >= size)
		width = (unsigned)size - 1;
	snprintf(head, sizeof(head), "round %u ", p->round);
	used = (unsigned)strlen(head);
	tail(end, sizeof(end), width > used ? width - used : 0, p, elapsed_ns);
	used += (unsigned)strlen(end);
	if (width >= used + MIN_BAR + 3) {
		unsigned columns = width - used - 3;

		bar(middle, columns < MAX_BAR ? columns : MAX_BAR, percent(p));
	}
	snprintf(buf, size, "%s%s%s", head, middle, end);
	if (strlen(buf) > width)
		buf[width] = 0;
	return strlen(buf);
}
