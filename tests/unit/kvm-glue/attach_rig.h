/* SPDX-License-Identifier: Apache-2.0 */
/* One real QEMU per test, and an engine that attaches to it. */
#ifndef ATTACH_RIG_H
#define ATTACH_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "kvm-glue/qemu.h"
#include "qemu_rig.h"

extern struct rig_qemu q;
extern struct lm_error err; /* of the last call */
extern struct lm_vm *vm;

/* As a source or a destination.  With the process id of QEMU given, 0: not given.  0 or the error. */
int attach_pid(enum lm_side side, pid_t pid);
int attach(enum lm_side side);
/* What attach() has returned is a success, or an error that contains these words. */
void assert_attached(int r);
void assert_refused(int r, const char *words);
/* For cmocka: detaches and ends QEMU. */
int attach_teardown(void **state);

#endif
