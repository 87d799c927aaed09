/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "lock_contract.h"

#define CALL_NS (20 * LM_NS_PER_S)

struct request {
	enum op op;
	char fault[64], broken[32];
	uint8_t note[LM_LOCK_NOTE_SIZE];
};

/* --- in the host's process ---------------------------------------------------------- */

static int can_write(const struct world *w, struct lm_lock *l, struct lm_error *err)
{
	struct lm_lock_info info;
	int r;

	if (w->write)
		return w->write(l);
	r = lm_lock_query(l, &info, lm_now_ns() + CALL_NS, err);
	if (r)
		return r;
	return l->state == LM_LOCK_OWNED && info.state == LM_LOCK_HELD_HERE ? 0 : -EACCES;
}

static int do_open(const char *uri, unsigned index, struct lm_lock **l, struct lm_error *err)
{
	static const char *const names[NHOSTS] = { "host-a", "host-b", "host-c" };
	struct lm_lock_params p = { .host = names[index], .deadline_ns = lm_now_ns() + CALL_NS };

	return lm_lock_open(uri, &p, l, err);
}

static int call(const struct world *w, struct lm_lock *l, const struct request *q, struct reply *a)
{
	int64_t deadline = lm_now_ns() + CALL_NS;

	switch (q->op) {
	case ACQUIRE:
		return lm_lock_acquire(l, deadline, &a->err);
	case ANNOUNCE:
		return lm_lock_announce(l, a->note, deadline, &a->err);
	case PREPARE:
		return lm_lock_prepare(l, q->note, a->note, deadline, &a->err);
	case OFFER:
		return lm_lock_offer(l, q->note, true, a->note, deadline, &a->err);
	case TAKE:
		return lm_lock_take(l, q->note, NULL, deadline, &a->err);
	case RECLAIM:
		return lm_lock_reclaim(l, false, deadline, &a->err);
	case RELEASE:
		return lm_lock_release(l, deadline, &a->err);
	case SHOW:
		return lm_lock_query(l, &a->info, deadline, &a->err);
	case BREAK:
		return lm_lock_break(l, deadline, &a->err);
	case WRITE:
		return can_write(w, l, &a->err);
	default:
		return -EINVAL;
	}
}

static void serve(const struct world *w, const char *uri, unsigned index, int fd)
{
	struct lm_lock *l = NULL;
	struct request q;

	while (recv(fd, &q, sizeof(q), MSG_WAITALL) == (ssize_t)sizeof(q)) {
		struct reply a = { 0 };
		int64_t begin = lm_now_ns();

		setenv("LM_FAULT", q.fault, 1);
		setenv("LM_BREAK", q.broken, 1);
		if (q.op == OPEN) {
			a.r = do_open(uri, index, &l, &a.err);
		} else if (q.op == CLOSE) {
			lm_lock_close(l);
			l = NULL;
		} else {
			a.r = call(w, l, &q, &a);
		}
		a.ns = lm_now_ns() - begin;
		if (l) {
			a.epoch = l->epoch;
			a.state = l->state;
			snprintf(a.remark, sizeof(a.remark), "%s", l->remark);
		}
		if (send(fd, &a, sizeof(a), MSG_NOSIGNAL) != (ssize_t)sizeof(a))
			break;
	}
	lm_lock_close(l);
}

/* --- in the test -------------------------------------------------------------------- */

static void host_start(struct hosts *t, unsigned index)
{
	struct host *h = &t->h[index];
	int fds[2];

	assert_false(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
	h->index = index;
	h->fd = fds[0];
	h->pid = fork();
	assert_true(h->pid >= 0);
	if (!h->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned i = 0; i < NHOSTS; i++)
			lm_close_fd(&t->h[i].fd);
		t->world->enter(index);
		serve(t->world, t->uri, index, fds[1]);
		_exit(0);
	}
	close(fds[1]);
	assert_ok(host_do(h, OPEN, NULL, NULL, NULL));
}

void host_kill(struct host *h)
{
	if (h->pid > 0) {
		kill(h->pid, SIGKILL);
		waitpid(h->pid, NULL, 0);
	}
	h->pid = 0;
	lm_close_fd(&h->fd);
}

void host_restart(struct hosts *t, struct host *h)
{
	host_kill(h);
	host_start(t, h->index);
}

void hosts_start(struct hosts *t, const struct world *world)
{
	memset(t, 0, sizeof(*t));
	t->world = world;
	for (unsigned i = 0; i < NHOSTS; i++)
		t->h[i].fd = -1;
	world->fresh(t->uri);
	for (unsigned i = 0; i < NHOSTS; i++)
		host_start(t, i);
}

void hosts_stop(struct hosts *t)
{
	for (unsigned i = 0; i < NHOSTS; i++)
		host_kill(&t->h[i]);
}

static void begin(struct host *h, enum op op, const struct host *peer, const char *fault, const char *broken)
{
	struct request q = { .op = op };

	snprintf(q.fault, sizeof(q.fault), "%s", fault ? fault : "");
	snprintf(q.broken, sizeof(q.broken), "%s", broken ? broken : "");
	if (peer)
		memcpy(q.note, peer->note, sizeof(q.note));
	assert_int_equal(send(h->fd, &q, sizeof(q), MSG_NOSIGNAL), sizeof(q));
}

void host_begin(struct host *h, enum op op, const struct host *peer)
{
	begin(h, op, peer, NULL, NULL);
}

struct reply host_end(struct host *h)
{
	struct reply a = { .r = DIED };

	if (recv(h->fd, &a, sizeof(a), MSG_WAITALL) != (ssize_t)sizeof(a)) {
		host_kill(h);
		return (struct reply){ .r = DIED, .err = { .msg = "killed" } };
	}
	if (a.note[0])
		memcpy(h->note, a.note, sizeof(h->note));
	return a;
}

struct reply host_do(struct host *h, enum op op, const struct host *peer, const char *fault, const char *broken)
{
	begin(h, op, peer, fault, broken);
	return host_end(h);
}
