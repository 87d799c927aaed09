/* SPDX-License-Identifier: Apache-2.0 */
/* The machine instructions that C has no words for. */
#ifndef TEST_GUEST_CPU_H
#define TEST_GUEST_CPU_H

#include <stdint.h>

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

struct cpuid {
	uint32_t a, b, c, d;
};

static inline struct cpuid cpuid(uint32_t leaf)
{
	struct cpuid r;

	__asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d)
			 : "a"(leaf), "c"(0));
	return r;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value),
			 "d"((uint32_t)(value >> 32)) : "memory");
}

/*
 * A word kept in the CPU and nowhere in RAM: an MMX register, which nothing
 * else uses (the guest is compiled without floating point and SSE).
 */
static inline void cpu_keep(uint64_t v)
{
	__asm__ volatile("movq %0, %%mm7" : : "m"(v));
}

static inline uint64_t cpu_kept(void)
{
	uint64_t v;

	__asm__ volatile("movq %%mm7, %0" : "=m"(v));
	return v;
}

#endif
