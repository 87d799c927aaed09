// SPDX-License-Identifier: Apache-2.0
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROGRAM		"qemu-system-x86_64"
#define MAX_ARGS	64
#define START_MS	10000
#define REPLY_MS	20000
#define TEXT		512

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

const char *vm_program(void)
{
	const char *named = getenv("QEMU"), *path = getenv("PATH");
	static char found[4096];
	int len;

	if (named)
		return access(named, X_OK) ? NULL : named;
	for (; path && *path; path += path[len] ? len + 1 : len) {
		len = (int)strcspn(path, ":");
		snprintf(found, sizeof(found), "%.*s/%s", len, path, PROGRAM);
		if (!access(found, X_OK))
			return found;
	}
	return NULL;
}

struct args {
	const char *v[MAX_ARGS];
	int n;
	char ram[TEXT], machine[TEXT], qmp[TEXT], serial[TEXT], mib[16];
};

static void add(struct args *a, const char *arg)
{
	if (a->n < MAX_ARGS - 1)
		a->v[a->n++] = arg;
	a->v[a->n] = NULL;
}

static void add2(struct args *a, const char *option, const char *value)
{
	add(a, option);
	add(a, value);
}

static void build(struct args *a, const struct vm *vm,
		  const struct vm_config *c)
{
	snprintf(a->mib, sizeof(a->mib), "%uM", c->mib);
	snprintf(a->ram, TEXT, "memory-backend-file,id=ram0,size=%uM,"
		 "mem-path=%s,share=on", c->mib, vm->ram);
	snprintf(a->machine, TEXT, "%s,memory-backend=ram0", c->machine);
	snprintf(a->qmp, TEXT, "unix:%s/%s.qmp,server=on,wait=off", c->dir,
		 c->name);
	snprintf(a->serial, TEXT, "socket,id=serial0,path=%s,server=on,"
		 "wait=off,logfile=%s", vm->serial, vm->log);
	add(a, vm_program());
	add2(a, "-M", a->machine);
	if (c->cpu)
		add2(a, "-cpu", c->cpu);
	add2(a, "-m", a->mib);
	add2(a, "-object", a->ram);
	add2(a, "-display", "none");
	add2(a, "-vga", "none");
	add(a, "-nodefaults");
	add(a, "-no-reboot");
	add2(a, "-chardev", a->serial);
	add2(a, "-serial", "chardev:serial0");
	add2(a, "-qmp", a->qmp);
	for (const char *const *m = c->more; m && *m; m++)
		add(a, *m);
}

__attribute__((noreturn))
static void run(const struct args *a, const struct vm *vm, pid_t parent)
{
	int in = open("/dev/null", O_RDONLY);
	int out = open(vm->err, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || in < 0 || out < 0)
		_exit(126);
	dup2(in, 0);
	dup2(out, 1);
	dup2(out, 2);
	execv(a->v[0], (char *const *)a->v);
	_exit(127);
}

static int connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(path);
	int fd;

	if (len >= sizeof(addr.sun_path))
		return -1;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	memcpy(addr.sun_path, path, len + 1);
	if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fd;
	close(fd);
	return -1;
}

/* One line into buf (cut to its size).  0, or -1 at the end or time limit. */
static int read_line(int fd, char *buf, size_t size, long deadline)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	size_t n = 0;
	char c;

	for (;;) {
		long left = deadline - now_ms();

		if (left <= 0 || poll(&p, 1, (int)left) <= 0 ||
		    read(fd, &c, 1) != 1)
			return -1;
		if (c == '\n')
			break;
		if (n < size - 1)
			buf[n++] = c;
	}
	buf[n] = '\0';
	return 0;
}

/* Events may come before the reply. */
int vm_qmp_json(struct vm *vm, const char *request)
{
	long deadline = now_ms() + REPLY_MS;
	char line[4096];

	if (dprintf(vm->qmp, "%s\n", request) < 0) {
		fprintf(stderr, "qmp: cannot send %s: %s\n", request,
			strerror(errno));
		return -1;
	}
	while (!read_line(vm->qmp, line, sizeof(line), deadline)) {
		if (!strncmp(line, "{\"return\"", 9))
			return 0;
		if (!strncmp(line, "{\"error\"", 8))
			break;
		line[0] = '\0';
	}
	fprintf(stderr, "qmp: %s failed: %s\n", request,
		line[0] ? line : "no answer");
	return -1;
}

