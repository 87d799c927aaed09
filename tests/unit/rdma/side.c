/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "rdma/rdma_transport.h"
#include "engine/base/clock.h"
#include "side.h"

#define REQUESTS_MAX 100

static struct side *now;     /* for side_requests() */
static unsigned requests;
static struct rd_lane before;
static unsigned fail_next;
static int fail_errno;

/* ---- life ---- */

static void peer_endpoint(uint8_t ret[LM_ENDPOINT_SIZE], unsigned n)
{
	struct rd_rail rails[RDMA_RAILS_MAX] = { 0 };

	for (unsigned i = 0; i < n; i++) {
		rails[i].addr.v4 = fake_address(i, 2);
		rails[i].addr.v4.sin_port = htons(4791);
		rails[i].mbps = 100000;
	}
	rd_endpoint_put(rails, n, ret);
}

void side_begin(struct side *s, enum lm_side side, unsigned nlanes, unsigned ndevices)
{
	fake_reset();
	fake_ndevices = ndevices;
	*s = (struct side){ .nfds = fake_nfds(), .region = { .fd = -1 } };
	peer_endpoint(s->endpoint, ndevices);
	s->p = (struct lm_transport_params){
		.side = side, .nlanes = nlanes, .pin = LM_PIN_CHUNK, .endpoint = s->endpoint, .token = { 1, 2, 3 },
		.listen_fd = -1, .insecure = true, .deadline_ns = lm_deadline_after(10 * LM_NS_PER_S), .cancel_fd = -1,
	};
	s->t = lm_transport_rdma_new();
	assert_non_null(s->t);
	now = s;
	requests = 0;
	fake_idle = side == LM_DEST ? side_requests : NULL;
}

int side_listen(struct side *s, struct lm_error *err)
{
	return lm_transport_listen(s->t, &s->p, s->endpoint, err);
}

int side_open(struct side *s, struct lm_error *err)
{
	int r = s->p.side == LM_DEST && !s->t->is_listening ? side_listen(s, err) : 0;

	return r ? r : lm_transport_open(s->t, &s->p, err);
}

void side_ready(struct side *s, enum lm_side side, unsigned nlanes, unsigned ndevices)
{
	struct lm_error err;

	side_begin(s, side, nlanes, ndevices);
	assert_int_equal(side_open(s, &err), 0);
	side_add_region(s);
}

void side_add_region(struct side *s)
{
	struct lm_region *r = &s->region;
	struct lm_error err;
	struct lm_key key;

	*r = (struct lm_region){ .size = SIDE_REGION, .page_size = LM_PAGE_SIZE, .fd = memfd_create("ram", MFD_CLOEXEC) };
	assert_int_equal(ftruncate(r->fd, SIDE_REGION), 0);
	r->host = mmap(NULL, SIDE_REGION, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_int_equal(lm_transport_region_add(s->t, r, &key, &err), 0);
	if (lm_transport_is_active(s->t))
		assert_int_equal(lm_transport_region_bind(s->t, 0, &key, &err), 0);
}

int side_reopen(struct side *s, unsigned lane, struct lm_error *err)
{
	s->p.token[0]++;
	s->p.deadline_ns = lm_deadline_after(10 * LM_NS_PER_S);
	requests = 0;
	return lm_transport_reopen(s->t, lane, &s->p, err);
}

void side_end(struct side *s)
{
	lm_transport_free(s->t);
	if (s->region.host)
		munmap(s->region.host, s->region.size);
	if (s->region.fd >= 0)
		close(s->region.fd);
	now = NULL;
	assert_int_equal(fake_live, 0);
	assert_int_equal(fake_unacked_cm, 0);
	assert_int_equal(fake_unacked_cq, 0);
	assert_int_equal(fake_nfds(), s->nfds);
}

/* ---- the peer ---- */

bool side_request(struct side *s, unsigned net, unsigned lane)
{
	struct rd_hello hello = rd_hello_make(&s->p, lane);

	return fake_request(net, &hello, sizeof(hello));
}

bool side_requests(void)
{
	const struct rdma *t = side_rdma(now);
	bool any = false;

	for (unsigned i = 0; t->lanes && i < now->p.nlanes && requests < REQUESTS_MAX; i++) {
		if (t->lanes[i].state == RDMA_LANE_OPEN)
			continue;
		any |= side_request(now, requests++ % fake_ndevices, i);
	}
	return any;
}

void side_give_key(struct rd_lane *l, uint32_t chunk)
{
	l->peer[0].chunks[chunk] = (struct rd_peer_chunk){ .address = chunk * (UINT64_C(8) << 20), .rkey = 1,
							  .state = RDMA_PEER_READY };
}

void side_say(struct rd_lane *l, enum rd_msg_type type, uint64_t seq, const void *entries, unsigned n, size_t size)
{
	uint8_t buf[RDMA_MSG_SIZE];
	struct rd_msg m = { .magic = lm_le32(RDMA_MSG_MAGIC), .type = lm_le16((uint16_t)type),
			    .count = lm_le16((uint16_t)n), .seq = lm_le64(seq) };

	memcpy(buf, &m, sizeof(m));
	if (n)
		memcpy(buf + sizeof(m), entries, n * size);
	fake_receive(l->id->qp, buf, sizeof(m) + n * size);
}

/* ---- a lane that is left alone ---- */

void side_remember(const struct side *s, unsigned lane)
{
	memcpy(&before, side_lane(s, lane), sizeof(before));
}

/* All of it but the link to its neighbour in the device's list. */
bool side_is_unchanged(const struct side *s, unsigned lane)
{
	const struct rd_lane *l = side_lane(s, lane);
	const uint8_t *a = (const uint8_t *)l, *b = (const uint8_t *)&before;
	size_t link = offsetof(struct rd_lane, next_on_device), rest = link + sizeof(l->next_on_device);

	return !memcmp(a, b, link) && !memcmp(a + rest, b + rest, sizeof(before) - rest) && l->state == RDMA_LANE_OPEN &&
	       l->id->qp->state != IBV_QPS_ERR;
}

/* ---- failures ---- */

bool side_says_why(int r, const struct lm_error *err)
{
	return r < 0 && err->code == r && err->msg[0] && !strstr(err->msg, "Success");
}

void side_fail(void)
{
	fake_errno = fail_errno;
	fake_fail_at = fake_calls + fail_next;
}

static void each_call(void (*run)(void), int error)
{
	fail_errno = error;
	for (fail_next = 1;; fail_next++) {
		run();
		if (!fake_failed)
			break;
	}
	assert_true(fail_next > 10); /* or it did not do much */
}

void side_each_call_fails(void (*run)(void))
{
	each_call(run, ENOMEM);
	each_call(run, 0);
}
