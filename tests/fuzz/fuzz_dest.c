/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole destination session, with a VM that is none, against a source that sends
 * anything on its control connection.  After OPENED the lanes are connected as a
 * right source would, so that the later states are reached.  Invariant: the guest
 * runs only when COMMIT was the last of the messages, in a legal order.
 */
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "clock.h"
#include "fakevm.h"
#include "fuzz.h"
#include "session.h"
#include "transport_tcp_wire.h"

#define LANES_MAX 4

struct world {
	struct fakevm_state *vm;
	struct lm_session *dest;
	struct lm_stream *control, *lanes[LANES_MAX];
	unsigned nlanes;
};

static void *dest_main(void *arg)
{
	struct lm_error err = { 0 };

	lm_session_run(arg, &err);
	return NULL;
}

/* Whatever came as its state, the VM is content with it: the decision is the session's. */
static int any_state_will_do(struct lm_vm *vm, int64_t deadline_ns, struct lm_error *err)
{
	(void)vm;
	(void)deadline_ns;
	(void)err;
	return 0;
}

static struct lm_vm *vm_new(struct fakevm_state *st)
{
	static struct lm_vm_ops ops;
	struct lm_vm *vm = fakevm_new(st);

	ops = *vm->ops;
	ops.state_wait = any_state_will_do;
	vm->ops = &ops;
	return vm;
}

static void world_open(struct world *w)
{
	static const struct fakevm_config config = { .nregions = 1, .region_bytes = { 16 << 12 } };
	struct lm_options *o = malloc(sizeof(*o));
	struct lm_error err;

	memset(w, 0, sizeof(*w));
	w->vm = fakevm_state_new(&config);
	memset(w->vm->ram[0], 1, 3 << 12); /* something for RESIDENT */
	lm_options_default(o);
	o->address = "127.0.0.1:0";
	o->guardian = false;
	o->timeout_ns = 20 * LM_NS_PER_MS; /* a stranger who is not let in does not end the wait */
	o->peer_timeout_ns = 20 * LM_NS_PER_MS;
	o->qmp_timeout_ns = 20 * LM_NS_PER_MS;
	if (lm_session_new(o, LM_DEST, vm_new(w->vm), eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), &w->dest, &err))
		abort();
	if (lm_stream_connect(lm_session_address(w->dest), false, lm_deadline_after(LM_NS_PER_S), -1, &w->control, &err))
		abort();
}

static void world_close(struct world *w)
{
	lm_stream_close(w->control);
	for (unsigned i = 0; i < w->nlanes; i++)
		lm_stream_close(w->lanes[i]);
	lm_session_free(w->dest);
	fakevm_state_free(w->vm);
}

/* Read messages until this one; false when it does not come. */
static bool await(struct world *w, enum lm_msg_type type, void *payload, size_t size)
{
	int64_t deadline = lm_deadline_after(50 * LM_NS_PER_MS);
	uint8_t sink[4096];

	for (;;) {
		struct lm_wire_header h;
		uint32_t len;

		if (lm_stream_recv_all(w->control, &h, sizeof(h), deadline, -1, NULL))
			return false;
		len = lm_le32_get(h.len);
		if (len > sizeof(sink) || lm_stream_recv_all(w->control, sink, len, deadline, -1, NULL))
			return false;
		if (lm_le16_get(h.type) != type)
			continue;
		if (len < size)
			return false;
		if (size)
			memcpy(payload, sink, size);
		return true;
	}
}

static void connect_lanes(struct world *w)
{
	struct lm_wire_opened opened;
	uint32_t n;

	if (w->nlanes || !await(w, LM_MSG_OPENED, &opened, sizeof(opened)))
		return;
	n = lm_le32_get(opened.nlanes);
	for (uint32_t i = 0; i < n && i < LANES_MAX; i++) {
		struct tcp_preamble p = { .magic = lm_le64(TCP_PREAMBLE_MAGIC), .version = lm_le32(TCP_VERSION),
					  .lane = lm_le32(i), .nlanes = lm_le32(n) };

		memcpy(p.token, opened.token, sizeof(p.token));
		if (lm_stream_connect(lm_session_address(w->dest), false, lm_deadline_after(50 * LM_NS_PER_MS), -1,
				      &w->lanes[i], NULL))
			return;
		w->nlanes++;
		fuzz_send(lm_stream_fd(w->lanes[i]), &p, sizeof(p));
	}
	await(w, LM_MSG_READY, NULL, 0);
}

static unsigned sent_type(const struct fuzz_message *m)
{
	struct lm_wire_header h;

	memcpy(&h, m->frame, sizeof(h));
	return lm_le16_get(h.type);
}

/* Whether the script held everything that a guest may run after. */
static bool play(struct world *w, const uint8_t *data, size_t size)
{
	static struct fuzz_message m;
	bool open = false, saved = false, commit = false;
	uint64_t seq = 0;

	while (fuzz_next(&data, &size, seq++, &m)) {
		unsigned type = sent_type(&m);

		fuzz_send(lm_stream_fd(w->control), m.frame, m.frame_len);
		if (type == LM_MSG_OPEN)
			connect_lanes(w);
		open |= type == LM_MSG_OPEN;
		saved |= open && type == LM_MSG_SAVED;
		commit |= saved && type == LM_MSG_COMMIT;
	}
	return commit;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool may_run = false;
	struct world w;
	pthread_t t;

	if (!size || size > 16384)
		return 0;
	world_open(&w);
	pthread_create(&t, NULL, dest_main, w.dest);
	if (data[0] == FUZZ_RAW)
		fuzz_send(lm_stream_fd(w.control), data + 1, size - 1);
	else
		may_run = play(&w, data + 1, size - 1);
	shutdown(lm_stream_fd(w.control), SHUT_WR);
	pthread_join(t, NULL);
	assert(data[0] == FUZZ_RAW || may_run || !atomic_load(&w.vm->running));
	assert(!(atomic_load(&w.vm->running) && atomic_load(&w.vm->ended)));
	world_close(&w);
	return 0;
}
