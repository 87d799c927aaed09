/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Source: the thread that carries the VM's device state from a socket to the
 * control channel, as STATE messages, or to whoever saves it.
 */
#ifndef LM_RELAY_H
#define LM_RELAY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include "engine/control/control.h"

struct lm_relay {
	bool running;
	pthread_t thread;
	struct lm_control *control; /* NULL: sink takes it */
	int (*sink)(void *opaque, const uint8_t *p, size_t len, struct lm_error *err); /* relay's thread */
	void *opaque;
	int fd;                  /* our end */
	int64_t send_timeout_ns, deadline_ns;
	_Atomic uint64_t bytes;
	struct lm_error error;   /* relay's thread until joined */
};

/*
 * Make a socket pair and start the thread.  *ret_vm_fd is the end that the VM
 * writes to; the caller closes it as soon as the VM has its own copy, because the
 * relay ends when the last copy is closed.  A peer that takes nothing for
 * send_timeout_ns, or at the deadline, ends the relay: it holds the control
 * channel's send mutex no longer.
 */
int lm_relay_start(struct lm_relay *r, struct lm_control *control, int64_t send_timeout_ns,
		   int64_t deadline_ns, int *ret_vm_fd, struct lm_error *err);
/* The same, but what the VM writes goes to sink; an error of it ends the relay. */
int lm_relay_start_sink(struct lm_relay *r, int (*sink)(void *opaque, const uint8_t *p, size_t len, struct lm_error *err),
			void *opaque, int *ret_vm_fd, struct lm_error *err);
/* Wait until the VM has closed its end and everything was sent. */
int lm_relay_finish(struct lm_relay *r, int64_t deadline_ns, struct lm_error *err);
/* Make the VM see a broken stream; does not wait for the thread.  May be called for a relay that was not started. */
void lm_relay_break(struct lm_relay *r);
/*
 * Break it and wait for the thread, which may be sending until its deadline.  May be called for a
 * relay that was not started.
 */
void lm_relay_stop(struct lm_relay *r);

#endif
