/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The working set: writing pages at a rate, and checking every page ever
 * written, over and over, in slices between the writes.
 *
 * Three witnesses of what was written last, in three different places:
 *   the page itself		stamps of its version (content.h)
 *   the version table		the version of each page
 *   the sum of the table	in the guest's own data, and its copy in a CPU
 *				register that no RAM transfer carries
 * One page gone stale disagrees with the table.  A page and its table entry
 * gone stale together disagree with the sum.  All RAM gone back to an earlier
 * moment disagrees with the register.
 */
#include "content.h"
#include "cpu.h"
#include "guest.h"

#define WRITE_SLICE	8	/* pages per turn of the main loop */
#define VERIFY_SLICE	4
#define MAX_REPORTS	16
#define CATCH_UP	100	/* arrears above 1/100 s are forgiven */
#define RATE_LIMIT	1000000000ull
#define MIB_PAGES	256u

/* Page number of the i-th usable page: fill=half leaves every other MiB. */
static uint64_t usable_page(const struct work *w, uint64_t i)
{
	if (w->opt.fill != FILL_HALF)
		return w->first + i;
	return w->first + i / MIB_PAGES * 2 * MIB_PAGES + i % MIB_PAGES;
}

static uint64_t count_usable(const struct work *w)
{
	uint64_t pages = w->pages, rest = pages % (2 * MIB_PAGES);

	if (w->opt.fill != FILL_HALF)
		return pages;
	return pages / (2 * MIB_PAGES) * MIB_PAGES +
	       (rest < MIB_PAGES ? rest : MIB_PAGES);
}

/* Slices of whole pairs of MiB, for fill=half; the last one has the rest. */
static void take_slice(struct work *w, uint64_t cpu)
{
	uint64_t cpus = w->opt.cpus;
	uint64_t slice = w->mem->pages / cpus / (2 * MIB_PAGES) * 2 * MIB_PAGES;

	w->first = cpu * slice;
	w->pages = cpu + 1 < cpus ? slice : w->mem->pages - w->first;
}

void work_init(struct work *w, const struct memory *m,
	       const struct options *o, uint64_t cpu)
{
	*w = (struct work) {
		.mem = m,
		.opt = *o,
		.random = CONTENT_STEP * (cpu + 1),
	};
	take_slice(w, cpu);
	w->usable = count_usable(w);
	cpu_keep(0);
}

/* Takes the report of a bad page; a page is counted once, then repaired. */
static void report(struct work *w, uint64_t page, uint64_t want, uint64_t got,
		   const char *kind)
{
	if (!w->bad) {
		w->bad_page = page;
		w->bad_want = want;
		w->bad_got = got;
	}
	if (w->bad++ < MAX_REPORTS)
		say("BAD page=%u want=%u got=%u kind=%s", page, want, got,
		    kind);
}

/*
 * Every change of a version goes through here.  A page that the check has
 * behind it in this pass (i < cursor) must change in its sum as well.  The copy
 * in the register goes its own way: taking it from w->sum would hide that RAM
 * went back.
 */
static void set_version(struct work *w, uint64_t i, uint64_t page,
			uint32_t version)
{
	uint32_t *entry = &w->mem->versions[page];
	uint64_t delta = content_share(page, version) -
			 content_share(page, *entry);

	*entry = version;
	w->sum += delta;
	if (i < w->cursor)
		w->pass_sum += delta;
	cpu_keep(cpu_kept() + delta);
}

/* Version 0 says "never written", so a wrapped counter goes on with 1. */
static uint32_t after(uint32_t version)
{
	return version == UINT32_MAX ? 1 : version + 1;
}

static void check_register(struct work *w)
{
	uint64_t kept = cpu_kept();

	if (kept == w->sum)
		return;
	report(w, 0, kept, w->sum, "register");
	cpu_keep(w->sum);
}

