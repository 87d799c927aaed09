/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One side of the rdma transport, moving guest memory without a guest: for bench/rdma-lab.
 *
 *	rdma-goodput dest   -a ADDRESS:PORT [-m MIB] [-d MIB] [-p PIN] [-l LANES] [-r RAIL]...
 *	rdma-goodput source -a ADDRESS:PORT ...the same...
 *
 * The memory is a file of -m MiB; the first -d MiB of the source's hold data, the rest is a
 * hole.  The first page goes alone and is flushed, for the time to the first byte; then
 * the lanes take runs of 1 MiB.  Both sides print one JSON object.  The destination looks at
 * every page.
 *
 * The control channel is a plain TCP connection that carries the endpoint and the key: a
 * benchmark, on a network of its own.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include "rdma/rdma_transport.h"
#include "engine/base/clock.h"
#include "engine/transport/transport.h"

#define MIB (UINT64_C(1) << 20)
#define RUN MIB
#define WINDOW (8 * MIB) /* a lane has so much under way, twice what ends with a completion: the lanes share the work as it gets done */
#define RAILS_MAX 8

struct side {
	enum lm_side side;
	struct lm_transport *t;
	struct lm_transport_params params;
	struct lm_region region;
	uint64_t size, data;
	const char *pin, *address;
	const char *rails[RAILS_MAX];
	uint8_t endpoint[LM_ENDPOINT_SIZE];
	struct lm_key key, peer_key;
	_Atomic uint64_t next;
	int control;
	int64_t begin_ns, known_ns, first_ns, end_ns;
	struct rusage at_begin, at_known, at_end;
	uint64_t pinned;
	unsigned bad;
};

struct lane {
	struct side *s;
	unsigned index;
	uint64_t sent, done, flushed, seq;
	pthread_t thread;
};

static struct side side;
static struct lane lanes[LM_LANES_MAX];

static _Noreturn void die(const char *what, const char *why)
{
	fprintf(stderr, "rdma-goodput: %s: %s\n", what, why);
	exit(1);
}

/* ---- the control channel ---- */

static void whole(int fd, void *data, size_t len, bool out)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = out ? write(fd, (char *)data + at, len - at) : read(fd, (char *)data + at, len - at);

		if (n <= 0)
			die("control channel", n ? strerror(errno) : "closed");
		at += (size_t)n;
	}
}

static struct sockaddr_in address_of(const char *text)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	char host[64];
	unsigned port;

	if (sscanf(text, "%63[^:]:%u", host, &port) != 2 || port > UINT16_MAX || inet_pton(AF_INET, host, &a.sin_addr) != 1)
		die(text, "not ADDRESS:PORT");
	a.sin_port = htons((uint16_t)port);
	return a;
}

static int control_open(const struct side *s)
{
	struct sockaddr_in a = address_of(s->address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, peer;

	if (s->side == LM_SOURCE) {
		if (connect(fd, (struct sockaddr *)&a, sizeof(a)))
			die(s->address, strerror(errno));
		return fd;
	}
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 1))
		die(s->address, strerror(errno));
	puts("listening");
	fflush(stdout);
	peer = accept(fd, NULL, NULL);
	if (peer < 0)
		die(s->address, strerror(errno));
	close(fd);
	return peer;
}

/* ---- memory ---- */

static void memory_make(struct side *s)
{
	struct lm_region *r = &s->region;

	r->fd = memfd_create("guest", MFD_CLOEXEC);
	if (r->fd < 0 || ftruncate(r->fd, (off_t)s->size))
		die("memory", strerror(errno));
	r->host = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (r->host == MAP_FAILED)
		die("memory", strerror(errno));
	r->size = s->size;
	r->page_size = LM_PAGE_SIZE;
	snprintf(r->name, sizeof(r->name), "ram");
	for (uint64_t at = 0; s->side == LM_SOURCE && at < s->data; at += LM_PAGE_SIZE) {
		memset(r->host + at, 0x5a, LM_PAGE_SIZE);
		memcpy(r->host + at, &(uint64_t){ at + 1 }, sizeof(at));
	}
}

static unsigned bad_pages(const struct side *s)
{
	unsigned bad = 0;

	for (uint64_t at = 0; at < s->data; at += LM_PAGE_SIZE) {
		uint64_t first;

		memcpy(&first, s->region.host + at, sizeof(first));
		bad += first != at + 1 || s->region.host[at + LM_PAGE_SIZE - 1] != 0x5a;
	}
	return bad;
}

