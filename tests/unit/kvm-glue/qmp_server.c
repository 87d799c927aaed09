/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "qmp_server.h"

struct qmp_server srv = { .passed_fd = -1 };

void say(const char *text)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = send(srv.fd, text, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

/* One byte at a time, so that descriptors come with the byte they were sent on. */
static bool hear_byte(char *c)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { c, 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
			      .msg_controllen = sizeof(control.bytes) };
	struct cmsghdr *h;

	if (recvmsg(srv.fd, &msg, MSG_CMSG_CLOEXEC) != 1)
		return false;
	h = CMSG_FIRSTHDR(&msg);
	if (h && h->cmsg_type == SCM_RIGHTS)
		memcpy(&srv.passed_fd, CMSG_DATA(h), sizeof(int));
	return true;
}

/* The next command; its id is remembered.  False at the end. */
bool hear(void)
{
	size_t n = 0;
	char c, *id;

	while (n < sizeof(srv.line) - 1 && hear_byte(&c) && c != '\n')
		srv.line[n++] = c;
	srv.line[n] = 0;
	id = strstr(srv.line, "\"id\":\"");
	if (id)
		snprintf(srv.id, sizeof(srv.id), "%.*s", (int)strcspn(id + 6, "\""), id + 6);
	return n > 0;
}

/* "@" in the text becomes the id of the last command. */
void answer(const char *text)
{
	char buf[1024];
	const char *at = strchr(text, '@');

	snprintf(buf, sizeof(buf), "%.*s%s%s\r\n", (int)(at - text), text, srv.id, at + 1);
	say(buf);
}

void answer_ok(void)
{
	answer("{\"return\": {}, \"id\": \"@\"}");
}

static void *serve(void *arg)
{
	(void)arg;
	srv.fd = accept(srv.listener, NULL, NULL);
	if (srv.fd < 0)
		return NULL;
	srv.script();
	close(srv.fd);
	return NULL;
}

void negotiate(void)
{
	say(GREETING);
	hear();
	answer_ok();
}

static void check(bool ok)
{
	if (!ok)
		abort();
}

void server_start(void (*script)(void))
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	memset(&srv, 0, sizeof(srv));
	srv.passed_fd = -1;
	strcpy(srv.dir, "/tmp/lm-qmp-XXXXXX");
	check(mkdtemp(srv.dir) != NULL);
	snprintf(srv.path, sizeof(srv.path), "%s/qmp", srv.dir);
	memcpy(a.sun_path, srv.path, strlen(srv.path) + 1);
	srv.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(bind(srv.listener, (struct sockaddr *)&a, sizeof(a)) == 0);
	check(listen(srv.listener, 1) == 0);
	srv.script = script;
	check(pthread_create(&srv.thread, NULL, serve, NULL) == 0);
	srv.running = true;
}

void server_stop(void)
{
	if (srv.running) {
		shutdown(srv.listener, SHUT_RDWR);
		pthread_join(srv.thread, NULL);
		close(srv.listener);
		unlink(srv.path);
		rmdir(srv.dir);
	}
	lm_close_fd(&srv.passed_fd);
	memset(&srv, 0, sizeof(srv));
	srv.passed_fd = -1;
}
