/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LM_THREAD_H
#define LM_THREAD_H

#include <pthread.h>
#include <signal.h>

/* A thread that takes no signals: those belong to the program's own threads.  0 or a negative errno. */
static inline int lm_thread_start(pthread_t *ret, void *(*fn)(void *), void *arg)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	r = pthread_create(ret, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

#endif
