/* SPDX-License-Identifier: Apache-2.0 */
/* Starting the Linux guest with its slow disk, for host tests. */
#ifndef TEST_LINUXVM_H
#define TEST_LINUXVM_H

#include <sys/types.h>
#include "vm.h"

/* What meson passes to a test: workload, slowfs, prepare.sh, kernel dir. */
struct linux_programs {
	const char *workload, *slowfs, *prepare, *out;
};

/*
 * Runs prepare.sh.  0, or -1 after it said on stderr what is missing; such a
 * test is to be skipped (exit 77), for a kernel may not be had offline.
 */
int linux_prepare(const struct linux_programs *p);

struct slowdisk {
	pid_t pid;
	char mount[VM_PATH];
	char file[VM_PATH + 8];
};

/*
 * Mounts slowfs at dir/name.mnt; options are slowfs's, NULL-ended, or NULL.
 * It is unmounted by slowdisk_stop(), and when the caller ends.
 */
int slowdisk_start(struct slowdisk *d, const struct linux_programs *p,
		   const char *dir, const char *name,
		   const char *const *options);
void slowdisk_stop(struct slowdisk *d);

struct linux_config {
	const char *dir, *name;
	unsigned int mib;
	const char *machine, *cpu;	/* NULL: the ones that work with TCG */
	const char *workload;		/* "wl.reads=4 wl.mb=32 ..." */
	const char *disk;		/* file of the NVMe disk, or NULL */
	const char *aio;		/* NULL: threads */
	const char *const *more;	/* further QEMU arguments, or NULL */
};

int linux_start(struct vm *vm, const struct linux_programs *p,
		const struct linux_config *config);

/* Sends a line ("check") to the workload's console. */
int linux_command(struct vm *vm, const char *line);

/*
 * The number after `name` in the last line of the log that has both `line` and
 * `name` ("HOLE checked=", " bad="); -1 if there is none.
 */
long long linux_number(struct vm *vm, const char *line, const char *name);

#endif
