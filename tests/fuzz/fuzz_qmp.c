/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The QMP client against a server that says anything.  In the input, '@' stands for
 * what our command ids begin with, so that answers can be made.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "fuzz.h"
#include "kvm-glue/qmp.h"

static void serve(int fd, const uint8_t *data, size_t size)
{
	char id[32];
	size_t from = 0;
	int n = snprintf(id, sizeof(id), "lm-%d-", (int)getpid());

	for (size_t i = 0; i < size; i++) {
		if (data[i] != '@')
			continue;
		fuzz_send(fd, data + from, i - from);
		fuzz_send(fd, id, (size_t)n);
		from = i + 1;
	}
	fuzz_send(fd, data + from, size - from);
	shutdown(fd, SHUT_WR);
}

static void on_event(void *opaque, const char *name, struct json_object *data, int64_t time_ns)
{
	*(size_t *)opaque += strlen(name) + (data ? strlen(json_object_to_json_string(data)) : 0) + (time_ns > 0);
}

static void talk(struct lm_qmp *q)
{
	int64_t deadline = lm_deadline_after(LM_NS_PER_S);
	struct json_object *reply = NULL;
	struct lm_error err;
	size_t sum = 0;

	lm_qmp_set_event(q, on_event, &sum);
	lm_qmp_resync(q, deadline, &err);
	if (!lm_qmp_execute(q, "query-status", NULL, deadline, &reply, &err) && reply)
		json_object_put(reply);
	lm_qmp_execute(q, "stop", NULL, deadline, NULL, &err);
	lm_qmp_pump(q, &err);
	sum += strlen(lm_qmp_refusal(q));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct lm_qmp *q;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		abort();
	if (lm_qmp_adopt(pair[0], &q, NULL))
		abort();
	serve(pair[1], data, size);
	talk(q);
	lm_qmp_close(q);
	close(pair[1]);
	return 0;
}
