/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include "text.h"

/* Bytes of the UTF-8 character that begins with this one; 0: none does. */
static unsigned sequence_length(unsigned char c)
{
	if (c < 0x80)
		return 1;
	if (c >= 0xc2 && c <= 0xdf)
		return 2;
	if (c >= 0xe0 && c <= 0xef)
		return 3;
	return c >= 0xf0 && c <= 0xf4 ? 4 : 0;
}

/* An overlong form, a surrogate, or a number that is no character. */
static bool is_character(uint32_t c, unsigned len)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };

	return c >= least[len] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
}

/* Length of the character at p; 0: not UTF-8.  The character itself goes to *ret. */
static unsigned decode(const unsigned char *p, uint32_t *ret)
{
	unsigned len = sequence_length(*p);
	uint32_t c;

	if (len <= 1) {
		*ret = *p;
		return len;
	}
	c = *p & (0x7fu >> len);
	for (unsigned i = 1; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	*ret = c;
	return is_character(c, len) ? len : 0;
}

static bool is_control(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

char *cli_text_clean(const char *in, char *out, size_t size)
{
	const unsigned char *p = (const unsigned char *)in;
	size_t at = 0;
	uint32_t c;

	while (*p) {
		unsigned len = decode(p, &c);
		bool good = len && !is_control(c);

		if (at + (good ? len : 1) >= size)
			break;
		if (good)
			memcpy(out + at, p, len);
		else
			out[at] = *p == '\n' || *p == '\t' ? ' ' : '?';
		at += good ? len : 1;
		p += len ? len : 1;
	}
	out[at] = 0;
	return out;
}
