/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM without QEMU: RAM in memfds, a "guest" thread that writes to it, a tracker
 * that the guest thread feeds, and a device state that is a pattern.  For
 * exercising the engine's sessions in one process, faults included.
 */
#ifndef FAKEVM_H
#define FAKEVM_H

#include <stdatomic.h>
#include "engine/vm/vm.h"

#define FAKE_REGIONS_MAX 4
#define FAKE_STATE_BYTES 100000 /* fits into a socket: nobody reads before state_wait */

struct fakevm_config {
	unsigned nregions;
	uint64_t region_bytes[FAKE_REGIONS_MAX];
	bool source;
	bool pager;              /* destination: its RAM can be watched: post-copy is possible */
	unsigned writes_per_ms;  /* of the guest while it runs */
	const char *machine;     /* "fake-1" */
	/* faults */
	int fail_drain, fail_pause, fail_save, fail_load, fail_wait, fail_resume; /* errno to return, once */
	bool stopped_meanwhile;  /* somebody has paused the guest when pause_start looks */
	bool load_writes;        /* destination: loading changes the first byte of RAM, as soon as state comes */
	bool layout_changes;     /* regions() says something else from the second call on */
};

struct fakevm;

/* The object is the session's through lm_vm_detach(); the RAM and counters outlive it in *ret_state. */
struct fakevm_state {
	int fd[FAKE_REGIONS_MAX];
	uint8_t *ram[FAKE_REGIONS_MAX];
	struct fakevm_config config;
	_Atomic bool running, ended, paused_by_migration;
	_Atomic unsigned resumes, detaches;
	/* tracker: one byte per page and region, set by the guest */
	_Atomic uint8_t *written[FAKE_REGIONS_MAX];
	uint64_t npages[FAKE_REGIONS_MAX];
	pthread_t guest;
	_Atomic bool stop_guest, guest_idle;
	int exit_pipe[2]; /* stands in for the pidfd */
	/* fakevm_pager.c */
	int uffd; /* the VM's own descriptor: what is not placed stays hidden while it is open; -1: none */
	_Atomic unsigned pagers, finishes;
	pthread_t loader;
	bool loading;
	_Atomic int fail_place; /* errno of the next place, once */
};

struct fakevm_state *fakevm_state_new(const struct fakevm_config *config);
struct lm_vm *fakevm_new(struct fakevm_state *st);
struct fakevm_state *fakevm_state_of(struct lm_vm *vm);
void fakevm_state_free(struct fakevm_state *st);
/* Fill `percent` of the pages with a pattern. */
void fakevm_fill(struct fakevm_state *st, unsigned percent, unsigned seed);
bool fakevm_ram_equal(const struct fakevm_state *a, const struct fakevm_state *b);
/*
 * A pager for st->ram: a userfaultfd in this process.  reopen: take over the one that a
 * session before has armed and left.
 */
int fakevm_pager(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err);
int fakevm_pager_reopen(struct fakevm_state *st, const struct lm_ram *ram, struct lm_pager **ret,
			struct lm_error *err);
/* Whether this kernel and user can have one. */
bool fakevm_pager_works(void);
/* Fill a destination's RAM with rubbish, as a file that was used before. */
void fakevm_scribble(struct fakevm_state *st);
/* Punch a hole, as a balloon does: not marked as written. */
void fakevm_discard(struct fakevm_state *st, unsigned region, uint64_t page, uint64_t n);

#endif
