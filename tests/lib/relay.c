/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TCP relay between two engines: the network that a test can cut.
 *
 * Cut: every connection is reset on both sides and no new one is let in.
 * Silence: nothing is closed and nothing moves any more, as when a cable is out.
 *
 * A command, for LM_FAULT=STAGE:run=..., cuts from inside an engine's stage: it
 * writes a word into one fifo and waits for the answer in another.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <unistd.h>
#include "internal.h"

#define LINKS_MAX	32
#define BUFFER_SIZE	(256u << 10)
#define SAID_MAX	(4u << 20)

enum { CLIENT, SERVER };

/* Bytes on their way from one socket to the other. */
struct flow {
	uint8_t *buf;
	size_t from, to;
	bool ended, passed_on; /* no more will come; the other side was told so */
	bool kept;             /* what it carries is kept in the relay's `said` */
};

struct link {
	int fd[2];
	struct flow flow[2]; /* by the side that they come from */
};

struct rig_relay {
	struct rig_relay *next;
	pthread_t thread;
	atomic_bool stop;
	struct sockaddr_storage to;
	socklen_t to_len;
	int listen_fd, ask, answer; /* the fifos */
	bool silent;
	struct link link[LINKS_MAX];
	unsigned nlinks;
	uint8_t *said;
	size_t said_len;
	in_port_t port;
	char address[64];
	char mend[2 * RIG_PATH_MAX + 64];
	char cut[2 * RIG_PATH_MAX + 64], silence[2 * RIG_PATH_MAX + 64];
};

static void link_close(struct link *l, bool reset)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	for (int s = 0; s < 2; s++) {
		if (reset)
			setsockopt(l->fd[s], SOL_SOCKET, SO_LINGER, &now, sizeof(now));
		close(l->fd[s]);
		free(l->flow[s].buf);
	}
}

static void cut_all(struct rig_relay *r)
{
	for (unsigned i = 0; i < r->nlinks; i++)
		link_close(&r->link[i], true);
	r->nlinks = 0;
	if (r->listen_fd >= 0)
		close(r->listen_fd);
	r->listen_fd = -1;
}

static void set_socket(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	fcntl(fd, F_SETFL, O_NONBLOCK);
}

static void let_in(struct rig_relay *r)
{
	int c = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC), s;
	struct link *l = &r->link[r->nlinks];

	if (c < 0)
		return;
	s = socket(r->to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s < 0 || r->nlinks == LINKS_MAX || connect(s, (struct sockaddr *)&r->to, r->to_len) < 0) {
		close(c);
		if (s >= 0)
			close(s);
		return;
	}
	set_socket(c);
	set_socket(s);
	*l = (struct link){ .fd = { c, s } };
	l->flow[0].buf = malloc(BUFFER_SIZE);
	l->flow[1].buf = malloc(BUFFER_SIZE);
	l->flow[CLIENT].kept = !r->said_len && !r->nlinks;
	r->nlinks++;
}

static void keep(struct rig_relay *r, const struct flow *f)
{
	size_t n = f->to < SAID_MAX - r->said_len ? f->to : SAID_MAX - r->said_len;

	if (!f->kept)
		return;
	memcpy(r->said + r->said_len, f->buf, n);
	r->said_len += n;
}

/* false: the connection is dead. */
static bool flow_move(struct rig_relay *r, struct flow *f, int in, int out)
{
	ssize_t n;

	if (f->from == f->to && !f->ended) {
		f->from = f->to = 0;
		n = recv(in, f->buf, BUFFER_SIZE, 0);
		if (n < 0 && errno != EAGAIN)
			return false;
		f->ended = !n;
		f->to = n > 0 ? (size_t)n : 0;
		keep(r, f);
	}
	if (f->from < f->to) {
		n = send(out, f->buf + f->from, f->to - f->from, MSG_NOSIGNAL);
		if (n < 0 && errno != EAGAIN)
			return false;
		f->from += n > 0 ? (size_t)n : 0;
	}
	if (f->ended && f->from == f->to && !f->passed_on) {
		shutdown(out, SHUT_WR);
		f->passed_on = true;
	}
	return true;
}

static bool link_move(struct rig_relay *r, struct link *l)
{
	return flow_move(r, &l->flow[CLIENT], l->fd[CLIENT], l->fd[SERVER]) &&
	       flow_move(r, &l->flow[SERVER], l->fd[SERVER], l->fd[CLIENT]) &&
	       !(l->flow[CLIENT].passed_on && l->flow[SERVER].passed_on);
}

static short link_wants(const struct link *l, int side)
{
	const struct flow *in = &l->flow[side], *out = &l->flow[!side];

	return (in->from == in->to && !in->ended ? POLLIN : 0) | (out->from < out->to ? POLLOUT : 0);
}

