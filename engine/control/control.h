/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control channel: framed messages (wire.h) over one byte stream.
 *
 * lm_control_send() may be called by any thread; everything else belongs to the
 * session's thread.  PING, PONG and ABORT are legal in every state and are dealt
 * with here: a caller of lm_control_recv() never sees them.  After any error but
 * -ETIMEDOUT at a message boundary the channel is of no further use.
 */
#ifndef LM_CONTROL_H
#define LM_CONTROL_H

#include <pthread.h>
#include "engine/net/stream.h"
#include "wire.h"

struct lm_msg {
	enum lm_msg_type type;
	uint32_t len;
	const uint8_t *payload; /* until the next receive */
};

struct lm_control {
	struct lm_stream *stream; /* owned */
	int cancel_fd;
	/* Under send_mutex: */
	pthread_mutex_t send_mutex;
	uint64_t send_seq;
	bool send_broken;
	/* Session's thread: */
	uint64_t recv_seq;
	int64_t last_heard_ns;
	bool peer_aborted; /* an ABORT came in */
	uint32_t features; /* LM_HELLO_* of the peer; 0 before HELLO */
	int64_t rtt_ns; /* smallest round trip seen; 0: none yet */
	uint8_t *buf;   /* payload of the last message received */
	struct lm_msg held; /* put back, if is_held */
	bool is_held;
};

int lm_control_open(struct lm_control *c, struct lm_stream *stream, int cancel_fd, struct lm_error *err);
void lm_control_close(struct lm_control *c); /* takes a zeroed one */

/*
 * Send one message.  An error means that the peer did not get the whole of it and
 * never will: it cannot act on it.
 */
int lm_control_send(struct lm_control *c, enum lm_msg_type type, const void *payload, size_t len,
		    int64_t deadline_ns, struct lm_error *err);
int lm_control_send_abort(struct lm_control *c, const struct lm_error *why, int64_t deadline_ns);
int lm_control_ping(struct lm_control *c, int64_t deadline_ns, struct lm_error *err);

/* Next message of interest.  -ETIMEDOUT when none began before the deadline. */
int lm_control_recv(struct lm_control *c, struct lm_msg *msg, int64_t deadline_ns, struct lm_error *err);
/* The next message must be of this type. */
int lm_control_expect(struct lm_control *c, enum lm_msg_type type, struct lm_msg *msg,
		      int64_t deadline_ns, struct lm_error *err);
/*
 * The same two for a peer that may be busy (with its memory, its VM, its storage) and pings meanwhile: they
 * wait while it gives a sign of life at least every silence_ns, at most until limit_ns.
 */
int lm_control_recv_patient(struct lm_control *c, struct lm_msg *msg, int64_t silence_ns, int64_t limit_ns,
			    struct lm_error *err);
int lm_control_expect_patient(struct lm_control *c, enum lm_msg_type type, struct lm_msg *msg, int64_t silence_ns,
			      int64_t limit_ns, struct lm_error *err);
/* Exchange HELLOs; both sides call it first. */
int lm_control_hello(struct lm_control *c, int64_t deadline_ns, char software[static 32], struct lm_error *err);
/* Handle what is there without waiting: 1 a message of interest is in *msg, 0 nothing, or an error. */
int lm_control_try_recv(struct lm_control *c, struct lm_msg *msg, struct lm_error *err);
/*
 * The next lm_control_recv() returns the last message once more.  Until then poll() on the descriptor
 * does not show it.
 */
void lm_control_put_back(struct lm_control *c, const struct lm_msg *msg);
int lm_control_fd(const struct lm_control *c);

#endif
