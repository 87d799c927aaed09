/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks for tests.  A test build links testhook.c; what is installed links testhook_none.c,
 * in which no environment variable is read, nothing fails and no rule is broken.  All other
 * objects are the same in both.  No hook lies in a loop over pages.
 *
 * LM_FAULT="STAGE:ACTION[,STAGE:ACTION...]" does something at a named stage
 * (engine/PROTOCOL.md lists them): kill (SIGKILL to this process), error (the stage fails
 * with -EIO), sleep=MS, run=COMMAND (system(3); the stage goes on when it ends).
 * LM_BREAK="RULE[,RULE...]" switches a safety rule off, so that a test can show
 * that it finds what the rule prevents.
 */
#ifndef LM_TESTHOOK_H
#define LM_TESTHOOK_H

#include <stdbool.h>
#include "error.h"

int lm_fault_point(const char *stage, struct lm_error *err); /* 0 or -EIO */
bool lm_broken(const char *rule);
/* An environment variable that only tests set; NULL when it is not set, and in what is installed. */
const char *lm_test_setting(const char *name);

#endif
