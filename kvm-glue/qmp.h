/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of QEMU's machine protocol (QMP) on a unix socket.
 *
 * One thread at a time.  Every wait ends at its deadline (-ETIMEDOUT) and when
 * the cancel descriptor becomes readable (-ECANCELED).  A QEMU that has ended or
 * closed the connection, or does not answer a command: scope LM_SCOPE_VM.
 * A command that QEMU refused: -ENOSYS (it has no such command), -ENODEV (no such
 * device or object), else -EREMOTEIO, scope LM_SCOPE_OPERATION; QEMU's words are in the error text and in
 * lm_qmp_refusal().
 *
 * After a command was given up (deadline, cancel) its late answer is recognised
 * by its id and dropped; the connection stays usable.
 */
#ifndef LM_QMP_H
#define LM_QMP_H

#include <sys/types.h>
#include "engine/base/error.h"
#include "js.h"

#define LM_QMP_LINE_MAX (UINT64_C(64) << 20) /* a longer answer is an error */

struct lm_qmp;

/* QEMU's event; data (may be NULL) lives until the callback returns, which must not call back in here. */
typedef void lm_qmp_event_fn(void *opaque, const char *name, struct json_object *data, int64_t time_ns);

/* Connect and negotiate capabilities. */
int lm_qmp_connect(const char *path, int cancel_fd, int64_t deadline_ns, struct lm_qmp **ret,
		   struct lm_error *err);
/* A connection that exists, in an unknown state: call lm_qmp_resync() next.  Owns fd, also on error. */
int lm_qmp_adopt(int fd, struct lm_qmp **ret, struct lm_error *err);
/*
 * Make QEMU forget a command that was sent only in part, skip its answers to earlier commands, and
 * make sure that capabilities are negotiated.
 */
int lm_qmp_resync(struct lm_qmp *q, int64_t deadline_ns, struct lm_error *err);
void lm_qmp_close(struct lm_qmp *q); /* takes NULL */

int lm_qmp_fd(const struct lm_qmp *q);
/* Who made the listening socket (SO_PEERCRED); 0: not known. */
pid_t lm_qmp_peer_pid(const struct lm_qmp *q);
void lm_qmp_set_cancel(struct lm_qmp *q, int cancel_fd); /* -1: not cancellable */
void lm_qmp_set_event(struct lm_qmp *q, lm_qmp_event_fn *fn, void *opaque);

/*
 * Execute a command and wait for its answer.  Owns args (may be NULL).  *ret
 * (NULL: not wanted) is the caller's.
 */
int lm_qmp_execute(struct lm_qmp *q, const char *command, struct json_object *args, int64_t deadline_ns,
		   struct json_object **ret, struct lm_error *err);
/* Give QEMU a descriptor under a name (getfd); fd stays the caller's. */
int lm_qmp_getfd(struct lm_qmp *q, const char *name, int fd, int64_t deadline_ns, struct lm_error *err);
/* Read events until done() is true; done is called first, and after each event. */
int lm_qmp_wait(struct lm_qmp *q, bool (*done)(void *opaque), void *opaque, int64_t deadline_ns,
		struct lm_error *err);
/* Take in what has arrived, without waiting. */
int lm_qmp_pump(struct lm_qmp *q, struct lm_error *err);
/* What QEMU said when it last refused a command. */
const char *lm_qmp_refusal(const struct lm_qmp *q);

#endif
