/* SPDX-License-Identifier: Apache-2.0 */
/* QEMUs and the test guest inside. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <signal.h>
#include "internal.h"

#define ARGS_MAX	64
#define WORD_MAX	256
#define KVM_GET_API_VERSION_ 0xae00 /* _IO(0xae, 0) */

/* A command line under construction: words live as long as it does. */
struct line {
	char word[ARGS_MAX][WORD_MAX];
	const char *argv[ARGS_MAX + 1];
	unsigned n;
};

static void word(struct line *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void word(struct line *l, const char *fmt, ...)
{
	va_list args;

	assert_true(l->n < ARGS_MAX);
	va_start(args, fmt);
	vsnprintf(l->word[l->n], WORD_MAX, fmt, args);
	va_end(args);
	l->argv[l->n] = l->word[l->n];
	l->argv[++l->n] = NULL;
}

static void add_backend(struct line *l, const struct rig_file *f, enum rig_backing backing)
{
	word(l, "-object");
	word(l, "memory-backend-file,id=%s,size=%lu,mem-path=%s,share=%s", f->id,
	     (unsigned long)f->size, f->path, backing == RIG_PRIVATE_FILE ? "off" : "on");
}

static void add_nodes(struct line *l, const struct rig_vm *vm, const struct rig_config *c)
{
	for (unsigned i = 0; i < c->nodes; i++) {
		word(l, "-numa");
		word(l, "node,nodeid=%u,memdev=%s", i, vm->ram[i].id);
	}
}

static void add_memory(struct line *l, const struct rig_vm *vm, const struct rig_config *c)
{
	unsigned mb = c->mb ? c->mb : 64;

	word(l, "-m");
	if (c->dimm_mb || c->may_plug)
		word(l, "%uM,slots=4,maxmem=%uM", mb, mb + c->dimm_mb + 1024);
	else
		word(l, "%uM", mb);
	for (unsigned i = 0; i < vm->nram; i++)
		add_backend(l, &vm->ram[i], c->backing);
	if (c->backing == RIG_MEMFD) {
		word(l, "-object");
		word(l, "memory-backend-memfd,id=ram0,size=%uM,share=on", mb);
	}
	add_nodes(l, vm, c);
	if (c->dimm_mb) {
		word(l, "-device");
		word(l, "pc-dimm,id=dimm,memdev=dimm0");
	}
}

static void add_machine(struct line *l, const struct rig_config *c)
{
	bool whole = !c->nodes && c->backing != RIG_NO_BACKEND;

	word(l, "-M");
	word(l, "%s,accel=%s%s", c->machine ? c->machine : "q35", c->accel ? c->accel : "tcg",
	     whole ? ",memory-backend=ram0" : "");
	if (!c->accel || !strcmp(c->accel, "tcg") || c->cpu) {
		word(l, "-cpu");
		word(l, "%s", c->cpu ? c->cpu : "max");
	}
}

static void add_qmp(struct line *l, const struct rig_vm *vm)
{
	word(l, "-qmp");
	word(l, "unix:%s,server=on,wait=off", vm->own_qmp);
	if (!vm->qmp[0])
		return;
	word(l, "-qmp");
	word(l, "unix:%s,server=on,wait=off", vm->qmp);
}

static void add_serial(struct line *l, const struct rig_vm *vm, const struct rig_config *c)
{
	if (c->console) {
		word(l, "-chardev");
		word(l, "socket,id=console,path=%s,server=on,wait=off,logfile=%s", vm->console, vm->serial);
	}
	word(l, "-serial");
	word(l, c->console ? "chardev:console" : "file:%s", vm->serial);
}

static void add_rest(struct line *l, const struct rig_vm *vm, const struct rig_config *c, enum rig_role role)
{
	static const char *const fixed[] = { "-display", "none", "-vga", "none", "-nodefaults", "-no-reboot" };

	for (unsigned i = 0; i < sizeof(fixed) / sizeof(*fixed); i++)
		word(l, "%s", fixed[i]);
	add_serial(l, vm, c);
	word(l, "-kernel");
	word(l, "%s", c->kernel ? c->kernel : TEST_GUEST);
	word(l, "-append");
	word(l, "%s", c->append ? c->append : "mb=32 rate=1000");
	if (role != RIG_RUNS)
		word(l, "-S");
	if (role == RIG_WAITS) {
		word(l, "-incoming");
		word(l, "defer");
	}
	for (unsigned i = 0; c->extra[i]; i++)
		word(l, "%s", c->extra[i]);
}

static bool kvm_usable(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	bool usable = fd >= 0 && ioctl(fd, KVM_GET_API_VERSION_, 0) == 12;

	if (fd >= 0)
		close(fd);
	return usable;
}

static struct rig_vm *vm_new(struct rig *rig, const char *name, const struct rig_config *c)
{
	struct rig_vm *vm;

	if (c->accel && !strcmp(c->accel, "kvm") && !kvm_usable())
		rig_skip(rig, "KVM is not usable here");
	vm = calloc(1, sizeof(*vm));
	assert_non_null(vm);
	vm->rig = rig;
	vm->next = rig->vms;
	rig->vms = vm;
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	rig_path(rig, vm->qmp, "%s.qmp", name);
	rig_path(rig, vm->own_qmp, "%s.own", name);
	rig_path(rig, vm->serial, "%s.serial", name);
	rig_path(rig, vm->console, "%s.console", name);
	rig_ram_paths(vm, c);
	return vm;
}

static void build_line(struct line *l, const struct rig_vm *vm, const struct rig_config *c, enum rig_role role)
{
	memset(l, 0, sizeof(*l));
	word(l, "qemu-system-x86_64");
	add_machine(l, c);
	add_memory(l, vm, c);
	add_qmp(l, vm);
	add_rest(l, vm, c, role);
}

void rig_vm_found(struct rig_vm *vm)
{
	int64_t now = rig_realtime_us(), end = rig_now_ms() + RIG_WAIT_MS;
	char status[32];

	do {
		vm->q = rig_qmp_open(vm->own_qmp, 100);
	} while (!vm->q && rig_now_ms() < end && !(vm->proc && rig_proc_ended(vm->proc, 0)));
	if (!vm->q)
		fail_msg("QEMU %s did not come up", vm->name);
	vm->pid = rig_qmp_peer(vm->q);
	rig_ram_open(vm);
	rig_vm_status(vm, status);
	if (!vm->q->nturns)
		rig_qmp_turn(vm->q, now, !strcmp(status, "running"));
}

struct rig_vm *rig_vm_start(struct rig *rig, const char *name, const struct rig_config *config,
			    enum rig_role role)
{
	static struct line l;
	struct rig_vm *vm = vm_new(rig, name, config);

	build_line(&l, vm, config, role);
	vm->proc = rig_spawn(rig, name, l.argv, NULL, -1);
	rig_vm_found(vm);
	return vm;
}

struct rig_vm *rig_vm_plan(struct rig *rig, const char *name, const struct rig_config *config,
			   enum rig_role role, const char *argv[], size_t size)
{
	static struct line l; /* static: argv points into it */
	struct rig_vm *vm = vm_new(rig, name, config);
	size_t i;

	vm->qmp[0] = 0; /* the engine adds its own */
	build_line(&l, vm, config, role);
	for (i = 0; l.argv[i] && i + 1 < size; i++)
		argv[i] = l.argv[i];
	argv[i] = NULL;
	return vm;
}

bool rig_vm_alive(struct rig_vm *vm)
{
	return vm->proc ? !rig_proc_ended(vm->proc, 0) : rig_qmp_pump(vm->q, 0);
}

void rig_vm_kill(struct rig_vm *vm)
{
	if (vm->proc)
		rig_proc_end(vm->proc);
	else if (vm->q && vm->q->fd >= 0)
		json_object_put(rig_qmp_try(vm->q, "quit", NULL, NULL));
}

static void vm_free(struct rig_vm *vm)
{
	rig_qmp_close(vm->q);
	rig_ram_remove(vm);
	free(vm);
}

void rig_vm_end(struct rig_vm *vm)
{
	struct rig_vm **at = &vm->rig->vms;

	rig_vm_kill(vm);
	if (vm->proc)
		rig_proc_forget(vm->rig, vm->proc);
	unlink(vm->qmp);
	unlink(vm->own_qmp);
	while (*at != vm)
		at = &(*at)->next;
	*at = vm->next;
	vm_free(vm);
}

void rig_vms_free(struct rig *rig)
{
	struct rig_vm *vm, *next;

	for (vm = rig->vms; vm; vm = next) {
		next = vm->next;
		vm_free(vm);
	}
	rig->vms = NULL;
}

void rig_vms_print_logs(const struct rig *rig)
{
	for (const struct rig_vm *vm = rig->vms; vm; vm = vm->next) {
		if (vm->q && json_object_array_length(vm->q->events))
			fprintf(stderr, "--- events of %s: %s\n", vm->name,
				json_object_to_json_string(vm->q->events));
	}
}
