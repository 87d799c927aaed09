/* SPDX-License-Identifier: Apache-2.0 */
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>
#include "unit.h"
#include "engine/base/cleanup.h"
#include "netrelay.h"

struct pump {
	struct netrelay *r;
	int from, to;
};

static void *pump_main(void *arg)
{
	struct pump *p = arg;
	uint8_t buf[16384];
	ssize_t n;

	while ((n = recv(p->from, buf, sizeof(buf), 0)) > 0) {
		while (atomic_load(&p->r->silent) && !atomic_load(&p->r->stop))
			unit_sleep_ms(2);
		for (ssize_t done = 0, k; done < n; done += k) {
			k = send(p->to, buf + done, (size_t)(n - done), MSG_NOSIGNAL);
			if (k <= 0)
				goto out;
		}
	}
out:
	shutdown(p->from, SHUT_RDWR);
	shutdown(p->to, SHUT_RDWR);
	atomic_fetch_sub(&p->r->users, 1);
	free(p);
	return NULL;
}

static void pump_start(struct netrelay *r, int from, int to)
{
	struct pump *p = malloc(sizeof(*p));
	pthread_t t;

	*p = (struct pump){ r, from, to };
	atomic_fetch_add(&r->users, 1);
	pthread_create(&t, NULL, pump_main, p);
	pthread_detach(t);
}

int netrelay_connect(const char *address)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				   .sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1)) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (struct sockaddr *)&sin, sizeof(sin)))
		lm_close_fd(&fd);
	return fd;
}

static bool refuses(const struct netrelay *r)
{
	return atomic_load(&r->refuses) || (r->only && r->nfds >= 2 * r->only);
}

static void *relay_main(void *arg)
{
	struct netrelay *r = arg;

	for (;;) {
		int a = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC), b;

		if (a < 0)
			return NULL;
		pthread_mutex_lock(&r->mutex);
		b = refuses(r) ? -1 : netrelay_connect(r->target);
		if (b < 0 && r->holds && r->nfds < 2 * NETRELAY_CONNECTIONS) {
			r->fds[r->nfds++] = a;
			r->fds[r->nfds++] = -1;
		} else if (b < 0 || r->nfds == 2 * NETRELAY_CONNECTIONS) {
			close(a);
			lm_close_fd(&b);
		} else {
			r->fds[r->nfds++] = a;
			r->fds[r->nfds++] = b;
			pump_start(r, a, b);
			pump_start(r, b, a);
		}
		pthread_mutex_unlock(&r->mutex);
	}
}

struct netrelay *netrelay_new(const char *target)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct netrelay *r = calloc(1, sizeof(*r));
	socklen_t len = sizeof(sin);

	snprintf(r->target, sizeof(r->target), "%s", target);
	pthread_mutex_init(&r->mutex, NULL);
	r->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(r->listen_fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	assert_int_equal(listen(r->listen_fd, 64), 0);
	getsockname(r->listen_fd, (struct sockaddr *)&sin, &len);
	snprintf(r->address, sizeof(r->address), "127.0.0.1:%d", ntohs(sin.sin_port));
	pthread_create(&r->thread, NULL, relay_main, r);
	return r;
}

void netrelay_cut(struct netrelay *r)
{
	pthread_mutex_lock(&r->mutex);
	for (unsigned i = 0; i < r->nfds; i++)
		shutdown(r->fds[i], SHUT_RDWR);
	pthread_mutex_unlock(&r->mutex);
}

void netrelay_retarget(struct netrelay *r, const char *target)
{
	pthread_mutex_lock(&r->mutex);
	snprintf(r->target, sizeof(r->target), "%s", target);
	pthread_mutex_unlock(&r->mutex);
}

void netrelay_free(struct netrelay *r)
{
	atomic_store(&r->stop, true);
	shutdown(r->listen_fd, SHUT_RDWR);
	pthread_join(r->thread, NULL);
	close(r->listen_fd);
	netrelay_cut(r);
	while (atomic_load(&r->users))
		unit_sleep_ms(1);
	for (unsigned i = 0; i < r->nfds; i++)
		lm_close_fd(&r->fds[i]);
	pthread_mutex_destroy(&r->mutex);
	free(r);
}
