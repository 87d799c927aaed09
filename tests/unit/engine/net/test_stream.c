/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "engine/net/stream.h"

static struct lm_error err;

static int64_t in_ms(int64_t ms)
{
	return lm_now_ns() + ms * LM_NS_PER_MS;
}

/* ---- addresses ---- */

static void addresses_are_taken_apart(void **state)
{
	static const struct {
		const char *text, *host, *port;
	} good[] = {
		{ "127.0.0.1:4444", "127.0.0.1", "4444" }, { "[::1]:0", "::1", "0" },
		{ "host.example:65535", "host.example", "65535" }, { "[fe80::1%eth0]:1", "fe80::1%eth0", "1" },
	};
	char host[LM_ADDRESS_MAX], port[LM_PORT_MAX];

	(void)state;
	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(lm_address_parse(good[i].text, host, port, &err), 0);
		assert_string_equal(host, good[i].host);
		assert_string_equal(port, good[i].port);
	}
}

static void bad_addresses_are_refused_and_the_text_says_why(void **state)
{
	static const struct {
		const char *text, *why;
	} bad[] = {
		{ "", "no address" }, { "host", "no :PORT" }, { ":4444", "no host" }, { "[]:4444", "no host" },
		{ "[::1]", "no :PORT" }, { "[::1:4444", "[ without a ]" }, { "::1:4444", "brackets" },
		{ "host:", "port is not" }, { "host:http", "port is not" }, { "host:65536", "port is not" },
		{ "host:-1", "port is not" }, { "host:+1", "port is not" }, { "host: 1", "port is not" },
		{ "host:000001", "port is not" }, { "[::1]4444", "no :PORT" },
	};
	char host[LM_ADDRESS_MAX], port[LM_PORT_MAX], long_text[600];

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(lm_address_parse(bad[i].text, host, port, &err), -EINVAL);
		if (!strstr(err.msg, bad[i].why))
			fail_msg("\"%s\": %s", bad[i].text, err.msg);
	}
	assert_int_equal(lm_address_parse(NULL, host, port, &err), -EINVAL);
	memset(long_text, 'a', sizeof(long_text));
	strcpy(long_text + sizeof(long_text) - 4, ":80");
	assert_int_equal(lm_address_parse(long_text, host, port, &err), -EINVAL);
}

static bool loopback(int family, const char *text)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };

	assert_int_equal(inet_pton(family, text, family == AF_INET ? (void *)&v4.sin_addr : (void *)&v6.sin6_addr), 1);
	return lm_address_is_loopback(family == AF_INET ? (void *)&v4 : (void *)&v6);
}

static void only_this_host_is_loopback(void **state)
{
	(void)state;
	assert_true(loopback(AF_INET, "127.0.0.1"));
	assert_true(loopback(AF_INET, "127.255.255.254"));
	assert_true(loopback(AF_INET6, "::1"));
	assert_true(loopback(AF_INET6, "::ffff:127.3.2.1"));
	assert_false(loopback(AF_INET, "128.0.0.1"));
	assert_false(loopback(AF_INET, "0.0.0.0"));
	assert_false(loopback(AF_INET, "10.0.0.127"));
	assert_false(loopback(AF_INET6, "::"));
	assert_false(loopback(AF_INET6, "::ffff:10.0.0.1"));
	assert_false(loopback(AF_INET6, "::127.0.0.1"));
	assert_false(loopback(AF_INET6, "fe80::1"));
}

static void other_hosts_are_refused_without_insecure(void **state)
{
	char address[LM_ADDRESS_MAX];
	struct lm_stream *s;
	int fd;

	(void)state;
	assert_int_equal(lm_stream_listen("0.0.0.0:0", false, &fd, address, &err), -EACCES);
	assert_non_null(strstr(err.msg, "--insecure"));
	assert_int_equal(lm_stream_listen("[::]:0", false, &fd, address, &err), -EACCES);
	assert_int_equal(lm_stream_connect("192.0.2.1:1", false, in_ms(1000), -1, &s, &err), -EACCES);
	assert_non_null(strstr(err.msg, "192.0.2.1"));
	assert_int_equal(lm_stream_listen("0.0.0.0:0", true, &fd, address, &err), 0);
	close(fd);
}

/* ---- connections ---- */

struct pair {
	int listen_fd;
	char address[LM_ADDRESS_MAX];
	struct lm_stream *a, *b;
};

static void pair_open(struct pair *p, const char *address)
{
	if (lm_stream_listen(address, false, &p->listen_fd, p->address, &err) ||
	    lm_stream_connect(p->address, false, in_ms(2000), -1, &p->a, &err) ||
	    lm_stream_accept(p->listen_fd, false, in_ms(2000), -1, &p->b, &err))
		fail_msg("%s", err.msg);
}

static void pair_close(struct pair *p)
{
	lm_stream_close(p->a);
	lm_stream_close(p->b);
	close(p->listen_fd);
}

