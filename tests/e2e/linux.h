/* SPDX-License-Identifier: Apache-2.0 */
/* The Linux guest of tests/linux-guest with the rig's QEMUs, and with virtio devices. */
#ifndef TEST_E2E_LINUX_H
#define TEST_E2E_LINUX_H

#include "rig.h"

#define LINUX_BOOT_MS	60000
#define LINUX_APPEND	"console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on "

/* Makes kernel and initrd; skips the test where they cannot be had. */
void linux_prepare_or_skip(struct rig *rig, char initrd[RIG_PATH_MAX]);

/* devices: QEMU's arguments for them, NULL-terminated; strings stay the caller's. */
struct rig_config linux_config(const char *initrd, const char *append, const char *const *devices);

/*
 * A guest that has said `ready`.  Once one with two emulated CPUs never said its first word, nobody knows why.
 * No migration had begun: so it is told of, with what the guest said, and tried again.
 */
struct rig_vm *linux_boot(struct rig *rig, const char *name, const struct rig_config *c, const char *ready);

/*
 * Mounts slowfs (60 ms) and returns the path of its disk.  Within rig_private_mounts(), so
 * that the mount goes with the test.  Returns the process; skips the test without FUSE.
 */
struct rig_proc *linux_slow_disk(struct rig *rig, char file[RIG_PATH_MAX]);

/* Blow the guest's balloon up, or let it down, until the guest has so many MiB. */
void linux_set_balloon(struct rig_vm *vm, unsigned mb);

/* LM_FAULT of a source that, when it has copied once, waits until linux_go_on(). */
#define LINUX_FAULT_MAX 256
void linux_wait_at_round(const struct rig *rig, char fault[LINUX_FAULT_MAX]);
void linux_go_on(const struct rig *rig);

#endif
