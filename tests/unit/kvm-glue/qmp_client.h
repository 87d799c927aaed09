/* SPDX-License-Identifier: Apache-2.0 */
/* The test's side of a QMP connection: one client of the server in qmp_server.h, and the events that it got. */
#ifndef QMP_CLIENT_H
#define QMP_CLIENT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "kvm-glue/qmp.h"
#include "qmp_server.h"

#define SOON (200 * LM_NS_PER_MS)

extern struct lm_qmp *q;
extern struct lm_error err; /* of the last call */

/* The text of an event with name n and status s, for scripts. */
#define EVENT(n, s)                                                                             \
	"{\"timestamp\": {\"seconds\": 1795362100, \"microseconds\": 207580}, \"event\": \"" n "\", "   \
	"\"data\": {\"status\": \"" s "\"}}\r\n"

/* What note_event() has seen: how many events, and the last one. */
extern int nevents;
extern char event_name[64], event_status[64];
extern int64_t event_time;
void note_event(void *opaque, const char *name, struct json_object *data, int64_t time_ns);

int connect_within(int64_t ns);
/* Start the server with this script and connect to it. */
void connected(void (*script)(void));
int execute(const char *command, int64_t ns, struct json_object **ret);
/* The last error contains these words. */
void assert_says(const char *words);
/* For cmocka: closes the client and stops the server. */
int client_teardown(void **state);

#endif
