/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * QEMU sends one JSON object per line: a greeting, events, and an answer to each
 * command in the order of the commands.  Bytes are collected in a buffer until a
 * line is whole; qmp_step() takes one line in.  Events go to the callback at
 * once, so nothing queues up here however many arrive.  Commands carry an id with
 * our process id in it: an answer with another id belongs to a command that was
 * given up, or to the late owner of an adopted connection.
 *
 * A command that was written by half (deadline, cancel) is cured by byte 0xFF,
 * which no JSON text may hold: QEMU's lexer drops what it has and starts anew.
 */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "qmp.h"
#include "qmp_priv.h"

#define QMP_READ_SIZE 65536

void lm_qmp_close(struct lm_qmp *q)
{
	if (!q)
		return;
	lm_close_fd(&q->fd);
	lm_js_put(&q->reply);
	if (q->tokener)
		json_tokener_free(q->tokener);
	free(q->buf);
	free(q);
}

int lm_qmp_adopt(int fd, struct lm_qmp **ret, struct lm_error *err)
{
	struct lm_qmp *q = calloc(1, sizeof(*q));

	if (q) {
		q->fd = fd;
		q->cancel_fd = -1;
		q->tokener = json_tokener_new_ex(64);
	}
	if (!q || !q->tokener) {
		if (!q)
			close(fd);
		lm_qmp_close(q);
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	}
	*ret = q;
	return 0;
}

int lm_qmp_fd(const struct lm_qmp *q)
{
	return q->fd;
}

pid_t lm_qmp_peer_pid(const struct lm_qmp *q)
{
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);

	if (getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return 0;
	return cred.pid;
}

void lm_qmp_set_cancel(struct lm_qmp *q, int cancel_fd)
{
	q->cancel_fd = cancel_fd;
}

void lm_qmp_set_event(struct lm_qmp *q, lm_qmp_event_fn *fn, void *opaque)
{
	q->event = fn;
	q->event_opaque = opaque;
}

const char *lm_qmp_refusal(const struct lm_qmp *q)
{
	return q->refusal;
}

static int qmp_gone(int code, struct lm_error *err)
{
	return lm_err_errno(err, code, LM_SCOPE_VM, "QEMU has ended or closed the QMP connection");
}

/* Wait until the socket is ready; -ETIMEDOUT and -ECANCELED leave err to the caller. */
static int qmp_poll(struct lm_qmp *q, short events, int64_t deadline_ns)
{
	struct pollfd p[2] = { { .fd = q->fd, .events = events }, { .fd = q->cancel_fd, .events = POLLIN } };

	for (;;) {
		int n = poll(p, 2, lm_deadline_poll_ms(deadline_ns));

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents)
			return -ECANCELED;
		if (n > 0)
			return 0;
		if (n == 0)
			return -ETIMEDOUT;
	}
}

static int qmp_poll_error(int r, const char *what, struct lm_error *err)
{
	if (r == -ECANCELED)
		return lm_err(err, r, LM_SCOPE_SESSION, "cancelled");
	if (r == -ETIMEDOUT)
		return lm_err(err, r, LM_SCOPE_VM, "QEMU does not answer (%s)", what);
	return qmp_gone(r, err);
}

static int buf_reserve(struct lm_qmp *q, struct lm_error *err)
{
	size_t cap = q->cap ? q->cap * 2 : QMP_READ_SIZE * 2;
	char *p;

	if (q->cap - q->len >= QMP_READ_SIZE)
		return 0;
	if (cap > 2 * LM_QMP_LINE_MAX)
		cap = 2 * LM_QMP_LINE_MAX;
	p = realloc(q->buf, cap);
	if (!p)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory for QEMU's answer");
	q->buf = p;
	q->cap = cap;
	return 0;
}

