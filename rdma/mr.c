/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory registered with a device.
 *
 * A chunk goes NONE -> WANTED (by a lane) -> BUSY (a worker registers it) -> READY or
 * FAILED, under the device's mutex; lanes look at the state without it.  Whoever
 * waits for a chunk is woken through its lane's event_fd.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "rdma.h"
#include "engine/base/thread.h"

/* Extents of one call; what lies behind them the device looks up when it needs it. */
#define PREFETCH_EXTENTS 32
#define PREFETCH_BYTES (UINT64_C(1) << 30)

/* ---- workers ---- */

static void wake_lanes(struct rd_device *d)
{
	for (struct rd_lane *l = d->lanes; l; l = l->next_on_device)
		rd_lane_wake(l);
}

static void chunk_register(struct rd_device *d, struct rd_mem *m, uint32_t i)
{
	uint64_t from = (uint64_t)i << m->shift, len = m->size - from;
	struct rd_chunk *c = &m->chunks[i];
	struct ibv_mr *mr;

	if (len > UINT64_C(1) << m->shift)
		len = UINT64_C(1) << m->shift;
	atomic_store(&c->state, RDMA_CHUNK_BUSY);
	m->busy++;
	pthread_mutex_unlock(&d->mutex);
	errno = 0;
	mr = ibv_reg_mr(d->pd, m->host + from, len, m->access);
	c->error = mr ? 0 : errno ? errno : EIO;
	pthread_mutex_lock(&d->mutex);
	c->mr = mr;
	m->busy--;
	atomic_store_explicit(&c->state, mr ? RDMA_CHUNK_READY : RDMA_CHUNK_FAILED, memory_order_release);
	pthread_cond_broadcast(&d->idle);
	wake_lanes(d);
}

static struct rd_job *job_take(struct rd_device *d)
{
	struct rd_job *job = d->jobs;

	if (job) {
		d->jobs = job->next;
		if (!d->jobs)
			d->jobs_end = &d->jobs;
	}
	return job;
}

static void *worker_main(void *arg)
{
	struct rd_device *d = arg;

	pthread_mutex_lock(&d->mutex);
	while (!d->stop) {
		struct rd_job *job = job_take(d);

		if (!job) {
			pthread_cond_wait(&d->work, &d->mutex);
			continue;
		}
		chunk_register(d, job->mem, job->chunk);
		free(job);
	}
	pthread_mutex_unlock(&d->mutex);
	return NULL;
}

/* One more, if that is of use; the first must start. */
static int worker_add(struct rd_device *d)
{
	long ncpu = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned max = ncpu < 1 ? 1 : ncpu > RDMA_WORKERS_MAX ? RDMA_WORKERS_MAX : (unsigned)ncpu;
	int r;

	if (d->nworkers >= max)
		return 0;
	r = lm_thread_start(&d->workers[d->nworkers], worker_main, d);
	if (!r)
		d->nworkers++;
	return d->nworkers ? 0 : r;
}

static int job_add(struct rd_device *d, struct rd_mem *m, uint32_t chunk)
{
	struct rd_job *job = calloc(1, sizeof(*job));

	if (!job || worker_add(d)) {
		free(job);
		return -ENOMEM;
	}
	job->mem = m;
	job->chunk = chunk;
	*d->jobs_end = job;
	d->jobs_end = &job->next;
	pthread_cond_signal(&d->work);
	return 0;
}

int rd_mem_want(struct rd_mem *m, uint32_t chunk)
{
	struct rd_chunk *c = &m->chunks[chunk];
	int state = rd_mem_state(m, chunk);

	if (state != RDMA_CHUNK_NONE)
		return state;
	pthread_mutex_lock(&m->dev->mutex);
	if (atomic_load(&c->state) == RDMA_CHUNK_NONE) {
		int r = job_add(m->dev, m, chunk);

		c->error = -r;
		atomic_store_explicit(&c->state, r ? RDMA_CHUNK_FAILED : RDMA_CHUNK_WANTED, memory_order_release);
	}
	state = atomic_load(&c->state);
	pthread_mutex_unlock(&m->dev->mutex);
	return state;
}

