// SPDX-License-Identifier: Apache-2.0
#include "linuxvm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEXT		1024
#define MAX_ARGS	32
#define MOUNT_TRIES	300	/* of 10 ms */

int linux_prepare(const struct linux_programs *p)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		execl("/bin/sh", "sh", p->prepare, p->out, p->workload, NULL);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "the Linux guest cannot be prepared\n");
		return -1;
	}
	return 0;
}

__attribute__((noreturn))
static void run_slowfs(const struct slowdisk *d, const char *program,
		       const char *const *options, pid_t parent)
{
	const char *argv[MAX_ARGS] = { program };
	int n = 1;

	while (options && *options && n < MAX_ARGS - 2)
		argv[n++] = *options++;
	argv[n] = d->mount;
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() == parent)
		execv(program, (char *const *)argv);
	_exit(127);
}

static int wait_mounted(struct slowdisk *d)
{
	for (int i = 0; i < MOUNT_TRIES; i++) {
		if (!access(d->file, F_OK))
			return 0;
		if (waitpid(d->pid, NULL, WNOHANG) == d->pid) {
			d->pid = 0;
			break;
		}
		usleep(10000);
	}
	fprintf(stderr, "slowfs did not mount on %s (is /dev/fuse there?)\n",
		d->mount);
	return -1;
}

int slowdisk_start(struct slowdisk *d, const struct linux_programs *p,
		   const char *dir, const char *name,
		   const char *const *options)
{
	pid_t parent = getpid();

	*d = (struct slowdisk){ 0 };
	snprintf(d->mount, sizeof(d->mount), "%s/%s.mnt", dir, name);
	snprintf(d->file, sizeof(d->file), "%s/disk", d->mount);
	if (mkdir(d->mount, 0700) && errno != EEXIST) {
		fprintf(stderr, "cannot make %s: %s\n", d->mount,
			strerror(errno));
		return -1;
	}
	d->pid = fork();
	if (!d->pid)
		run_slowfs(d, p->slowfs, options, parent);
	if (d->pid > 0 && !wait_mounted(d))
		return 0;
	slowdisk_stop(d);
	return -1;
}

/* It unmounts when it is told to end; a mount left by a crash goes as well. */
void slowdisk_stop(struct slowdisk *d)
{
	if (d->pid > 0) {
		kill(d->pid, SIGTERM);
		waitpid(d->pid, NULL, 0);
	}
	if (d->mount[0]) {
		umount2(d->mount, MNT_DETACH);
		rmdir(d->mount);
	}
	*d = (struct slowdisk){ 0 };
}

struct args {
	const char *v[MAX_ARGS];
	int n;
	char kernel[TEXT], initrd[TEXT], append[TEXT], drive[TEXT];
};

static void add2(struct args *a, const char *option, const char *value)
{
	if (a->n < MAX_ARGS - 2) {
		a->v[a->n++] = option;
		a->v[a->n++] = value;
	}
}

/*
 * panic=-1 with -no-reboot: a panic ends QEMU.  cache=none opens the disk with
 * O_DIRECT, so that its data go straight into the guest's pages.
 */
static void build(struct args *a, const struct linux_programs *p,
		  const struct linux_config *c)
{
	snprintf(a->kernel, TEXT, "%s/vmlinux", p->out);
	snprintf(a->initrd, TEXT, "%s/initramfs.cpio", p->out);
	snprintf(a->append, TEXT, "console=ttyS0 quiet panic=-1 mitigations=off"
		 " random.trust_cpu=on %s", c->workload);
	add2(a, "-kernel", a->kernel);
	add2(a, "-initrd", a->initrd);
	add2(a, "-append", a->append);
	if (c->disk) {
		snprintf(a->drive, TEXT, "file=%s,if=none,id=d0,format=raw,"
			 "cache=none,aio=%s", c->disk,
			 c->aio ? c->aio : "threads");
		add2(a, "-drive", a->drive);
		add2(a, "-device", "nvme,drive=d0,serial=1");
	}
	for (const char *const *m = c->more; m && *m && a->n < MAX_ARGS - 1; m++)
		a->v[a->n++] = *m;
}

int linux_start(struct vm *vm, const struct linux_programs *p,
		const struct linux_config *c)
{
	struct args a = { .n = 0 };
	struct vm_config config = {
		.dir = c->dir, .name = c->name, .mib = c->mib,
		.machine = c->machine ? c->machine : "q35,accel=tcg",
		.cpu = c->cpu ? c->cpu : "Nehalem", .more = a.v,
	};

	build(&a, p, c);
	return vm_start(vm, &config);
}

/*
 * The socket is kept for a moment: QEMU drops what the guest's port has not
 * taken when the other side goes.
 */
int linux_command(struct vm *vm, const char *line)
{
	int fd = vm_open_serial(vm), n = -1;

	if (fd >= 0)
		n = dprintf(fd, "%s\n", line);
	if (n > 0)
		usleep(200000);
	else
		fprintf(stderr, "no command to the guest's console: %s\n",
			strerror(errno));
	if (fd >= 0)
		close(fd);
	return n > 0 ? 0 : -1;
}

long long linux_number(struct vm *vm, const char *line, const char *name)
{
	char *log = vm_read_log(vm), *rest = log, *l;
	long long value = -1;

	while ((l = strsep(&rest, "\n"))) {
		char *at = strstr(l, line) ? strstr(l, name) : NULL;

		/* A line without its end may be cut within the number. */
		if (at && rest)
			value = strtoll(at + strlen(name), NULL, 10);
	}
	free(log);
	return value;
}
