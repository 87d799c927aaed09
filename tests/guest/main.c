/* SPDX-License-Identifier: Apache-2.0 */
/* Start and main loop of the test guest. */
#include <stddef.h>
#include "cpu.h"
#include "guest.h"

#define LOADER_MAGIC	0x2badb002u
#define TICK_US		100000

static struct memory memory;
static struct options options;
static struct clock clock;
static struct work work;	/* of this vCPU */
static uint64_t usable;		/* pages, of all vCPUs */
static uint32_t loader_info;

static volatile struct guest_beat *const beat = (void *)GUEST_BEAT_GPA;

/* Ends QEMU if it runs with -no-reboot: the fault has no handler. */
__attribute__((noreturn))
static void end(const char *what, const char *which)
{
	say("FAILED %s%s", what, which);
	serial_flush();
	__builtin_trap();
}

static void beat_init(void)
{
	volatile uint64_t *word = (volatile uint64_t *)beat;

	for (uint64_t i = 0; i < GUEST_PAGE_SIZE / sizeof(*word); i++)
		word[i] = 0;
	beat->pages = memory.pages;
	beat->usable = usable;
	beat->tsc_hz = clock.tsc_hz;
	beat->version_table = (uintptr_t)memory.versions;
	beat->nsegments = memory.nsegments;
	for (unsigned int i = 0; i < memory.nsegments; i++) {
		beat->segment[i].gpa = memory.segment[i].gpa;
		beat->segment[i].pages = memory.segment[i].pages;
	}
}

static struct totals add_up(void)
{
	struct totals t = {
		.writes = work.writes, .passes = work.passes, .bad = work.bad,
		.bad_page = work.bad_page, .bad_want = work.bad_want, .bad_got = work.bad_got,
	};

	cpus_add(&t);
	return t;
}

/* The count itself goes last: who sees a new beat sees its other words. */
static void beat_once(void)
{
	struct totals t = add_up();

	beat->writes = t.writes;
	beat->passes = t.passes;
	beat->bad_page = t.bad_page;
	beat->bad_want = t.bad_want;
	beat->bad_got = t.bad_got;
	beat->bad = t.bad;
	beat->max_gap_ns = clock.max_gap;
	beat->tsc = clock.tsc;
	beat->rate = options.rate;
	beat->version_sum = work.sum;
	beat->beat++;
}

/* Each vCPU has its share. */
static void set_rate(uint64_t rate)
{
	work_set_rate(&work, rate == GUEST_RATE_MAX ? rate : rate / options.cpus, clock.tsc);
	options.rate = rate == GUEST_RATE_MAX ? rate : work.opt.rate * options.cpus;
}

static void obey(void)
{
	if (beat->cmd_seq == beat->cmd_ack)
		return;
	if (beat->cmd_op == GUEST_CMD_RATE)
		set_rate(beat->cmd_arg);
	else if (beat->cmd_op == GUEST_CMD_VERIFY)
		options.verify = work.opt.verify = beat->cmd_arg;
	cpus_set(options.rate, options.verify);
	beat->cmd_ack = beat->cmd_seq;
}

static void tick(uint64_t n)
{
	struct totals t = add_up();

	say("tick %u writes=%u passes=%u bad=%u gap_us=%u maxgap_us=%u", n,
	    t.writes, t.passes, t.bad, clock_take_gap(&clock) / 1000,
	    clock.max_gap / 1000);
}

static void main_loop(void)
{
	uint64_t period = clock_ticks(&clock, TICK_US), n = 0, next;

	clock_start(&clock);
	set_rate(options.rate);
	next = clock.tsc + period;
	beat->magic = GUEST_BEAT_MAGIC;
	for (;;) {
		clock_read(&clock);
		work_write_due(&work, &clock);
		work_verify(&work);
		if (clock.tsc - next < 1ull << 63) {
			tick(++n);
			next = clock.tsc - next > period ?
			       clock.tsc + period : next + period;
		}
		serial_pump();
		obey();
		beat_once();
	}
}

static void set_up(void)
{
	const char *wrong;

	wrong = memory_init(&memory, loader_info, &options);
	if (wrong)
		end(wrong, "");
	work_init(&work, &memory, &options, 0);
	if (!cpus_start(&memory))
		end("not all vCPUs came up: cpus= and -smp", "");
	work_fill(&work);
	usable = work.usable + cpus_usable();
	beat_init();
}

/* All that takes long is done in ring 3: see boot.S. */
static void run(uint64_t unused)
{
	(void)unused;
	set_up();
	say("READY mb=%u pages=%u usable=%u clock=%s ref=%s tsc_khz=%u",
	    memory.pages / 256, memory.pages, usable,
	    clock.has_cmos ? "tsc+cmos" : "tsc", clock.reference,
	    clock.tsc_hz / 1000);
	main_loop();
}

void guest_main(uint32_t magic, uint32_t info);

void guest_main(uint32_t magic, uint32_t info)
{
	const char *wrong;

	serial_init();
	if (magic != LOADER_MAGIC)
		end("not started by a multiboot loader", "");
	loader_info = info;
	clock_init(&clock);
	wrong = options_parse(&options, memory_cmdline(info));
	if (wrong)
		end("unknown or wrong option at: ", wrong);
	memory_map_apic();
	cpus_wake(&options, &clock);
	enter_user(run, 0);
}
