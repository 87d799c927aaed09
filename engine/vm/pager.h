/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pagers: how the destination's guest waits for pages that are not there yet.
 *
 * A pager watches all of a VM's RAM.  A thread of the VM (a vCPU, device
 * emulation, the kernel on its behalf) that touches a page for the first time
 * blocks until the page is placed, whether the file holds data for it or not.
 * The engine sees the touch as a fault, makes sure that the page is whole in the
 * file, and places it.
 *
 * What the pager is made of stays inside the VM until finish: an engine that dies
 * leaves the VM blocked on what is missing, and a new engine takes the pager over
 * (vm_fd).  Nobody ever reads a page that has not come.
 *
 * faults is called by one thread; place, release and wake by any.  finish and
 * close are called when no other call runs.  None of them blocks for long.
 */
#ifndef LM_PAGER_H
#define LM_PAGER_H

#include "engine/base/region.h"

struct lm_pager;

struct lm_page_fault {
	unsigned region;
	uint64_t page; /* first 4 KiB page of the page (of the region's page_size) that was touched */
	bool write;
	int32_t tid;   /* of the thread that waits; 0: not known */
};

struct lm_pager_ops {
	const char *name;
	/* From here on a touch of any page that was not placed blocks. */
	int (*arm)(struct lm_pager *p, struct lm_error *err);
	/* Up to n faults that wait, without blocking; returns how many, or an error (the VM is gone: LM_SCOPE_VM). */
	int (*faults)(struct lm_pager *p, struct lm_page_fault *ret, unsigned n, struct lm_error *err);
	/*
	 * Show pages [first, first + n) to the VM and wake the threads that wait for them: they
	 * are whole in the file, or holes that shall read as zeros.  Whole pages of the region's
	 * page_size.  Pages that the VM sees already are skipped.
	 */
	int (*place)(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err);
	/* Stop watching the range: all of it is whole.  Touches of it cost nothing any more. */
	int (*release)(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err);
	/* Make every thread that waits touch its page again: faults that a dead engine had taken come anew. */
	int (*wake)(struct lm_pager *p, struct lm_error *err);
	/* Every page is whole: stop watching, and take the pager out of the VM. */
	int (*finish)(struct lm_pager *p, struct lm_error *err);
	/* Free.  Without finish the VM goes on waiting for pages that were not placed. */
	void (*close)(struct lm_pager *p);
};

/* A backend embeds this first. */
struct lm_pager {
	const struct lm_pager_ops *ops;
	const struct lm_ram *ram; /* outlives the pager */
	int fd;                   /* readable when there are faults */
	int vm_fd;                /* descriptor number inside the VM; what a new engine needs to take over */
};

int lm_pager_arm(struct lm_pager *p, struct lm_error *err);
int lm_pager_faults(struct lm_pager *p, struct lm_page_fault *ret, unsigned n, struct lm_error *err);
int lm_pager_place(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err);
int lm_pager_release(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err);
int lm_pager_wake(struct lm_pager *p, struct lm_error *err);
int lm_pager_finish(struct lm_pager *p, struct lm_error *err);
void lm_pager_close(struct lm_pager *p); /* takes NULL */

#endif
