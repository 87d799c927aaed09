/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "controlrig.h"

static void control_open(struct lm_control *c, int fd, int cancel_fd)
{
	struct lm_error err = { 0 };
	struct lm_stream *s;

	assert_ok(lm_stream_adopt(fd, false, &s, &err), err);
	assert_ok(lm_control_open(c, s, cancel_fd, &err), err);
}

struct ends *ends_new(bool raw)
{
	struct ends *e = calloc(1, sizeof(*e));
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	e->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	control_open(&e->a, pair[0], e->cancel_fd);
	e->raw = raw ? pair[1] : -1;
	if (!raw)
		control_open(&e->b, pair[1], -1);
	return e;
}

void ends_free(struct ends *e)
{
	lm_control_close(&e->a);
	lm_control_close(&e->b);
	if (e->raw >= 0)
		close(e->raw);
	close(e->cancel_fd);
	free(e);
}

int64_t soon(void)
{
	return lm_deadline_after(5 * LM_NS_PER_S);
}

int64_t ms(unsigned n)
{
	return lm_deadline_after(n * LM_NS_PER_MS);
}

void raw_write(struct ends *e, const void *p, size_t len)
{
	assert_int_equal(send(e->raw, p, len, MSG_NOSIGNAL), (ssize_t)len);
}

struct lm_wire_header raw_header(unsigned type, uint32_t len, uint64_t seq)
{
	return (struct lm_wire_header){ .magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16((uint16_t)type),
					.len = lm_le32(len), .seq = lm_le64(seq) };
}

void raw_message(struct ends *e, unsigned type, const void *payload, uint32_t len, uint64_t seq)
{
	struct lm_wire_header h = raw_header(type, len, seq);

	raw_write(e, &h, sizeof(h));
	if (len)
		raw_write(e, payload, len);
}
