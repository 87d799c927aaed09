/* SPDX-License-Identifier: Apache-2.0 */
/* The control channel against a peer that sends anything: HELLO, then whatever comes until it is refused. */
#include <assert.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "engine/base/clock.h"
#include "engine/control/control.h"
#include "fuzz.h"

static void send_script(int fd, const uint8_t *data, size_t size)
{
	static struct fuzz_message m;
	uint64_t seq = 0;

	if (size && data[0] == FUZZ_RAW) {
		fuzz_send(fd, data + 1, size - 1);
		return;
	}
	data += size ? 1 : 0;
	size -= size ? 1 : 0;
	while (fuzz_next(&data, &size, seq++, &m))
		fuzz_send(fd, m.frame, m.frame_len);
}

static void receive_all(struct lm_control *c)
{
	struct lm_error err = { 0 };
	struct lm_msg msg;
	char software[32];
	int r = lm_control_hello(c, lm_deadline_after(LM_NS_PER_S), software, &err);

	while (!r) {
		r = lm_control_recv(c, &msg, lm_deadline_after(LM_NS_PER_S), &err);
		if (r)
			break;
		assert(msg.type > 0 && msg.type < LM_MSG_TYPES);
		assert(msg.type != LM_MSG_PING && msg.type != LM_MSG_PONG && msg.type != LM_MSG_ABORT);
		assert(msg.len <= LM_WIRE_PAYLOAD_MAX);
		for (uint32_t i = 0; i < msg.len; i++)
			err.code += msg.payload[i]; /* all of it can be read */
	}
	assert(c->rtt_ns >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct lm_control c;
	struct lm_stream *s;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		abort();
	if (lm_stream_adopt(pair[0], false, &s, NULL) || lm_control_open(&c, s, -1, NULL))
		abort();
	send_script(pair[1], data, size);
	shutdown(pair[1], SHUT_WR);
	receive_all(&c);
	lm_control_close(&c);
	close(pair[1]);
	return 0;
}
