/* SPDX-License-Identifier: Apache-2.0 */
/* A control channel over a socket pair: two good ends, or a good one and a raw socket that sends what it likes. */
#ifndef CONTROLRIG_H
#define CONTROLRIG_H

#include "unit.h"
#include "engine/control/control.h"

struct ends {
	struct lm_control a, b; /* b is closed when the test speaks for itself */
	int raw;                /* instead of b; -1: there is a b */
	int cancel_fd;          /* of a */
};

struct ends *ends_new(bool raw);
void ends_free(struct ends *e);

/* Deadlines: in five seconds, in n milliseconds. */
int64_t soon(void);
int64_t ms(unsigned n);

/* What the raw end sends: bytes, or a message with this sequence number. */
void raw_write(struct ends *e, const void *p, size_t len);
struct lm_wire_header raw_header(unsigned type, uint32_t len, uint64_t seq);
void raw_message(struct ends *e, unsigned type, const void *payload, uint32_t len, uint64_t seq);

#endif