static int say(struct lm_stream *s, const void *buf, size_t len, int64_t deadline)
{
	struct iovec iov[2] = { { (void *)buf, len / 2 }, { (uint8_t *)buf + len / 2, len - len / 2 } };

	return lm_stream_send_all(s, iov, 2, deadline, -1, &err);
}

static void bytes_go_both_ways_over_ipv4_and_ipv6(void **state)
{
	static const char *const where[] = { "127.0.0.1:0", "[::1]:0", "localhost:0" };
	char buf[6];

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct pair p;

		pair_open(&p, where[i]);
		assert_int_equal(say(p.a, "hello", 6, in_ms(1000)), 0);
		assert_int_equal(lm_stream_recv_all(p.b, buf, 6, in_ms(1000), -1, &err), 0);
		assert_string_equal(buf, "hello");
		assert_int_equal(say(p.b, "world", 6, in_ms(1000)), 0);
		assert_int_equal(lm_stream_recv_all(p.a, buf, 6, in_ms(1000), -1, &err), 0);
		assert_string_equal(buf, "world");
		assert_string_equal(p.a->peer, p.address);
		assert_int_equal(lm_stream_raw_fd(p.a), lm_stream_fd(p.a));
		pair_close(&p);
	}
}

static void the_port_of_a_closed_listener_can_be_taken_again_at_once(void **state)
{
	char address[LM_ADDRESS_MAX];
	struct pair p;
	int fd;

	(void)state;
	pair_open(&p, "127.0.0.1:0");
	lm_stream_close(p.b); /* this side keeps the port in TIME_WAIT */
	lm_stream_close(p.a);
	close(p.listen_fd);
	assert_int_equal(lm_stream_listen(p.address, false, &fd, address, &err), 0);
	assert_string_equal(address, p.address);
	assert_true(lm_stream_listen(p.address, false, &p.listen_fd, address, &err) == -EADDRINUSE);
	close(fd);
}

static void nobody_there_is_refused_at_once(void **state)
{
	struct lm_stream *s;
	struct pair p;

	(void)state;
	pair_open(&p, "127.0.0.1:0");
	pair_close(&p);
	assert_int_equal(lm_stream_connect(p.address, false, in_ms(5000), -1, &s, &err), -ECONNREFUSED);
	assert_non_null(strstr(err.msg, p.address));
}

static void waiting_ends_at_the_deadline(void **state)
{
	int64_t start = lm_now_ns();
	struct lm_stream *s;
	struct pair p;
	char byte;

	(void)state;
	pair_open(&p, "127.0.0.1:0");
	assert_int_equal(lm_stream_recv_all(p.a, &byte, 1, in_ms(50), -1, &err), -ETIMEDOUT);
	assert_int_equal(lm_stream_accept(p.listen_fd, false, in_ms(50), -1, &s, &err), -ETIMEDOUT);
	assert_true(lm_now_ns() - start >= 100 * LM_NS_PER_MS);
	assert_true(lm_now_ns() - start < 2000 * LM_NS_PER_MS);
	pair_close(&p);
}

static void a_peer_that_does_not_read_ends_sending_at_the_deadline(void **state)
{
	size_t len = 64 << 20;
	uint8_t *big = calloc(1, len);
	struct pair p;

	(void)state;
	assert_non_null(big);
	pair_open(&p, "127.0.0.1:0");
	assert_int_equal(say(p.a, big, len, in_ms(100)), -ETIMEDOUT);
	pair_close(&p);
	free(big);
}

static void waiting_ends_when_cancelled(void **state)
{
	struct lm_stream *s;
	struct pair p;
	int fds[2];
	char byte;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(write(fds[1], "c", 1), 1);
	pair_open(&p, "127.0.0.1:0");
	assert_int_equal(lm_stream_recv_all(p.a, &byte, 1, in_ms(5000), fds[0], &err), -ECANCELED);
	assert_int_equal(lm_stream_accept(p.listen_fd, false, in_ms(5000), fds[0], &s, &err), -ECANCELED);
	pair_close(&p);
	close(fds[0]);
	close(fds[1]);
}

static void the_end_of_the_stream_before_the_last_byte_is_an_error(void **state)
{
	struct pair p;
	char buf[8];

	(void)state;
	pair_open(&p, "127.0.0.1:0");
	assert_int_equal(say(p.a, "1234", 4, in_ms(1000)), 0);
	lm_stream_close(p.a);
	p.a = NULL;
	assert_int_equal(lm_stream_recv_all(p.b, buf, 8, in_ms(1000), -1, &err), -ECONNRESET);
	pair_close(&p);
}

static void *shut_soon(void *arg)
{
	usleep(30000);
	lm_stream_shut(arg);
	return NULL;
}

static void shut_from_another_thread_wakes_a_reader(void **state)
{
	int64_t start = lm_now_ns();
	pthread_t thread;
	struct pair p;
	char byte;

	(void)state;
	pair_open(&p, "127.0.0.1:0");
	assert_int_equal(pthread_create(&thread, NULL, shut_soon, p.a), 0);
	assert_int_equal(lm_stream_recv_all(p.a, &byte, 1, in_ms(5000), -1, &err), -ECONNRESET);
	pthread_join(thread, NULL);
	assert_true(lm_now_ns() - start < 2000 * LM_NS_PER_MS);
	pair_close(&p);
}

