/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tracer.  Runs in a process of its own (see inject.c) with one thread.
 *
 *  1. SEIZE and INTERRUPT: the thread stops inside the kernel's signal code, with
 *     the registers of an interrupted system call still undecided: rax -ERESTART*
 *     and orig_rax its number.
 *  2. All signals are blocked in it (PTRACE_SETSIGMASK), so that none is taken
 *     while the registers are ours: they stay pending, with all they carry.
 *  3. For each call: registers set, PTRACE_SYSCALL to its entry and to its exit.
 *     Unlike single-stepping this raises no SIGTRAP in the process.
 *  4. INTERRUPT again, so that it stops in the signal code as it did at first;
 *     registers and signal mask are put back; DETACH.  It then leaves the signal
 *     code as if the first stop had been all there was: pending signals are
 *     delivered, the interrupted system call is restarted or returns EINTR.
 *
 * A thread in a restartable sequence (rseq) must not be moved away: it is let go
 * and tried again.  A thread that is stopped (SIGSTOP) is used and stays stopped.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "inject_priv.h"
#include "uapi.h"

#define STOP_NS   (2 * LM_NS_PER_S)  /* for a thread to stop, and for all calls */
#define FINISH_NS (10 * LM_NS_PER_S) /* to put it back: giving up here would hurt it */
#define RSEQ_TRIES 100

struct tracee {
	const struct inject_job *job;
	pid_t tid;
	int64_t deadline_ns;
	int64_t stopped_ns; /* when it was first seen stopped */
	struct lm_inject_regs saved;
	uint64_t sigmask;
	bool attached;
	bool changed; /* its registers or signal mask are not its own */
};

static int gone(const struct tracee *t, struct lm_error *err)
{
	return lm_err(err, -ESRCH, LM_SCOPE_VM, "process %d has ended", (int)t->job->pid);
}

static int ptrace_error(const struct tracee *t, const char *what, struct lm_error *err)
{
	if (errno == ESRCH)
		return gone(t, err);
	return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "%s of process %d", what, (int)t->job->pid);
}

static bool is_event_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

static bool is_syscall_stop(int status)
{
	return WSTOPSIG(status) == (SIGTRAP | 0x80);
}

/* The next stop, whatever it is.  A timer's signal ends waitpid now and then. */
static int stop_wait(struct tracee *t, int *ret_status, struct lm_error *err)
{
	while (waitpid(t->tid, ret_status, __WALL) < 0) {
		if (errno != EINTR)
			return ptrace_error(t, "waiting for the main thread", err);
		if (lm_now_ns() >= t->deadline_ns)
			return lm_err(err, -ETIMEDOUT, LM_SCOPE_SESSION,
				      "the main thread of process %d does not stop: it hangs in the kernel "
				      "(disk or network file system?)", (int)t->job->pid);
	}
	if (!WIFSTOPPED(*ret_status)) {
		t->attached = false;
		return gone(t, err);
	}
	return 0;
}

/* A stop that is about a signal: what to hand over when it goes on. */
static int stop_signal(int status)
{
	return is_event_stop(status) || is_syscall_stop(status) ? 0 : WSTOPSIG(status);
}

/* INTERRUPT was asked for: on to the stop that it makes; signals before it are delivered. */
static int interrupt_wait(struct tracee *t, struct lm_error *err)
{
	int status, r;

	while (!(r = stop_wait(t, &status, err)) && !is_event_stop(status))
		if (ptrace(PTRACE_CONT, t->tid, NULL, (long)stop_signal(status)))
			return ptrace_error(t, "PTRACE_CONT", err);
	return r;
}

static int seize_error(const struct tracee *t, int code, struct lm_error *err)
{
	char path[64], line[128], state = 'X';
	LM_AUTO_FILE FILE *f = NULL;
	int tracer = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)t->tid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f) && sscanf(line, "TracerPid: %d", &tracer) != 1)
		sscanf(line, "State: %c", &state);
	if (state == 'X' || state == 'Z')
		return gone(t, err);
	if (tracer)
		return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
			      "process %d is traced by process %d (gdb, strace?): detach that "
			      "first", (int)t->tid, tracer);
	if (code == -EPERM || code == -EACCES)
		return lm_err(err, code, LM_SCOPE_SESSION,
			      "process %d may not be traced: run migrate-rdma as root, or as its owner with "
			      "kernel.yama.ptrace_scope=0", (int)t->tid);
	return lm_err_errno(err, code, LM_SCOPE_SESSION, "cannot trace process %d", (int)t->tid);
}

