/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include "engine/transport/registry.h"
#include "engine/tcp/tcp_transport.h"
#include "engine/net/stream.h"
#include "transport_contract.h"
#include "engine/transport/fault.h"

#define HUGE_SIZE (UINT64_C(2) << 20)
/* A gibibyte over soft-RoCE on an emulated CPU takes half a minute, and much longer on a busy machine. */
#define WAIT_NS (200 * LM_NS_PER_S)

/* ---- memory ---- */

uint64_t pattern_word(unsigned region, uint64_t offset)
{
	return (offset + 1) * UINT64_C(0x9e3779b97f4a7c15) + region;
}

void pattern_fill(uint8_t *p, unsigned region, uint64_t offset, uint64_t len)
{
	for (uint64_t i = 0; i < len; i += 8) {
		uint64_t w = pattern_word(region, offset + i);

		memcpy(p + i, &w, sizeof(w));
	}
}

static bool region_make(struct side *s, unsigned index, uint64_t size, bool huge)
{
	struct lm_region *r = &s->region[index];
	uint64_t guard = huge ? HUGE_SIZE : PAGE;
	void *map;

	s->map_size = size + 2 * guard;
	r->fd = memfd_create("contract", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
	if (r->fd < 0 || ftruncate(r->fd, (off_t)s->map_size))
		return false;
	map = mmap(NULL, s->map_size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (map == MAP_FAILED)
		return false;
	s->map[index] = map;
	snprintf(r->name, sizeof(r->name), "ram%u", index);
	r->size = size;
	r->page_size = guard;
	r->file_offset = guard;
	r->host = s->map[index] + guard;
	memset(s->map[index], GUARD_BYTE, guard);
	memset(r->host + size, GUARD_BYTE, guard);
	return true;
}

static void side_fill(struct side *s, enum lm_side side)
{
	for (unsigned i = 0; i < RIG_REGIONS; i++) {
		struct lm_region *r = &s->region[i];

		if (side == LM_SOURCE)
			pattern_fill(r->host, i, 0, r->size);
		else
			memset(r->host, OLD_BYTE, r->size);
	}
}

static void side_free(struct side *s)
{
	lm_transport_free(s->t);
	for (unsigned i = 0; i < RIG_REGIONS; i++) {
		if (s->map[i])
			munmap(s->map[i], s->map_size);
		if (s->region[i].fd >= 0)
			close(s->region[i].fd);
	}
}

static void expect_guards(struct side *s)
{
	for (unsigned i = 0; i < RIG_REGIONS; i++) {
		struct lm_region *r = &s->region[i];

		for (uint64_t k = 0; k < r->page_size; k++) {
			assert_int_equal(s->map[i][k], GUARD_BYTE);
			assert_int_equal(r->host[r->size + k], GUARD_BYTE);
		}
	}
}

/* The whole region is one mebibyte of memory mapped again and again: only the destination is large. */
void rig_map_long(struct rig *rig, uint64_t size)
{
	struct lm_region *from = &rig->src.region[0], *to = &rig->dst.region[0];
	const uint64_t mib = 1 << 20;
	uint8_t *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(rig->size, mib);
	for (uint64_t at = 0; at < size; at += mib)
		assert_ptr_not_equal(mmap(p + at, mib, PROT_READ, MAP_SHARED | MAP_FIXED, from->fd,
					  (off_t)from->file_offset), MAP_FAILED);
	from->host = p;
	from->size = to->size = size;
	assert_int_equal(ftruncate(to->fd, (off_t)(size + 2 * PAGE)), 0);
	to->host = (uint8_t *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, to->fd, PAGE);
	assert_ptr_not_equal(to->host, MAP_FAILED);
}

/* A hole would part the file from the pages that a device has pinned. */
void rig_check_long(struct rig *rig, uint64_t from, uint64_t len)
{
	const uint8_t *source = rig->src.region[0].host;
	uint8_t *to = rig->dst.region[0].host;

	for (uint64_t at = from; at < from + len; at += PAGE) {
		assert_memory_equal(to + at, source + at, 256);
		memset(to + at, 0, 256);
	}
}

void rig_unmap_long(struct rig *rig)
{
	struct lm_region *from = &rig->src.region[0], *to = &rig->dst.region[0];

	munmap(from->host, from->size);
	munmap(to->host, to->size);
	from->host = rig->src.map[0] + PAGE;
	to->host = rig->dst.map[0] + PAGE;
	from->size = to->size = rig->size;
	memset(to->host + to->size, GUARD_BYTE, PAGE); /* it was inside for a while */
}

/* ---- both ends ---- */

static void set_env(const char *name, const char *value)
{
	if (value)
		setenv(name, value, 1);
	else
		unsetenv(name);
}

static struct lm_transport *tcp_make(const struct backend *b)
{
	struct lm_fault_options none = { .action = LM_FAULT_NONE, .lane = -1 };
	struct lm_transport *t = lm_transport_tcp_new();

	return b->decorated ? lm_transport_fault_new(t, &none) : t;
}

void rig_make_transports(struct rig *rig)
{
	const struct backend *b = rig->backend;
	struct lm_error err = { 0 };

	set_env("LM_TCP_SEND", b->send);
	set_env("LM_TCP_PLACE", b->place);
	if (!b->listen) {
		assert_int_equal(lm_transport_loop_new(&rig->src.t, &rig->dst.t), 0);
		return;
	}
	if (b->rdma) {
		rig->src.t = lm_transport_make(lm_transport_find("rdma"));
		rig->dst.t = lm_transport_make(lm_transport_find("rdma"));
		return;
	}
	if (lm_stream_listen(b->listen, false, &rig->listen_fd, rig->address, &err))
		fail_msg("%s", err.msg);
	rig->src.t = tcp_make(b);
	rig->dst.t = tcp_make(b);
	assert_non_null(rig->src.t);
	assert_non_null(rig->dst.t);
}

struct rig *rig_new(const struct backend *b, unsigned nlanes, uint64_t size, bool huge)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	bool ok = true;

	assert_non_null(rig);
	rig->backend = b;
	rig->listen_fd = -1;
	rig->size = size;
	for (unsigned i = 0; i < RIG_REGIONS; i++)
		rig->src.region[i].fd = rig->dst.region[i].fd = -1;
	for (unsigned i = 0; ok && i < RIG_REGIONS; i++)
		ok = region_make(&rig->src, i, size, huge) && region_make(&rig->dst, i, size, huge);
	if (!ok) {
		side_free(&rig->src);
		side_free(&rig->dst);
		free(rig);
		return NULL;
	}
	side_fill(&rig->src, LM_SOURCE);
	side_fill(&rig->dst, LM_DEST);
	rig_make_transports(rig);
	for (int side = LM_SOURCE; side <= LM_DEST; side++)
		rig->params[side] = (struct lm_transport_params){
			.side = (enum lm_side)side, .nlanes = nlanes, .token = "a token, secret",
			.listen_fd = rig->listen_fd, .peer = rig->address, .cancel_fd = -1,
			.deadline_ns = lm_now_ns() + 20 * LM_NS_PER_S, .insecure = b->rdma, .pin = b->pin,
			.endpoint = rig->endpoint,
		};
	return rig;
}

static const char *source_netns;

static void enter(const char *netns)
{
	int fd = netns && *netns ? open(netns, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0) {
		assert_int_equal(setns(fd, CLONE_NEWNET), 0);
		close(fd);
	}
}

void rig_namespaces(const char *source, const char *dest)
{
	source_netns = source;
	enter(dest);
}

static void *guest_main(void *arg)
{
	struct guest *g = arg;

	enter(source_netns);
	return g->fn(g->arg);
}

void rig_before_open(struct rig *rig, void *(*fn)(void *), void *arg, pthread_t *ret)
{
	assert_true(rig->nguests < sizeof(rig->guests) / sizeof(rig->guests[0]));
	rig->guests[rig->nguests++] = (struct guest){ fn, arg, ret };
}

static void *open_source(void *arg)
{
	struct rig *rig = arg;

	enter(source_netns);
	rig->src.open_result = lm_transport_open(rig->src.t, &rig->params[LM_SOURCE], &rig->src.err);
	return NULL;
}

static void *reopen_source(void *arg)
{
	struct rig *rig = arg;

	enter(source_netns);
	rig->src.open_result = lm_transport_reopen(rig->src.t, rig->reopening, &rig->params[LM_SOURCE], &rig->src.err);
	return NULL;
}

void rig_reopen(struct rig *rig, unsigned lane, const char token[LM_TOKEN_SIZE], int timeout_ms)
{
	pthread_t thread;

	for (int side = LM_SOURCE; side <= LM_DEST; side++) {
		if (token)
			memcpy(rig->params[side].token, token, LM_TOKEN_SIZE);
		rig->params[side].deadline_ns = lm_now_ns() + timeout_ms * LM_NS_PER_MS;
	}
	rig->reopening = lane;
	assert_int_equal(pthread_create(&thread, NULL, reopen_source, rig), 0);
	rig->dst.open_result = lm_transport_reopen(rig->dst.t, lane, &rig->params[LM_DEST], &rig->dst.err);
	pthread_join(thread, NULL);
}

void rig_add_regions(struct rig *rig, struct side *s)
{
	struct lm_key unused;

	for (unsigned i = 0; i < RIG_REGIONS; i++) {
		bool active = lm_transport_is_active(s->t);

		if (lm_transport_region_add(s->t, &s->region[i], active ? &unused : &rig->keys[i], &s->err))
			fail_msg("%s", s->err.msg);
		if (active && lm_transport_region_bind(s->t, i, &rig->keys[i], &s->err))
			fail_msg("%s", s->err.msg);
	}
}

void rig_connect(struct rig *rig)
{
	pthread_t thread;
	bool push;

	if (lm_transport_listen(rig->dst.t, &rig->params[LM_DEST], rig->endpoint, &rig->dst.err))
		fail_msg("listen: %s", rig->dst.err.msg);
	for (unsigned i = 0; i < rig->nguests; i++)
		assert_int_equal(pthread_create(rig->guests[i].thread, NULL, guest_main, &rig->guests[i]), 0);
	assert_int_equal(pthread_create(&thread, NULL, open_source, rig), 0);
	rig->dst.open_result = lm_transport_open(rig->dst.t, &rig->params[LM_DEST], &rig->dst.err);
	pthread_join(thread, NULL);
	if (rig->dst.open_result)
		fail_msg("destination: %s", rig->dst.err.msg);
	if (rig->src.open_result)
		fail_msg("source: %s", rig->src.err.msg);
	if (rig->after_open) {
		rig->after_open(rig->src.t);
		rig->after_open(rig->dst.t);
	}
	push = rig->params[LM_SOURCE].direction == LM_PUSH;
	rig_add_regions(rig, push ? &rig->dst : &rig->src);
	rig_add_regions(rig, push ? &rig->src : &rig->dst);
}

void rig_set_direction(struct rig *rig, enum lm_direction direction)
{
	rig->params[LM_SOURCE].direction = rig->params[LM_DEST].direction = direction;
}

struct rig *rig_open_pull(const struct backend *b, unsigned nlanes, uint64_t size)
{
	struct rig *rig = rig_new(b, nlanes, size, false);

	assert_non_null(rig);
	rig_set_direction(rig, LM_PULL);
	rig_connect(rig);
	return rig;
}

struct rig *rig_open(const struct backend *b, unsigned nlanes, uint64_t size)
{
	struct rig *rig = rig_new(b, nlanes, size, false);

	assert_non_null(rig);
	rig_connect(rig);
	return rig;
}

void rig_free(struct rig *rig)
{
	pump_stop_all(rig);
	expect_guards(&rig->src);
	expect_guards(&rig->dst);
	side_free(&rig->src);
	side_free(&rig->dst);
	if (rig->listen_fd >= 0)
		close(rig->listen_fd);
	free(rig);
}

/* ---- what is there ---- */

void expect_data(struct rig *rig, unsigned region, uint64_t offset, uint64_t len)
{
	const uint8_t *p = rig->dst.region[region].host + offset;

	for (uint64_t i = 0; i < len; i += 8) {
		uint64_t want = pattern_word(region, offset + i);

		if (memcmp(p + i, &want, sizeof(want)))
			fail_msg("region %u, offset %#lx: the source's data is not there", region,
				 (unsigned long)(offset + i));
	}
}

void expect_byte(struct rig *rig, unsigned region, uint64_t offset, uint64_t len, uint8_t byte)
{
	const uint8_t *p = rig->dst.region[region].host + offset;

	for (uint64_t i = 0; i < len; i++)
		if (p[i] != byte)
			fail_msg("region %u, offset %#lx: %#x instead of %#x", region,
				 (unsigned long)(offset + i), p[i], byte);
}

uint64_t dest_hash(struct rig *rig)
{
	uint64_t h = 0;

	for (unsigned i = 0; i < RIG_REGIONS; i++)
		for (uint64_t k = 0; k < rig->size; k += 8) {
			uint64_t w;

			memcpy(&w, rig->dst.region[i].host + k, sizeof(w));
			h = (h ^ w) * UINT64_C(0x100000001b3);
		}
	return h;
}

uint64_t file_bytes(const struct lm_region *r, uint64_t offset, uint64_t len)
{
	off_t pos = (off_t)(r->file_offset + offset), end = pos + (off_t)len;
	uint64_t sum = 0;

	while (pos < end) {
		off_t from = lseek(r->fd, pos, SEEK_DATA), to;

		if (from < 0 || from >= end)
			break;
		to = lseek(r->fd, from, SEEK_HOLE);
		to = to < end ? to : end;
		sum += (uint64_t)(to - from);
		pos = to;
	}
	return sum;
}

unsigned open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}
