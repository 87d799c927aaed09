/* SPDX-License-Identifier: Apache-2.0 */
/* A QMP server in a thread that follows a script, good or bad. */
#ifndef QMP_SERVER_H
#define QMP_SERVER_H

#include <pthread.h>
#include <stdbool.h>

#define GREETING                                                                                \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, "           \
	"\"capabilities\": [\"oob\"]}}\r\n"

struct qmp_server {
	char dir[64], path[128];
	int listener, fd;
	void (*script)(void);
	pthread_t thread;
	bool running;
	char line[65536]; /* the last command */
	char id[64];      /* of it */
	int passed_fd;    /* the last descriptor that came; -1: none */
};
extern struct qmp_server srv;

/* Serves one client with script, in a thread. */
void server_start(void (*script)(void));
void server_stop(void); /* takes one that was not started */

/* For scripts. */
void say(const char *text);
bool hear(void);               /* the next command; false at the end */
void answer(const char *text); /* "@" in the text becomes the id of the last command */
void answer_ok(void);
void negotiate(void);          /* greeting and qmp_capabilities */

#endif
