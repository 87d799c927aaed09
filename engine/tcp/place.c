/* SPDX-License-Identifier: Apache-2.0 */
/* Putting received bytes into guest RAM.  The runs have been checked. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "tcp.h"
#include "engine/base/zero.h"

static bool seen_test(const struct tcp_region *r, uint64_t offset)
{
	uint64_t page = offset >> LM_PAGE_SHIFT;

	return atomic_load_explicit(&r->seen[page / 64], memory_order_relaxed) >> (page % 64) & 1;
}

/* Whole pages only.  Words may be shared with other lanes. */
static void seen_update(struct tcp_region *r, uint64_t offset, uint64_t len, bool value)
{
	uint64_t page = offset >> LM_PAGE_SHIFT, end = (offset + len) >> LM_PAGE_SHIFT;

	while (page < end) {
		uint64_t first = page % 64, n = 64 - first < end - page ? 64 - first : end - page;
		uint64_t mask = (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1) << first;

		if (value)
			atomic_fetch_or_explicit(&r->seen[page / 64], mask, memory_order_relaxed);
		else
			atomic_fetch_and_explicit(&r->seen[page / 64], ~mask, memory_order_relaxed);
		page += n;
	}
}

static int place_error(struct tcp_lane *l, int code, struct lm_error *err)
{
	if (code == -EFAULT || code == -ENOSPC || code == -ENOMEM || code == -EDQUOT)
		return lm_err_errno(err, code, LM_SCOPE_SESSION,
				    "the memory file of the guest cannot take more pages (is its file system full?)");
	return tcp_lane_error(l, code, err, "receiving");
}

/* n bytes of the current run, and those after it, are done. */
static void advance(struct tcp_lane *l, uint64_t n)
{
	while (n) {
		struct lm_run run = tcp_desc_get(&l->in.u.h.desc[l->run]);
		uint64_t rest = run.len - l->run_done;

		if (n < rest) {
			l->run_done += n;
			return;
		}
		n -= rest;
		l->run_done = 0;
		l->run++;
	}
}

static void placed(struct tcp_lane *l, uint64_t n)
{
	l->left -= n;
	advance(l, n);
}

static bool by_splice(struct tcp *t, const struct tcp_lane *l, const struct lm_run *run)
{
	const struct tcp_region *r = &t->regions[run->region];

	return l->pipe[0] >= 0 && atomic_load_explicit(&r->splice, memory_order_relaxed) &&
	       !seen_test(r, run->offset);
}

/* ---- into the mapping ---- */

static ssize_t place_map(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	uint64_t skip = l->run_done, room = TCP_PIECE_BYTES;
	struct iovec iov[LM_WRITE_MAX];
	unsigned niov = 0;
	ssize_t n;

	for (unsigned i = l->run; i < l->count && room; i++) {
		struct lm_run run = tcp_desc_get(&l->in.u.h.desc[i]);
		uint64_t len = run.len - skip;

		if (run.kind != LM_RUN_DATA || (niov && by_splice(t, l, &run)))
			break;
		len = len < room ? len : room;
		iov[niov++] = (struct iovec){ t->regions[run.region].host + run.offset + skip, len };
		room -= len;
		skip = 0;
	}
	n = lm_stream_recv(l->stream, iov, niov);
	if (n == -EAGAIN)
		return n;
	if (n <= 0)
		return place_error(l, (int)n, err);
	placed(l, (uint64_t)n);
	return n;
}

/* ---- into the file ---- */

/* The file does not take splice: what is in the pipe goes through the mapping, the rest by recv. */
static ssize_t receive_what_is_in_the_pipe(struct tcp *t, struct tcp_lane *l, const struct lm_run *run, size_t n)
{
	struct tcp_region *r = &t->regions[run->region];
	ssize_t got = read(l->pipe[0], r->host + run->offset + l->run_done, n);

	atomic_store_explicit(&r->splice, false, memory_order_relaxed);
	return got < 0 ? -errno : got;
}

