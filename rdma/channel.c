/* SPDX-License-Identifier: Apache-2.0 */
/* rdma_cm event channels that do not block. */
#include <fcntl.h>
#include <string.h>
#include "rdma.h"

int rd_channel_make(struct rdma_event_channel **ret)
{
	struct rdma_event_channel *c = rdma_create_event_channel();

	if (!c)
		return rd_errno();
	if (fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK) || fcntl(c->fd, F_SETFD, FD_CLOEXEC)) {
		int r = -errno;

		rdma_destroy_event_channel(c);
		return r;
	}
	*ret = c;
	return 0;
}

int rd_event_next(struct rdma_event_channel *channel, struct rd_event *ret)
{
	struct rdma_cm_event *e;

	if (rdma_get_cm_event(channel, &e))
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? -EAGAIN : rd_errno();
	*ret = (struct rd_event){ .type = e->event, .status = e->status, .id = e->id };
	if (e->event == RDMA_CM_EVENT_CONNECT_REQUEST && e->param.conn.private_data &&
	    e->param.conn.private_data_len >= sizeof(ret->hello)) {
		memcpy(&ret->hello, e->param.conn.private_data, sizeof(ret->hello));
		ret->has_hello = true;
	}
	rdma_ack_cm_event(e);
	return 0;
}
