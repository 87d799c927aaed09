/* SPDX-License-Identifier: Apache-2.0 */
/* A reader that does not read must not be felt by the writer. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "unit.h"
#include "sink.h"

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* All that comes out of fd until it ends. */
static size_t drain(int fd, char *buf, size_t size)
{
	size_t len = 0;
	ssize_t n;

	while (len < size && (n = read(fd, buf + len, size - len)) > 0)
		len += (size_t)n;
	return len;
}

static void text_comes_out_whole_and_in_order(void **state)
{
	char want[20000] = "", got[20000], word[16];
	struct cli_sink *sink;
	size_t len = 0;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(cli_sink_open(fds[1], &sink), 0);
	for (int i = 0; i < 2000; i++) {
		int n = snprintf(word, sizeof(word), "%d\n", i);

		memcpy(want + len, word, (size_t)n);
		len += (size_t)n;
		cli_sink_put(sink, CLI_NORMAL, word, (size_t)n);
	}
	cli_sink_close(sink, 10000);
	close(fds[1]);
	assert_int_equal(drain(fds[0], got, sizeof(got)), len);
	assert_memory_equal(got, want, len);
	close(fds[0]);
}

/* The result is kept, progress is not, and the caller waits for nothing. */
static void a_reader_that_stopped_holds_nobody_up(void **state)
{
	static char piece[4096], got[8 << 20];
	struct cli_sink *sink;
	int64_t began = now_ms();
	size_t len;
	int fds[2];

	(void)state;
	memset(piece, 'x', sizeof(piece));
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(cli_sink_open(fds[1], &sink), 0);
	for (int i = 0; i < 1000; i++) {
		cli_sink_put(sink, CLI_MAY_DROP, piece, sizeof(piece));
		cli_sink_put(sink, CLI_NORMAL, piece, sizeof(piece));
	}
	cli_sink_put(sink, CLI_MUST_KEEP, "the result\n", 11);
	assert_true(now_ms() - began < 5000);
	assert_true(cli_sink_take_dropped(sink) > 1000);
	assert_int_equal(cli_sink_take_dropped(sink), 0);
	began = now_ms();
	cli_sink_flush(sink, 50);
	assert_true(now_ms() - began >= 50);
	fcntl(fds[0], F_SETFL, O_NONBLOCK);
	len = 0;
	for (int i = 0; i < 5000 && !memmem(got, len, "the result\n", 11); i++) {
		struct pollfd p = { .fd = fds[0], .events = POLLIN };

		poll(&p, 1, 10);
		len += drain(fds[0], got + len, sizeof(got) - len);
	}
	assert_non_null(memmem(got, len, "the result\n", 11));
	cli_sink_close(sink, 10000);
	close(fds[0]);
	close(fds[1]);
}

static void a_reader_that_is_gone_is_forgotten(void **state)
{
	struct cli_sink *sink;
	int fds[2];

	(void)state;
	signal(SIGPIPE, SIG_IGN);
	assert_int_equal(pipe(fds), 0);
	close(fds[0]);
	assert_int_equal(cli_sink_open(fds[1], &sink), 0);
	cli_sink_put(sink, CLI_NORMAL, "x\n", 2);
	cli_sink_flush(sink, 5000);
	cli_sink_put(sink, CLI_MUST_KEEP, "y\n", 2);
	assert_int_equal(cli_sink_take_dropped(sink), 1);
	cli_sink_close(sink, 5000);
	close(fds[1]);
	assert_int_equal(cli_sink_open(-1, &sink), 0);
	cli_sink_put(sink, CLI_NORMAL, "x\n", 2);
	cli_sink_close(sink, 5000);
	cli_sink_close(NULL, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_comes_out_whole_and_in_order),
		cmocka_unit_test(a_reader_that_stopped_holds_nobody_up),
		cmocka_unit_test(a_reader_that_is_gone_is_forgotten),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