/* Take what the socket holds into the buffer; -EAGAIN (err untouched) when that is nothing. */
static int buf_fill(struct lm_qmp *q, struct lm_error *err)
{
	ssize_t n;
	int r;

	if (q->len > LM_QMP_LINE_MAX)
		return lm_err(err, -EMSGSIZE, LM_SCOPE_VM, "QMP: line of more than %llu bytes",
			      (unsigned long long)LM_QMP_LINE_MAX);
	r = buf_reserve(q, err);
	if (r)
		return r;
	do
		n = recv(q->fd, q->buf + q->len, q->cap - q->len, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return -EAGAIN;
	if (n <= 0)
		return qmp_gone(n ? -errno : -ECONNRESET, err);
	q->len += (size_t)n;
	return 0;
}

/* Length of the first whole line with its end, 0 when there is none yet. */
static size_t buf_line(struct lm_qmp *q)
{
	char *end = q->len > q->searched ? memchr(q->buf + q->searched, '\n', q->len - q->searched) : NULL;

	q->searched = end ? 0 : q->len;
	return end ? (size_t)(end - q->buf) + 1 : 0;
}

static void buf_drop(struct lm_qmp *q, size_t n)
{
	memmove(q->buf, q->buf + n, q->len - n);
	q->len -= n;
}

/* The object on the line, NULL when it is none. */
static struct json_object *line_parse(struct lm_qmp *q, size_t len)
{
	struct json_object *o;

	json_tokener_reset(q->tokener);
	o = json_tokener_parse_ex(q->tokener, q->buf, (int)len);
	if (o && !json_object_is_type(o, json_type_object))
		lm_js_put(&o);
	return o;
}

static int64_t event_time_ns(struct json_object *msg)
{
	struct json_object *t = lm_js_get(msg, "timestamp");
	int64_t s = lm_js_int(t, "seconds", -1), us = lm_js_int(t, "microseconds", -1);

	if (s < 0 || us < 0 || us > 999999 || s > INT64_MAX / LM_NS_PER_S - 1)
		return lm_clock_ns(CLOCK_REALTIME); /* QEMU says -1 when it has no clock */
	return s * LM_NS_PER_S + us * 1000;
}

static int message_take_reply(struct lm_qmp *q, struct json_object *msg, struct lm_error *err)
{
	const char *id = lm_js_str(msg, "id");

	if (!id && !q->resyncing)
		return lm_err(err, -EPROTO, LM_SCOPE_VM, "QMP: QEMU did not understand a command: %s",
			      lm_js_text(lm_js_get(msg, "error"), "desc"));
	if (id && q->want_id[0] && !strcmp(id, q->want_id)) {
		lm_js_put(&q->reply);
		q->reply = json_object_get(msg);
	}
	return 0; /* else: the late answer to a command that was given up */
}

static int message_take(struct lm_qmp *q, struct json_object *msg, struct lm_error *err)
{
	const char *event = lm_js_str(msg, "event");

	if (event) {
		if (q->event)
			q->event(q->event_opaque, event, lm_js_get(msg, "data"), event_time_ns(msg));
		return 0;
	}
	if (lm_js_get(msg, "QMP")) {
		q->greeted = true;
		return 0;
	}
	if (lm_js_get(msg, "error") || json_object_object_get_ex(msg, "return", NULL))
		return message_take_reply(q, msg, err);
	return q->resyncing ? 0 : lm_err(err, -EPROTO, LM_SCOPE_VM, "QMP: message of an unknown kind");
}

static bool line_blank(const char *line, size_t len)
{
	while (len && strchr(" \t\r\n", *line)) {
		line++;
		len--;
	}
	return len == 0;
}

static int line_take(struct lm_qmp *q, size_t len, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *msg = line_parse(q, len);
	int r;

	if (msg)
		r = message_take(q, msg, err);
	else if (q->resyncing || line_blank(q->buf, len))
		r = 0;
	else
		r = lm_err(err, -EPROTO, LM_SCOPE_VM,
			   "not QMP: \"%.*s\" (a human monitor? the guest needs -qmp unix:PATH,server=on,wait=off)",
			   (int)(len > 40 ? 40 : strcspn(q->buf, "\r\n")), q->buf);
	buf_drop(q, len);
	return r;
}

/* Take one message in; -EAGAIN (err untouched) when none has arrived. */
static int qmp_step_nowait(struct lm_qmp *q, struct lm_error *err)
{
	size_t len;

	while (!(len = buf_line(q))) {
		int r = buf_fill(q, err);

		if (r)
			return r;
	}
	return line_take(q, len, err);
}

/* Take one message in, waiting for it. */
int lm_qmp_step(struct lm_qmp *q, int64_t deadline_ns, const char *what, struct lm_error *err)
{
	int r;

	while ((r = qmp_step_nowait(q, err)) == -EAGAIN) {
		r = qmp_poll(q, POLLIN, deadline_ns);
		if (r)
			return qmp_poll_error(r, what, err);
	}
	return r;
}

int lm_qmp_pump(struct lm_qmp *q, struct lm_error *err)
{
	int r;

	do
		r = qmp_step_nowait(q, err);
	while (r == 0);
	return r == -EAGAIN ? 0 : r;
}

int lm_qmp_wait(struct lm_qmp *q, bool (*done)(void *opaque), void *opaque, int64_t deadline_ns,
		struct lm_error *err)
{
	while (!done(opaque)) {
		int r = lm_qmp_step(q, deadline_ns, "waiting for an event", err);

		if (r)
			return r;
	}
	return 0;
}

/* Bytes with a descriptor on the first of them (-1: none). */
static ssize_t send_with_fd(int sock, const char *bytes, size_t len, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;

	if (fd >= 0) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	return sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int qmp_send(struct lm_qmp *q, const char *bytes, size_t len, int fd, int64_t deadline_ns,
		    struct lm_error *err)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = send_with_fd(q->fd, bytes + done, len - done, done ? -1 : fd);
		int r = 0;

		if (n >= 0)
			done += (size_t)n;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			r = qmp_poll(q, POLLOUT, deadline_ns);
		else if (errno != EINTR)
			return qmp_gone(-errno, err);
		q->half_sent = done > 0 && done < len;
		if (r)
			return qmp_poll_error(r, "it does not read commands", err);
	}
	return 0;
}

