/* SPDX-License-Identifier: Apache-2.0 */
/* A session over a VM of the test's own. */
#ifndef NEWSESSION_H
#define NEWSESSION_H

#include <sys/eventfd.h>
#include "unit.h"
#include "engine/session/session.h"

/* Copies the options; vm becomes the session's.  Ends the test when it is refused. */
static inline struct lm_session *unit_session(const struct lm_options *o, enum lm_side side, struct lm_vm *vm)
{
	struct lm_options *copy = malloc(sizeof(*copy));
	struct lm_error err = { 0 };
	struct lm_session *s = NULL;

	*copy = *o;
	assert_ok(lm_session_new(copy, side, vm, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), &s, &err), err);
	return s;
}

#endif
