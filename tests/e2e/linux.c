/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "linux.h"

static void run_script(struct rig *rig, const char *const *argv)
{
	struct rig_proc *p = rig_spawn(rig, "prepare", argv, NULL, -1);

	assert_true(rig_proc_ended(p, 300000));
	if (p->status) {
		char *why = rig_read_file(p->log);

		print_message("%s", why ? why : "");
		free(why);
		rig_skip(rig, "no kernel for the Linux guest");
	}
}

static void append_file(const char *path, FILE *to)
{
	char *buf = malloc(1 << 20);
	FILE *from = fopen(path, "re");
	size_t n;

	assert_true(buf && from);
	while ((n = fread(buf, 1, 1 << 20, from)))
		assert_int_equal(fwrite(buf, 1, n, to), n);
	fclose(from);
	free(buf);
}

/* A missing kernel (no network, no package lists) is no fault of the engine. */
void linux_prepare_or_skip(struct rig *rig, char initrd[RIG_PATH_MAX])
{
	const char *const virtio[] = { "sh", LINUX_VIRTIO, LINUX_DIR, NULL };
	const char *const guest[] = { "sh", LINUX_PREPARE, LINUX_DIR, LINUX_WORKLOAD, NULL };
	FILE *f;

	run_script(rig, virtio);
	run_script(rig, guest);
	rig_path(rig, initrd, "initrd");
	f = fopen(initrd, "we");
	assert_non_null(f);
	append_file(LINUX_DIR "/initramfs.cpio", f);
	append_file(LINUX_DIR "/virtio.cpio", f);
	assert_int_equal(fclose(f), 0);
}

struct rig_config linux_config(const char *initrd, const char *append, const char *const *devices)
{
	struct rig_config c = {
		.mb = 256, .cpu = "Nehalem", .kernel = LINUX_DIR "/vmlinux", .append = append, .console = true,
		.extra = { "-initrd", initrd },
	};

	for (unsigned i = 0; devices[i] && i + 3 < RIG_ARGS_MAX; i++)
		c.extra[2 + i] = devices[i];
	return c;
}

struct rig_vm *linux_boot(struct rig *rig, const char *name, const struct rig_config *c, const char *ready)
{
	for (unsigned attempt = 0; attempt < 3; attempt++) {
		struct rig_vm *vm = rig_vm_start(rig, name, c, RIG_RUNS);
		char *log;

		if (rig_guest_wait_log(vm, ready, LINUX_BOOT_MS))
			return vm;
		log = rig_read_file(vm->serial);
		print_message("%s did not come up (%s); it said: %s\n", name, rig_vm_alive(vm) ? "stands still" : "ended",
			      log ? log : "");
		free(log);
		rig_vm_end(vm);
	}
	fail_msg("%s did not come up in three attempts", name);
	return NULL;
}

struct rig_proc *linux_slow_disk(struct rig *rig, char file[RIG_PATH_MAX])
{
	static unsigned serial;
	char dir[RIG_PATH_MAX];
	const char *const argv[] = { LINUX_SLOWFS, "--size-mib", "64", "--delay-ms", "60", dir, NULL };
	int64_t end = rig_now_ms() + RIG_WAIT_MS;
	struct rig_proc *p;
	struct stat st;

	rig_path(rig, dir, "slow%u", ++serial);
	rig_path(rig, file, "slow%u/disk", serial);
	assert_int_equal(mkdir(dir, 0700), 0);
	p = rig_spawn(rig, "slowfs", argv, NULL, -1);
	while (stat(file, &st) < 0) {
		if (rig_proc_ended(p, 10) || rig_now_ms() > end)
			rig_skip(rig, "cannot mount with FUSE");
	}
	return p;
}

static int64_t balloon_bytes(struct rig_vm *vm)
{
	struct json_object *r = rig_qmp(vm, "query-balloon", NULL), *actual;
	int64_t bytes = json_object_object_get_ex(r, "actual", &actual) ? json_object_get_int64(actual) : -1;

	json_object_put(r);
	return bytes;
}

void linux_set_balloon(struct rig_vm *vm, unsigned mb)
{
	int64_t end = rig_now_ms() + RIG_WAIT_MS;
	char args[64];

	snprintf(args, sizeof(args), "{\"value\":%llu}", (unsigned long long)mb << 20);
	rig_qmp_do(vm, "balloon", args);
	while (balloon_bytes(vm) != (int64_t)mb << 20) {
		if (rig_now_ms() > end)
			fail_msg("the guest's balloon does not move");
		rig_sleep_ms(20);
	}
}

void linux_wait_at_round(const struct rig *rig, char fault[LINUX_FAULT_MAX])
{
	snprintf(fault, LINUX_FAULT_MAX, "round:run=until test -e %s/go-on; do sleep 0.1; done", rig_dir(rig));
}

void linux_go_on(const struct rig *rig)
{
	char path[RIG_PATH_MAX];
	FILE *f;

	rig_path(rig, path, "go-on");
	f = fopen(path, "we");
	assert_non_null(f);
	fclose(f);
}
