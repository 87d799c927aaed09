/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "cleanup.h"
#include "pool.h"
#include "thread.h"
#include "urgent.h"

struct worker {
	struct lm_pool *pool;
	unsigned index;
	bool due, busy; /* under pool->mutex: has to run; has not ended */
	pid_t tid;      /* under pool->mutex; 0: it has not begun */
	bool urgent;    /* under pool->mutex, as is nice: what it had before */
	int nice;
	pthread_t thread;
};

struct lm_pool {
	unsigned nworkers, nthreads; /* const after new; threads made so far */
	int done_fd;
	/* Under mutex: */
	pthread_mutex_t mutex;
	pthread_cond_t work, idle;
	lm_pool_fn *fn;
	void *ctx;
	unsigned running;
	bool active, stop;
	struct worker workers[];
};

static void worker_done(struct lm_pool *p, struct worker *w)
{
	uint64_t one = 1;

	pthread_mutex_lock(&p->mutex);
	w->busy = false;
	if (--p->running == 0 && write(p->done_fd, &one, sizeof(one)) < 0) {
		/* An eventfd with room takes 8 bytes; if it did not, nothing could be done about it. */
	}
	pthread_cond_broadcast(&p->idle);
	pthread_mutex_unlock(&p->mutex);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct lm_pool *p = w->pool;

	pthread_mutex_lock(&p->mutex);
	w->tid = gettid();
	pthread_mutex_unlock(&p->mutex);
	for (;;) {
		lm_pool_fn *fn;
		void *ctx;

		pthread_mutex_lock(&p->mutex);
		while (!p->stop && !w->due)
			pthread_cond_wait(&p->work, &p->mutex);
		w->due = false;
		fn = p->fn;
		ctx = p->ctx;
		if (p->stop) {
			pthread_mutex_unlock(&p->mutex);
			return NULL;
		}
		pthread_mutex_unlock(&p->mutex);
		fn(ctx, w->index);
		worker_done(p, w);
	}
}

int lm_pool_new(unsigned nworkers, struct lm_pool **ret, struct lm_error *err)
{
	struct lm_pool *p = calloc(1, sizeof(*p) + nworkers * sizeof(p->workers[0]));
	int r;

	if (!p)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	pthread_mutex_init(&p->mutex, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->idle, NULL);
	p->nworkers = nworkers;
	p->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (p->done_fd < 0) {
		r = lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
		goto fail;
	}
	for (; p->nthreads < nworkers; p->nthreads++) {
		struct worker *w = &p->workers[p->nthreads];

		w->pool = p;
		w->index = p->nthreads;
		r = lm_thread_start(&w->thread, worker_main, w);
		if (r) {
			lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot start a thread");
			goto fail;
		}
	}
	*ret = p;
	return 0;
fail:
	lm_pool_free(p);
	return r;
}

void lm_pool_start(struct lm_pool *p, lm_pool_fn *fn, void *ctx)
{
	pthread_mutex_lock(&p->mutex);
	p->fn = fn;
	p->ctx = ctx;
	p->running = p->nworkers;
	p->active = true;
	for (unsigned i = 0; i < p->nworkers; i++)
		p->workers[i].due = p->workers[i].busy = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->mutex);
}

bool lm_pool_restart_worker(struct lm_pool *p, unsigned worker)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&p->mutex);
	struct worker *w = &p->workers[worker];
	uint64_t n;

	if (!p->active || w->busy)
		return false;
	/* The last worker may just have reported that all have ended: that is no longer true. */
	if (!p->running && read(p->done_fd, &n, sizeof(n)) < 0) {
		/* The worker writes to it before running becomes 0, so there is something to read. */
	}
	w->due = w->busy = true;
	p->running++;
	pthread_cond_broadcast(&p->work);
	return true;
}

int lm_pool_done_fd(const struct lm_pool *p)
{
	return p->done_fd;
}

void lm_pool_finish(struct lm_pool *p)
{
	uint64_t n;

	pthread_mutex_lock(&p->mutex);
	while (p->running)
		pthread_cond_wait(&p->idle, &p->mutex);
	if (p->active && read(p->done_fd, &n, sizeof(n)) < 0) {
		/* The worker writes to it before running becomes 0, so there is something to read. */
	}
	p->active = false;
	pthread_mutex_unlock(&p->mutex);
}

void lm_pool_wait_worker(struct lm_pool *p, unsigned worker)
{
	pthread_mutex_lock(&p->mutex);
	while (p->workers[worker].busy)
		pthread_cond_wait(&p->idle, &p->mutex);
	pthread_mutex_unlock(&p->mutex);
}

void lm_pool_set_urgent(struct lm_pool *p, bool urgent)
{
	pthread_mutex_lock(&p->mutex);
	for (unsigned i = 0; i < p->nthreads; i++) {
		struct worker *w = &p->workers[i];

		if (w->tid && urgent && !w->urgent)
			w->nice = lm_urgent_begin(w->tid);
		else if (w->urgent && !urgent)
			lm_urgent_end(w->tid, w->nice);
		w->urgent = w->tid && urgent;
	}
	pthread_mutex_unlock(&p->mutex);
}

unsigned lm_pool_size(const struct lm_pool *p)
{
	return p->nworkers;
}

void lm_pool_free(struct lm_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->mutex);
	while (p->running)
		pthread_cond_wait(&p->idle, &p->mutex);
	p->stop = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->mutex);
	for (unsigned i = 0; i < p->nthreads; i++)
		pthread_join(p->workers[i].thread, NULL);
	lm_close_fd(&p->done_fd);
	pthread_cond_destroy(&p->idle);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->mutex);
	free(p);
}
