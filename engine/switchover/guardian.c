/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "guardian.h"
#include "engine/base/testhook.h"

#define RESCUE_TIMEOUT_NS (10 * LM_NS_PER_S)
/* The engine bounds the pause itself; the guardian steps in when it evidently hangs. */
#define HANG_GRACE_NS (1 * LM_NS_PER_S)
#define STOP_TIMEOUT_MS 2000
#define DISMISS 'q'
/* A destination that lives has taken the locks by then; after that the first host that asks gets them. */
#define TAKE_GRACE_NS (1 * LM_NS_PER_S)

struct lm_guardian_shared {
	_Atomic int phase;
	_Atomic int64_t deadline_ns; /* of the pause, CLOCK_MONOTONIC */
	_Atomic bool run;            /* the guest shall run afterwards */
	_Atomic bool offered;        /* source: the destination may be able to take the locks */
	_Atomic bool offering;       /* source: the engine is making an offer; it may still be carried out */
	struct lm_lock_notes notes;  /* destination: written before COMMITTED */
};

/* What the guardian process knows. */
struct guard {
	struct lm_guardian_shared *shared;
	const struct lm_vm_ops *ops;
	enum lm_side side;
	struct lm_guardian_witness witness;
	int fd, guardian_fd, pidfd;
	int32_t vm_pid;
	struct lm_guardian_locks locks;
};

static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...)
{
	char buf[LM_ERROR_MSG_MAX + 128];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf) - 1, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	if ((size_t)n > sizeof(buf) - 2)
		n = sizeof(buf) - 2;
	buf[n++] = '\n';
	if (write(STDERR_FILENO, buf, (size_t)n) < 0)
		return; /* nobody reads: nothing lost */
}

/* ---- storage locks: the engine's handles died with it, or belong to it ---- */

static int locks_open(const struct guard *g, struct lm_locks *ret, int64_t deadline_ns, struct lm_error *err)
{
	const struct lm_lock_params p = { .host = g->locks.host, .holder_pid = g->vm_pid, .deadline_ns = deadline_ns };

	return lm_locks_open(g->locks.uris, g->locks.n, &p, ret, err);
}

/* 0: the guest may run on this host. */
static int locks_get(const struct guard *g, bool take, unsigned *ret_failed, struct lm_error *err)
{
	int64_t deadline = lm_now_ns() + RESCUE_TIMEOUT_NS;
	struct lm_locks l;
	int r;

	*ret_failed = 0;
	if (!g->locks.n || lm_broken(take ? "lock-take" : "lock-reclaim"))
		return 0;
	r = locks_open(g, &l, deadline, err);
	if (r)
		return r;
	r = take ? lm_locks_take(&l, &g->shared->notes, deadline, err) : lm_locks_reclaim(&l, false, deadline, err);
	*ret_failed = l.failed;
	lm_locks_close(&l);
	return r;
}

static bool reclaim(const struct guard *g)
{
	struct lm_error err = { 0 };
	unsigned failed;
	int r = locks_get(g, false, &failed, &err);

	if (r && lm_locks_final(r))
		say("migrate-rdma guardian: the engine died, and the destination has the storage lock (%s): the guest is "
		    "there, and stays paused here. When it runs there, end this QEMU: `migrate-rdma resolve --end-here`",
		    err.msg);
	else if (r)
		say("migrate-rdma guardian: the engine died, and the storage locks do not answer (%s): the migration is in doubt, "
		    "the guest is paused here. When they answer again: `migrate-rdma resolve --auto`", err.msg);
	return !r;
}

static void force(const struct guard *g, enum lm_force what, const char *done)
{
	struct lm_error err = { 0 };

	if (g->ops->force(g->guardian_fd, g->pidfd, what, lm_now_ns() + RESCUE_TIMEOUT_NS, &err))
		say("migrate-rdma guardian: %s; see `migrate-rdma resolve`", err.msg);
	else
		say("migrate-rdma guardian: %s", done);
}

static void undo_pause(const struct guard *g)
{
	if (g->side == LM_SOURCE && atomic_load(&g->shared->offered) && !reclaim(g))
		return;
	if (g->side == LM_DEST)
		force(g, LM_FORCE_END, "the engine died before COMMIT: the destination's guest was ended, "
					 "the source has it");
	else if (atomic_load(&g->shared->run))
		force(g, LM_FORCE_UNDO_RUN, "the migration was undone, the guest runs here again");
	else
		force(g, LM_FORCE_UNDO, "the migration was undone, the guest is here, paused as before");
}

/* COMMIT was received: the locks, then the guest. */
static void take_and_run(const struct guard *g)
{
	struct lm_error err = { 0 };
	unsigned failed;
	int r = locks_get(g, true, &failed, &err);

	if (r && lm_locks_final(r) && !failed) {
		say("migrate-rdma guardian: %s", err.msg);
		force(g, LM_FORCE_END, "the engine died after COMMIT, and the source has taken the storage lock back: the "
					 "destination's guest was ended");
	} else if (r) {
		say("migrate-rdma guardian: the engine died after COMMIT, and the storage locks could not be taken (%s): the guest "
		    "is paused here. When the storage answers again: `migrate-rdma resolve --auto`", err.msg);
	} else if (atomic_load(&g->shared->run)) {
		force(g, LM_FORCE_RUN, "the engine died after COMMIT: the guest runs here");
	}
}

