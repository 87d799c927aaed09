/* SPDX-License-Identifier: Apache-2.0 */
/* Engines: `migrate-rdma-test send` and `receive`, and the JSON lines that they say. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "internal.h"

#define ENV_MAX 4
#define EVENTS_SHOWN 4
#define ENGINE_ARGS_MAX (RIG_ARGS_MAX + 8)

/* Strings live until the child has been started. */
static void make_env(struct rig *rig, const struct rig_run_options *o, char text[ENV_MAX][512], const char *env[ENV_MAX + 1])
{
	char runtime[RIG_PATH_MAX];
	unsigned n = 0;
	const struct { const char *name, *value; } vars[] = {
		{ "XDG_RUNTIME_DIR", runtime }, /* sockets of QEMUs that receive starts */
		{ "LM_FAULT", o ? o->fault : NULL },
		{ "LM_BREAK", o ? o->breaks : NULL },
		{ "LM_TRANSPORT_FAULT", o ? o->transport_fault : NULL },
	};

	rig_path(rig, runtime, ".");
	for (unsigned i = 0; i < sizeof(vars) / sizeof(*vars); i++) {
		if (!vars[i].value)
			continue;
		snprintf(text[n], 512, "%s=%s", vars[i].name, vars[i].value);
		env[n] = text[n];
		n++;
	}
	env[n] = NULL;
}

struct rig_run *rig_engine(struct rig *rig, const char *name, const char *const *argv,
			   const struct rig_run_options *o)
{
	const char *all[ENGINE_ARGS_MAX + RIG_ARGS_MAX], *env[ENV_MAX + 1];
	static char text[ENV_MAX][512];
	struct rig_run *r = calloc(1, sizeof(*r));
	unsigned n = 0;
	int fds[2];

	assert_non_null(r);
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	all[n++] = MIGRATE_RDMA_TEST;
	for (unsigned i = 0; argv[i] && n < ENGINE_ARGS_MAX; i++) {
		r->json |= !strcmp(argv[i], "--json");
		all[n++] = argv[i];
	}
	for (unsigned i = 0; o && o->args[i]; i++)
		all[n++] = o->args[i];
	all[n] = NULL;
	make_env(rig, o, text, env);
	fcntl(fds[0], F_SETPIPE_SZ, 1 << 20); /* nobody need read while it runs */
	r->out = fds[0];
	r->events = json_object_new_array();
	r->next = rig->runs;
	rig->runs = r;
	r->proc = rig_spawn(rig, name, all, env, fds[1]);
	close(fds[1]);
	return r;
}

void rig_runs_free(struct rig *rig)
{
	struct rig_run *r, *next;

	for (r = rig->runs; r; r = next) {
		next = r->next;
		if (r->out >= 0)
			close(r->out);
		json_object_put(r->events);
		free(r->buf);
		free(r);
	}
	rig->runs = NULL;
}

void rig_runs_print_events(const struct rig *rig)
{
	for (const struct rig_run *r = rig->runs; r; r = r->next) {
		size_t n = json_object_array_length(r->events), i = n > EVENTS_SHOWN ? n - EVENTS_SHOWN : 0;

		fprintf(stderr, "--- the last of %zu events of %s:\n", n, r->proc->name);
		for (; i < n; i++)
			fprintf(stderr, "%.600s\n", json_object_to_json_string(json_object_array_get_idx(r->events, i)));
	}
}

static void take_lines(struct rig_run *r)
{
	char *nl;

	while (r->len && (nl = memchr(r->buf, '\n', r->len))) {
		struct json_object *e;

		*nl = 0;
		e = r->json ? json_tokener_parse(r->buf) : NULL;
		if (r->json && !e)
			fail_msg("%s says what is not JSON: %s", r->proc->name, r->buf);
		if (e)
			json_object_array_add(r->events, e);
		r->len -= (size_t)(nl + 1 - r->buf);
		memmove(r->buf, nl + 1, r->len);
	}
}

/* false: nothing in time, or the pipe is at its end. */
static bool read_lines(struct rig_run *r, int timeout_ms)
{
	struct pollfd p = { .fd = r->out, .events = POLLIN };
	ssize_t n;

	if (r->out < 0 || poll(&p, 1, timeout_ms) <= 0)
		return false;
	if (r->size - r->len < 4096) {
		r->size = r->size * 2 + 8192;
		r->buf = realloc(r->buf, r->size);
		assert_non_null(r->buf);
	}
	n = read(r->out, r->buf + r->len, r->size - r->len);
	if (n <= 0) {
		close(r->out);
		r->out = -1;
		return false;
	}
	r->len += (size_t)n;
	take_lines(r);
	return true;
}

