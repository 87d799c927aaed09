/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RAM: the loader's map of it, page tables over all of it, and the working set
 * as a list of segments.  RAM is split around the PCI hole below 4 GiB, so
 * page numbers of the working set run on across the hole.
 *
 * Low memory: heartbeat page below 1 MiB, the guest itself from 1 MiB, the
 * version table from 2 MiB, then the working set (from 16 MiB or start=).
 */
#include <stddef.h>
#include "cpu.h"
#include "guest.h"

#define TABLE_GPA	0x200000ull
#define MIB		(1ull << 20)
#define GIB		(1ull << 30)
#define MAX_GIB		64u
#define APIC_GIB	3u

#define PTE_TABLE	0x07ull
#define PTE_LARGE	0x87ull

#define INFO_CMDLINE	(1u << 2)
#define INFO_MAP	(1u << 6)
#define MAP_RAM		1u

struct info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
	uint32_t mods_count, mods_addr, syms[4], map_length, map_addr;
};

struct map_entry {
	uint32_t size;		/* of what follows */
	uint64_t base, length;
	uint32_t type;
} __attribute__((packed));

/* Only for CPUs without 1 GiB pages. */
static uint64_t directories[MAX_GIB][512] __attribute__((aligned(4096)));

const char *memory_cmdline(uint32_t multiboot_info)
{
	const struct info *i = (const void *)(uintptr_t)multiboot_info;

	if (!(i->flags & INFO_CMDLINE))
		return NULL;
	return (const char *)(uintptr_t)i->cmdline;
}

static bool has_gib_pages(void)
{
	return cpuid(0x80000000).a >= 0x80000001 &&
	       cpuid(0x80000001).d & 1u << 26;
}

static uint64_t map_directory(uint64_t gib)
{
	uint64_t *pd = directories[gib];

	for (uint64_t i = 0; i < 512; i++)
		pd[i] = (gib * GIB + i * 2 * MIB) | PTE_LARGE;
	return (uint64_t)(uintptr_t)pd | PTE_TABLE;
}

/* Entries that were not present need no flush of the TLB. */
static void map_gib(uint64_t g)
{
	boot_pdpt[g] = has_gib_pages() ? g * GIB | PTE_LARGE : map_directory(g);
}

void memory_map_apic(void)
{
	map_gib(APIC_GIB);
}

static void map_up_to(uint64_t end)
{
	for (uint64_t g = 1; g < MAX_GIB && g * GIB < end; g++) {
		if (g != APIC_GIB)
			map_gib(g);
	}
}

/*
 * Adds RAM of [base, end) from `from` on to the segments, up to `want` pages
 * in total.
 */
static void add_segment(struct memory *m, uint64_t base, uint64_t end,
			uint64_t from, uint64_t want)
{
	uint64_t pages;

	if (base < from)
		base = from;
	base = (base + GUEST_PAGE_SIZE - 1) & ~(GUEST_PAGE_SIZE - 1);
	if (end > MAX_GIB * GIB)
		end = MAX_GIB * GIB;
	if (base >= end || m->nsegments == GUEST_MAX_SEGMENTS)
		return;
	pages = (end - base) / GUEST_PAGE_SIZE;
	if (pages > want - m->pages)
		pages = want - m->pages;
	if (!pages)
		return;
	m->segment[m->nsegments++] = (struct guest_segment){ base, pages };
	m->pages += pages;
}

/* The loader lists RAM in ascending order (it is the firmware's list). */
static void collect(struct memory *m, const struct info *info, uint64_t from,
		    uint64_t want)
{
	uintptr_t at = info->map_addr, end = at + info->map_length;

	m->nsegments = 0;
	m->pages = 0;
	while (at < end) {
		const struct map_entry *e = (const void *)at;

		if (e->type == MAP_RAM)
			add_segment(m, e->base, e->base + e->length, from,
				    want);
		at += e->size + sizeof(e->size);
	}
}

/* Where the version table of `pages` pages ends, to the next MiB. */
static uint64_t table_end(uint64_t pages)
{
	uint64_t end = TABLE_GPA + pages * sizeof(uint32_t);

	return (end + MIB - 1) & ~(MIB - 1);
}

static void clear_table(struct memory *m)
{
	m->versions = (uint32_t *)TABLE_GPA;
	for (uint64_t i = 0; i < m->pages; i++)
		*(volatile uint32_t *)&m->versions[i] = 0;
}

const char *memory_init(struct memory *m, uint32_t multiboot_info,
			const struct options *o)
{
	const struct info *info = (const void *)(uintptr_t)multiboot_info;
	uint64_t want = o->mb ? o->mb * MIB / GUEST_PAGE_SIZE : UINT64_MAX;
	uint64_t from = o->start_mb * MIB;
	const struct guest_segment *last;

	if (!(info->flags & INFO_MAP))
		return "the loader gave no memory map";
	collect(m, info, from, want);
	if (from < table_end(m->pages)) {
		from = table_end(m->pages);
		collect(m, info, from, want);
	}
	if (!m->pages)
		return "no RAM at start=, or mb= too small";
	if (o->cpus > 1 && m->pages / o->cpus < 2 * MIB / GUEST_PAGE_SIZE)
		return "mb= too small for cpus=";
	last = &m->segment[m->nsegments - 1];
	map_up_to(last->gpa + last->pages * GUEST_PAGE_SIZE);
	clear_table(m);
	return NULL;
}

void *memory_page(const struct memory *m, uint64_t page)
{
	const struct guest_segment *s = m->segment;

	while (page >= s->pages) {
		page -= s->pages;
		s++;
	}
	return (void *)(uintptr_t)(s->gpa + page * GUEST_PAGE_SIZE);
}
