/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What QEMU sends.  A buffer collects bytes until a line is whole;
 * lm_qmp_step() takes one line in.  Events go to the callback at once, so nothing
 * queues up here however many arrive.  An answer with another id than the one that
 * we wait for belongs to a command that we gave up, or to the late owner of an
 * adopted connection.
 */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "qmp_input.h"

#define QMP_READ_SIZE 65536

int lm_qmp_gone(int code, struct lm_error *err)
{
	return lm_err_errno(err, code, LM_SCOPE_VM, "QEMU has ended or closed the QMP connection");
}

int lm_qmp_poll(struct lm_qmp *q, short events, int64_t deadline_ns)
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

int lm_qmp_poll_error(int r, const char *what, struct lm_error *err)
{
	if (r == -ECANCELED)
		return lm_err(err, r, LM_SCOPE_SESSION, "cancelled");
	if (r == -ETIMEDOUT)
		return lm_err(err, r, LM_SCOPE_VM, "QEMU does not answer (%s)", what);
	return lm_qmp_gone(r, err);
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
		return lm_qmp_gone(n ? -errno : -ECONNRESET, err);
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

int lm_qmp_step(struct lm_qmp *q, int64_t deadline_ns, const char *what, struct lm_error *err)
{
	int r;

	while ((r = qmp_step_nowait(q, err)) == -EAGAIN) {
		r = lm_qmp_poll(q, POLLIN, deadline_ns);
		if (r)
			return lm_qmp_poll_error(r, what, err);
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
