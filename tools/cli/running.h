/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How `migrate-rdma postcopy` finds the `send` that moves a guest.
 *
 * A running `send` has a file "send-PID" in a private directory (runtime.h), named by
 * the process of the guest's QEMU, locked by flock(2) while it lives.  In it: the
 * sender's process and start time, the device and inode of the QMP socket, and whether
 * it may use post-copy.  So a guest is found by its QMP socket without a connection to
 * it: QEMU would serve that one after the sender's own, or the guardian's after it.
 *
 * A process id may be in use again by somebody else: the process that is signalled is held by a
 * pidfd, and its start time compared after that.  A file that nobody holds, or whose
 * process is another one, is stale: it is passed over here, and overwritten by the
 * next `send` of that guest.
 */
#ifndef CLI_RUNNING_H
#define CLI_RUNNING_H

#include <stdbool.h>
#include <stdint.h>
#include "migrate_rdma.h"

struct cli_running;

/* This process moves that guest.  -EBUSY: another one does.  0 or a negative errno. */
int cli_running_add(int32_t vm_pid, const char *qmp, bool postcopy, struct cli_running **ret);
/* Removes the file.  Takes NULL. */
void cli_running_remove(struct cli_running *running);

/*
 * Ask the `send` that moves the guest behind qmp, or of process vm_pid (qmp NULL), to
 * switch over now: SIGUSR1.  *ret_pid is that `send`.  -ESRCH: there is none;
 * -EOPNOTSUPP: it was started with --postcopy never.
 */
int cli_running_ask(const char *qmp, int32_t vm_pid, int32_t *ret_pid, struct lm_error *err);

/* In clock ticks since boot; 0: no such process, or it has ended. */
uint64_t cli_process_start(int32_t pid);

#endif
