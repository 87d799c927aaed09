/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the rig's own files. */
#ifndef TEST_RIG_INTERNAL_H
#define TEST_RIG_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include "rig.h"

/* A moment at which a guest began to run or stopped, by QEMU's word. */
struct rig_turn {
	int64_t time_us; /* CLOCK_REALTIME */
	bool runs;
};

#define RIG_TURNS_MAX 64

struct rig_qmp {
	int fd;     /* -1: QEMU has gone */
	char *buf;
	size_t len, size;
	struct json_object *events;
	struct rig_turn turns[RIG_TURNS_MAX];
	unsigned nturns;
};

struct rig_watcher {
	pthread_t thread;
	atomic_bool stop, two;
	int fd[2]; /* RAM files, for the heartbeat */
	bool runs;
};

struct rig {
	const struct rig_test *test;
	bool passed, skipped;
	unsigned serial;   /* of this test in this process: makes names unique */
	char dir[48];
	struct rig_proc *procs;
	struct rig_vm *vms;
	struct rig_run *runs;
	struct rig_relay *relays;
	struct rig_watcher watcher;
	char huge[RIG_PATH_MAX];
	long huge_saved;   /* nr_hugepages before, -1: untouched */
};

/* qmp.c */
struct rig_qmp *rig_qmp_open(const char *path, int timeout_ms);
void rig_qmp_close(struct rig_qmp *q);
/* Takes in what is there; waits for something for at most timeout_ms; false: QEMU has gone. */
bool rig_qmp_pump(struct rig_qmp *q, int timeout_ms);
pid_t rig_qmp_peer(const struct rig_qmp *q);
void rig_qmp_turn(struct rig_qmp *q, int64_t time_us, bool runs);
/* NULL: QEMU has gone or refused; *ret_error (may be NULL) is then the caller's or NULL. */
struct json_object *rig_qmp_try(struct rig_qmp *q, const char *command, const char *arguments,
				char **ret_error);

/* ram.c */
void rig_ram_paths(struct rig_vm *vm, const struct rig_config *config);
void rig_ram_open(struct rig_vm *vm);
void rig_ram_remove(struct rig_vm *vm);
void rig_ram_sweep(void);
void rig_hugepages_restore(struct rig *rig);

/* proc.c */
void rig_procs_end(struct rig *rig);
void rig_proc_forget(struct rig *rig, struct rig_proc *p); /* ends it, too */
void rig_procs_print_logs(const struct rig *rig);

/* vm.c, run.c, relay.c, watch.c */
void rig_vms_free(struct rig *rig);
void rig_vms_print_logs(const struct rig *rig);
void rig_runs_free(struct rig *rig);
void rig_runs_print_events(const struct rig *rig);
void rig_relays_free(struct rig *rig);
void rig_watch_stop(struct rig *rig);

#endif
