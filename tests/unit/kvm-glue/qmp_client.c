/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include "qmp_client.h"

struct lm_qmp *q;
struct lm_error err;
int nevents;
char event_name[64], event_status[64];
int64_t event_time;

void note_event(void *opaque, const char *name, struct json_object *data, int64_t time_ns)
{
	(void)opaque;
	nevents++;
	snprintf(event_name, sizeof(event_name), "%s", name);
	snprintf(event_status, sizeof(event_status), "%s", lm_js_text(data, "status"));
	event_time = time_ns;
}

int client_teardown(void **state)
{
	(void)state;
	lm_qmp_close(q);
	q = NULL;
	server_stop();
	return 0;
}

int connect_within(int64_t ns)
{
	memset(&err, 0, sizeof(err));
	return lm_qmp_connect(srv.path, -1, lm_now_ns() + ns, &q, &err);
}

void connected(void (*script)(void))
{
	server_start(script);
	if (connect_within(5 * LM_NS_PER_S))
		fail_msg("%s", err.msg);
}

int execute(const char *command, int64_t ns, struct json_object **ret)
{
	return lm_qmp_execute(q, command, NULL, lm_now_ns() + ns, ret, &err);
}

void assert_says(const char *words)
{
	if (!strstr(err.msg, words))
		fail_msg("\"%s\" does not say \"%s\"", err.msg, words);
}
