/* SPDX-License-Identifier: Apache-2.0 */
/* The lanes' threads. */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>
#include "unit.h"
#include "engine/base/pool.h"

#define WORKERS 4

static struct lm_error err;

struct job {
	_Atomic unsigned calls[WORKERS];
	_Atomic bool go[WORKERS];
	unsigned plain; /* written by worker 0, read after finish: for the thread sanitizer */
};

static struct lm_pool *pool_new(void)
{
	struct lm_pool *p;

	assert_ok(lm_pool_new(WORKERS, &p, &err), err);
	assert_int_equal(lm_pool_size(p), WORKERS);
	return p;
}

static void count_calls(void *ctx, unsigned worker)
{
	struct job *j = ctx;

	atomic_fetch_add(&j->calls[worker], 1);
	if (!worker)
		j->plain++;
}

static void wait_for_go(void *ctx, unsigned worker)
{
	struct job *j = ctx;

	while (!atomic_load(&j->go[worker]))
		unit_sleep_ms(1);
	count_calls(ctx, worker);
}

static bool is_done(const struct lm_pool *p, int timeout_ms)
{
	struct pollfd f = { .fd = lm_pool_done_fd(p), .events = POLLIN };

	return poll(&f, 1, timeout_ms) == 1;
}

static void every_worker_runs_each_job_once(void **state)
{
	struct lm_pool *p = pool_new();
	struct job j = { 0 };

	(void)state;
	for (unsigned round = 1; round <= 500; round++) {
		lm_pool_start(p, count_calls, &j);
		lm_pool_finish(p);
		for (unsigned i = 0; i < WORKERS; i++)
			assert_int_equal(j.calls[i], round);
		assert_int_equal(j.plain, round);
	}
	lm_pool_free(p);
}

static void done_fd_is_readable_from_the_end_of_the_last_worker_until_finish(void **state)
{
	struct lm_pool *p = pool_new();
	struct job j = { 0 };

	(void)state;
	assert_false(is_done(p, 0));
	for (unsigned round = 0; round < 3; round++) {
		memset(&j, 0, sizeof(j));
		lm_pool_start(p, wait_for_go, &j);
		for (unsigned i = 0; i + 1 < WORKERS; i++)
			atomic_store(&j.go[i], true);
		assert_false(is_done(p, 20));
		atomic_store(&j.go[WORKERS - 1], true);
		assert_true(is_done(p, 5000));
		assert_true(is_done(p, 0)); /* looking does not take it away */
		lm_pool_finish(p);
		assert_false(is_done(p, 0));
	}
	lm_pool_free(p);
}

static void finish_waits_without_the_descriptor_too(void **state)
{
	struct lm_pool *p = pool_new();
	struct job j = { .go = { true, true, true, true } };

	(void)state;
	lm_pool_start(p, wait_for_go, &j);
	lm_pool_finish(p);
	assert_int_equal(j.calls[WORKERS - 1], 1);
	assert_false(is_done(p, 0));
	lm_pool_finish(p); /* no job: returns at once */
	lm_pool_free(p);
}

static void one_worker_can_be_waited_for_while_others_work(void **state)
{
	struct lm_pool *p = pool_new();
	struct job j = { 0 };

	(void)state;
	lm_pool_start(p, wait_for_go, &j);
	atomic_store(&j.go[2], true);
	lm_pool_wait_worker(p, 2);
	assert_int_equal(j.calls[2], 1);
	assert_int_equal(j.calls[0] + j.calls[1] + j.calls[3], 0);
	for (unsigned i = 0; i < WORKERS; i++)
		atomic_store(&j.go[i], true);
	lm_pool_finish(p);
	lm_pool_wait_worker(p, 1); /* idle: returns at once */
	lm_pool_free(p);
}

static void *let_go(void *arg)
{
	struct job *j = arg;

	unit_sleep_ms(30);
	for (unsigned i = 0; i < WORKERS; i++)
		atomic_store(&j->go[i], true);
	return NULL;
}

static void freeing_waits_for_a_running_job(void **state)
{
	struct lm_pool *p = pool_new();
	struct job j = { 0 };
	pthread_t t;

	(void)state;
	lm_pool_start(p, wait_for_go, &j);
	pthread_create(&t, NULL, let_go, &j);
	lm_pool_free(p);
	for (unsigned i = 0; i < WORKERS; i++)
		assert_int_equal(j.calls[i], 1);
	pthread_join(t, NULL);
}

