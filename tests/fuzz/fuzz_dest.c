/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole destination session, with a VM that is none, against a source that sends
 * anything on its control connection.  After OPENED the lanes are connected as a
 * right source would, so that the later states are reached.  A script that begins with
 * FUZZ_LOCKED meets a destination with a storage lock.  Invariant: the guest
 * runs only when it holds that lock, and COMMIT was the last of the messages, in a legal order.  Its pager
 * watches nothing: what matters is which message is taken when.
 */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "fakelock.h"
#include "fakevm.h"
#include "fuzz.h"
#include "engine/session/session.h"
#include "engine/tcp/wire.h"

#define LANES_MAX 4
#define FUZZ_LOCKED 2

struct world {
	struct fakevm_state *vm;
	struct lm_session *dest;
	struct lm_stream *control, *lanes[LANES_MAX], *pull_lanes[LANES_MAX];
	unsigned nlanes, npull;
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

/* ---- a pager without faults ---- */

static int pager_none(struct lm_pager *p, struct lm_error *err)
{
	(void)p;
	(void)err;
	return 0;
}

static int pager_faults(struct lm_pager *p, struct lm_page_fault *ret, unsigned n, struct lm_error *err)
{
	(void)p;
	(void)ret;
	(void)n;
	(void)err;
	return 0;
}

static int pager_range(struct lm_pager *p, unsigned region, uint64_t first, uint64_t n, struct lm_error *err)
{
	(void)p;
	(void)region;
	(void)first;
	(void)n;
	(void)err;
	return 0;
}

static void pager_close(struct lm_pager *p)
{
	close(p->fd);
	free(p);
}

static int pager_new(struct lm_vm *vm, const struct lm_ram *ram, struct lm_pager **ret, struct lm_error *err)
{
	static const struct lm_pager_ops ops = {
		.name = "none", .arm = pager_none, .faults = pager_faults, .place = pager_range, .release = pager_range,
		.wake = pager_none, .finish = pager_none, .close = pager_close,
	};

	(void)vm;
	(void)err;
	*ret = calloc(1, sizeof(**ret));
	**ret = (struct lm_pager){ .ops = &ops, .ram = ram, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .vm_fd = -1 };
	return 0;
}

static struct lm_vm *vm_new(struct fakevm_state *st)
{
	static struct lm_vm_ops ops;
	struct lm_vm *vm = fakevm_new(st);

	ops = *vm->ops;
	ops.state_wait = any_state_will_do;
	ops.pager = pager_new;
	vm->ops = &ops;
	return vm;
}

/* As host-a would have left it for us. */
static void lock_offered(void)
{
	struct fakelock_record *rec = &fakelock_reset()->lock[0];

	rec->state = FAKE_OFFERED;
	rec->epoch = 7;
	strcpy(rec->owner, "host-a");
	strcpy(rec->next, "host-b");
}

static void world_open(struct world *w, bool locked)
{
	static const char *const uri[] = { "fake:0" };
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
	o->recover_timeout_ns = LM_NS_PER_MS;
	o->locks = uri;
	o->nlocks = locked;
	o->lock_host = "host-b";
	lock_offered();
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
	for (unsigned i = 0; i < w->npull; i++)
		lm_stream_close(w->pull_lanes[i]);
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

/* How many are connected. */
static unsigned connect_to_token(struct world *w, const uint8_t *token, uint32_t n, struct lm_stream **lanes)
{
	uint32_t i;

	for (i = 0; i < n && i < LANES_MAX; i++) {
		struct tcp_preamble p = { .magic = lm_le64(TCP_PREAMBLE_MAGIC), .version = lm_le32(TCP_VERSION),
					  .lane = lm_le32(i), .nlanes = lm_le32(n) };

		memcpy(p.token, token, sizeof(p.token));
		if (lm_stream_connect(lm_session_address(w->dest), false, lm_deadline_after(50 * LM_NS_PER_MS), -1,
				      &lanes[i], NULL))
			break;
		fuzz_send(lm_stream_fd(lanes[i]), &p, sizeof(p));
	}
	return i;
}

static void connect_lanes(struct world *w)
{
	struct lm_wire_opened opened;

	if (w->nlanes || !await(w, LM_MSG_OPENED, &opened, sizeof(opened)))
		return;
	w->nlanes = connect_to_token(w, opened.token, lm_le32_get(opened.nlanes), w->lanes);
	await(w, LM_MSG_READY, NULL, 0);
}

static void connect_pull_lanes(struct world *w)
{
	struct lm_wire_postcopy_opened opened;

	if (!w->npull && await(w, LM_MSG_POSTCOPY_OPENED, &opened, sizeof(opened)))
		w->npull = connect_to_token(w, opened.token, lm_le32_get(opened.nlanes), w->pull_lanes);
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
		if (type == LM_MSG_POSTCOPY && open)
			connect_pull_lanes(w);
		open |= type == LM_MSG_OPEN;
		saved |= open && type == LM_MSG_SAVED;
		commit |= saved && type == LM_MSG_COMMIT;
	}
	return commit;
}

/* Where sessions keep the state of a post-copy: a folder of our own, empty when we end. */
static char runtime[] = "/tmp/migrate-rdma-fuzz-XXXXXX";

static void state_remove(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/migrate-rdma/postcopy-destination-%d", runtime, (int)getpid());
	unlink(path);
}

static void runtime_remove(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/migrate-rdma", runtime);
	rmdir(path);
	rmdir(runtime);
}

static void runtime_make(void)
{
	static bool made;

	if (made)
		return;
	made = true;
	if (!mkdtemp(runtime) || setenv("XDG_RUNTIME_DIR", runtime, 1))
		abort();
	atexit(runtime_remove);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	bool may_run = false;
	struct world w;
	pthread_t t;

	if (!size || size > 16384)
		return 0;
	runtime_make();
	world_open(&w, data[0] == FUZZ_LOCKED);
	pthread_create(&t, NULL, dest_main, w.dest);
	if (data[0] == FUZZ_RAW)
		fuzz_send(lm_stream_fd(w.control), data + 1, size - 1);
	else
		may_run = play(&w, data + 1, size - 1);
	shutdown(lm_stream_fd(w.control), SHUT_WR);
	pthread_join(t, NULL);
	assert(data[0] == FUZZ_RAW || may_run || !atomic_load(&w.vm->running));
	assert(!(atomic_load(&w.vm->running) && atomic_load(&w.vm->ended)));
	assert(data[0] != FUZZ_LOCKED || !atomic_load(&w.vm->running) || fakelock_owns("host-b", 1));
	world_close(&w);
	state_remove();
	return 0;
}