static int chunk_error(const struct rd_mem *m, uint32_t chunk, struct lm_error *err)
{
	return lm_err_errno(err, -m->chunks[chunk].error, LM_SCOPE_SESSION,
			    "RDMA device %s cannot register %llu MiB of guest memory (memlock limit? `ulimit -l unlimited`, or "
			    "--pin chunk)", m->dev->name, (unsigned long long)(m->size >> 20));
}

static bool is_under_way(struct rd_mem *m, uint32_t chunk)
{
	int state = rd_mem_state(m, chunk);

	return state == RDMA_CHUNK_WANTED || state == RDMA_CHUNK_BUSY;
}

int rd_mem_all(struct rd_mem *m, bool (*skip)(const void *opaque, uint32_t chunk), const void *opaque,
	       struct lm_error *err)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = NULL;

	for (uint32_t i = 0; i < m->nchunks; i++)
		if (!skip || !skip(opaque, i))
			rd_mem_want(m, i);
	guard = lm_mutex_lock(&m->dev->mutex);
	for (uint32_t i = 0; i < m->nchunks; i++) {
		while (is_under_way(m, i))
			pthread_cond_wait(&m->dev->idle, &m->dev->mutex);
		if (atomic_load(&m->chunks[i].state) == RDMA_CHUNK_FAILED)
			return chunk_error(m, i, err);
	}
	return 0;
}

bool rd_mem_unless_pinned(struct rd_mem *m, uint32_t chunk, int (*fn)(void *), void *arg, int *ret)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = NULL;
	int state = rd_mem_state(m, chunk);

	if (state >= RDMA_CHUNK_BUSY)
		return false;
	guard = lm_mutex_lock(&m->dev->mutex);
	if (atomic_load(&m->chunks[chunk].state) >= RDMA_CHUNK_BUSY)
		return false;
	*ret = fn(arg);
	return true;
}

/* ---- on demand ---- */

static unsigned extents_find(const struct rd_mem *m, uint64_t from, uint64_t end, struct ibv_sge *ret)
{
	unsigned n = 0;

	while (n < PREFETCH_EXTENTS && from < end) {
		off_t data = lseek(m->fd, (off_t)(m->file_offset + from), SEEK_DATA), hole;
		uint64_t to;

		if (data < 0 || (uint64_t)data >= m->file_offset + end)
			break;
		hole = lseek(m->fd, data, SEEK_HOLE);
		if (hole <= data)
			break; /* it has gone meanwhile */
		from = (uint64_t)data - m->file_offset;
		to = (uint64_t)hole - m->file_offset;
		to = to < end ? to : end;
		to = to - from < PREFETCH_BYTES ? to : from + PREFETCH_BYTES;
		ret[n++] = (struct ibv_sge){ .addr = (uintptr_t)m->host + from, .length = (uint32_t)(to - from),
					     .lkey = m->whole->lkey };
		from = to;
	}
	return n;
}

void rd_mem_prefetch(struct rd_mem *m, uint32_t chunk)
{
	enum ibv_advise_mr_advice advice = m->access & IBV_ACCESS_LOCAL_WRITE ? IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE :
										  IBV_ADVISE_MR_ADVICE_PREFETCH;
	struct ibv_sge extents[PREFETCH_EXTENTS];
	uint64_t from = (uint64_t)chunk << m->shift, end = from + (UINT64_C(1) << m->shift);
	unsigned n;
	int r;

	/* hugetlbfs does not say what exists, and a huge page is looked up but once. */
	if (!m->whole || chunk >= m->nchunks || m->page_size > LM_PAGE_SIZE || atomic_load(&m->prefetch_error) ||
	    atomic_load_explicit(&m->chunks[chunk].asked, memory_order_relaxed) ||
	    atomic_exchange(&m->chunks[chunk].asked, 1))
		return;
	n = extents_find(m, from, end < m->size ? end : m->size, extents);
	r = n ? ibv_advise_mr(m->dev->pd, advice, 0, extents, n) : 0;
	if (r)
		atomic_store(&m->prefetch_error, r < 0 ? -r : r);
}

