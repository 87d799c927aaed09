/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include "fuzz.h"
#include "engine/control/wire.h"

static void header_put(struct fuzz_message *m, uint64_t seq)
{
	struct lm_wire_header h = {
		.magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16((uint16_t)(m->type & 0x7f)),
		.len = lm_le32((uint32_t)m->len), .seq = lm_le64(seq),
	};

	memcpy(m->frame, &h, sizeof(h));
	if (m->type & 0x80 && m->len)
		m->frame[m->len % sizeof(h)] = (uint8_t)(m->frame[m->len % sizeof(h)] + m->payload[0]);
}

bool fuzz_next(const uint8_t **data, size_t *size, uint64_t seq, struct fuzz_message *ret)
{
	if (*size < 3)
		return false;
	ret->type = (*data)[0];
	ret->len = (size_t)((*data)[1] | (*data)[2] << 8);
	if (ret->len > *size - 3)
		ret->len = *size - 3;
	ret->payload = *data + 3;
	header_put(ret, seq);
	memcpy(ret->frame + sizeof(struct lm_wire_header), ret->payload, ret->len);
	ret->frame_len = sizeof(struct lm_wire_header) + ret->len;
	*data += 3 + ret->len;
	*size -= 3 + ret->len;
	return true;
}

void fuzz_send(int fd, const void *p, size_t len)
{
	if (len && send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return; /* the other end has hung up, or is full: what it has must do */
}