struct transfer {
	struct lm_stream *s;
	uint8_t *buf;
	size_t len;
	int result;
};

static void *receive(void *arg)
{
	struct transfer *t = arg;

	t->result = lm_stream_recv_all(t->s, t->buf, t->len, in_ms(20000), -1, NULL);
	return NULL;
}

static void megabytes_arrive_whole(void **state)
{
	size_t len = (16 << 20) + 13;
	uint8_t *out = malloc(len), *in = malloc(len);
	struct transfer t;
	pthread_t thread;
	struct pair p;

	(void)state;
	assert_true(out && in);
	for (size_t i = 0; i < len; i++)
		out[i] = (uint8_t)(i * 2654435761u >> 13);
	pair_open(&p, "[::1]:0");
	t = (struct transfer){ p.b, in, len, -1 };
	assert_int_equal(pthread_create(&thread, NULL, receive, &t), 0);
	assert_int_equal(say(p.a, out, len, in_ms(20000)), 0);
	pthread_join(thread, NULL);
	assert_int_equal(t.result, 0);
	assert_memory_equal(in, out, len);
	pair_close(&p);
	free(out);
	free(in);
}

static int option(struct lm_stream *s, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	assert_int_equal(getsockopt(lm_stream_fd(s), level, name, &value, &len), 0);
	return value;
}

static void the_peer_timeout_sets_keepalive_and_the_user_timeout(void **state)
{
	struct pair p;

	(void)state;
	pair_open(&p, "127.0.0.1:0");
	assert_true(option(p.b, IPPROTO_TCP, TCP_NODELAY));
	assert_true(option(p.b, SOL_SOCKET, SO_KEEPALIVE));
	assert_int_equal(option(p.b, IPPROTO_TCP, TCP_USER_TIMEOUT), 30000);
	assert_int_equal(lm_stream_set_peer_timeout(p.a, 8 * LM_NS_PER_S, &err), 0);
	assert_int_equal(option(p.a, IPPROTO_TCP, TCP_USER_TIMEOUT), 8000);
	assert_int_equal(option(p.a, IPPROTO_TCP, TCP_KEEPIDLE), 2);
	assert_int_equal(lm_stream_set_peer_timeout(p.a, 0, &err), -EINVAL);
	pair_close(&p);
}

static void a_socket_pair_is_a_stream_too(void **state)
{
	struct lm_stream *a, *b;
	char buf[3];
	int fds[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(lm_stream_adopt(fds[0], false, &a, &err), 0);
	assert_int_equal(lm_stream_adopt(fds[1], false, &b, &err), 0);
	assert_int_equal(say(a, "ab", 3, in_ms(1000)), 0);
	assert_int_equal(lm_stream_recv_all(b, buf, 3, in_ms(1000), -1, &err), 0);
	assert_string_equal(buf, "ab");
	assert_string_equal(a->peer, "local");
	lm_stream_close(a);
	lm_stream_close(b);
	lm_stream_close(NULL);
}

static void an_iovec_is_used_up_from_the_front(void **state)
{
	char a[4], b[4];
	struct iovec iov[3] = { { a, 4 }, { b, 0 }, { b, 4 } }, *p = iov;

	(void)state;
	assert_int_equal(lm_iov_advance(&p, 3, 3), 3);
	assert_ptr_equal(p->iov_base, a + 3);
	assert_int_equal(lm_iov_advance(&p, 3, 1), 1);
	assert_ptr_equal(p->iov_base, b);
	assert_int_equal(lm_iov_advance(&p, 1, 4), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addresses_are_taken_apart),
		cmocka_unit_test(bad_addresses_are_refused_and_the_text_says_why),
		cmocka_unit_test(only_this_host_is_loopback),
		cmocka_unit_test(other_hosts_are_refused_without_insecure),
		cmocka_unit_test(bytes_go_both_ways_over_ipv4_and_ipv6),
		cmocka_unit_test(the_port_of_a_closed_listener_can_be_taken_again_at_once),
		cmocka_unit_test(nobody_there_is_refused_at_once),
		cmocka_unit_test(waiting_ends_at_the_deadline),
		cmocka_unit_test(a_peer_that_does_not_read_ends_sending_at_the_deadline),
		cmocka_unit_test(waiting_ends_when_cancelled),
		cmocka_unit_test(the_end_of_the_stream_before_the_last_byte_is_an_error),
		cmocka_unit_test(shut_from_another_thread_wakes_a_reader),
		cmocka_unit_test(megabytes_arrive_whole),
		cmocka_unit_test(the_peer_timeout_sets_keepalive_and_the_user_timeout),
		cmocka_unit_test(a_socket_pair_is_a_stream_too),
		cmocka_unit_test(an_iovec_is_used_up_from_the_front),
	};

	return cmocka_run_group_tests_name("streams and addresses", tests, NULL, NULL);
}
