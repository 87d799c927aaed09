/* SPDX-License-Identifier: Apache-2.0 */
/* A QMP client of the rig's own, so that a fault in the engine's cannot hide itself. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "internal.h"

static int try_connect(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	if (fd >= 0 && !connect(fd, (struct sockaddr *)&a, sizeof(a)))
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

struct rig_qmp *rig_qmp_open(const char *path, int timeout_ms)
{
	int64_t end = rig_now_ms() + timeout_ms;
	struct rig_qmp *q;
	int fd;

	while ((fd = try_connect(path)) < 0) {
		if (rig_now_ms() > end)
			return NULL;
		rig_sleep_ms(5);
	}
	q = calloc(1, sizeof(*q));
	assert_non_null(q);
	q->fd = fd;
	q->events = json_object_new_array();
	json_object_put(rig_qmp_try(q, "qmp_capabilities", NULL, NULL));
	if (q->fd < 0) {
		rig_qmp_close(q);
		return NULL;
	}
	return q;
}

static void hang_up(struct rig_qmp *q)
{
	if (q->fd >= 0)
		close(q->fd);
	q->fd = -1;
}

void rig_qmp_close(struct rig_qmp *q)
{
	if (!q)
		return;
	hang_up(q);
	json_object_put(q->events);
	free(q->buf);
	free(q);
}

pid_t rig_qmp_peer(const struct rig_qmp *q)
{
	struct ucred c = { 0 };
	socklen_t len = sizeof(c);

	getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &c, &len);
	return c.pid;
}

static int64_t event_time_us(struct json_object *e)
{
	struct json_object *t, *s, *u;

	if (!json_object_object_get_ex(e, "timestamp", &t) ||
	    !json_object_object_get_ex(t, "seconds", &s) ||
	    !json_object_object_get_ex(t, "microseconds", &u))
		return 0;
	return json_object_get_int64(s) * 1000000 + json_object_get_int64(u);
}

void rig_qmp_turn(struct rig_qmp *q, int64_t time_us, bool runs)
{
	if (q->nturns < RIG_TURNS_MAX)
		q->turns[q->nturns++] = (struct rig_turn){ time_us, runs };
}

static void take_event(struct rig_qmp *q, struct json_object *e, const char *name)
{
	if (!strcmp(name, "STOP") || !strcmp(name, "RESUME"))
		rig_qmp_turn(q, event_time_us(e), name[0] == 'R');
	json_object_array_add(q->events, json_object_get(e));
}

/* One line out of the buffer, or NULL. */
static struct json_object *next_message(struct rig_qmp *q)
{
	char *nl = q->len ? memchr(q->buf, '\n', q->len) : NULL;
	struct json_object *m;

	if (!nl)
		return NULL;
	*nl = 0;
	m = json_tokener_parse(q->buf);
	q->len -= (size_t)(nl + 1 - q->buf);
	memmove(q->buf, nl + 1, q->len);
	return m ? m : json_object_new_object();
}

static bool read_more(struct rig_qmp *q)
{
	ssize_t n;

	if (q->size - q->len < 4096) {
		q->size = q->size * 2 + 8192;
		q->buf = realloc(q->buf, q->size);
		assert_non_null(q->buf);
	}
	n = read(q->fd, q->buf + q->len, q->size - q->len);
	if (n <= 0) {
		hang_up(q);
		return false;
	}
	q->len += (size_t)n;
	return true;
}

static bool readable(const struct rig_qmp *q, int timeout_ms)
{
	struct pollfd p = { .fd = q->fd, .events = POLLIN };

	return q->fd >= 0 && poll(&p, 1, timeout_ms) > 0;
}

/* An answer, if there is one among the complete lines; events are taken on the way. */
static struct json_object *take_messages(struct rig_qmp *q)
{
	struct json_object *m, *name;

	while ((m = next_message(q))) {
		if (json_object_object_get_ex(m, "event", &name))
			take_event(q, m, json_object_get_string(name));
		else if (!json_object_object_get_ex(m, "QMP", NULL))
			return m;
		json_object_put(m);
	}
	return NULL;
}

bool rig_qmp_pump(struct rig_qmp *q, int timeout_ms)
{
	while (readable(q, timeout_ms)) {
		timeout_ms = 0;
		if (!read_more(q))
			break;
		json_object_put(take_messages(q));
	}
	return q->fd >= 0;
}

static struct json_object *answer(struct rig_qmp *q)
{
	int64_t end = rig_now_ms() + RIG_WAIT_MS;
	struct json_object *m;

	while (!(m = take_messages(q))) {
		if (rig_now_ms() > end || !readable(q, RIG_WAIT_MS) || !read_more(q))
			return NULL;
	}
	return m;
}

struct json_object *rig_qmp_try(struct rig_qmp *q, const char *command, const char *arguments,
				char **ret_error)
{
	struct json_object *m, *r = NULL;

	if (ret_error)
		*ret_error = NULL;
	if (q->fd < 0)
		return NULL;
	if (dprintf(q->fd, "{\"execute\":\"%s\"%s%s}\n", command, arguments ? ",\"arguments\":" : "",
		    arguments ? arguments : "") < 0) {
		rig_qmp_pump(q, 0);
		hang_up(q);
		return NULL;
	}
	m = answer(q);
	if (m && !json_object_object_get_ex(m, "return", &r) && ret_error)
		*ret_error = strdup(json_object_to_json_string(m));
	json_object_get(r);
	json_object_put(m);
	return r;
}

struct json_object *rig_qmp(struct rig_vm *vm, const char *command, const char *arguments)
{
	char *error;
	struct json_object *r = rig_qmp_try(vm->q, command, arguments, &error);

	if (!r)
		fail_msg("%s: %s: %s", vm->name, command, error ? error : "QEMU has gone");
	return r;
}

void rig_qmp_do(struct rig_vm *vm, const char *command, const char *arguments)
{
	json_object_put(rig_qmp(vm, command, arguments));
}

static bool had_event(const struct rig_qmp *q, const char *event)
{
	struct json_object *name;

	for (size_t i = 0; i < json_object_array_length(q->events); i++) {
		if (json_object_object_get_ex(json_object_array_get_idx(q->events, i), "event", &name) &&
		    !strcmp(json_object_get_string(name), event))
			return true;
	}
	return false;
}

bool rig_vm_wait_event(struct rig_vm *vm, const char *event, int timeout_ms)
{
	int64_t end = rig_now_ms() + timeout_ms;

	while (!had_event(vm->q, event)) {
		if (rig_now_ms() > end || !rig_qmp_pump(vm->q, 20))
			return had_event(vm->q, event);
	}
	return true;
}

void rig_vm_status(struct rig_vm *vm, char status[32])
{
	struct json_object *r = vm->q ? rig_qmp_try(vm->q, "query-status", NULL, NULL) : NULL;
	struct json_object *s;

	snprintf(status, 32, "%s",
		 r && json_object_object_get_ex(r, "status", &s) ? json_object_get_string(s) : "dead");
	json_object_put(r);
}

bool rig_vm_running(struct rig_vm *vm)
{
	char status[32];

	rig_vm_status(vm, status);
	return !strcmp(status, "running");
}

char *rig_vm_migration_settings(struct rig_vm *vm)
{
	struct json_object *c = rig_qmp(vm, "query-migrate-capabilities", NULL);
	struct json_object *p = rig_qmp(vm, "query-migrate-parameters", NULL);
	char *text = NULL;
	int n = asprintf(&text, "%s\n%s", json_object_to_json_string(c), json_object_to_json_string(p));

	json_object_put(c);
	json_object_put(p);
	assert_true(n > 0);
	return text;
}
