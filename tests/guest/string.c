/* SPDX-License-Identifier: Apache-2.0 */
/* What compilers call without being asked, even for freestanding code. */
#include <stddef.h>

void *memset(void *to, int value, size_t len);
void *memcpy(void *to, const void *from, size_t len);

void *memset(void *to, int value, size_t len)
{
	void *at = to;

	__asm__ volatile("rep stosb"
			 : "+D"(at), "+c"(len) : "a"(value) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, size_t len)
{
	void *at = to;

	__asm__ volatile("rep movsb"
			 : "+D"(at), "+S"(from), "+c"(len) : : "memory");
	return to;
}