int vm_qmp(struct vm *vm, const char *command)
{
	char request[TEXT];

	snprintf(request, sizeof(request), "{\"execute\":\"%s\"}", command);
	return vm_qmp_json(vm, request);
}

static int open_qmp(struct vm *vm, const struct vm_config *c)
{
	long deadline = now_ms() + START_MS;
	char path[VM_PATH], greeting[4096];

	snprintf(path, sizeof(path), "%s/%s.qmp", c->dir, c->name);
	vm->qmp = -1;
	while (vm->qmp < 0 && now_ms() < deadline && vm_alive(vm)) {
		vm->qmp = connect_to(path);
		if (vm->qmp < 0)
			usleep(2000);
	}
	unlink(path);
	if (vm->qmp < 0 ||
	    read_line(vm->qmp, greeting, sizeof(greeting), deadline))
		return -1;
	return vm_qmp(vm, "qmp_capabilities");
}

bool vm_alive(struct vm *vm)
{
	if (vm->pid > 0 && waitpid(vm->pid, NULL, WNOHANG) == vm->pid)
		vm->pid = 0;
	return vm->pid > 0;
}

static char *read_all(const char *path)
{
	size_t size = 0, len = 0;
	char *text = NULL;
	FILE *f = fopen(path, "re");

	do {
		size = size * 2 + 4096;
		text = realloc(text, size);
		if (!text)
			abort();
		if (f)
			len += fread(text + len, 1, size - 1 - len, f);
	} while (f && len == size - 1);
	text[len] = '\0';
	if (f)
		fclose(f);
	return text;
}

static void complain(const struct vm *vm)
{
	char *words = read_all(vm->err);

	fprintf(stderr, "vm: QEMU did not start: %s\n",
		*words ? words : "it said nothing");
	free(words);
}

int vm_start(struct vm *vm, const struct vm_config *c)
{
	struct args a = { .n = 0 };
	pid_t parent = getpid();

	*vm = (struct vm){ .qmp = -1 };
	if (!vm_program()) {
		fprintf(stderr, "vm: no %s in $PATH\n", PROGRAM);
		return -1;
	}
	snprintf(vm->ram, VM_PATH, "%s/%s.ram", c->dir, c->name);
	snprintf(vm->log, VM_PATH, "%s/%s.log", c->dir, c->name);
	snprintf(vm->serial, VM_PATH, "%s/%s.tty", c->dir, c->name);
	snprintf(vm->err, VM_PATH, "%s/%s.err", c->dir, c->name);
	build(&a, vm, c);
	vm->pid = fork();
	if (!vm->pid)
		run(&a, vm, parent);
	if (vm->pid < 0 || open_qmp(vm, c)) {
		complain(vm);
		vm_end(vm);
		return -1;
	}
	return 0;
}

void vm_end(struct vm *vm)
{
	if (vm_alive(vm)) {
		kill(vm->pid, SIGKILL);
		waitpid(vm->pid, NULL, 0);
	}
	if (vm->qmp >= 0)
		close(vm->qmp);
	if (vm->ram[0]) {
		unlink(vm->ram);
		unlink(vm->log);
		unlink(vm->serial);
		unlink(vm->err);
	}
	*vm = (struct vm){ .qmp = -1 };
}

char *vm_read_log(const struct vm *vm)
{
	return read_all(vm->log);
}

int vm_wait_log(struct vm *vm, const char *text, unsigned int milliseconds)
{
	long deadline = now_ms() + milliseconds;

	for (;;) {
		char *log = vm_read_log(vm);
		bool found = strstr(log, text);

		free(log);
		if (found)
			return 0;
		if (now_ms() > deadline || !vm_alive(vm))
			return -1;
		usleep(10000);
	}
}

int vm_open_serial(const struct vm *vm)
{
	return connect_to(vm->serial);
}