static int seize(struct tracee *t, struct lm_error *err)
{
	if (ptrace(PTRACE_SEIZE, t->tid, NULL, (long)PTRACE_O_TRACESYSGOOD))
		return errno == ESRCH ? gone(t, err) : seize_error(t, -errno, err);
	t->attached = true;
	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL))
		return ptrace_error(t, "PTRACE_INTERRUPT", err);
	return interrupt_wait(t, err);
}

static int regs_get(struct tracee *t, struct lm_inject_regs *regs, struct lm_error *err)
{
	struct iovec iov = { regs->words, sizeof(regs->words) };

	if (ptrace(PTRACE_GETREGSET, t->tid, (long)NT_PRSTATUS, &iov))
		return ptrace_error(t, "reading the registers", err);
	regs->size = iov.iov_len;
	return 0;
}

static int regs_set(struct tracee *t, struct lm_inject_regs *regs, struct lm_error *err)
{
	struct iovec iov = { regs->words, regs->size };

	if (ptrace(PTRACE_SETREGSET, t->tid, (long)NT_PRSTATUS, &iov))
		return ptrace_error(t, "setting the registers", err);
	return 0;
}

/* Whether it may be inside a restartable sequence: the pointer to one is set. */
static bool in_rseq(const struct tracee *t)
{
	struct lm_ptrace_rseq_configuration c = { 0 };
	long n = ptrace(LM_PTRACE_GET_RSEQ_CONFIGURATION, t->tid, (long)sizeof(c), &c);

	if (n < 0 || !c.rseq_abi_pointer)
		return false;
	errno = 0;
	return ptrace(PTRACE_PEEKDATA, t->tid, c.rseq_abi_pointer + 8, NULL) != 0 && !errno;
}

static void let_go(struct tracee *t)
{
	if (t->attached)
		ptrace(PTRACE_DETACH, t->tid, NULL, NULL);
	t->attached = false;
}

/* Stopped, outside of any restartable sequence. */
static int stop(struct tracee *t, struct lm_error *err)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };

	for (int i = 0; i < RSEQ_TRIES; i++) {
		int r = seize(t, err);

		t->stopped_ns = lm_now_ns();
		if (r || !in_rseq(t))
			return r;
		let_go(t);
		nanosleep(&pause, NULL);
	}
	return lm_err(err, -EBUSY, LM_SCOPE_SESSION,
		      "the main thread of process %d is always in a restartable sequence", (int)t->tid);
}

static int save(struct tracee *t, struct lm_error *err)
{
	const uint64_t all = ~UINT64_C(0);
	int r = regs_get(t, &t->saved, err);

	if (r)
		return r;
	if (t->job->arch->check(&t->saved))
		return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION, "process %d is not a 64-bit %s process", (int)t->tid,
			      t->job->arch->name);
	if (ptrace(PTRACE_GETSIGMASK, t->tid, sizeof(t->sigmask), &t->sigmask))
		return ptrace_error(t, "reading the signal mask", err);
	t->changed = true;
	if (ptrace(PTRACE_SETSIGMASK, t->tid, sizeof(all), &all))
		return ptrace_error(t, "blocking signals", err);
	return 0;
}

/* On to the next entry or exit of a system call. */
static int syscall_stop_wait(struct tracee *t, struct lm_error *err)
{
	int status = 0, r;

	do {
		int signal = status ? stop_signal(status) : 0;

		/* blocked are all but SIGSTOP and those that our own call would raise by faulting */
		if (signal && signal != SIGSTOP)
			return lm_err(err, -EFAULT, LM_SCOPE_SESSION, "signal %d at a call in process %d", signal,
				      (int)t->tid);
		if (ptrace(PTRACE_SYSCALL, t->tid, NULL, (long)signal))
			return ptrace_error(t, "PTRACE_SYSCALL", err);
		r = stop_wait(t, &status, err);
	} while (!r && !is_syscall_stop(status));
	return r;
}

static int call_run(struct tracee *t, const struct lm_inject_call *call, long *ret, struct lm_error *err)
{
	struct lm_inject_regs regs = t->saved;
	int r;

	t->job->arch->enter(&regs, t->job->insn_addr, call);
	r = regs_set(t, &regs, err);
	if (!r)
		r = syscall_stop_wait(t, err); /* its entry */
	if (!r)
		r = syscall_stop_wait(t, err); /* its exit */
	if (!r)
		r = regs_get(t, &regs, err);
	if (!r)
		*ret = t->job->arch->result(&regs);
	return r;
}