/* ---- life ---- */

/* Registered for at least what is asked for, of the same kind. */
static struct rd_mem *mem_find(struct rd_device *d, const struct lm_region *region, unsigned access,
				 unsigned shift)
{
	struct rd_mem *m = d->mems;

	while (m && (m->host != region->host || m->size != region->size || m->shift != shift ||
		     (m->access & access) != access))
		m = m->next;
	return m;
}

unsigned rd_mem_shift(struct rd_device *d, const struct lm_region *region)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&d->mutex);
	const struct rd_mem *m = d->mems;

	while (m && (m->host != region->host || m->size != region->size))
		m = m->next;
	return m ? m->shift : 0;
}

static void mem_free(struct rd_mem *m)
{
	if (m->whole)
		ibv_dereg_mr(m->whole);
	for (uint32_t i = 0; i < m->nchunks; i++)
		if (m->chunks[i].mr)
			ibv_dereg_mr(m->chunks[i].mr);
	free(m);
}

static bool whole_on_demand(struct rd_mem *m)
{
	m->whole = ibv_reg_mr(m->dev->pd, m->host, m->size, m->access | IBV_ACCESS_ON_DEMAND);
	for (uint32_t i = 0; m->whole && i < m->nchunks; i++)
		atomic_store(&m->chunks[i].state, RDMA_CHUNK_READY);
	return m->whole;
}

static struct rd_mem *mem_new(struct rd_device *d, const struct lm_region *region, unsigned access,
				unsigned shift, enum rd_mode mode)
{
	uint32_t n = rd_plan_nchunks(region->size, shift);
	struct rd_mem *m = calloc(1, sizeof(*m) + n * sizeof(m->chunks[0]));

	if (!m)
		return NULL;
	m->dev = d;
	m->refs = 1;
	m->host = region->host;
	m->size = region->size;
	m->access = access;
	m->shift = shift;
	m->nchunks = n;
	m->mode = mode;
	m->fd = region->fd;
	m->file_offset = region->file_offset;
	m->page_size = region->page_size;
	if (mode == RDMA_MODE_ODP && !whole_on_demand(m))
		m->mode = RDMA_MODE_CHUNK;
	return m;
}

int rd_mem_get(struct rd_device *d, const struct lm_region *region, unsigned access, unsigned shift,
		 enum rd_mode mode, struct rd_mem **ret, struct lm_error *err)
{
	struct rd_mem *m;

	pthread_mutex_lock(&d->mutex);
	m = mem_find(d, region, access, shift);
	if (m)
		m->refs++;
	pthread_mutex_unlock(&d->mutex);
	*ret = m;
	if (m)
		return 0;
	m = mem_new(d, region, access, shift, mode);
	if (!m)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	pthread_mutex_lock(&d->mutex);
	m->next = d->mems;
	d->mems = m;
	pthread_mutex_unlock(&d->mutex);
	*ret = m;
	return 0;
}

static void jobs_forget(struct rd_device *d, const struct rd_mem *m)
{
	struct rd_job **at = &d->jobs;

	while (*at) {
		struct rd_job *job = *at;

		if (job->mem != m) {
			at = &job->next;
			continue;
		}
		*at = job->next;
		free(job);
	}
	d->jobs_end = at;
}

void rd_mem_put(struct rd_mem *m)
{
	struct rd_device *d = m ? m->dev : NULL;
	struct rd_mem **at;

	if (!m)
		return;
	pthread_mutex_lock(&d->mutex);
	if (--m->refs) {
		pthread_mutex_unlock(&d->mutex);
		return;
	}
	for (at = &d->mems; *at != m; at = &(*at)->next)
		;
	*at = m->next;
	jobs_forget(d, m);
	while (m->busy)
		pthread_cond_wait(&d->idle, &d->mutex);
	pthread_mutex_unlock(&d->mutex);
	mem_free(m);
}
