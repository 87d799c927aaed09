/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transport around another one in which something goes wrong at a given point.
 * For tests: what is installed links fault_none.c instead of fault.c.
 *
 * LM_TRANSPORT_FAULT="KEY=VALUE[,KEY=VALUE...]":
 *	action=cut       the lane is shut
 *	action=cut-all   all lanes are shut
 *	action=delay=MS  the call takes so much longer
 *	action=register=MS  registering a region takes so much longer
 *	action=corrupt   active side: one data run arrives as zeros, and nobody is told
 *	action=truncate  active side: the last page of one data run never goes out (LM_PULL: never comes)
 *	action=stray     active side: a run outside of the region goes out (LM_PULL: is asked for) besides
 *	lane=N           only this lane (default: any)
 *	after=BYTES      when so many data bytes have gone through this side (default: 0)
 *	write=N, flush=N at the Nth write (LM_PULL: fetch) or flush (1: the first) instead of `after`
 *	repeat=1         again at every later chance (default: once)
 *	stay=1           lanes that have failed do not come back
 *
 * Bytes and calls are counted over the lanes that match.  At the destination no lane
 * is opened again that was not fenced.
 */
#ifndef LM_TRANSPORT_FAULT_H
#define LM_TRANSPORT_FAULT_H

#include "transport.h"

enum lm_fault_action {
	LM_FAULT_NONE, LM_FAULT_CUT, LM_FAULT_CUT_ALL, LM_FAULT_DELAY, LM_FAULT_CORRUPT,
	LM_FAULT_TRUNCATE, LM_FAULT_STRAY, LM_FAULT_REGISTER,
};

struct lm_fault_options {
	enum lm_fault_action action;
	int lane;            /* -1: any */
	uint64_t after;
	uint64_t write, flush; /* 0: not by calls */
	unsigned delay_ms;
	bool repeat;
	bool stay;
};

/* The text above; -EINVAL with a reason. */
int lm_fault_options_parse(const char *text, struct lm_fault_options *ret, struct lm_error *err);
/* Takes inner over (also on error: NULL for want of memory, inner is freed; NULL in, NULL out). */
struct lm_transport *lm_transport_fault_new(struct lm_transport *inner, const struct lm_fault_options *o);
/* As LM_TRANSPORT_FAULT says; inner itself when it is not set.  A bad text ends the process. */
struct lm_transport *lm_transport_fault_from_env(struct lm_transport *inner);

#endif
