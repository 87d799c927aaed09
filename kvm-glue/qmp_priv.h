/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by qmp.c and qmp_connect.c. */
#ifndef LM_QMP_PRIV_H
#define LM_QMP_PRIV_H

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

int lm_qmp_step(struct lm_qmp *q, int64_t deadline_ns, const char *what, struct lm_error *err);

#endif
