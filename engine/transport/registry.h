/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which transports this build has.  The table itself lies above the transports, in
 * library/transports.c, because nothing in the engine knows a single one of them: a new
 * transport adds its struct lm_transport_info there, and nothing here.
 */
#ifndef LM_TRANSPORT_REGISTRY_H
#define LM_TRANSPORT_REGISTRY_H

#include "transport.h"

struct lm_transport_info {
	const char *name;
	const char *what; /* one line for people */
	/* A new object, not open; NULL when memory is short.  The caller's: lm_transport_free(). */
	struct lm_transport *(*make)(void);
	/*
	 * Whether it can be used on this host, towards peer ("HOST:PORT"; NULL: anybody);
	 * else why not and what to do, in ret_why.  NULL: always.
	 */
	bool (*usable)(const char *peer, const char *const *rails, unsigned nrails, char *ret_why,
		       size_t size);
	/* Tells what it finds on this host, a call of fn per line; NULL: there is nothing to say. */
	void (*check)(lm_check_fn *fn, void *opaque);
};

/* In the order in which `auto` tries them; NULL at the end.  Constant; any thread. */
extern const struct lm_transport_info *const lm_transports[];

/* By name; NULL when this build has none of that name. */
const struct lm_transport_info *lm_transport_find(const char *name);
/* info->make(); in test builds inside the faults that LM_TRANSPORT_FAULT asks for. */
struct lm_transport *lm_transport_make(const struct lm_transport_info *info);

#endif
