/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The virtual machine as the engine needs it.  kvm-glue/qemu.h makes one for a
 * running QEMU.
 *
 * All calls come from the session's thread, block until done or until the
 * deadline (-ETIMEDOUT), and may return -ECANCELED when cancel_fd of the maker
 * becomes readable (never after resume has begun).  A VM that is gone: scope
 * LM_SCOPE_VM.
 *
 * Life at the source:       regions, drain..., pause, state_save, [resume], detach
 * Life at the destination:  regions, [pager], state_load, state_wait, resume, detach
 */
#ifndef LM_VM_H
#define LM_VM_H

#include "dirty.h"
#include "pager.h"

struct lm_vm;

/* What must be equal on both sides for a migration to make sense. */
struct lm_vm_info {
	char machine[64];   /* QEMU: canonical machine type, "pc-q35-7.2" */
	char version[64];   /* of the VMM, for people */
	char vmm[16];       /* "qemu" */
	unsigned vcpus;
	bool running;       /* the guest ran when asked */
};

struct lm_vm_times {
	int64_t stopped_ns; /* CLOCK_REALTIME at which the vCPUs stopped / started, by the VMM's word */
};

enum lm_force {
	LM_FORCE_UNDO,     /* source: undo pause_start, leave the guest paused as it was */
	LM_FORCE_UNDO_RUN, /* source: undo pause_start and run the guest, as it did */
	LM_FORCE_RUN,      /* destination: COMMIT was received: run the guest */
	LM_FORCE_END,      /* destination: it was not: end this VM, nothing is lost with it */
};

struct lm_vm_ops {
	const char *name;
	/* Read the RAM layout anew; *ret_ram is the caller's (lm_ram_fini), not mapped. */
	int (*regions)(struct lm_vm *vm, struct lm_ram *ret_ram, struct lm_error *err);
	/*
	 * *ret: whether the layout is still this one.  Called while the guest stands still, so it
	 * asks the VM as few questions as possible.  NULL: the engine compares what regions
	 * returns.
	 */
	int (*ram_is)(struct lm_vm *vm, const struct lm_ram *ram, bool *ret, struct lm_error *err);
	/* What people call the guest, "" where it has no such name; NULL: nothing is known. */
	int (*identity)(struct lm_vm *vm, char ret_name[64], char ret_uuid[40], struct lm_error *err);
	/* Source: make the tracker for this VM's RAM, not started. */
	int (*tracker)(struct lm_vm *vm, const struct lm_ram *ram, struct lm_dirty **ret,
		       struct lm_error *err);
	/* Destination: make the pager for this VM's RAM, not armed. */
	int (*pager)(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err);
	/* Wait until all disk and network I/O that was in flight at the call has landed in RAM. */
	int (*drain)(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
	/*
	 * Source.  pause_start begins to write the device state to state_fd (a socket,
	 * stays the caller's) and returns at once; the reader must keep reading.  From
	 * here on RAM can be neither plugged nor unplugged.  pause_wait returns 0 when
	 * the vCPUs are stopped and the disks are drained and flushed, -EAGAIN when
	 * that has not happened within timeout_ms (it may be called again).
	 */
	int (*pause_start)(struct lm_vm *vm, int state_fd, struct lm_error *err);
	int (*pause_wait)(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err);
	/* Source: let the rest of the device state out; 0 when the last byte is in state_fd. */
	int (*state_save)(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
	/* Destination: begin to load the device state from state_fd; returns at once. */
	int (*state_load)(struct lm_vm *vm, int state_fd, struct lm_error *err);
	/* Destination: 0 when it is loaded and the guest is ready to run, paused. */
	int (*state_wait)(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
	/*
	 * Run the guest: at the destination after state_wait, at the source to undo
	 * pause_start in whatever stage it is.  Not cancellable.
	 */
	int (*resume)(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err);
	/*
	 * Keep a duplicate of fd open in the VM's process under this name, in place of one that it
	 * had there before; fd stays the caller's.  May be NULL: the VM cannot.
	 */
	int (*keep_fd)(struct lm_vm *vm, const char *name, int fd, struct lm_error *err);
	/*
	 * Bring the VM to a certain state from whatever state it is in, without
	 * struct lm_vm: for the guardian after the engine's death, and for the engine
	 * when it has lost track.  guardian_fd and pidfd are those of struct lm_vm,
	 * inherited.  LM_FORCE_END returns 0 only when the process is gone.
	 */
	int (*force)(int guardian_fd, int pidfd, enum lm_force what, int64_t deadline_ns,
		      struct lm_error *err);
	/* Disconnect and free.  The VM stays as it is; capabilities that were set are put back. */
	void (*detach)(struct lm_vm *vm);
};

/* A backend embeds this first; info is filled by its maker. */
struct lm_vm {
	const struct lm_vm_ops *ops;
	struct lm_vm_info info;
	int guardian_fd; /* connection to the VM that the guardian inherits; -1: none */
	int32_t pid;   /* of the VM's process */
	int pidfd;     /* of the VM's process: readable when it has exited */
};

int lm_vm_regions(struct lm_vm *vm, struct lm_ram *ret_ram, struct lm_error *err);
int lm_vm_ram_is(struct lm_vm *vm, const struct lm_ram *ram, bool *ret, struct lm_error *err);
int lm_vm_identity(struct lm_vm *vm, char ret_name[static 64], char ret_uuid[static 40], struct lm_error *err);
int lm_vm_tracker(struct lm_vm *vm, const struct lm_ram *ram, struct lm_dirty **ret, struct lm_error *err);
int lm_vm_pager(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err);
int lm_vm_drain(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
int lm_vm_pause_start(struct lm_vm *vm, int state_fd, struct lm_error *err);
int lm_vm_pause_wait(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err);
int lm_vm_state_save(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
int lm_vm_state_load(struct lm_vm *vm, int state_fd, struct lm_error *err);
int lm_vm_state_wait(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
int lm_vm_resume(struct lm_vm *vm, int64_t deadline_ns, struct lm_vm_times *ret, struct lm_error *err);
int lm_vm_keep_fd(struct lm_vm *vm, const char *name, int fd, struct lm_error *err); /* -ENOTSUP: it cannot */
/* End a VM that must never run; 0 when its process is gone. */
int lm_vm_end(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
void lm_vm_detach(struct lm_vm *vm); /* takes NULL */

#endif
