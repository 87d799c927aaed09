/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "sink.h"

/* Bytes queued above which a piece of this weight is dropped. */
static const size_t limits[] = {
	[CLI_MAY_DROP] = 16 << 10,
	[CLI_NORMAL] = 1 << 20,
	[CLI_MUST_KEEP] = (size_t)-1,
};

struct buffer {
	char *data;
	size_t len, size;
};

struct cli_sink {
	int fd;
	pthread_t thread;
	pthread_mutex_t lock; /* for all that follows */
	pthread_cond_t change;
	struct buffer queued;
	bool busy;            /* the thread holds a buffer that is not written yet */
	bool ended, broken;
	unsigned dropped;
};

static bool buffer_add(struct buffer *b, const char *text, size_t len)
{
	if (b->len + len > b->size) {
		size_t size = b->size ? b->size : 4096;
		char *data;

		while (size < b->len + len)
			size *= 2;
		data = realloc(b->data, size);
		if (!data)
			return false;
		b->data = data;
		b->size = size;
	}
	memcpy(b->data + b->len, text, len);
	b->len += len;
	return true;
}

static bool write_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data += n;
		len -= (size_t)n;
	}
	return true;
}

static void *writer(void *arg)
{
	struct cli_sink *s = arg;
	struct buffer mine = { 0 }, swap;
	bool good;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		while (!s->queued.len && !s->ended)
			pthread_cond_wait(&s->change, &s->lock);
		if (!s->queued.len)
			break;
		swap = s->queued;
		s->queued = mine;
		mine = swap;
		s->busy = true;
		pthread_mutex_unlock(&s->lock);
		good = write_all(s->fd, mine.data, mine.len);
		mine.len = 0;
		pthread_mutex_lock(&s->lock);
		s->busy = false;
		s->broken |= !good;
		if (s->broken)
			s->queued.len = 0;
		pthread_cond_broadcast(&s->change);
	}
	pthread_mutex_unlock(&s->lock);
	free(mine.data);
	return NULL;
}

/* Signals are for other threads. */
static int start_quietly(struct cli_sink *s)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&s->thread, NULL, writer, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -rc;
}

int cli_sink_open(int fd, struct cli_sink **ret)
{
	struct cli_sink *s = calloc(1, sizeof(*s));
	pthread_condattr_t attr;
	int rc;

	if (!s)
		return -ENOMEM;
	s->fd = fd;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->change, &attr);
	pthread_condattr_destroy(&attr);
	rc = start_quietly(s);
	if (rc) {
		free(s);
		return rc;
	}
	*ret = s;
	return 0;
}

void cli_sink_put(struct cli_sink *s, enum cli_weight weight, const char *text, size_t len)
{
	pthread_mutex_lock(&s->lock);
	if (s->broken || s->queued.len > limits[weight] || !buffer_add(&s->queued, text, len))
		s->dropped++;
	else
		pthread_cond_broadcast(&s->change);
	pthread_mutex_unlock(&s->lock);
}

/* Call with the lock held; false: time is over. */
static bool wait_idle(struct cli_sink *s, int timeout_ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L) {
		until.tv_nsec -= 1000000000L;
		until.tv_sec++;
	}
	while (s->queued.len || s->busy) {
		if (pthread_cond_timedwait(&s->change, &s->lock, &until))
			return false;
	}
	return true;
}

void cli_sink_flush(struct cli_sink *s, int timeout_ms)
{
	pthread_mutex_lock(&s->lock);
	wait_idle(s, timeout_ms);
	pthread_mutex_unlock(&s->lock);
}

unsigned cli_sink_take_dropped(struct cli_sink *s)
{
	unsigned n;

	pthread_mutex_lock(&s->lock);
	n = s->dropped;
	s->dropped = 0;
	pthread_mutex_unlock(&s->lock);
	return n;
}

void cli_sink_close(struct cli_sink *s, int timeout_ms)
{
	bool idle;

	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	idle = wait_idle(s, timeout_ms);
	s->ended = true;
	pthread_cond_broadcast(&s->change);
	pthread_mutex_unlock(&s->lock);
	if (!idle)
		return;
	pthread_join(s->thread, NULL);
	pthread_cond_destroy(&s->change);
	pthread_mutex_destroy(&s->lock);
	free(s->queued.data);
	free(s);
}
