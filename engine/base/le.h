/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Little-endian integers for the wire.  They are structs, so that a value which
 * was not converted does not compile, and bytes, so that they need no alignment.
 */
#ifndef LM_LE_H
#define LM_LE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

struct le16 { uint8_t b[2]; };
struct le32 { uint8_t b[4]; };
struct le64 { uint8_t b[8]; };

static inline uint16_t lm_le16_get(struct le16 v)
{
	uint16_t x;

	memcpy(&x, v.b, sizeof(x));
	return le16toh(x);
}

static inline uint32_t lm_le32_get(struct le32 v)
{
	uint32_t x;

	memcpy(&x, v.b, sizeof(x));
	return le32toh(x);
}

static inline uint64_t lm_le64_get(struct le64 v)
{
	uint64_t x;

	memcpy(&x, v.b, sizeof(x));
	return le64toh(x);
}

static inline struct le16 lm_le16(uint16_t v)
{
	struct le16 ret;

	v = htole16(v);
	memcpy(ret.b, &v, sizeof(v));
	return ret;
}

static inline struct le32 lm_le32(uint32_t v)
{
	struct le32 ret;

	v = htole32(v);
	memcpy(ret.b, &v, sizeof(v));
	return ret;
}

static inline struct le64 lm_le64(uint64_t v)
{
	struct le64 ret;

	v = htole64(v);
	memcpy(ret.b, &v, sizeof(v));
	return ret;
}

#endif