/* COMMIT may or may not have been received.  If there are locks, they tell who has the guest. */
static void ask_locks(const struct guard *g)
{
	const struct timespec grace = { .tv_sec = TAKE_GRACE_NS / LM_NS_PER_S };

	if (!g->locks.n) {
		say("migrate-rdma guardian: the engine died after COMMIT was sent and before the answer: the "
		    "migration is in doubt. The guest is paused here; find out whether it runs on the "
		    "destination, then use `migrate-rdma resolve`");
		return;
	}
	nanosleep(&grace, NULL);
	undo_pause(g);
}

static void engine_died(const struct guard *g)
{
	int phase = LM_PHASE_PAUSED;

	/* An engine that was held up may have paused the guest after its pause was revoked, and then died: once more. */
	if (atomic_compare_exchange_strong(&g->shared->phase, &phase, LM_PHASE_REVOKED) || phase == LM_PHASE_REVOKED) {
		undo_pause(g);
		return;
	}
	if (phase != LM_PHASE_COMMITTED)
		return;
	if (g->witness.happened && !g->witness.happened(g->witness.arg))
		undo_pause(g);
	else if (g->witness.happened && g->side == LM_SOURCE)
		say("migrate-rdma guardian: the engine died, but the guest was saved; it is paused here");
	else if (g->witness.happened) {
		if (atomic_load(&g->shared->run))
			force(g, LM_FORCE_RUN, "the engine died when the guest was restored: the guest runs here");
	} else if (g->side == LM_SOURCE)
		ask_locks(g);
	else
		take_and_run(g);
}

/*
 * An engine that hangs in the middle of offering the locks: what it asked of the storage may
 * still be done when it was taken back, and the guest would run on a lock that is on offer.
 * So nothing is done before it has come back, or has died.  False: it has died.
 */
static bool wait_for_offer(const struct guard *g)
{
	struct pollfd p = { .fd = g->fd };

	if (!atomic_load(&g->shared->offering) || lm_broken("lock-hang"))
		return true;
	say("migrate-rdma guardian: the engine hangs while it offers a storage lock: the guest stays paused until the engine "
	    "goes on, or is killed");
	while (atomic_load(&g->shared->offering))
		if (poll(&p, 1, 20) > 0)
			return false;
	return true;
}

/* The pause has lasted too long and the engine has not noticed. */
static void check_pause(const struct guard *g)
{
	int phase = LM_PHASE_PAUSED;

	if (lm_now_ns() < atomic_load(&g->shared->deadline_ns) + HANG_GRACE_NS)
		return;
	if (atomic_compare_exchange_strong(&g->shared->phase, &phase, LM_PHASE_REVOKED) && wait_for_offer(g))
		undo_pause(g);
}

static void watch(const struct guard *g)
{
	for (;;) {
		struct pollfd p = { .fd = g->fd, .events = POLLIN };
		bool paused = atomic_load(&g->shared->phase) == LM_PHASE_PAUSED;
		char byte;

		/* A phase that begins while we sleep is seen within a second: pauses are bounded in seconds. */
		poll(&p, 1, paused ? 100 : 1000);
		if (p.revents) {
			ssize_t n = read(g->fd, &byte, 1);

			if (n < 0 && errno == EINTR)
				continue;
			if (n != 1)
				engine_died(g);
			return;
		}
		if (paused)
			check_pause(g);
	}
}

static void close_all_but(int a, int b, int c)
{
	unsigned keep[3] = { (unsigned)a, (unsigned)b, (unsigned)c }, from = STDERR_FILENO + 1;

	for (int i = 0; i < 3; i++)
		for (int j = i + 1; j < 3; j++)
			if (keep[j] < keep[i]) {
				unsigned t = keep[i];

				keep[i] = keep[j];
				keep[j] = t;
			}
	for (int i = 0; i < 3; i++) {
		if (keep[i] == UINT32_MAX)
			continue;
		if (keep[i] > from)
			syscall(SYS_close_range, from, keep[i] - 1, 0);
		if (keep[i] >= from)
			from = keep[i] + 1;
	}
	syscall(SYS_close_range, from, ~0u, 0);
}

/* Do not keep stdin and stdout open: another process may wait for their end. */
static void detach_stdio(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		return;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	if (null > STDERR_FILENO)
		close(null);
}

static void guardian_main(const struct guard *g) __attribute__((noreturn));
static void guardian_main(const struct guard *g)
{
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP };

	for (unsigned i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		signal(ignored[i], SIG_IGN);
	prctl(PR_SET_NAME, "migrate-guard");
	prctl(PR_SET_PDEATHSIG, 0);
	detach_stdio();
	close_all_but(g->fd, g->guardian_fd, g->pidfd);
	watch(g);
	_exit(0);
}

