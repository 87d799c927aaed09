/* SPDX-License-Identifier: Apache-2.0 */
/* What both sides have to agree on before a page moves: the transport, and that it is the same guest. */
#ifndef LM_NEGOTIATE_H
#define LM_NEGOTIATE_H

#include "context.h"

/*
 * Transports that this side may use towards the peer (NULL: not known yet), the best
 * first, comma separated.  When there is none the error says why not.
 */
int lm_ctx_transports(const struct lm_ctx *c, const char *peer, char *ret, size_t size, struct lm_error *err);
/* The first of the peer's names (its word: not believed) that this side may use. */
int lm_ctx_choose(const struct lm_ctx *c, const char *theirs, const char *peer,
		  char ret[static LM_TRANSPORT_NAME_MAX], struct lm_error *err);
/* Whether name is in a comma separated list. */
bool lm_name_in_list(const char *name, const char *list);

/* Source: OPEN, or QUICK: what the guest is and the layout of its memory.  Sets summary.lanes to what it asks for. */
int lm_ctx_send_open(struct lm_ctx *c, enum lm_msg_type type, const char *transports, struct lm_error *err);
/* Destination: -EINVAL with what differs when the source's guest is not the one that waits here. */
int lm_ctx_check_open(const struct lm_ctx *c, const struct lm_open *o, struct lm_error *err);

#endif
