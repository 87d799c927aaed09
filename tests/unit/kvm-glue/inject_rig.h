/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child into which the tests inject system calls.  It checks all the time that nothing happens to it:
 * what its own calls return, what its registers hold, which signals it gets.
 */
#ifndef INJECT_RIG_H
#define INJECT_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <sys/types.h>
#include "engine/base/clock.h"
#include "kvm-glue/inject.h"

#define SIGNAL (SIGRTMIN + 3) /* the child counts it */

/* What the child says, in shared memory. */
struct shared {
	_Atomic uint64_t turns;   /* of its loop */
	_Atomic uint64_t bad;     /* things that should not have happened */
	_Atomic long what;        /* the last of them */
	_Atomic uint64_t signals; /* taken, in order */
	_Atomic uint32_t futex;
};
extern struct shared *sh;
extern pid_t child;
extern int never[2]; /* a pipe that says nothing */
extern struct lm_error err; /* of the last injection */

/* For cmocka: the shared memory; the end of the child. */
int child_setup(void **state);
int child_teardown(void **state);
/* Fork the child, which does this work again and again. */
void child_start(void (*work)(void));

/* Works: each waits or computes for a while, and checks what comes of it. */
void do_poll(void);
void do_ppoll_forever(void);
void do_read(void); /* never returns */
void do_nanosleep(void);
void do_futex(void);
void do_spin(void);
void do_getppid(void);

/* Inject one getpid(), which must succeed; how long the child was held, in ns. */
int64_t inject_getpid(void);
unsigned child_fds(void);
void assert_well(void); /* nothing bad has happened to the child */
/* Wait until the child has done n more turns, or its first one. */
void turns_wait(uint64_t n);
void first_turn_wait(void);

#endif
