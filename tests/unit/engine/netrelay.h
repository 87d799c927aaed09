/* SPDX-License-Identifier: Apache-2.0 */
/* A network between two sessions of one process: it can be cut, fall silent and refuse. */
#ifndef NETRELAY_H
#define NETRELAY_H

#include <pthread.h>
#include <stdatomic.h>
#include "engine/net/stream.h"

#define NETRELAY_CONNECTIONS 64

struct netrelay {
	int listen_fd, port;
	char target[LM_ADDRESS_MAX], address[LM_ADDRESS_MAX];
	pthread_mutex_t mutex;
	int fds[2 * NETRELAY_CONNECTIONS]; /* pairs; under the mutex */
	unsigned nfds, only;                 /* only: connections that are let through, 0: all; set before the first */
	bool holds;                          /* the others are taken and hear nothing; set before the first */
	_Atomic bool silent, refuses, stop;
	_Atomic unsigned users;
	pthread_t thread;
};

/* From a port of its own (address) to the target, "HOST:PORT" on loopback. */
struct netrelay *netrelay_new(const char *target);
void netrelay_free(struct netrelay *r);
/* Every connection that there is ends. */
void netrelay_cut(struct netrelay *r);
void netrelay_retarget(struct netrelay *r, const char *target);
int netrelay_connect(const char *address);

#endif
