/* SPDX-License-Identifier: Apache-2.0 */
/* Child processes, by pidfd: no signal ever goes to a number that was given away again. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <dirent.h>
#include <unistd.h>
#include "internal.h"

#define LOG_SHOWN 4000 /* bytes of a log's end that are printed */
#define SERIAL_SHOWN 600

static int pidfd_open_(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

static void child(const char *const *argv, const char *const *env, const char *log, int out, pid_t parent)
{
	int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	int null = open("/dev/null", O_RDONLY);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || fd < 0 || null < 0)
		_exit(126);
	setpgid(0, 0); /* a SIGINT for one is not one for all */
	signal(SIGPIPE, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	dup2(null, 0);
	dup2(out >= 0 ? out : fd, 1);
	dup2(fd, 2);
	for (int i = 0; env && env[i]; i++)
		putenv((char *)env[i]);
	execvp(argv[0], (char *const *)argv);
	dprintf(2, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

struct rig_proc *rig_spawn(struct rig *rig, const char *name, const char *const *argv,
			   const char *const *env, int stdout_fd)
{
	struct rig_proc *p = calloc(1, sizeof(*p));
	static unsigned serial;
	pid_t me = getpid();

	assert_non_null(p);
	snprintf(p->name, sizeof(p->name), "%s", name);
	rig_path(rig, p->log, "%u-%s.log", ++serial, name);
	p->pid = fork();
	if (!p->pid)
		child(argv, env, p->log, stdout_fd, me);
	p->pidfd = p->pid > 0 ? pidfd_open_(p->pid) : -1;
	p->next = rig->procs;
	rig->procs = p;
	if (p->pidfd < 0)
		fail_msg("cannot start %s: %s", name, strerror(errno));
	fcntl(p->pidfd, F_SETFD, FD_CLOEXEC);
	return p;
}

bool rig_proc_ended(struct rig_proc *p, int timeout_ms)
{
	struct pollfd pfd = { .fd = p->pidfd, .events = POLLIN };
	siginfo_t info = { .si_pid = 0 };

	if (p->ended)
		return true;
	if (poll(&pfd, 1, timeout_ms) <= 0)
		return false;
	if (waitid(P_PID, (id_t)p->pid, &info, WEXITED) < 0)
		return false;
	p->status = info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
	p->ended = true;
	return true;
}

void rig_proc_kill(struct rig_proc *p, int sig)
{
	if (!p->ended)
		syscall(SYS_pidfd_send_signal, p->pidfd, sig, NULL, 0);
}

void rig_proc_end(struct rig_proc *p)
{
	rig_proc_kill(p, SIGKILL);
	rig_proc_kill(p, SIGCONT);
	rig_proc_ended(p, RIG_WAIT_MS);
}

static bool is_ours(const struct rig *rig, pid_t pid)
{
	for (const struct rig_proc *p = rig->procs; p; p = p->next) {
		if (p->pid == pid)
			return true;
	}
	return false;
}

static unsigned reap_orphans(const struct rig *rig)
{
	char path[64], *list, *s, *save;
	unsigned n = 0;
	pid_t pid;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	list = rig_read_file(path);
	for (s = list ? strtok_r(list, " ", &save) : NULL; s; s = strtok_r(NULL, " ", &save)) {
		pid = (pid_t)atoi(s);
		if (!is_ours(rig, pid) && !waitpid(pid, NULL, WNOHANG))
			n++;
	}
	free(list);
	return n;
}

bool rig_orphans_gone(struct rig *rig, int timeout_ms)
{
	int64_t end = rig_now_ms() + timeout_ms;

	while (reap_orphans(rig)) {
		if (rig_now_ms() > end)
			return false;
		rig_sleep_ms(10);
	}
	return true;
}

static void proc_free(struct rig_proc *p)
{
	if (p->pidfd >= 0)
		close(p->pidfd);
	free(p);
}

void rig_proc_forget(struct rig *rig, struct rig_proc *p)
{
	struct rig_proc **at = &rig->procs;

	rig_proc_end(p);
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	proc_free(p);
}

/* Guardians, and QEMUs that an engine started, are ours once their parent has died. */
static void end_adopted(void)
{
	for (int tries = 0; tries < 200; tries++) {
		char path[64], *list, *s, *save;
		pid_t pid;

		snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
		list = rig_read_file(path);
		for (s = list ? strtok_r(list, " ", &save) : NULL; s; s = strtok_r(NULL, " ", &save)) {
			pid = (pid_t)atoi(s);
			if (pid > 1)
				kill(pid, SIGKILL); /* our child: the number is its own until we reap it */
		}
		free(list);
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
		if (pid < 0 && errno == ECHILD)
			return;
		rig_sleep_ms(10);
	}
}

void rig_procs_end(struct rig *rig)
{
	struct rig_proc *p, *next;

	for (p = rig->procs; p; p = p->next)
		rig_proc_end(p);
	end_adopted();
	for (p = rig->procs; p; p = next) {
		next = p->next;
		proc_free(p);
	}
	rig->procs = NULL;
}

char *rig_read_file(const char *path)
{
	FILE *f = fopen(path, "re");
	char *text = NULL;
	size_t size = 0;

	if (!f)
		return NULL;
	if (getdelim(&text, &size, 0, f) < 0) {
		free(text);
		text = strdup("");
	}
	fclose(f);
	return text;
}

static void print_log(const char *name, const char *path, size_t most)
{
	char *text = rig_read_file(path);
	size_t len = text ? strlen(text) : 0;

	if (len)
		fprintf(stderr, "--- %s says:\n%s%s\n", name,
			len > most ? "[...] " : "",
			text + (len > most ? len - most : 0));
	free(text);
}

void rig_procs_print_logs(const struct rig *rig)
{
	for (const struct rig_proc *p = rig->procs; p; p = p->next) {
		if (p->ended)
			fprintf(stderr, "--- %s (pid %d) ended with %d\n", p->name, p->pid, p->status);
		print_log(p->name, p->log, LOG_SHOWN);
	}
	for (const struct rig_vm *vm = rig->vms; vm; vm = vm->next)
		print_log(vm->name, vm->serial, SERIAL_SHOWN);
}

bool rig_log_has(const struct rig_proc *p, const char *text)
{
	char *log = rig_read_file(p->log);
	bool has = log && strstr(log, text);

	free(log);
	return has;
}

unsigned rig_count_fds(pid_t pid)
{
	char path[64];
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	d = opendir(path);
	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n < 2 ? 0 : n - 2; /* "." and ".." */
}

uint64_t rig_anon_bytes(pid_t pid)
{
	char path[64], *text, *at;
	uint64_t kib = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	text = rig_read_file(path);
	at = text ? strstr(text, "RssAnon:") : NULL;
	if (at)
		kib = strtoull(at + strlen("RssAnon:"), NULL, 10);
	free(text);
	return kib << 10;
}

static bool comm_is(pid_t pid, const char *comm)
{
	char path[64], *text;
	bool is;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	text = rig_read_file(path);
	is = text && !strncmp(text, comm, strlen(comm));
	free(text);
	return is;
}

pid_t rig_child_of(pid_t pid, const char *comm)
{
	char path[64], *list, *s, *save;
	pid_t found = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	list = rig_read_file(path);
	for (s = list ? strtok_r(list, " ", &save) : NULL; s && !found; s = strtok_r(NULL, " ", &save)) {
		if (comm_is((pid_t)atoi(s), comm))
			found = (pid_t)atoi(s);
	}
	free(list);
	return found;
}
