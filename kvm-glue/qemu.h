/* SPDX-License-Identifier: Apache-2.0 */
/* A running, stock QEMU (7.2 or newer) as a struct lm_vm. */
#ifndef LM_QEMU_H
#define LM_QEMU_H

#include <sys/types.h>
#include "engine/vm/vm.h"
#include "engine/transport/transport.h" /* enum lm_side */

struct lm_qemu_options {
	const char *qmp;       /* path of the QMP socket */
	int32_t pid;           /* 0: by SO_PEERCRED */
	enum lm_side side;     /* the destination must wait for an incoming migration (-incoming defer -S) */
	int64_t timeout_ns;    /* a QEMU that does not answer for so long is gone */
	int cancel_fd;         /* readable: give up what is waited for; -1: none */
	void (*log)(void *opaque, enum lm_log_level level, const char *text); /* may be NULL */
	void *log_opaque;
};

/*
 * Connect, negotiate, find the process, and refuse with the reason what cannot be
 * migrated safely.  Changes nothing in QEMU.
 */
int lm_qemu_attach(const struct lm_qemu_options *options, struct lm_vm **ret, struct lm_error *err);

/*
 * Open the files of RAM whose description an engine left behind (all but fd and
 * host), through the mappings of process pid, after checking that they are what
 * they were.  Asks nothing of QEMU.  On error all fds are -1.
 */
int lm_qemu_ram_reopen(pid_t pid, struct lm_ram *ram, bool writable, struct lm_error *err);

/* What this host can do, a line each; returns how many of them are failures. */
int lm_qemu_check_host(lm_check_fn *fn, void *opaque);

#endif
