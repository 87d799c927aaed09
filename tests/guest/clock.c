/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's clocks.  The README says which of them sees what.
 *
 * Time is the TSC.  QEMU lets it stand still while it holds the guest stopped
 * (always under TCG; under KVM across a migration), and so stand the PIT, the
 * PM timer, the HPET and kvmclock.  The CMOS clock alone follows the host's
 * wall clock throughout, but counts whole seconds.  The moment at which its
 * second changes is sharp, though: a second of it that took fewer TSC ticks
 * than the longest second seen so far has lost the rest to a stop.  That rest
 * is a gap like one between two reads of the TSC; it is known when the second
 * ends.
 *
 * Limits: nothing is noticed before the second full second; 60 s and more
 * count modulo 60; a step of the host's wall clock looks like a gap.
 */
#include "cpu.h"
#include "guest.h"

#define CMOS_INDEX	0x70
#define CMOS_DATA	0x71
#define CMOS_SECONDS	0x00
#define CMOS_VALID	0x0d

#define CMOS_PERIOD_US	1000	/* between looks at the CMOS clock */
#define LOST_MIN_MS	4	/* less is the coarseness of the looks */

#define PIT_HZ		1193182ull
#define PIT_COUNT	11932u	/* 10 ms */

#define KVM_LEAF	0x40000000u
#define KVM_SIGNATURE	0x4b4d564bu	/* "KVMK" */
#define KVM_CLOCK	(1u << 3)
#define KVM_CLOCK_MSR	0x4b564d01u

/* What KVM writes to where the MSR points. */
static volatile struct {
	uint32_t version, pad;
	uint64_t tsc, system;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, rest[2];
} kvm_time __attribute__((aligned(64)));

/* kvmclock's own factors: ns = (tsc << shift) * mul >> 32.  0: no kvmclock. */
static uint64_t hz_by_kvm(void)
{
	uint64_t hz;

	if (cpuid(KVM_LEAF).b != KVM_SIGNATURE ||
	    !(cpuid(KVM_LEAF + 1).a & KVM_CLOCK))
		return 0;
	wrmsr(KVM_CLOCK_MSR, (uintptr_t)&kvm_time | 1);
	for (int i = 0; i < 1000 && !kvm_time.mul; i++)
		cpuid(0);	/* any exit lets KVM write it */
	wrmsr(KVM_CLOCK_MSR, 0);
	if (!kvm_time.mul)
		return 0;
	hz = (1000000000ull << 32) / kvm_time.mul;
	return kvm_time.shift < 0 ? hz << -kvm_time.shift :
				    hz >> kvm_time.shift;
}

/* Counter 2 of the timer chip; 0 when there is none. */
static uint64_t hz_by_pit(void)
{
	uint64_t t;

	outb(0x61, (inb(0x61) & ~2) | 1);	/* gate on, speaker off */
	outb(0x43, 0xb0);			/* counter 2, mode 0 */
	outb(0x42, PIT_COUNT & 0xff);
	outb(0x42, PIT_COUNT >> 8);
	t = rdtsc();
	if (inb(0x61) & 0x20)
		return 0;
	for (int i = 0; i < 1000000; i++) {
		if (inb(0x61) & 0x20)
			return (rdtsc() - t) * PIT_HZ / PIT_COUNT;
	}
	return 0;
}

static void calibrate(struct clock *c)
{
	c->reference = "kvmclock";
	c->tsc_hz = hz_by_kvm();
	if (c->tsc_hz)
		return;
	c->reference = "pit";
	c->tsc_hz = hz_by_pit();
	if (c->tsc_hz)
		return;
	c->reference = "none";
	c->tsc_hz = 2000000000;
}

static uint8_t cmos(uint8_t reg)
{
	outb(CMOS_INDEX, 0x80 | reg);
	return inb(CMOS_DATA);
}

/* BCD is what the firmware and QEMU leave the chip in. */
static uint64_t cmos_seconds(void)
{
	uint8_t v = cmos(CMOS_SECONDS);

	return (v >> 4) * 10u + (v & 15u);
}

void clock_init(struct clock *c)
{
	c->has_cmos = cmos(CMOS_VALID) == 0x80;
	calibrate(c);
	clock_start(c);
}

/* Gaps count from here. */
void clock_start(struct clock *c)
{
	c->tsc = rdtsc();
	c->looked = c->tsc;
	c->seconds = c->has_cmos ? cmos_seconds() : 0;
	c->edge = 0;
	c->longest = 0;
	c->gap = 0;
	c->max_gap = 0;
}

uint64_t clock_ticks(const struct clock *c, uint64_t microseconds)
{
	return c->tsc_hz / 1000 * microseconds / 1000;
}

static void note(struct clock *c, uint64_t gap_ns)
{
	if (gap_ns > c->gap)
		c->gap = gap_ns;
	if (gap_ns > c->max_gap)
		c->max_gap = gap_ns;
}

/* A delta beyond a day, or backwards, says nothing about gaps. */
static uint64_t to_ns(const struct clock *c, uint64_t delta)
{
	if (delta > c->tsc_hz * 86400)
		return 0;
	return delta / c->tsc_hz * 1000000000 +
	       delta % c->tsc_hz * 1000000000 / c->tsc_hz;
}

/* `passed` seconds of the CMOS clock ended at TSC `now`. */
static void second_ended(struct clock *c, uint64_t now, uint64_t passed)
{
	uint64_t took = now - c->edge, due = passed * c->longest;
	bool first = !c->edge;

	c->edge = now;
	if (first)
		return;
	if (passed == 1 && took > c->longest)
		c->longest = took;
	if (due > took && due - took > clock_ticks(c, LOST_MIN_MS * 1000))
		note(c, to_ns(c, due - took));
}

static void look_at_cmos(struct clock *c)
{
	uint64_t seconds = cmos_seconds();

	c->looked = c->tsc;
	if (seconds == c->seconds)
		return;
	second_ended(c, c->tsc, (seconds + 60 - c->seconds) % 60);
	c->seconds = seconds;
}

void clock_read(struct clock *c)
{
	uint64_t now = rdtsc();

	note(c, to_ns(c, now - c->tsc));
	c->tsc = now;
	if (c->has_cmos && now - c->looked >= clock_ticks(c, CMOS_PERIOD_US))
		look_at_cmos(c);
}

uint64_t clock_take_gap(struct clock *c)
{
	uint64_t gap = c->gap;

	c->gap = 0;
	return gap;
}
