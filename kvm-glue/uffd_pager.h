/* SPDX-License-Identifier: Apache-2.0 */
/* Demand paging of any process, by a userfaultfd inside it. */
#ifndef LM_UFFD_PAGER_H
#define LM_UFFD_PAGER_H

#include <sys/types.h>
#include "engine/vm/pager.h"

/*
 * A pager for what process pid sees of ram (vm_addr, size, page_size, file_offset;
 * fd: open for writing, holes are filled through it).  The process is stopped for
 * about 0.2 ms while a userfaultfd is made in it.  It keeps that descriptor until
 * finish; we have a copy.  ram must outlive the pager.
 */
int lm_uffd_pager_new(pid_t pid, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err);

/*
 * The same, for a process that may not call userfaultfd(2) for want of privilege
 * (-EPERM): vm_device is its descriptor of /dev/userfaultfd, not needed later.
 */
int lm_uffd_pager_new_by(pid_t pid, const struct lm_ram *ram, int vm_device, struct lm_pager **ret,
			 struct lm_error *err);

/*
 * Take an armed pager over whose engine is dead: vm_fd is what it was there.
 * Neither stops the process nor needs an answer of it: all of its threads may be
 * waiting for pages.  Faults that the dead engine had read come again after wake.
 */
int lm_uffd_pager_reopen(pid_t pid, const struct lm_ram *ram, int vm_fd, struct lm_pager **ret,
			 struct lm_error *err);

#endif
