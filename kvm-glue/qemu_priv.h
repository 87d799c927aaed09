/* SPDX-License-Identifier: Apache-2.0 */
/* What the qemu_*.c files share.  Everything here belongs to the session's thread. */
#ifndef LM_QEMU_PRIV_H
#define LM_QEMU_PRIV_H

#include <sys/types.h>
#include "engine/base/clock.h"
#include "qemu.h"
#include "qmp.h"

#define QEMU_TIMEOUT_NS (10 * LM_NS_PER_S) /* for callers that have no opinion */
#define QEMU_FD_NAME "migrate-rdma-state"

/* What QEMU's events said since qemu_seen_reset(). Times are QEMU's own, CLOCK_REALTIME. */
struct qemu_seen {
	char migration[32]; /* status of the last MIGRATION event, "" for none */
	int64_t migration_ns;
	bool stopped;
	int64_t stopped_ns;
	bool resumed;
	int64_t resumed_ns;
	bool shutdown;
};

struct qemu {
	struct lm_vm base;
	struct lm_qmp *qmp;
	enum lm_side side;
	pid_t pid;
	int major, minor;
	int64_t timeout_ns;
	void (*log)(void *opaque, enum lm_log_level level, const char *text);
	void *log_opaque;

	struct qemu_seen seen;
	int state_fd;                       /* our copy of the socket the state goes through; -1: none */
	bool was_running;                   /* when pause_start was called */
	struct json_object *caps_before;    /* NULL: not changed */
	struct json_object *params_before;
};

static inline struct qemu *qemu_of(struct lm_vm *vm)
{
	return (struct qemu *)vm;
}

static inline int64_t qemu_deadline(const struct qemu *q)
{
	return lm_deadline_after(q->timeout_ns);
}

/* qemu_ask.c */
void qemu_debug(struct qemu *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A command that is answered at once.  Owns args. */
int qemu_ask(struct qemu *q, const char *command, struct json_object *args, struct json_object **ret,
	     struct lm_error *err);
int qemu_qom_get(struct qemu *q, const char *path, const char *property, struct json_object **ret,
		 struct lm_error *err);
/* Opens /proc/PID/NAME of this QEMU's process. */
int qemu_proc_open(const struct qemu *q, const char *name, int flags);

/* qemu_open.c */
/* Connect and find the process; refuses nothing.  cancel_fd and side are taken from options.  base.ops stays NULL. */
int qemu_open(const struct lm_qemu_options *options, struct qemu **ret, struct lm_error *err);
void qemu_close(struct qemu *q);

/* qemu_ram.c */
struct qemu_memdev {
	char id[LM_REGION_NAME_MAX];
	char type[64];
	char path[512]; /* "" when it has none */
	uint64_t size, offset;
	bool share;
};
struct qemu_memdevs {
	struct qemu_memdev *devs; /* sorted by id */
	unsigned n;
};
int qemu_memdevs_read(struct qemu *q, struct qemu_memdevs *ret, struct lm_error *err);
void qemu_memdevs_fini(struct qemu_memdevs *m);
int qemu_regions(struct lm_vm *vm, struct lm_ram *ret_ram, struct lm_error *err);
int qemu_ram_is(struct lm_vm *vm, const struct lm_ram *ram, bool *ret, struct lm_error *err);

/* qemu_devices.c: the devices and their types, as far as they matter here. */
/* Calls fn for every device that the user added; stops at the first that returns non-zero. */
int qemu_devices_each(struct qemu *q, int (*fn)(void *opaque, const char *type), void *opaque,
		      struct lm_error *err);
/* 1 when the guest can discard parts of its RAM (*ret_what says by what), 0, or an error. */
int qemu_may_discard(struct qemu *q, char *ret_what, size_t size, struct lm_error *err);
/* Whether the process has a file open whose path begins with one of the prefixes; its path in *ret. */
bool qemu_has_open(const struct qemu *q, const char *const *prefixes, char *ret, size_t size);

/* sharers.c */
struct lm_sharer {
	pid_t pid;
	char comm[32];
	uint64_t dev, ino;
};
/* First process but pid and this one that has one of the files mapped shared and writable: 1, 0, or an error. */
int lm_sharer_find(pid_t pid, const struct lm_ram *ram, struct lm_sharer *ret, struct lm_error *err);
void lm_proc_comm(pid_t pid, char *ret, size_t size);

/* qemu_rules.c */
/*
 * Every criterion as one line.  Returns the number of failures or a negative errno
 * when QEMU could not be asked.
 */
int qemu_rules_check(struct qemu *q, lm_check_fn *fn, void *opaque, struct lm_error *err);

/* qemu_caps.c */
int qemu_caps_set(struct qemu *q, struct lm_error *err);
void qemu_caps_restore(struct qemu *q);

/* qemu_state.c */
struct qemu_status {
	char run[32];       /* of query-status: "running", "paused", ... */
	bool running;
	char migration[32]; /* of query-migrate; "none" when there was none */
	char error[256];    /* its error-desc */
};
int qemu_status_read(struct lm_qmp *qmp, int64_t deadline_ns, struct qemu_status *ret, struct lm_error *err);
bool qemu_migration_active(const char *status);
void qemu_seen_reset(struct qemu *q);
void qemu_on_event(void *opaque, const char *name, struct json_object *data, int64_t time_ns);
/*
 * Whatever stage a migration is in: cancel it, wait until QEMU is at rest.  *ret is what it is then.
 */
int qemu_settle(struct lm_qmp *qmp, int64_t deadline_ns, struct qemu_status *ret, struct lm_error *err);
/* `cont`, until QEMU says that the guest runs. */
int qemu_cont(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err);

/* qemu_source.c, qemu_dest.c: members of the ops table */
int qemu_drain(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
int qemu_pause_start(struct lm_vm *vm, int state_fd, struct lm_error *err);
int qemu_pause_wait(struct lm_vm *vm, int timeout_ms, struct lm_vm_times *ret, struct lm_error *err);
int qemu_state_save(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
int qemu_undo(struct qemu *q, int64_t deadline_ns, struct lm_error *err);
int qemu_state_load(struct lm_vm *vm, int state_fd, struct lm_error *err);
int qemu_state_wait(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err);
int qemu_run_loaded(struct qemu *q, int64_t deadline_ns, struct lm_error *err);
/* qemu_pager.c */
int qemu_pager(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err);
/* qemu_force.c */
/* 0 when QEMU has closed the connection, which it does when it ends. */
int qemu_quit(struct lm_qmp *qmp, int64_t deadline_ns, struct lm_error *err);
int qemu_force(int guardian_fd, int pidfd, enum lm_force what, int64_t deadline_ns, struct lm_error *err);
/* Keeps a copy of the socket and gives it to QEMU under QEMU_FD_NAME. */
int qemu_give_state_fd(struct qemu *q, int state_fd, struct lm_error *err);

#endif