static void write_page(struct work *w, uint64_t i)
{
	uint64_t page = usable_page(w, i);
	uint64_t *data = memory_page(w->mem, page);
	uint32_t old = w->mem->versions[page];

	if (old && w->opt.verify && !content_stamps_ok(data, page, old)) {
		report(w, page, old, content_seen(data, old),
		       content_kind(data, page, old));
		old = 0;
	}
	set_version(w, i, page, after(w->mem->versions[page]));
	if (old)
		content_stamp(data, page, w->mem->versions[page]);
	else
		content_fill(data, page, w->mem->versions[page]);
	w->writes++;
}

void work_fill(struct work *w)
{
	if (w->opt.fill == FILL_NONE)
		return;
	for (uint64_t i = 0; i < w->usable; i++)
		write_page(w, i);
	w->writes = 0;
}

static uint64_t random_below(struct work *w, uint64_t limit)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return (w->random >> 32) * limit >> 32;
}

/* hot: nine writes of ten go to the first tenth of the pages. */
static uint64_t choose(struct work *w)
{
	uint64_t hot = w->usable / 10;

	if (w->opt.pattern == PATTERN_SEQ) {
		if (w->next >= w->usable)
			w->next = 0;
		return w->next++;
	}
	if (w->opt.pattern == PATTERN_HOT && hot && random_below(w, 10))
		return random_below(w, hot);
	return random_below(w, w->usable);
}

void work_set_rate(struct work *w, uint64_t rate, uint64_t tsc)
{
	if (rate != GUEST_RATE_MAX && rate > RATE_LIMIT)
		rate = RATE_LIMIT;
	w->opt.rate = rate;
	w->paid = 0;
	w->paid_tsc = tsc;
}

/*
 * How many writes the rate allows now.  The account is settled every second,
 * so that ticks * rate stays within 64 bits (rates up to 10^9).  After a pause
 * the arrears are forgiven: a burst would say nothing about the rate.  The TSC
 * may also step back, when a migration restores it.
 */
static uint64_t due(struct work *w, const struct clock *c)
{
	uint64_t passed = c->tsc - w->paid_tsc, rate = w->opt.rate, total;
	uint64_t arrears = rate / CATCH_UP + WRITE_SLICE;

	if (rate == GUEST_RATE_MAX)
		return WRITE_SLICE;
	if (passed > c->tsc_hz && w->paid >= rate) {
		w->paid -= rate;
		w->paid_tsc += c->tsc_hz;
		passed -= c->tsc_hz;
	}
	total = passed < 2 * c->tsc_hz ? passed * rate / c->tsc_hz : rate * 2;
	if (total > w->paid + arrears || w->paid > total + arrears) {
		work_set_rate(w, rate, c->tsc);
		return 1;
	}
	return total > w->paid ? total - w->paid : 0;
}

void work_write_due(struct work *w, const struct clock *c)
{
	uint64_t n = due(w, c);

	if (n > WRITE_SLICE)
		n = WRITE_SLICE;
	w->paid += n;
	while (n--)
		write_page(w, choose(w));
}

static void end_pass(struct work *w)
{
	if (w->pass_sum != w->sum) {
		report(w, w->mem->pages, w->sum, w->pass_sum, "table");
		cpu_keep(cpu_kept() + w->pass_sum - w->sum);
		w->sum = w->pass_sum;
	}
	w->cursor = 0;
	w->pass_sum = 0;
	w->passes++;
}

/* Repairs by writing the page whole, under a new version. */
static void verify_page(struct work *w, uint64_t i)
{
	uint64_t page = usable_page(w, i);
	uint64_t *data = memory_page(w->mem, page);
	uint32_t version = w->mem->versions[page];

	w->pass_sum += content_share(page, version);
	if (!version || content_page_ok(data, page, version))
		return;
	report(w, page, version, content_seen(data, version),
	       content_kind(data, page, version));
	set_version(w, i, page, after(version));
	w->pass_sum += content_share(page, after(version)) -
		       content_share(page, version);
	content_fill(data, page, after(version));
}

void work_verify(struct work *w)
{
	if (!w->opt.verify)
		return;
	check_register(w);
	for (int n = 0; n < VERIFY_SLICE && w->cursor < w->usable; n++) {
		verify_page(w, w->cursor);
		w->cursor++;
	}
	if (w->cursor >= w->usable)
		end_pass(w);
}
