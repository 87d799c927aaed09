/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a hostile peer can send over a TCP lane, against the real receive paths:
 * frames, checks, placing, answers.
 *
 * The input is one byte that says how it is cut into pieces (bits 0-2), whether the
 * lane has a pipe (bit 3) and whose end it is (bits 4-5), then the bytes of the
 * stream.  The lane is one end of a socket pair.  Afterwards the guard pages around
 * the regions must be as they were, and so must all of the source's memory, and of
 * the destination's what it did not ask for.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "engine/tcp/tcp_transport.h"
#include "engine/base/cleanup.h"
#include "fuzz.h"
#include "engine/tcp/tcp.h"

/* Bits 4 and 5 */
enum role {
	PUSH_DEST,   /* hears batches and flushes */
	PULL_SOURCE, /* hears requests */
	PULL_DEST,   /* hears answers to `wanted`, below */
};

#define REGIONS 2
#define REGION_PAGES 8
#define GUARD_BYTE 0x5a
#define OLD_BYTE 0xa7

/* Pages [first, first + n) of the region, asked for in this order. */
static const struct { unsigned region, first, n; } wanted[] = { { 0, 1, 3 }, { 1, 0, 1 }, { 1, 6, 2 }, { 0, 5, 1 } };

struct target {
	struct tcp *tcp;
	int peer; /* the other end */
	struct lm_region regions[REGIONS];
	uint8_t *maps[REGIONS];
};

static void must(bool ok)
{
	if (!ok)
		abort();
}

/* The files live as long as the process: making them costs more than a run. */
static void regions_make(struct target *t)
{
	const size_t size = (REGION_PAGES + 2) * LM_PAGE_SIZE;

	for (unsigned i = 0; i < REGIONS; i++) {
		struct lm_region *r = &t->regions[i];

		if (!t->maps[i]) {
			r->fd = memfd_create("fuzz", MFD_CLOEXEC);
			must(r->fd >= 0 && !ftruncate(r->fd, (off_t)size));
			t->maps[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
			must(t->maps[i] != MAP_FAILED);
			memset(t->maps[i], GUARD_BYTE, LM_PAGE_SIZE);
			memset(t->maps[i] + size - LM_PAGE_SIZE, GUARD_BYTE, LM_PAGE_SIZE);
		}
		r->host = t->maps[i] + LM_PAGE_SIZE;
		r->file_offset = r->page_size = LM_PAGE_SIZE;
		r->size = REGION_PAGES * LM_PAGE_SIZE;
	}
}

static void guards_check(const struct target *t)
{
	static uint8_t guard[LM_PAGE_SIZE];

	memset(guard, GUARD_BYTE, sizeof(guard));
	for (unsigned i = 0; i < REGIONS; i++)
		must(!memcmp(t->maps[i], guard, sizeof(guard)) &&
		     !memcmp(t->maps[i] + (REGION_PAGES + 1) * LM_PAGE_SIZE, guard, sizeof(guard)));
}

/* What the memory holds before: a page of zeros, else nothing that is likely to be received. */
static uint8_t old_byte(unsigned page)
{
	return page == 2 ? 0 : OLD_BYTE;
}

static void regions_fill(struct target *t)
{
	for (unsigned i = 0; i < REGIONS; i++)
		for (unsigned page = 0; page < REGION_PAGES; page++)
			memset(t->regions[i].host + page * LM_PAGE_SIZE, old_byte(page), LM_PAGE_SIZE);
}

static bool is_wanted(enum role role, unsigned region, unsigned page)
{
	for (unsigned i = 0; role == PULL_DEST && i < sizeof(wanted) / sizeof(wanted[0]); i++)
		if (wanted[i].region == region && page >= wanted[i].first && page < wanted[i].first + wanted[i].n)
			return true;
	return role == PUSH_DEST;
}

static void regions_check(const struct target *t, enum role role)
{
	for (unsigned i = 0; i < REGIONS; i++)
		for (unsigned page = 0; page < REGION_PAGES; page++)
			for (unsigned k = 0; !is_wanted(role, i, page) && k < LM_PAGE_SIZE; k++)
				must(t->regions[i].host[page * LM_PAGE_SIZE + k] == old_byte(page));
}

static void ask(struct target *t)
{
	for (unsigned i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		struct lm_run run = { .region = wanted[i].region, .offset = wanted[i].first * LM_PAGE_SIZE,
				      .len = wanted[i].n * LM_PAGE_SIZE };

		must(lm_transport_fetch(&t->tcp->base, 0, &run, 1, NULL) == 1);
	}
}

static void target_open(struct target *t, enum role role, bool with_pipe)
{
	struct tcp_lane *l;
	struct lm_key key;
	int fds[2];

	t->tcp = (struct tcp *)lm_transport_tcp_new();
	must(t->tcp && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
	t->peer = fds[0];
	t->tcp->base.side = role == PULL_SOURCE ? LM_SOURCE : LM_DEST;
	t->tcp->base.direction = role == PUSH_DEST ? LM_PUSH : LM_PULL;
	t->tcp->base.nlanes = 1;
	t->tcp->base.is_open = true;
	t->tcp->lanes = l = calloc(1, sizeof(*l));
	must(l && !lm_stream_adopt(fds[1], false, &l->stream, NULL));
	l->pipe[0] = l->pipe[1] = -1;
	must(role == PULL_SOURCE ? !tcp_send_init(l) : !tcp_recv_init(l));
	must(role != PULL_DEST || !tcp_fetch_init(l));
	if (!with_pipe) {
		lm_close_fd(&l->pipe[0]);
		lm_close_fd(&l->pipe[1]);
	}
	for (unsigned i = 0; i < REGIONS; i++)
		must(!lm_transport_region_add(&t->tcp->base, &t->regions[i], &key, NULL));
	if (role == PULL_DEST)
		ask(t);
}

/* As much as the lane takes; false when it is dead. */
static bool lane_poll(struct target *t)
{
	struct lm_poll_result res;
	uint8_t answers[4096];
	int r = lm_transport_poll(&t->tcp->base, 0, 0, &res, NULL);

	must(r != -EAGAIN && r <= 0);
	must(res.fetched <= sizeof(wanted) / sizeof(wanted[0]));
	while (recv(t->peer, answers, sizeof(answers), 0) > 0)
		;
	return !r && !res.closed;
}

static void feed(struct target *t, const uint8_t *data, size_t size, size_t piece)
{
	while (size) {
		ssize_t n = send(t->peer, data, size < piece ? size : piece, MSG_NOSIGNAL);

		if (!lane_poll(t))
			return;
		if (n < 0)
			continue;
		data += n;
		size -= (size_t)n;
	}
	close(t->peer);
	t->peer = -1;
	while (lane_poll(t))
		;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const size_t pieces[] = { 1 << 20, 1 << 20, 1 << 20, 4096, 1000, 63, 7, 1 };
	static struct target t;
	enum role role;
	size_t piece;

	if (!size || size > (1 << 20) || (data[0] >> 4 & 3) > PULL_DEST)
		return 0;
	role = (enum role)(data[0] >> 4 & 3);
	piece = pieces[data[0] & 7];
	if (piece < size / 128)
		piece = size / 128;
	regions_make(&t);
	if (role != PUSH_DEST)
		regions_fill(&t);
	target_open(&t, role, data[0] & 8);
	feed(&t, data + 1, size - 1, piece);
	guards_check(&t);
	regions_check(&t, role);
	if (t.peer >= 0)
		close(t.peer);
	lm_transport_free(&t.tcp->base);
	return 0;
}