static void a_worker_runs_once_more_in_the_same_job(void **state)
{
	struct lm_pool *p = pool_new();
	struct job j = { 0 };

	(void)state;
	assert_false(lm_pool_restart_worker(p, 1)); /* no job */
	atomic_store(&j.go[1], true);
	lm_pool_start(p, wait_for_go, &j);
	assert_false(lm_pool_restart_worker(p, 0)); /* it is at it */
	lm_pool_wait_worker(p, 1);
	assert_true(lm_pool_restart_worker(p, 1));
	lm_pool_wait_worker(p, 1);
	assert_int_equal(j.calls[1], 2);
	for (unsigned i = 0; i < WORKERS; i++)
		atomic_store(&j.go[i], true);
	assert_true(is_done(p, 5000));
	/* All have ended, and then not: what said so is taken back until they have again. */
	atomic_store(&j.go[2], false);
	assert_true(lm_pool_restart_worker(p, 2));
	assert_false(is_done(p, 20));
	atomic_store(&j.go[2], true);
	assert_true(is_done(p, 5000));
	lm_pool_finish(p);
	assert_false(is_done(p, 0));
	assert_int_equal(j.calls[2], 2);
	assert_false(lm_pool_restart_worker(p, 2));
	lm_pool_free(p);
}

static void an_unused_pool_can_be_freed(void **state)
{
	(void)state;
	lm_pool_free(NULL);
	lm_pool_free(pool_new());
}

static void check_signals(void *ctx, unsigned worker)
{
	struct job *j = ctx;
	sigset_t set;

	pthread_sigmask(SIG_BLOCK, NULL, &set);
	if (sigismember(&set, SIGINT) == 1 && sigismember(&set, SIGTERM) == 1 && sigismember(&set, SIGCHLD) == 1)
		atomic_fetch_add(&j->calls[worker], 1);
}

static void workers_take_no_signals_of_the_program(void **state)
{
	struct lm_pool *p = pool_new();
	struct job j = { 0 };
	sigset_t set;

	(void)state;
	lm_pool_start(p, check_signals, &j);
	lm_pool_finish(p);
	for (unsigned i = 0; i < WORKERS; i++)
		assert_int_equal(j.calls[i], 1);
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	assert_int_equal(sigismember(&set, SIGINT), 0);
	lm_pool_free(p);
}

static void note_nice(void *ctx, unsigned worker)
{
	int *nice = ctx;

	nice[worker] = getpriority(PRIO_PROCESS, 0);
}

static void urgent_workers_have_less_nice_until_they_are_not(void **state)
{
	struct lm_pool *p = pool_new();
	int usual = getpriority(PRIO_PROCESS, 0), nice[WORKERS];

	(void)state;
	if (geteuid())
		skip(); /* it may not be allowed */
	lm_pool_start(p, note_nice, nice); /* so that all have begun */
	lm_pool_finish(p);
	for (int urgent = 1; urgent >= 0; urgent--) {
		lm_pool_set_urgent(p, urgent);
		lm_pool_set_urgent(p, urgent); /* twice is as good as once */
		lm_pool_start(p, note_nice, nice);
		lm_pool_finish(p);
		for (unsigned i = 0; i < WORKERS; i++)
			assert_true(urgent ? nice[i] < usual : nice[i] == usual);
		assert_int_equal(getpriority(PRIO_PROCESS, 0), usual);
	}
	lm_pool_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_worker_runs_each_job_once),
		cmocka_unit_test(done_fd_is_readable_from_the_end_of_the_last_worker_until_finish),
		cmocka_unit_test(finish_waits_without_the_descriptor_too),
		cmocka_unit_test(one_worker_can_be_waited_for_while_others_work),
		cmocka_unit_test(freeing_waits_for_a_running_job),
		cmocka_unit_test(a_worker_runs_once_more_in_the_same_job),
		cmocka_unit_test(an_unused_pool_can_be_freed),
		cmocka_unit_test(workers_take_no_signals_of_the_program),
		cmocka_unit_test(urgent_workers_have_less_nice_until_they_are_not),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