static uint64_t pinned_bytes(void)
{
	unsigned long kib = 0;
	char line[128];
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "VmPin: %lu", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return (uint64_t)kib << 10;
}

/* ---- lanes ---- */

static void lane_poll(struct lane *l, int timeout_ms)
{
	struct lm_poll_result res;
	struct lm_error err = { 0 };

	if (lm_transport_poll(l->s->t, l->index, timeout_ms, &res, &err) || res.closed)
		die("lane", err.msg);
	l->done += res.bytes;
	l->flushed = res.flushed;
}

static void lane_write(struct lane *l, uint64_t offset, uint64_t len)
{
	struct lm_run run = { .kind = LM_RUN_DATA, .offset = offset, .len = len };
	struct lm_error err = { 0 };
	int r;

	while (l->sent - l->done >= WINDOW)
		lane_poll(l, 100);
	while ((r = lm_transport_write(l->s->t, l->index, &run, 1, &err)) == -EAGAIN)
		lane_poll(l, 100);
	if (r < 0)
		die("write", err.msg);
	l->sent += len;
}

static void lane_flush(struct lane *l)
{
	struct lm_error err = { 0 };
	int r;

	l->seq++;
	while ((r = lm_transport_flush(l->s->t, l->index, l->seq, &err)) == -EAGAIN)
		lane_poll(l, 100);
	if (r)
		die("flush", err.msg);
	while (l->flushed < l->seq)
		lane_poll(l, 100);
}

static void *lane_send(void *arg)
{
	struct lane *l = arg;
	struct side *s = l->s;
	uint64_t at;

	while ((at = atomic_fetch_add(&s->next, RUN)) < s->data) {
		uint64_t skip = at ? 0 : LM_PAGE_SIZE; /* that went first */

		lane_write(l, at + skip, RUN - skip);
	}
	lane_flush(l);
	return NULL;
}

static void *lane_receive(void *arg)
{
	struct lane *l = arg;
	struct lm_poll_result res = { 0 };
	struct lm_error err = { 0 };

	while (!res.closed)
		if (lm_transport_poll(l->s->t, l->index, 1000, &res, &err))
			die("lane", err.msg);
	return NULL;
}

static void lanes_run(struct side *s, void *(*fn)(void *))
{
	for (unsigned i = 0; i < s->params.nlanes; i++)
		if (pthread_create(&lanes[i].thread, NULL, fn, &lanes[i]))
			die("thread", strerror(errno));
	for (unsigned i = 0; i < s->params.nlanes; i++)
		pthread_join(lanes[i].thread, NULL);
}

/* ---- both sides, in the session's order: the destination's memory, its key, the source's memory ---- */

static void mark(int64_t *ret_ns, struct rusage *ret)
{
	*ret_ns = lm_now_ns();
	getrusage(RUSAGE_SELF, ret);
}

static void source(struct side *s)
{
	struct lm_error err = { 0 };

	whole(s->control, s->endpoint, sizeof(s->endpoint), false);
	mark(&s->begin_ns, &s->at_begin);
	s->params.deadline_ns = lm_now_ns() + 20 * LM_NS_PER_S;
	s->params.endpoint = s->endpoint;
	if (lm_transport_open(s->t, &s->params, &err))
		die("open", err.msg);
	whole(s->control, &s->peer_key, sizeof(s->peer_key), false);
	if (lm_transport_region_add(s->t, &s->region, &s->key, &err) ||
	    lm_transport_region_bind(s->t, 0, &s->peer_key, &err))
		die("memory", err.msg);
	mark(&s->known_ns, &s->at_known);
	lane_write(&lanes[0], 0, LM_PAGE_SIZE);
	lane_flush(&lanes[0]);
	s->first_ns = lm_now_ns();
	lanes_run(s, lane_send);
	mark(&s->end_ns, &s->at_end);
	s->pinned = pinned_bytes();
}

