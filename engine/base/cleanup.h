/* SPDX-License-Identifier: Apache-2.0 */
/* Scope-bound release of memory, descriptors and mutexes. */
#ifndef LM_CLEANUP_H
#define LM_CLEANUP_H

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void lm_cleanup_free(void *p)
{
	free(*(void **)p);
}

/* Closes *fd when it is one, sets it to -1; keeps errno. */
static inline void lm_close_fd(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = saved;
}

static inline void lm_cleanup_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void lm_cleanup_unlock(pthread_mutex_t **m)
{
	if (*m)
		pthread_mutex_unlock(*m);
}

static inline int lm_steal_fd(int *fd)
{
	int ret = *fd;

	*fd = -1;
	return ret;
}

#define LM_AUTO_FREE __attribute__((cleanup(lm_cleanup_free)))
#define LM_AUTO_FD __attribute__((cleanup(lm_close_fd)))
#define LM_AUTO_FILE __attribute__((cleanup(lm_cleanup_file)))
/* LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_lock(&mutex); */
#define LM_AUTO_UNLOCK __attribute__((cleanup(lm_cleanup_unlock), unused))

static inline pthread_mutex_t *lm_mutex_lock(pthread_mutex_t *m)
{
	pthread_mutex_lock(m);
	return m;
}

#endif
