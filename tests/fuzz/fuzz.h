/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzz targets share.
 *
 * Targets that speak the control protocol read their input as a script, because a
 * fuzzer would never guess sequence numbers:
 *
 *	byte 0		FUZZ_RAW: the rest is sent as it is.  Else messages follow:
 *	u8 type, u16 length (little-endian), payload
 *
 * Each gets a right header.  The type's top bit makes the header wrong: the first
 * byte of the payload is then added to its byte number `length % 24`.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

#define FUZZ_RAW 1

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Takes the next message of a script; false at its end. */
struct fuzz_message {
	unsigned type;
	const uint8_t *payload;
	size_t len;
	uint8_t frame[24 + 65536];
	size_t frame_len;
};
_Bool fuzz_next(const uint8_t **data, size_t *size, uint64_t seq, struct fuzz_message *ret);

/* Send what fits into the socket, all of it or not. */
void fuzz_send(int fd, const void *p, size_t len);

#endif
