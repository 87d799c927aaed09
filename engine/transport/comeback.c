/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include "engine/base/cleanup.h"
#include "comeback.h"
#include "engine/base/thread.h"

static void event_set(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return; /* the counter is at its limit: it is readable, which is all we want */
}

static void event_clear(int fd)
{
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0)
		return; /* it was not set */
}

int lm_comeback_init(struct lm_comeback *c, const struct lm_transport_params *params, struct lm_error *err)
{
	int r;

	*c = (struct lm_comeback){ .params = *params, .trying = -1 };
	if (params->endpoint) {
		memcpy(c->endpoint, params->endpoint, sizeof(c->endpoint));
		c->params.endpoint = c->endpoint;
	}
	c->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = c->done_fd < 0 || c->cancel_fd < 0 ? -errno : 0;
	c->params.cancel_fd = c->cancel_fd;
	c->can = true;
	if (r)
		lm_comeback_fini(c);
	return r ? lm_err_errno(err, r, LM_SCOPE_SESSION, "eventfd") : 0;
}

void lm_comeback_failed(struct lm_comeback *c, unsigned lane, int64_t max_ns)
{
	struct lm_lane_turn *t = &c->lane[lane];
	int64_t now = lm_now_ns();

	if (!t->delay_ns || (t->back_ns && now - t->back_ns > LM_LANE_STEADY_NS))
		t->delay_ns = LM_LANE_RETRY_NS;
	else
		t->delay_ns = lm_deadline_min(2 * t->delay_ns, max_ns);
	t->back_ns = 0;
	t->next_ns = now + t->delay_ns;
}

int lm_comeback_next(const struct lm_comeback *c, uint64_t gone)
{
	int64_t now = lm_now_ns();

	for (unsigned i = 1; c->can && c->trying < 0 && i <= c->params.nlanes; i++) {
		unsigned lane = (c->last + i) % c->params.nlanes;

		if (gone >> lane & 1 && now >= c->lane[lane].next_ns)
			return (int)lane;
	}
	return -1;
}

static void *attempt_main(void *arg)
{
	struct lm_comeback *c = arg;

	c->result = lm_transport_reopen(c->transport, (unsigned)c->trying, &c->params, &c->error);
	event_set(c->done_fd);
	return NULL;
}

int lm_comeback_begin(struct lm_comeback *c, struct lm_transport *t, unsigned lane,
		      const uint8_t token[static LM_TOKEN_SIZE], int64_t deadline_ns, struct lm_error *err)
{
	int r;

	memcpy(c->params.token, token, LM_TOKEN_SIZE);
	c->params.deadline_ns = deadline_ns;
	event_clear(c->done_fd);
	event_clear(c->cancel_fd);
	lm_err_clear(&c->error);
	c->transport = t;
	c->last = lane;
	c->trying = (int)lane;
	r = lm_thread_start(&c->thread, attempt_main, c);
	if (!r)
		return 0;
	c->trying = -1;
	return lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot start a thread");
}

int lm_comeback_fd(const struct lm_comeback *c)
{
	return c->can && c->trying >= 0 ? c->done_fd : -1;
}

bool lm_comeback_over(const struct lm_comeback *c)
{
	struct pollfd p = { .fd = lm_comeback_fd(c), .events = POLLIN };

	return p.fd >= 0 && poll(&p, 1, 0) > 0;
}

void lm_comeback_cancel(struct lm_comeback *c)
{
	if (c->can && c->trying >= 0)
		event_set(c->cancel_fd);
}

int lm_comeback_end(struct lm_comeback *c, unsigned *ret_lane)
{
	int64_t now;

	*ret_lane = (unsigned)c->trying;
	pthread_join(c->thread, NULL);
	c->trying = -1;
	if (c->result)
		return c->result;
	now = lm_now_ns();
	c->lane[*ret_lane].back_ns = now;
	for (unsigned i = 0; i < c->params.nlanes; i++)
		c->lane[i].next_ns = lm_deadline_min(c->lane[i].next_ns, now);
	return 0;
}

void lm_comeback_fini(struct lm_comeback *c)
{
	unsigned unused;

	if (!c->can)
		return;
	lm_comeback_cancel(c);
	if (c->trying >= 0)
		lm_comeback_end(c, &unused);
	lm_close_fd(&c->done_fd);
	lm_close_fd(&c->cancel_fd);
	c->can = false;
}
