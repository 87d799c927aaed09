/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by uffd_pager.c and uffd_pager_place.c. */
#ifndef LM_UFFD_PAGER_PRIV_H
#define LM_UFFD_PAGER_PRIV_H

#include "uffd_pager.h"

/* Nothing in it changes but in arm and finish, when no other call runs. */
struct uffd_pager {
	struct lm_pager base;
	pid_t pid;
	int pagemap; /* of the process: belongs to its address space, whoever has its pid later */
	bool armed;  /* the descriptor inside the VM must stay */
};

static inline struct uffd_pager *uffd_pager_of(struct lm_pager *p)
{
	return (struct uffd_pager *)p;
}

/* uffd_pager_place.c */
int uffd_pager_gone(const struct uffd_pager *u, struct lm_error *err);
bool uffd_pager_is_alive(const struct uffd_pager *u);
/* errno says what failed; an address space that is gone is the reason for everything. */
int uffd_pager_error(const struct uffd_pager *u, const char *what, const struct lm_region *r,
		     struct lm_error *err);

/* of the ops table */
int uffd_pager_place(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err);

#endif
