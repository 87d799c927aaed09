/* SPDX-License-Identifier: Apache-2.0 */
/* A process into which calls are injected notices nothing, whatever it does, and gets all its signals. */
#include <pthread.h>
#include <time.h>
#include "inject_rig.h"

/* Each injection forks a helper, which takes ten times as long under an address sanitizer. */
#ifdef __SANITIZE_ADDRESS__
#define INJECTIONS 200
#else
#define INJECTIONS 1000
#endif

static void inject_many(const char *name)
{
	int64_t sum = 0, max = 0;

	for (int i = 0; i < INJECTIONS; i++) {
		int64_t ns = inject_getpid();

		sum += ns;
		max = ns > max ? ns : max;
	}
	print_message("%s: held for %.0f us on average, %.0f at most\n", name, (double)sum / 1e3 / INJECTIONS,
		      (double)max / 1e3);
	assert_well();
}

static void notices_nothing(void (*work)(void), const char *name)
{
	child_start(work);
	first_turn_wait();
	inject_many(name);
	if (work != do_read && work != do_ppoll_forever)
		turns_wait(2);
	else
		assert_int_equal(sh->turns, 1);
	assert_well();
}

static void in_poll(void **state)
{
	(void)state;
	notices_nothing(do_poll, "poll");
}

static void in_ppoll_without_end(void **state)
{
	(void)state;
	notices_nothing(do_ppoll_forever, "ppoll");
}

static void in_read(void **state)
{
	(void)state;
	notices_nothing(do_read, "read");
}

static void in_nanosleep(void **state)
{
	(void)state;
	notices_nothing(do_nanosleep, "nanosleep");
}

static void in_futex(void **state)
{
	(void)state;
	notices_nothing(do_futex, "futex");
}

static void while_computing(void **state)
{
	(void)state;
	notices_nothing(do_spin, "spinning");
}

static void between_system_calls(void **state)
{
	(void)state;
	notices_nothing(do_getppid, "system calls");
}

/* ---- signals during injection ---- */

static _Atomic bool sending;

static void *send_signals(void *arg)
{
	const struct timespec pause = { .tv_nsec = 30000 };
	uint64_t *n = arg;

	while (sending) {
		union sigval v = { .sival_int = (int)*n };

		if (!sigqueue(child, SIGNAL, v))
			++*n;
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static void gets_all_signals(void (*work)(void), const char *name)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };
	pthread_t t;
	uint64_t sent = 0;

	child_start(work);
	first_turn_wait();
	sending = true;
	assert_int_equal(pthread_create(&t, NULL, send_signals, &sent), 0);
	inject_many(name);
	sending = false;
	pthread_join(t, NULL);
	for (int i = 0; i < 3000 && sh->signals < sent; i++)
		nanosleep(&pause, NULL);
	assert_true(sent > 100);
	assert_int_equal(sh->signals, sent);
	assert_well();
}

static void signals_in_poll(void **state)
{
	(void)state;
	gets_all_signals(do_poll, "poll with signals");
}

static void signals_in_read(void **state)
{
	(void)state;
	gets_all_signals(do_read, "read with signals");
}

static void signals_in_nanosleep(void **state)
{
	(void)state;
	gets_all_signals(do_nanosleep, "nanosleep with signals");
}

static void signals_while_computing(void **state)
{
	(void)state;
	gets_all_signals(do_spin, "spinning with signals");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, child_setup, child_teardown)
	const struct CMUnitTest tests[] = {
		T(in_poll),
		T(in_ppoll_without_end),
		T(in_read),
		T(in_nanosleep),
		T(in_futex),
		T(while_computing),
		T(between_system_calls),
		T(signals_in_poll),
		T(signals_in_read),
		T(signals_in_nanosleep),
		T(signals_while_computing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
