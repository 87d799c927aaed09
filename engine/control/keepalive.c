/* SPDX-License-Identifier: Apache-2.0 */
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/base/thread.h"
#include "keepalive.h"

#define INTERVAL_MS 1000
#define SEND_TIMEOUT_NS (2 * LM_NS_PER_S)

static void *keepalive(void *arg)
{
	struct lm_keepalive *k = arg;
	struct pollfd p = { .fd = k->stop_fd, .events = POLLIN };

	while (poll(&p, 1, INTERVAL_MS) <= 0)
		if (lm_control_ping(k->control, lm_deadline_after(SEND_TIMEOUT_NS), NULL))
			break; /* the session's thread finds out by itself */
	return NULL;
}

int lm_keepalive_start(struct lm_keepalive *k, struct lm_control *control, struct lm_error *err)
{
	int r;

	k->control = control;
	k->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (k->stop_fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
	r = lm_thread_start(&k->thread, keepalive, k);
	if (r) {
		lm_close_fd(&k->stop_fd);
		return lm_err_errno(err, r, LM_SCOPE_SESSION, "cannot make a thread");
	}
	return 0;
}

void lm_keepalive_stop(struct lm_keepalive *k)
{
	uint64_t one = 1;

	if (k->stop_fd < 0)
		return;
	if (write(k->stop_fd, &one, sizeof(one)) == sizeof(one)) /* of a counter that is zero: cannot fail */
		pthread_join(k->thread, NULL);
	lm_close_fd(&k->stop_fd);
}
