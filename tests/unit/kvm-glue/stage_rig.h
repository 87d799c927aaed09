/* SPDX-License-Identifier: Apache-2.0 */
/* A source and a destination at every stage of a pause, for test_stages.c and test_move.c. */
#ifndef STAGE_RIG_H
#define STAGE_RIG_H

#include <stdatomic.h>
#include <pthread.h>
#include "engine/base/clock.h"
#include "kvm-glue/js.h"
#include "kvm-glue/qemu.h"
#include "qemu_rig.h"

#define LIMIT (5 * LM_NS_PER_S)

/* One test at a time: all of this is gone after rig_teardown(). */
extern struct rig_qemu src_qemu, dst_qemu;
extern struct lm_vm *src, *dst;
extern struct lm_error rig_err;
extern int cancel_fd; /* given to attach(); -1: none */

/* The channel of the device state: QEMU writes to .qemu, a thread moves it to .sink (-1: drops it). */
struct channel {
	int qemu, near, sink;
	_Atomic bool hold; /* stop reading */
	_Atomic uint64_t bytes;
	pthread_t thread;
	bool open;
};
extern struct channel ch;

void channel_open(int sndbuf, int sink); /* sndbuf 0: as it is */
void channel_close(void);

/* Fails the test with rig_err's text. */
void ok(int r);
void attach(const struct rig_qemu *q, enum lm_side side, struct lm_vm **ret);
/* What QEMU says to another client, after ours has let go.  Owns args. */
void query(const struct rig_qemu *q, const char *command, struct json_object *args, struct json_object **ret);
void assert_status(const struct rig_qemu *q, const char *want);
/* What a paused guest is called after a cancelled migration depends on QEMU's version. */
void assert_paused(const struct rig_qemu *q);

enum stage { NOTHING, STARTED, PAUSED, DEVICE, COMPLETED };
void bring_to(enum stage stage);
/* lm_vm_pause_wait() for as long as LIMIT. */
void paused_wait(struct lm_vm *vm, struct lm_vm_times *times);

int rig_teardown(void **state);

#endif