/* At most n bytes from the pipe to where the current run goes on. */
static ssize_t drain_once(struct tcp *t, struct tcp_lane *l, size_t n)
{
	struct lm_run run = tcp_desc_get(&l->in.u.h.desc[l->run]);
	struct tcp_region *r = &t->regions[run.region];
	loff_t at = (loff_t)(r->file_offset + run.offset + l->run_done);
	ssize_t out;

	if (n > run.len - l->run_done)
		n = run.len - l->run_done;
	if (!atomic_load_explicit(&r->splice, memory_order_relaxed))
		return receive_what_is_in_the_pipe(t, l, &run, n);
	out = splice(l->pipe[0], NULL, r->fd, &at, n, SPLICE_F_MOVE);
	if (out < 0 && (errno == EINVAL || errno == EBADF || errno == EPERM))
		return receive_what_is_in_the_pipe(t, l, &run, n);
	if (out > 0 && l->run_done + (size_t)out == run.len)
		seen_update(r, run.offset, run.len, true);
	return out < 0 ? -errno : out;
}

static int drain(struct tcp *t, struct tcp_lane *l, size_t n, struct lm_error *err)
{
	while (n) {
		ssize_t out = drain_once(t, l, n);

		if (out == -EINTR)
			continue;
		if (out <= 0)
			return place_error(l, out ? (int)out : -EIO, err);
		placed(l, (uint64_t)out);
		n -= (size_t)out;
	}
	return 0;
}

/* How many bytes go the same way from here on. */
static size_t splice_span(struct tcp *t, const struct tcp_lane *l)
{
	uint64_t skip = l->run_done, n = 0;

	for (unsigned i = l->run; i < l->count && n < TCP_PIECE_BYTES; i++) {
		struct lm_run run = tcp_desc_get(&l->in.u.h.desc[i]);

		if (run.kind != LM_RUN_DATA || (n && !by_splice(t, l, &run)))
			break;
		n += run.len - skip;
		skip = 0;
	}
	return n < TCP_PIECE_BYTES ? n : TCP_PIECE_BYTES;
}

static ssize_t place_file(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	ssize_t n = splice(lm_stream_fd(l->stream), NULL, l->pipe[1], NULL, splice_span(t, l), SPLICE_F_NONBLOCK);
	int r;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n < 0 && (errno == EINVAL || errno == ENOSYS || errno == EPERM)) {
		lm_close_fd(&l->pipe[0]); /* this socket cannot: from now on into the mapping */
		lm_close_fd(&l->pipe[1]);
		return place_map(t, l, err);
	}
	if (n <= 0)
		return place_error(l, n ? -errno : 0, err);
	r = drain(t, l, (size_t)n, err);
	return r ? r : n;
}

ssize_t tcp_place_data(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	struct lm_run run = tcp_desc_get(&l->in.u.h.desc[l->run]);

	return by_splice(t, l, &run) ? place_file(t, l, err) : place_map(t, l, err);
}

/* ---- zeros ---- */

/*
 * Without punching: read(2) of a hole allocates nothing, so only pages that are
 * there and hold something are cleared.
 */
static int clear_by_hand(struct tcp_lane *l, struct tcp_region *r, uint64_t offset, uint64_t len)
{
	while (len) {
		size_t n = len < TCP_SCRATCH_SIZE ? len : TCP_SCRATCH_SIZE;
		ssize_t got = pread(r->fd, l->scratch, n, (off_t)(r->file_offset + offset));

		if (got <= 0 || got % (ssize_t)LM_PAGE_SIZE)
			return got < 0 ? -errno : -EIO;
		for (ssize_t i = 0; i < got; i += (ssize_t)LM_PAGE_SIZE)
			if (!lm_page_is_zero(l->scratch + i))
				memset(r->host + offset + i, 0, LM_PAGE_SIZE);
		offset += (uint64_t)got;
		len -= (uint64_t)got;
	}
	return 0;
}

/*
 * tmpfs gives the page back.  hugetlbfs would do so too, but with it goes the
 * reservation that QEMU made for the guest, and a later touch of the page could
 * kill the guest for want of a huge page: there, pages are cleared in place.
 */
int tcp_place_zero(struct tcp *t, struct tcp_lane *l, struct lm_error *err)
{
	struct lm_run run = tcp_desc_get(&l->in.u.h.desc[l->run]);
	struct tcp_region *r = &t->regions[run.region];
	uint64_t offset = run.offset + l->run_done, len = run.len - l->run_done;
	int res = -1;

	if (len > TCP_ZERO_BYTES)
		len = TCP_ZERO_BYTES;
	if (r->page_size == LM_PAGE_SIZE)
		res = fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)(r->file_offset + offset), (off_t)len);
	if (!res)
		seen_update(r, offset, len, false);
	else
		res = clear_by_hand(l, r, offset, len);
	if (res)
		return place_error(l, res, err);
	advance(l, len);
	return 0;
}