static const char *text_of(struct json_object *o, const char *member)
{
	struct json_object *v;

	return json_object_object_get_ex(o, member, &v) ? json_object_get_string(v) : NULL;
}

static bool is(struct json_object *e, const char *member, const char *value)
{
	const char *text = text_of(e, member);

	return text && !strcmp(text, value);
}

struct json_object *rig_run_event_is(struct rig_run *r, const char *type, const char *member,
				     const char *value, int timeout_ms)
{
	int64_t end = rig_now_ms() + timeout_ms;
	size_t seen = 0;

	for (;;) {
		for (; seen < json_object_array_length(r->events); seen++) {
			struct json_object *e = json_object_array_get_idx(r->events, seen);

			if (is(e, "event", type) && (!member || is(e, member, value)))
				return e;
		}
		if (rig_now_ms() > end || (!read_lines(r, 20) && r->out < 0))
			return NULL;
	}
}

struct json_object *rig_run_event(struct rig_run *r, const char *type, int timeout_ms)
{
	return rig_run_event_is(r, type, NULL, NULL, timeout_ms);
}

/* Guardians may hold the pipe longer than the engine lives: its end is the process's. */
int rig_run_wait(struct rig_run *r, int timeout_ms)
{
	int64_t end = rig_now_ms() + timeout_ms;

	while (!rig_proc_ended(r->proc, 10)) {
		read_lines(r, 0);
		if (rig_now_ms() > end)
			fail_msg("%s did not end in %d ms", r->proc->name, timeout_ms);
	}
	while (read_lines(r, 0))
		;
	return r->proc->status;
}

static struct json_object *summary(struct rig_run *r)
{
	return rig_run_event(r, "completed", 0);
}

const char *rig_run_outcome(struct rig_run *r)
{
	struct json_object *s = summary(r);
	const char *text = s ? text_of(s, "outcome") : NULL;

	return text ? text : "";
}

int64_t rig_summary_int(struct rig_run *r, const char *path)
{
	struct json_object *o = summary(r);
	char copy[64], *save, *part;

	snprintf(copy, sizeof(copy), "%s", path);
	for (part = strtok_r(copy, ".", &save); o && part; part = strtok_r(NULL, ".", &save)) {
		if (!json_object_object_get_ex(o, part, &o))
			o = NULL;
	}
	if (!o)
		fail_msg("%s did not say %s", r->proc->name, path);
	return json_object_get_int64(o);
}

struct rig_run *rig_receive_on(struct rig_vm *vm, const char *listen, const struct rig_run_options *o)
{
	const char *const argv[] = { "receive", "--json", "--qmp", vm->qmp, "--listen", listen, NULL };
	struct rig_run *r = rig_engine(vm->rig, "receive", argv, o);
	struct json_object *e = rig_run_event(r, "listening", RIG_WAIT_MS);

	if (e)
		snprintf(r->address, sizeof(r->address), "%s", text_of(e, "address"));
	return r;
}

struct rig_run *rig_receive(struct rig_vm *vm, const struct rig_run_options *o)
{
	return rig_receive_on(vm, "127.0.0.1:0", o);
}

struct rig_run *rig_send(struct rig_vm *vm, const char *to, const struct rig_run_options *o)
{
	const char *const argv[] = { "send", "--json", "--qmp", vm->qmp, "--to", to, NULL };

	return rig_engine(vm->rig, "send", argv, o);
}

static void assert_succeeded(struct rig_run *r)
{
	int code = rig_run_wait(r, 3 * RIG_WAIT_MS);

	if (code)
		fail_msg("%s ended with %d (%s)", r->proc->name, code, rig_run_outcome(r));
	assert_string_equal(rig_run_outcome(r), "completed");
}

void rig_migrate(struct rig_vm *a, struct rig_vm *b, const struct rig_run_options *send_options)
{
	struct rig_run *receive = rig_receive(b, NULL);
	struct rig_run *send = rig_send(a, receive->address, send_options);

	assert_succeeded(send);
	assert_succeeded(receive);
}
