/* SPDX-License-Identifier: Apache-2.0 */
/* Network addresses as people write them, and which of them are this host itself. */
#ifndef LM_ADDRESS_H
#define LM_ADDRESS_H

#include <netdb.h>
#include <stdbool.h>
#include <sys/socket.h>
#include "engine/base/error.h"

/* Room for any "HOST:PORT" or numeric "[V6%SCOPE]:PORT". */
#define LM_ADDRESS_MAX 256
#define LM_PORT_MAX 6

/*
 * "HOST:PORT" or "[V6]:PORT" into its parts (host without brackets).  PORT is a
 * number from 0 to 65535.  -EINVAL with a text that says what is wrong.
 */
int lm_address_parse(const char *address, char ret_host[static LM_ADDRESS_MAX],
		     char ret_port[static LM_PORT_MAX], struct lm_error *err);
/*
 * All numeric addresses that it stands for; freeaddrinfo() is the caller's.
 * passive: for listening.  Blocks as long as the resolver does.
 */
int lm_address_resolve(const char *address, bool passive, struct addrinfo **ret, struct lm_error *err);
/* Numeric text, "127.0.0.1:4444" or "[::1]:4444"; "local" for a socket pair. */
void lm_address_format(const struct sockaddr *addr, char ret[static LM_ADDRESS_MAX]);

/* 127.0.0.0/8, ::1, ::ffff:127.0.0.0/104, and sockets that have no network. */
bool lm_address_is_loopback(const struct sockaddr *addr);
/* 0 if insecure or loopback, else -EACCES; doing: "connect to", "listen on", ... */
int lm_address_allowed(const struct sockaddr *addr, bool insecure, const char *doing, struct lm_error *err);

#endif
