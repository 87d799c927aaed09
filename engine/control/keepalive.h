/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread that pings the peer once a second until it is stopped, while this side is busy for long:
 * registering memory with a device can take minutes.
 */
#ifndef LM_KEEPALIVE_H
#define LM_KEEPALIVE_H

#include <pthread.h>
#include "control.h"

struct lm_keepalive {
	struct lm_control *control;
	pthread_t thread;
	int stop_fd; /* eventfd; -1: not running */
};

/* control: open until stop has returned. */
int lm_keepalive_start(struct lm_keepalive *k, struct lm_control *control, struct lm_error *err);
/* Waits for the thread.  May be called for one that was not started if its stop_fd is -1. */
void lm_keepalive_stop(struct lm_keepalive *k);

#endif