static void dest(struct side *s)
{
	struct lm_error err = { 0 };

	s->params.deadline_ns = lm_now_ns() + 20 * LM_NS_PER_S;
	if (lm_transport_listen(s->t, &s->params, s->endpoint, &err))
		die("listen", err.msg);
	whole(s->control, s->endpoint, sizeof(s->endpoint), true);
	mark(&s->begin_ns, &s->at_begin);
	if (lm_transport_open(s->t, &s->params, &err) || lm_transport_region_add(s->t, &s->region, &s->key, &err))
		die("open", err.msg);
	whole(s->control, &s->key, sizeof(s->key), true);
	mark(&s->known_ns, &s->at_known);
	s->first_ns = s->known_ns;
	lanes_run(s, lane_receive);
	mark(&s->end_ns, &s->at_end);
	s->pinned = pinned_bytes();
	s->bad = bad_pages(s);
}

/* ---- */

static double seconds(struct timeval to, struct timeval from)
{
	return (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_usec - from.tv_usec) * 1e-6;
}

static void report(const struct side *s)
{
	const struct rusage *from = &s->at_known, *to = &s->at_end, *zero = &s->at_begin;

	printf("{\"bytes\": %llu, \"register_s\": %.4f, \"first_s\": %.4f, \"copy_s\": %.4f, \"total_s\": %.4f, "
	       "\"user_s\": %.4f, \"system_s\": %.4f, \"all_user_s\": %.4f, \"all_system_s\": %.4f, "
	       "\"pinned\": %llu, \"bad\": %u, \"info\": \"%s\"}\n",
	       (unsigned long long)s->data, (double)(s->known_ns - s->begin_ns) * 1e-9,
	       (double)(s->first_ns - s->begin_ns) * 1e-9, (double)(s->end_ns - s->known_ns) * 1e-9,
	       (double)(s->end_ns - s->begin_ns) * 1e-9,
	       seconds(to->ru_utime, from->ru_utime), seconds(to->ru_stime, from->ru_stime),
	       seconds(to->ru_utime, zero->ru_utime), seconds(to->ru_stime, zero->ru_stime),
	       (unsigned long long)s->pinned, s->bad, s->t->info);
}

static enum lm_pin pin_of(const char *name)
{
	static const char *const names[] = {
		[LM_PIN_AUTO] = "auto", [LM_PIN_ALL] = "all", [LM_PIN_CHUNK] = "chunk", [LM_PIN_ODP] = "odp",
	};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(name, names[i]))
			return (enum lm_pin)i;
	die(name, "not a way to pin: all, chunk, odp, auto");
}

static unsigned long number(const char *text, unsigned long max)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*end || !n || n > max)
		die(text, "not a number in range");
	return n;
}

static void option(struct side *s, int c, const char *value)
{
	switch (c) {
	case 'a': s->address = value; break;
	case 'm': s->size = number(value, 1 << 20) * MIB; break;
	case 'd': s->data = number(value, 1 << 20) * MIB; break;
	case 'p': s->params.pin = pin_of(value); break;
	case 'l': s->params.nlanes = (unsigned)number(value, LM_LANES_MAX); break;
	case 'r':
		if (s->params.nrails == RAILS_MAX)
			die(value, "too many rails");
		s->rails[s->params.nrails++] = value;
		break;
	default: exit(2);
	}
}

static void options(struct side *s, int argc, char **argv)
{
	int c;

	s->size = 128 * MIB;
	s->params = (struct lm_transport_params){
		.nlanes = 1, .pin = LM_PIN_ALL, .rails = s->rails, .token = "rdma-goodput", .listen_fd = -1,
		.cancel_fd = -1, .insecure = true,
	};
	while ((c = getopt(argc, argv, "a:m:d:p:l:r:")) != -1)
		option(s, c, optarg);
	if (!s->data)
		s->data = s->size;
	if (optind + 1 != argc || !s->address || s->data > s->size ||
	    (strcmp(argv[optind], "source") && strcmp(argv[optind], "dest")))
		die("usage", "source|dest -a ADDRESS:PORT [-m MIB] [-d MIB] [-p PIN] [-l LANES] [-r RAIL]...");
	s->side = s->params.side = strcmp(argv[optind], "source") ? LM_DEST : LM_SOURCE;
}

int main(int argc, char **argv)
{
	struct side *s = &side;

	options(s, argc, argv);
	for (unsigned i = 0; i < LM_LANES_MAX; i++)
		lanes[i] = (struct lane){ .s = s, .index = i };
	s->t = lm_transport_rdma_new();
	if (!s->t)
		die("transport", "out of memory");
	memory_make(s);
	s->control = control_open(s);
	if (s->side == LM_SOURCE)
		source(s);
	else
		dest(s);
	report(s);
	lm_transport_free(s->t);
	return s->bad ? 1 : 0;
}
