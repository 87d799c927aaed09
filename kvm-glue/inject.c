/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The caller's side of injection: find a system call instruction, let a helper
 * process do the rest, take its answer and the descriptors.
 *
 * Why a helper: between the first changed register and the restored ones the
 * tracer must not die, or the other process goes on with registers that are not
 * its own.  The engine can be killed at any time, by a person or by a supervisor;
 * the helper is a process of its own in a session of its own with all signals
 * blocked, exempt from the OOM killer where that is allowed, and lives for a few
 * milliseconds.  It finishes its work when the engine has died.  What is left is
 * a SIGKILL that is aimed at the helper itself within about 0.2 ms.
 */
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "engine/base/cleanup.h"
#include "inject_priv.h"
#include "maps.h"

#define SEARCH_SIZE 65536

/* The instruction in one mapping, 0 when it is not there. */
static uint64_t insn_find_in(int mem, const struct lm_map *m, const struct lm_inject_arch *arch)
{
	uint8_t buf[SEARCH_SIZE];

	/* pieces overlap by less than an instruction */
	for (uint64_t at = m->start; at < m->end; at += sizeof(buf) - arch->insn_size + 1) {
		size_t want = m->end - at < sizeof(buf) ? m->end - at : sizeof(buf);
		ssize_t n = pread(mem, buf, want, (off_t)at);
		uint8_t *p = n > 0 ? memmem(buf, (size_t)n, arch->insn, arch->insn_size) : NULL;

		if (p)
			return at + (uint64_t)(p - buf);
	}
	return 0;
}

static uint64_t insn_find_by(int mem, const struct lm_maps *maps, const struct lm_inject_arch *arch, bool vdso)
{
	uint64_t addr = 0;

	for (size_t i = 0; i < maps->n && !addr; i++) {
		const struct lm_map *m = &maps->maps[i];

		if (m->exec && m->read && vdso == !strcmp(m->name, "[vdso]") && strcmp(m->name, "[vsyscall]"))
			addr = insn_find_in(mem, m, arch);
	}
	return addr;
}

/* In the vdso, which every process has, or in any other code; 0: nowhere. */
static uint64_t insn_search(pid_t pid, const struct lm_maps *maps, const struct lm_inject_arch *arch,
			    struct lm_error *err)
{
	LM_AUTO_FD int mem = -1;
	uint64_t addr = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0) {
		lm_err_errno(err, -errno, LM_SCOPE_SESSION,
			     "process %d may not be traced (run as its owner or as root)", (int)pid);
		return 0;
	}
	addr = insn_find_by(mem, maps, arch, true);
	if (!addr)
		addr = insn_find_by(mem, maps, arch, false);
	if (!addr)
		lm_err(err, -ENOTSUP, LM_SCOPE_SESSION,
		       "process %d has no system call instruction that can be read", (int)pid);
	return addr;
}

/* Gone, or dead and its parent has not looked yet. */
static bool has_ended(pid_t pid)
{
	struct lm_maps maps = { 0 };
	int r = lm_maps_read(pid, &maps, NULL);
	bool ended = r == -ESRCH || (!r && !maps.n);

	lm_maps_fini(&maps);
	return ended;
}

static int insn_find(pid_t pid, const struct lm_inject_arch *arch, uint64_t *ret, struct lm_error *err)
{
	struct lm_error e = { 0 };
	struct lm_maps maps = { 0 };
	int r = lm_maps_read(pid, &maps, &e);

	*ret = r ? 0 : insn_search(pid, &maps, arch, &e);
	lm_maps_fini(&maps);
	if (*ret)
		return 0;
	/* whatever failed: a process that has ended is the reason */
	if (has_ended(pid))
		return lm_err(err, -ESRCH, LM_SCOPE_VM, "process %d has ended", (int)pid);
	if (err)
		*err = e;
	return e.code;
}

static ssize_t answer_receive(int sock, struct inject_answer *a, int *fds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int) * LM_INJECT_MAX)];
	} control;
	struct iovec iov = { .iov_base = a, .iov_len = sizeof(*a) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *c;
	ssize_t n;

	do
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
		memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
	return n;
}

/* Descriptors come in the order of their calls. */
static int answer_take(const struct inject_answer *a, const int *fds, struct lm_inject_call *calls, unsigned n,
		       int64_t *ret_held_ns, struct lm_error *err)
{
	unsigned next = 0;

	for (unsigned i = 0; i < n; i++) {
		calls[i].ret = a->ret[i];
		calls[i].fd = a->has_fd[i] ? fds[next++] : -1;
	}
	if (ret_held_ns)
		*ret_held_ns = a->held_ns;
	if (a->err.code && err)
		*err = a->err;
	/* the error came after a call that returned a descriptor, which nobody owns: close it */
	for (unsigned i = 0; a->err.code && i < n; i++)
		lm_close_fd(&calls[i].fd);
	return a->err.code;
}

static int helper_run(struct inject_job *job, int sock[2], struct lm_inject_call *calls, unsigned n,
		      int64_t *ret_held_ns, struct lm_error *err)
{
	struct inject_answer answer = { 0 };
	int fds[LM_INJECT_MAX];
	sigset_t all, before;
	ssize_t got;
	pid_t helper;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	helper = fork();
	if (!helper) {
		close(sock[0]);
		inject_helper(job, sock[1]);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	lm_close_fd(&sock[1]);
	if (helper < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot fork");
	got = answer_receive(sock[0], &answer, fds);
	while (waitpid(helper, NULL, 0) < 0 && errno == EINTR)
		;
	if (got != sizeof(answer))
		return lm_err(err, -EIO, LM_SCOPE_SESSION, "the helper that traces process %d was killed",
			      (int)job->pid);
	return answer_take(&answer, fds, calls, n, ret_held_ns, err);
}

int lm_inject(pid_t pid, struct lm_inject_call *calls, unsigned n, int64_t *ret_held_ns, struct lm_error *err)
{
	struct inject_job job = { .pid = pid, .arch = lm_inject_arch(), .calls = calls, .ncalls = n };
	int sock[2], r;

	for (unsigned i = 0; i < n; i++)
		calls[i].fd = -1;
	if (!job.arch)
		return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION,
			      "tracking a running guest's memory is not supported on this CPU architecture");
	if (n > LM_INJECT_MAX)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "more than %d calls", LM_INJECT_MAX);
	r = insn_find(pid, job.arch, &job.insn_addr, err);
	if (r)
		return r;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "socketpair");
	r = helper_run(&job, sock, calls, n, ret_held_ns, err);
	lm_close_fd(&sock[0]);
	lm_close_fd(&sock[1]);
	return r;
}