/* Two forks: nobody has to reap the guardian, and it is not in our session. */
static int fork_guardian(const struct guard *g, struct lm_error *err)
{
	pid_t middle = fork();
	int status;

	if (middle < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot fork the guardian");
	if (!middle) {
		pid_t pid;

		setsid();
		pid = fork();
		if (!pid)
			guardian_main(g);
		_exit(pid < 0);
	}
	while (waitpid(middle, &status, 0) < 0)
		if (errno != EINTR) /* a host program that ignores SIGCHLD reaps it for us */
			return 0;
	return WIFEXITED(status) && !WEXITSTATUS(status) ?
		       0 :
		       lm_err(err, -EAGAIN, LM_SCOPE_SESSION, "cannot fork the guardian");
}

int lm_guardian_start(struct lm_guardian *g, const struct lm_vm *vm, enum lm_side side,
		      const struct lm_guardian_locks *locks, struct lm_error *err)
{
	return lm_guardian_start_with(g, vm, side, locks, &(struct lm_guardian_witness){ .happened = NULL }, err);
}

int lm_guardian_start_with(struct lm_guardian *g, const struct lm_vm *vm, enum lm_side side,
			   const struct lm_guardian_locks *locks, const struct lm_guardian_witness *witness,
			   struct lm_error *err)
{
	struct guard guard = { .ops = vm->ops, .side = side, .vm_pid = vm->pid, .witness = *witness,
			       .guardian_fd = vm->guardian_fd, .pidfd = vm->pidfd };
	int pair[2], r;

	if (locks)
		guard.locks = *locks;

	memset(g, 0, sizeof(*g));
	g->fd = -1;
	if (lm_broken("guardian"))
		return 0;
	guard.shared = mmap(NULL, sizeof(*guard.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (guard.shared == MAP_FAILED)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "guardian's shared page");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		r = lm_err_errno(err, -errno, LM_SCOPE_SESSION, "guardian's socket");
		goto unmap;
	}
	guard.fd = pair[1];
	atomic_store(&guard.shared->run, vm->info.running);
	r = fork_guardian(&guard, err);
	lm_close_fd(&pair[1]);
	if (r)
		goto close;
	g->shared = guard.shared;
	g->fd = pair[0];
	return 0;
close:
	lm_close_fd(&pair[0]);
unmap:
	munmap(guard.shared, sizeof(*guard.shared));
	return r;
}

void lm_guardian_pause(struct lm_guardian *g, int64_t deadline_ns)
{
	if (!g->shared)
		return;
	atomic_store(&g->shared->deadline_ns, deadline_ns > INT64_MAX - HANG_GRACE_NS ?
						      INT64_MAX - HANG_GRACE_NS : deadline_ns);
	atomic_store(&g->shared->phase, LM_PHASE_PAUSED);
}

void lm_guardian_run(struct lm_guardian *g, bool run)
{
	if (g->shared)
		atomic_store(&g->shared->run, run);
}

/*
 * Either this sees that the pause was revoked, or whoever revokes it from here on sees
 * `offered` and takes the locks back: both are sequentially consistent.
 */
bool lm_guardian_offer(struct lm_guardian *g)
{
	if (!g->shared)
		return true;
	atomic_store(&g->shared->offered, true);
	atomic_store(&g->shared->offering, true);
	return atomic_load(&g->shared->phase) == LM_PHASE_PAUSED;
}

void lm_guardian_offer_done(struct lm_guardian *g)
{
	if (g->shared)
		atomic_store(&g->shared->offering, false);
}

void lm_guardian_reclaimed(struct lm_guardian *g)
{
	if (g->shared)
		atomic_store(&g->shared->offered, false);
}

void lm_guardian_extend(struct lm_guardian *g, int64_t deadline_ns)
{
	if (g->shared)
		atomic_store(&g->shared->deadline_ns, deadline_ns);
}

void lm_guardian_notes(struct lm_guardian *g, const struct lm_lock_notes *offer)
{
	if (g->shared)
		g->shared->notes = *offer;
}

bool lm_guardian_commit(struct lm_guardian *g)
{
	int phase = LM_PHASE_PAUSED;

	if (!g->shared)
		return true;
	return atomic_compare_exchange_strong(&g->shared->phase, &phase, LM_PHASE_COMMITTED);
}

void lm_guardian_uncommit(struct lm_guardian *g)
{
	if (g->shared)
		atomic_store(&g->shared->phase, LM_PHASE_PAUSED);
}

void lm_guardian_idle(struct lm_guardian *g)
{
	if (g->shared)
		atomic_store(&g->shared->phase, LM_PHASE_IDLE);
}

void lm_guardian_stop(struct lm_guardian *g)
{
	struct pollfd p = { .fd = g->fd, .events = POLLIN };
	char byte = DISMISS;

	if (!g->shared)
		return;
	/* Its end of the socket closes when it is gone; one that is stopped is not waited for. */
	if (send(g->fd, &byte, 1, MSG_NOSIGNAL) == 1)
		poll(&p, 1, STOP_TIMEOUT_MS);
	lm_close_fd(&g->fd);
	munmap(g->shared, sizeof(*g->shared));
	memset(g, 0, sizeof(*g));
	g->fd = -1;
}
