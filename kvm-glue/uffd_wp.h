/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty pages of any process, by userfaultfd write protection from outside. */
#ifndef LM_UFFD_WP_H
#define LM_UFFD_WP_H

#include <sys/types.h>
#include "engine/vm/dirty.h"

/*
 * A tracker of the writes that process pid makes through its mapping of ram
 * (vm_addr, size, page_size of each region; the files are not looked at).  The
 * process is stopped for about 0.2 ms while a userfaultfd is made in it; it is
 * not slowed down before start.  ram must outlive the tracker.
 */
int lm_uffd_wp_new(pid_t pid, const struct lm_ram *ram, struct lm_dirty **ret, struct lm_error *err);

#endif