/* The process' descriptor becomes ours too, and ours alone where it is to be moved. */
static int fd_fetch(struct tracee *t, const struct lm_inject_call *call, long remote, int *ret_fd,
		    struct lm_error *err)
{
	LM_AUTO_FD int pidfd = (int)syscall(SYS_pidfd_open, t->job->pid, 0);
	long ignored;
	int r = 0;

	*ret_fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, (int)remote, 0);
	if (*ret_fd < 0)
		r = lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot take a descriptor of process %d over",
				 (int)t->job->pid);
	if (r || call->result == LM_INJECT_MOVE_FD) {
		struct lm_inject_call c = { .nr = SYS_close, .args = { (uint64_t)remote } };
		int rc = call_run(t, &c, &ignored, r ? NULL : err);

		r = r ? r : rc;
	}
	return r;
}

static int calls_run(struct tracee *t, struct inject_answer *a, int *fds, unsigned *nfds)
{
	const struct inject_job *job = t->job;
	int r = 0;

	for (unsigned i = 0; i < job->ncalls; i++)
		a->ret[i] = -ECANCELED;
	for (unsigned i = 0; !r && i < job->ncalls; i++) {
		const struct lm_inject_call *call = &job->calls[i];

		r = call_run(t, call, &a->ret[i], &a->err);
		if (r || a->ret[i] < 0)
			break;
		if (call->result != LM_INJECT_PLAIN) {
			r = fd_fetch(t, call, a->ret[i], &fds[*nfds], &a->err);
			a->has_fd[i] = fds[*nfds] >= 0;
			*nfds += a->has_fd[i];
		}
	}
	return r;
}

/* Stopped in the signal code, as at first, with what is its own. */
static int put_back(struct tracee *t, struct lm_error *err)
{
	int r;

	t->deadline_ns = lm_now_ns() + FINISH_NS;
	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) || ptrace(PTRACE_CONT, t->tid, NULL, NULL))
		return ptrace_error(t, "PTRACE_INTERRUPT", err);
	r = interrupt_wait(t, err);
	if (!r)
		r = regs_set(t, &t->saved, err);
	if (!r && ptrace(PTRACE_SETSIGMASK, t->tid, sizeof(t->sigmask), &t->sigmask))
		r = ptrace_error(t, "restoring the signal mask", err);
	return r;
}

static void trace(struct tracee *t, struct inject_answer *a, int *fds, unsigned *nfds)
{
	int r = stop(t, &a->err);

	if (!r)
		r = save(t, &a->err);
	if (!r)
		r = calls_run(t, a, fds, nfds);
	if (t->changed && t->attached)
		put_back(t, r ? NULL : &a->err);
	let_go(t);
	a->held_ns = lm_now_ns() - t->stopped_ns;
}

static void tick(int signal)
{
	(void)signal;
}

/* waitpid has no deadline: a timer's signal makes it return. */
static void ticks_start(void)
{
	const struct itimerval every = { { 0, 20000 }, { 0, 20000 } };
	struct sigaction sa = { .sa_handler = tick };
	sigset_t alarm;

	sigaction(SIGALRM, &sa, NULL);
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &alarm, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
}

static void oom_exempt(void)
{
	LM_AUTO_FD int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "-1000", 5) < 0)
		return; /* not allowed: no harm */
}

/* The traced process waits for this one, so this one comes before others for a CPU, where that is allowed. */
static void hurry(void)
{
	const struct sched_param first = { .sched_priority = 1 };

	sched_setscheduler(0, SCHED_FIFO, &first);
}

static void answer_send(int sock, const struct inject_answer *a, const int *fds, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * LM_INJECT_MAX)];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)a, .iov_len = sizeof(*a) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		struct cmsghdr *c;

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	sendmsg(sock, &msg, MSG_NOSIGNAL);
}

void inject_helper(const struct inject_job *job, int sock)
{
	struct tracee t = { .job = job, .tid = job->pid, .deadline_ns = lm_now_ns() + STOP_NS };
	struct inject_answer answer = { 0 };
	int fds[LM_INJECT_MAX];
	unsigned nfds = 0;

	setsid();
	oom_exempt();
	hurry();
	ticks_start();
	trace(&t, &answer, fds, &nfds);
	answer_send(sock, &answer, fds, nfds);
	_exit(0);
}
