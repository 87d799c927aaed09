/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks that exist in test builds only (-DLM_TEST_HOOKS); elsewhere they are
 * constants and the compiler removes them.
 *
 * LM_FAULT="STAGE:ACTION[,STAGE:ACTION...]" in the environment does something at
 * a named stage (engine/PROTOCOL.md lists them): kill (SIGKILL to this process),
 * error (the stage fails with -EIO), sleep=MS, run=COMMAND (system(3), the stage
 * goes on when it ends).
 * LM_BREAK="RULE[,RULE...]" switches a safety rule off, so that a test can show
 * that it finds what the rule prevents.
 */
#ifndef LM_TESTHOOK_H
#define LM_TESTHOOK_H

#include <stdbool.h>
#include "error.h"

#ifdef LM_TEST_HOOKS
int lm_fault_point(const char *stage, struct lm_error *err); /* 0 or -EIO */
bool lm_broken(const char *rule);
#else
static inline int lm_fault_point(const char *stage, struct lm_error *err)
{
	(void)stage;
	(void)err;
	return 0;
}
static inline bool lm_broken(const char *rule)
{
	(void)rule;
	return false;
}
#endif

#endif
