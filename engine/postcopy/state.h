/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a post-copy needs to go on after the death of an engine: a small file under
 * $XDG_RUNTIME_DIR/migrate-rdma (or /run/migrate-rdma, for root), one per side and VM.
 *
 * It lives in memory (tmpfs) as the guest does: a host that dies takes both.  The
 * engine that has it open holds a lock on it.  At the destination it has a bit for
 * every page that is whole, which the engine sets before the guest can see the page.
 */
#ifndef LM_PCSTATE_H
#define LM_PCSTATE_H

#include "engine/transport/transport.h"

struct lm_pcstate_region {
	char name[LM_REGION_NAME_MAX];
	uint64_t size, page_size, vm_addr, file_offset, dev, ino;
	uint64_t bitmap; /* offset in the file, in bytes; source: 0 */
};

enum lm_pccommit {
	LM_PC_NONE,     /* no post-copy, or COMMIT was not sent */
	LM_PC_SENT,     /* it was, or is about to be: the guest may run at the destination */
	LM_PC_ANSWERED, /* it does: it can never run here again, and needs the pages that are here */
};

/* The head of the file, in the byte order and alignment of the host. */
struct lm_pcstate_head {
	char magic[8];
	uint32_t version, head_size;
	int32_t side;
	int32_t vm_pid;
	uint64_t vm_start;     /* of the VM's process, in clock ticks since boot: its pid may be used again */
	int32_t engine_pid;
	uint32_t committed;    /* source: enum lm_pccommit */
	uint64_t engine_start;
	int32_t vm_fd;         /* of the pager, inside the VM */
	uint32_t nlanes;       /* without the one for faults */
	char transport[LM_TRANSPORT_NAME_MAX];
	uint8_t secret[LM_TOKEN_SIZE];
	uint64_t max_bytes_per_s;
	uint32_t nregions;
	uint32_t whole;        /* destination: nothing is missing any more; only the source has to be told */
	struct lm_pcstate_region regions[LM_REGIONS_MAX];
};

struct lm_pcstate {
	int fd;
	size_t size;
	struct lm_pcstate_head *head; /* the mapped file; NULL: none */
	struct lm_bitmap whole[LM_REGIONS_MAX]; /* destination: in the mapping */
	char path[128];
};

/* Make the file; a file that an ended session left is overwritten.  At first all pages are whole. */
int lm_pcstate_create(struct lm_pcstate *st, enum lm_side side, int32_t vm_pid, const struct lm_ram *ram,
		      struct lm_error *err);
/*
 * Open the file that an engine has left.  If that engine is about to die, wait for its end, so
 * that its devices can write no more.  -ENOENT: there is none.
 */
int lm_pcstate_open(struct lm_pcstate *st, enum lm_side side, int32_t vm_pid, struct lm_error *err);
/*
 * How far the source's post-copy of a VM has come, even if an engine takes care of it.  Reads the file
 * without its lock.
 */
enum lm_pccommit lm_pcstate_look(int32_t vm_pid);
/* *ret_ram: the regions as they were, without descriptors; the caller's. */
int lm_pcstate_ram(const struct lm_pcstate *st, struct lm_ram *ret_ram, struct lm_error *err);
void lm_pcstate_close(struct lm_pcstate *st);  /* takes a zeroed one; the file stays */
void lm_pcstate_remove(struct lm_pcstate *st); /* nothing is left to recover */
/* How long to wait for an engine that is about to die, 10 s; tests wait less. */
extern int64_t lm_pcstate_wait_ns;

#endif