/* On the port that it had, or on any. */
static void listen_on(struct rig_relay *r, in_port_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = port };
	socklen_t len = sizeof(a);
	int one = 1;

	r->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(r->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	assert_int_equal(bind(r->listen_fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(r->listen_fd, 64), 0);
	assert_int_equal(getsockname(r->listen_fd, (struct sockaddr *)&a, &len), 0);
	r->port = a.sin_port;
	snprintf(r->address, sizeof(r->address), "127.0.0.1:%u", ntohs(a.sin_port));
}

static void obey(struct rig_relay *r)
{
	char word = 0;

	if (read(r->ask, &word, 1) != 1 || !strchr("csm", word))
		return;
	if (word == 'c')
		cut_all(r);
	else if (word == 'm' && r->listen_fd < 0)
		listen_on(r, r->port);
	r->silent = word == 's';
	if (write(r->answer, "done\n", 5) < 0)
		perror("relay");
}

static unsigned fill(struct rig_relay *r, struct pollfd *p)
{
	unsigned n = 0;

	p[n++] = (struct pollfd){ .fd = r->ask, .events = POLLIN };
	p[n++] = (struct pollfd){ .fd = r->silent ? -1 : r->listen_fd, .events = POLLIN };
	for (unsigned i = 0; i < r->nlinks && !r->silent; i++) {
		for (int s = 0; s < 2; s++) {
			short events = link_wants(&r->link[i], s);

			p[n++] = (struct pollfd){ .fd = events ? r->link[i].fd[s] : -1, .events = events };
		}
	}
	return n;
}

static void *relay(void *arg)
{
	struct rig_relay *r = arg;
	struct pollfd p[2 + 2 * LINKS_MAX];
	unsigned n;

	while (!atomic_load(&r->stop)) {
		n = fill(r, p);
		if (poll(p, n, 20) < 0)
			continue;
		if (p[0].revents)
			obey(r);
		if (r->silent)
			continue;
		for (unsigned i = r->nlinks; i-- > 0;) {
			if (!link_move(r, &r->link[i])) {
				link_close(&r->link[i], true);
				r->link[i] = r->link[--r->nlinks];
			}
		}
		if (r->listen_fd >= 0 && p[1].revents)
			let_in(r);
	}
	return NULL;
}

void rig_relay_to(struct rig_relay *r, const char *to)
{
	char host[64];
	const char *colon = strrchr(to, ':');
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST }, *a;

	assert_non_null(colon);
	snprintf(host, sizeof(host), "%.*s", (int)(colon - to), to);
	assert_int_equal(getaddrinfo(host, colon + 1, &hints, &a), 0);
	memcpy(&r->to, a->ai_addr, a->ai_addrlen);
	r->to_len = a->ai_addrlen;
	freeaddrinfo(a);
}

static int fifo(const char *path)
{
	assert_int_equal(mkfifo(path, 0600), 0);
	return open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
}

struct rig_relay *rig_relay_start(struct rig *rig)
{
	struct rig_relay *r = calloc(1, sizeof(*r));
	char ask[RIG_PATH_MAX], answer[RIG_PATH_MAX];
	static unsigned serial;

	assert_non_null(r);
	r->said = malloc(SAID_MAX);
	assert_non_null(r->said);
	listen_on(r, 0);
	serial++;
	rig_path(rig, ask, "%u.ask", serial);
	rig_path(rig, answer, "%u.answer", serial);
	r->ask = fifo(ask);
	r->answer = fifo(answer);
	snprintf(r->cut, sizeof(r->cut), "echo c >%s; read x <%s", ask, answer);
	snprintf(r->silence, sizeof(r->silence), "echo s >%s; read x <%s", ask, answer);
	snprintf(r->mend, sizeof(r->mend), "echo m >%s; read x <%s", ask, answer);
	assert_int_equal(pthread_create(&r->thread, NULL, relay, r), 0);
	r->next = rig->relays;
	rig->relays = r;
	return r;
}

void rig_relays_free(struct rig *rig)
{
	struct rig_relay *r, *next;

	for (r = rig->relays; r; r = next) {
		next = r->next;
		atomic_store(&r->stop, true);
		pthread_join(r->thread, NULL);
		cut_all(r);
		close(r->ask);
		close(r->answer);
		free(r->said);
		free(r);
	}
	rig->relays = NULL;
}

const char *rig_relay_address(const struct rig_relay *r)
{
	return r->address;
}

const char *rig_relay_cut_command(const struct rig_relay *r)
{
	return r->cut;
}

const char *rig_relay_silence_command(const struct rig_relay *r)
{
	return r->silence;
}

void rig_relay_cut(struct rig_relay *r)
{
	if (system(r->cut))
		fail_msg("the relay does not obey");
}

void rig_relay_silence(struct rig_relay *r)
{
	if (system(r->silence))
		fail_msg("the relay does not obey");
}

void rig_relay_mend(struct rig_relay *r)
{
	if (system(r->mend))
		fail_msg("the relay does not obey");
}

const uint8_t *rig_relay_said(const struct rig_relay *r, size_t *ret_len)
{
	*ret_len = r->said_len;
	return r->said;
}
