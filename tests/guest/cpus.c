/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vCPUs but the first: each has a slice of the working set, writes and checks
 * it as the first does with its own, and shares nothing with the others but the
 * serial line.  Woken by INIT and SIPI to all of them (boot.S), in ring 0: a KVM
 * without hardware help answers for the APIC only there.  Those beyond cpus= halt.
 * The first one adds up what they say, for the heartbeat and the ticks.
 */
#include <stddef.h>
#include "cpu.h"
#include "guest.h"

#define APIC		0xfee00000ull
#define APIC_SPURIOUS	0xf0
#define APIC_COMMAND	0x300
#define INIT_ALL	0x000c4500u	/* to all but the one that sends */
#define SIPI_ALL	0x000c4600u
#define TRAMPOLINE	0x20000ull	/* real mode: a page below 1 MiB */

#define START_US	10000
#define READY_US	10000000

struct worker {
	struct work work;
	struct clock clock;
	uint64_t rate;
	volatile bool ready;
};

static struct worker workers[CPUS_MAX];	/* [0]: unused */
static const struct memory *memory;
static const struct options *options;
static const struct clock *first_clock;
static volatile uint64_t wanted_rate;
static volatile bool wanted_verify;
static volatile bool go;	/* memory is set up */

static volatile uint32_t *apic(uint32_t reg)
{
	return (volatile uint32_t *)(APIC + reg);
}

static void wait_us(uint64_t us)
{
	uint64_t from = rdtsc(), ticks = clock_ticks(first_clock, us);

	while (rdtsc() - from < ticks)
		;
}

static bool all_ready(void)
{
	for (uint64_t i = 1; i < options->cpus; i++) {
		if (!workers[i].ready)
			return false;
	}
	return true;
}

static bool wait_ready(void)
{
	for (uint64_t us = 0; us < READY_US; us += 100) {
		if (all_ready())
			return true;
		wait_us(100);
	}
	return false;
}

void cpus_set(uint64_t rate, bool verify)
{
	wanted_rate = rate == GUEST_RATE_MAX ? rate : rate / options->cpus;
	wanted_verify = verify;
}

void cpus_wake(const struct options *o, const struct clock *c)
{
	const uint8_t *from = ap_start;
	uint8_t *to = (uint8_t *)TRAMPOLINE;

	options = o;
	first_clock = c;
	cpus_set(o->rate, o->verify);
	if (o->cpus < 2)
		return;
	while (from < ap_start_end)
		*(volatile uint8_t *)to++ = *from++;
	*apic(APIC_SPURIOUS) |= 0x100;	/* the APIC is on */
	*apic(APIC_COMMAND) = INIT_ALL;
	wait_us(START_US);
	*apic(APIC_COMMAND) = SIPI_ALL | TRAMPOLINE >> 12;
	wait_us(START_US);
	/* A CPU that runs already takes no notice of the second one. */
	*apic(APIC_COMMAND) = SIPI_ALL | TRAMPOLINE >> 12;
}

bool cpus_start(const struct memory *m)
{
	memory = m;
	__asm__ volatile("" : : : "memory");
	go = true;
	return wait_ready();
}

static void follow(struct worker *w)
{
	w->work.opt.verify = wanted_verify;
	if (w->rate == wanted_rate)
		return;
	w->rate = wanted_rate;
	work_set_rate(&w->work, w->rate, w->clock.tsc);
}

/* In ring 3, like all that takes long. */
static void work_for_ever(uint64_t number)
{
	struct worker *w = &workers[number];

	while (!go)
		;
	__asm__ volatile("" : : : "memory");
	w->clock = *first_clock;
	w->clock.has_cmos = false;	/* one of us looks at it */
	work_init(&w->work, memory, options, number);
	work_fill(&w->work);
	clock_start(&w->clock);
	w->rate = wanted_rate;
	work_set_rate(&w->work, w->rate, w->clock.tsc);
	w->ready = true;
	for (;;) {
		clock_read(&w->clock);
		follow(w);
		work_write_due(&w->work, &w->clock);
		work_verify(&w->work);
	}
}

/* number: from 1 on, in the order in which they came up. */
void guest_ap(uint64_t number);

void guest_ap(uint64_t number)
{
	if (number < options->cpus)
		enter_user(work_for_ever, number);
}

uint64_t cpus_usable(void)
{
	uint64_t pages = 0;

	for (uint64_t i = 1; i < options->cpus; i++)
		pages += workers[i].work.usable;
	return pages;
}

/* Numbers of running vCPUs: each is right, together they are of no one moment. */
void cpus_add(struct totals *t)
{
	for (uint64_t i = 1; i < options->cpus; i++) {
		const volatile struct work *w = &workers[i].work;

		t->writes += w->writes;
		if (w->passes < t->passes)
			t->passes = w->passes;
		if (!t->bad && w->bad) {
			t->bad_page = w->bad_page;
			t->bad_want = w->bad_want;
			t->bad_got = w->bad_got;
		}
		t->bad += w->bad;
	}
}
