/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fixed set of worker threads, one per lane.  A job is one function that every
 * worker runs once; it divides the work itself (an atomic cursor).  Only the
 * session's thread starts jobs and waits for them.
 */
#ifndef LM_POOL_H
#define LM_POOL_H

#include <stdbool.h>
#include "error.h"

struct lm_pool;
typedef void lm_pool_fn(void *ctx, unsigned worker);

int lm_pool_new(unsigned nworkers, struct lm_pool **ret, struct lm_error *err);
/* Start fn on all workers.  The job before must have ended. */
void lm_pool_start(struct lm_pool *p, lm_pool_fn *fn, void *ctx);
/* Readable from the end of the last worker until lm_pool_finish(). */
int lm_pool_done_fd(const struct lm_pool *p);
/* Block until the job has ended, and make the pool ready for the next. Without a job it returns at once. */
void lm_pool_finish(struct lm_pool *p);
/*
 * This worker, whose part of the job has ended, runs the job's function once more; the job then ends with
 * the last of them.  False: there is no job (lm_pool_finish() was called), or the worker is at it.
 */
bool lm_pool_restart_worker(struct lm_pool *p, unsigned worker);
/* Block until this worker's part of the job has ended. */
void lm_pool_wait_worker(struct lm_pool *p, unsigned worker);
/* The workers begin, or cease, to come before other threads of this host (urgent.h). */
void lm_pool_set_urgent(struct lm_pool *p, bool urgent);
unsigned lm_pool_size(const struct lm_pool *p);
/* Waits for the job, joins the threads.  Takes NULL. */
void lm_pool_free(struct lm_pool *p);

#endif
