/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <sys/socket.h>
#include "engine/base/cleanup.h"
#include "kvm-glue/qmp.h"
#include "stage_rig.h"

struct rig_qemu src_qemu, dst_qemu;
struct lm_vm *src, *dst;
struct lm_error rig_err;
int cancel_fd = -1;

struct channel ch;

static void *channel_read(void *arg)
{
	const struct timespec pause = { .tv_nsec = LM_NS_PER_MS };
	static char buf[65536];
	ssize_t n;

	(void)arg;
	for (;;) {
		while (ch.hold)
			nanosleep(&pause, NULL);
		n = recv(ch.near, buf, sizeof(buf), 0);
		if (n <= 0)
			break;
		ch.bytes += (uint64_t)n;
		if (ch.sink >= 0 && send(ch.sink, buf, (size_t)n, MSG_NOSIGNAL) != n)
			break;
	}
	shutdown(ch.near, SHUT_RDWR); /* a writer must not hang on it */
	return NULL;
}

void channel_open(int sndbuf, int sink)
{
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	if (sndbuf)
		setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof(sndbuf));
	ch.qemu = sv[0];
	ch.near = sv[1];
	ch.sink = sink;
	ch.hold = false;
	ch.bytes = 0;
	assert_int_equal(pthread_create(&ch.thread, NULL, channel_read, NULL), 0);
	ch.open = true;
}

void channel_close(void)
{
	if (!ch.open)
		return;
	ch.hold = false;
	shutdown(ch.near, SHUT_RDWR);
	pthread_join(ch.thread, NULL);
	close(ch.qemu);
	close(ch.near);
	ch.open = false;
}

int rig_teardown(void **state)
{
	(void)state;
	channel_close();
	lm_vm_detach(src);
	lm_vm_detach(dst);
	src = dst = NULL;
	rig_end(&src_qemu);
	rig_end(&dst_qemu);
	lm_close_fd(&cancel_fd);
	return 0;
}

void ok(int r)
{
	if (r)
		fail_msg("%d: %s", r, rig_err.msg);
}

void attach(const struct rig_qemu *q, enum lm_side side, struct lm_vm **ret)
{
	struct lm_qemu_options o = { .qmp = q->qmp, .side = side, .timeout_ns = LIMIT, .cancel_fd = cancel_fd };

	ok(lm_qemu_attach(&o, ret, &rig_err));
}

void query(const struct rig_qemu *q, const char *command, struct json_object *args, struct json_object **ret)
{
	struct lm_qmp *qmp;

	ok(lm_qmp_connect(q->qmp, -1, lm_now_ns() + LIMIT, &qmp, &rig_err));
	ok(lm_qmp_execute(qmp, command, args, lm_now_ns() + LIMIT, ret, &rig_err));
	lm_qmp_close(qmp);
}

void assert_status(const struct rig_qemu *q, const char *want)
{
	LM_AUTO_JS struct json_object *o = NULL;

	query(q, "query-status", NULL, &o);
	assert_string_equal(lm_js_text(o, "status"), want);
}

void assert_paused(const struct rig_qemu *q)
{
	LM_AUTO_JS struct json_object *o = NULL;

	query(q, "query-status", NULL, &o);
	assert_false(lm_js_true(o, "running"));
	assert_string_not_equal(lm_js_text(o, "status"), "finish-migrate");
}

void paused_wait(struct lm_vm *vm, struct lm_vm_times *times)
{
	int64_t deadline = lm_now_ns() + LIMIT;
	int r;

	do
		r = lm_vm_pause_wait(vm, 20, times, &rig_err);
	while (r == -EAGAIN && lm_now_ns() < deadline);
	ok(r);
}

void bring_to(enum stage stage)
{
	struct lm_vm_times times;

	if (stage == NOTHING)
		return;
	channel_open(stage == DEVICE ? 4608 : 0, -1);
	ok(lm_vm_pause_start(src, ch.qemu, &rig_err));
	if (stage == STARTED)
		return;
	paused_wait(src, &times);
	if (stage == DEVICE) {
		ch.hold = true; /* QEMU's main loop now hangs in a write */
		assert_int_equal(lm_vm_state_save(src, lm_now_ns() + 200 * LM_NS_PER_MS, &rig_err), -ETIMEDOUT);
	} else if (stage == COMPLETED) {
		ok(lm_vm_state_save(src, lm_now_ns() + LIMIT, &rig_err));
	}
}
