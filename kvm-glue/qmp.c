/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 * QEMU sends one JSON object per line: a greeting, events, and an answer to each
 * command in the order of the commands.  qmp_input.c takes them in.  Commands carry
 * an id with our process id in it, and their answers carry the same id.
 *
 * Deadline or cancel may cut a command off in the middle.  Byte 0xFF cures that: no JSON
 * text may hold it, so QEMU's lexer drops what it has and starts anew.
 */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "qmp.h"
#include "qmp_input.h"

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
			r = lm_qmp_poll(q, POLLOUT, deadline_ns);
		else if (errno != EINTR)
			return lm_qmp_gone(-errno, err);
		q->half_sent = done > 0 && done < len;
		if (r)
			return lm_qmp_poll_error(r, "it does not read commands", err);
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
