/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a hostile source can send over a TCP lane, against the destination's real
 * receive path: frames, checks, placing, answers.
 *
 * The input is one byte that says how it is cut into pieces and whether the lane
 * has a pipe, then the bytes of the stream.  The lane is one end of a socket pair.
 * After every run the guard pages around the regions must be as they were.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "cleanup.h"
#include "fuzz.h"
#include "transport_tcp.h"

#define REGIONS 2
#define REGION_PAGES 8
#define GUARD_BYTE 0x5a

struct target {
	struct tcp *tcp;
	int peer; /* the source's end */
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

static void target_open(struct target *t, bool with_pipe)
{
	struct tcp_lane *l;
	struct lm_key key;
	int fds[2];

	t->tcp = (struct tcp *)lm_transport_tcp_new();
	must(t->tcp && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
	t->peer = fds[0];
	t->tcp->base.side = LM_DEST;
	t->tcp->base.nlanes = 1;
	t->tcp->base.is_open = true;
	t->tcp->lanes = l = calloc(1, sizeof(*l));
	must(l && !lm_stream_adopt(fds[1], false, &l->stream, NULL));
	l->pipe[0] = l->pipe[1] = -1;
	must(!tcp_recv_init(l));
	if (!with_pipe) {
		lm_close_fd(&l->pipe[0]);
		lm_close_fd(&l->pipe[1]);
	}
	for (unsigned i = 0; i < REGIONS; i++)
		must(!lm_transport_region_add(&t->tcp->base, &t->regions[i], &key, NULL));
}

/* As much as the lane takes; false when it is dead. */
static bool lane_poll(struct target *t)
{
	struct lm_poll_result res;
	uint8_t answers[4096];
	int r = lm_transport_poll(&t->tcp->base, 0, 0, &res, NULL);

	must(r != -EAGAIN && r <= 0);
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
	size_t piece;

	if (!size || size > (1 << 20))
		return 0;
	piece = pieces[data[0] & 7];
	if (piece < size / 128)
		piece = size / 128;
	regions_make(&t);
	target_open(&t, data[0] & 8);
	feed(&t, data + 1, size - 1, piece);
	guards_check(&t);
	if (t.peer >= 0)
		close(t.peer);
	lm_transport_free(&t.tcp->base);
	return 0;
}