static int command_send(struct lm_qmp *q, const char *command, struct json_object *args, int fd,
			int64_t deadline_ns, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *o = json_object_new_object();
	const char *text;
	LM_AUTO_FREE char *line = NULL;
	int len;

	snprintf(q->want_id, sizeof(q->want_id), "lm-%d-%llu", (int)getpid(), ++q->last_id);
	json_object_object_add(o, "execute", json_object_new_string(command));
	json_object_object_add(o, "id", json_object_new_string(q->want_id));
	if (args)
		json_object_object_add(o, "arguments", args);
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	len = asprintf(&line, "%s%s\n", q->resyncing ? "\xff\n" : "", text);
	if (len < 0)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory for a command");
	return qmp_send(q, line, (size_t)len, fd, deadline_ns, err);
}

static int refusal_code(const char *class)
{
	if (!strcmp(class, "CommandNotFound"))
		return -ENOSYS;
	return !strcmp(class, "DeviceNotFound") ? -ENODEV : -EREMOTEIO;
}

static int reply_result(struct lm_qmp *q, const char *command, struct json_object **ret, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *reply = q->reply;
	struct json_object *error = lm_js_get(reply, "error");

	q->reply = NULL;
	q->want_id[0] = 0;
	if (error) {
		snprintf(q->refusal, sizeof(q->refusal), "%s", lm_js_text(error, "desc"));
		return lm_err(err, refusal_code(lm_js_text(error, "class")), LM_SCOPE_OPERATION,
			      "QEMU refused %s: %s", command, q->refusal);
	}
	if (ret)
		*ret = json_object_get(lm_js_get(reply, "return"));
	return 0;
}

/* Owns args. */
static int qmp_command(struct lm_qmp *q, const char *command, struct json_object *args, int fd,
		       int64_t deadline_ns, struct json_object **ret, struct lm_error *err)
{
	int r = command_send(q, command, args, fd, deadline_ns, err);

	while (!r && !q->reply)
		r = lm_qmp_step(q, deadline_ns, command, err);
	if (r) {
		q->want_id[0] = 0;
		return r;
	}
	return reply_result(q, command, ret, err);
}

int lm_qmp_resync(struct lm_qmp *q, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	q->resyncing = true;
	r = qmp_command(q, "qmp_capabilities", NULL, -1, deadline_ns, NULL, err);
	q->resyncing = false;
	/* refused: they were negotiated before */
	return r == -ENOSYS || r == -EREMOTEIO ? 0 : r;
}

static int command_run(struct lm_qmp *q, const char *command, struct json_object *args, int fd,
		       int64_t deadline_ns, struct json_object **ret, struct lm_error *err)
{
	int r = q->half_sent ? lm_qmp_resync(q, deadline_ns, err) : 0;

	if (r) {
		lm_js_put(&args);
		return r;
	}
	return qmp_command(q, command, args, fd, deadline_ns, ret, err);
}

int lm_qmp_execute(struct lm_qmp *q, const char *command, struct json_object *args, int64_t deadline_ns,
		   struct json_object **ret, struct lm_error *err)
{
	return command_run(q, command, args, -1, deadline_ns, ret, err);
}

int lm_qmp_getfd(struct lm_qmp *q, const char *name, int fd, int64_t deadline_ns, struct lm_error *err)
{
	return command_run(q, "getfd", lm_js_strings("fdname", name, NULL), fd, deadline_ns, NULL, err);
}
