/* SPDX-License-Identifier: Apache-2.0 */
/* The connection itself and what arrives on it.  For the other qmp*.c files. */
#ifndef LM_QMP_INPUT_H
#define LM_QMP_INPUT_H

#include "qmp.h"

struct lm_qmp {
	int fd;
	int cancel_fd;
	lm_qmp_event_fn *event;
	void *event_opaque;

	/* input: bytes that make no whole line yet */
	char *buf;
	size_t len, cap;
	size_t searched; /* of these, known to hold no end of line */
	struct json_tokener *tokener;

	bool greeted;
	bool resyncing; /* nonsense and answers to unknown commands are skipped */
	bool half_sent; /* the last command was not written to its end */
	unsigned long long last_id;
	char want_id[48]; /* of the command that is waited for; "": none */
	struct json_object *reply;
	char refusal[256];
};

/* The error "QEMU has ended or closed the connection". */
int lm_qmp_gone(int code, struct lm_error *err);
/* Wait until the socket is ready (poll(2) events); on error lm_qmp_poll_error() has the words. */
int lm_qmp_poll(struct lm_qmp *q, short events, int64_t deadline_ns);
int lm_qmp_poll_error(int r, const char *what, struct lm_error *err);
/* Take one message in, waiting for it; what says for what, in the words of an error. */
int lm_qmp_step(struct lm_qmp *q, int64_t deadline_ns, const char *what, struct lm_error *err);

#endif
