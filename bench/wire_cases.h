/* SPDX-License-Identifier: Apache-2.0 */
/* Messages to encode and decode; in C, because the engine's inner headers are not C++. */
#ifndef WIRE_CASES_H
#define WIRE_CASES_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct wire_case {
	const char *name;
	void (*prepare)(void);  /* once, before the others */
	size_t (*encode)(void); /* bytes of the payload */
	int (*decode)(void);    /* of what was encoded last; 0 */
};

extern const struct wire_case wire_cases[]; /* ends with a NULL name */

#ifdef __cplusplus
}
#endif
#endif
